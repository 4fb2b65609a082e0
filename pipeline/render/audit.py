"""Whether crops rendered again are the crops that were labelled (P2)."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from labelstore.errors import MismatchError
from labelstore.spec import Json, first_difference

DIGEST_POSITIONS = 4
# How far the same crop may be off when another decoder or another filter rendered it.
MAX_MEAN_DIFFERENCE = 1.0
MAX_DIFFERENCE = 40
# How far an operator on floats may be off, elsewhere.
MAX_OPERATOR_DIFFERENCE = 1e-5

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between two renderings of the same crops, in levels of 0 to 255.

    Attributes:
        mean: mean over all values.
        maximum: of any value.
    """

    mean: float
    maximum: int


def pixels_digest(crops: Tensor | Pixels) -> str:
    """BLAKE2b-64 of the first `DIGEST_POSITIONS` crops of uint8 ``[n, S, S, 3]``, hex."""
    return blake2b(_array(crops[:DIGEST_POSITIONS]).tobytes(), digest_size=8).hexdigest()


def compare(ours: Tensor | Pixels, stored: Tensor | Pixels, stored_id: Json, our_id: Json) -> Difference:
    """Compare crops rendered now with the crops in the store.

    Args:
        ours: uint8 ``[n, S, S, 3]``, rendered now.
        stored: the same crops, as stored with their labels.
        stored_id: id of the renderer that made them.
        our_id: id of the renderer of ``ours``.

    Returns:
        How far they are apart: not at all with the same renderer.

    Raises:
        MismatchError: they differ although the renderer is the same, or by more than another renderer explains.
    """
    left, right = _array(ours), _array(stored)
    if left.shape != right.shape:
        raise MismatchError(f"audit crops: expected {list(right.shape)} as in the store, found {list(left.shape)}")
    apart = np.abs(left.astype(np.int16) - right)
    difference = Difference(mean=float(apart.mean()), maximum=int(apart.max())) if apart.size else Difference(0.0, 0)
    other = first_difference(stored_id, our_id)
    if other is None:
        expected, fits = "equal pixels from an equal renderer", difference.maximum == 0
        advice = "an image or the store has changed since its digest was taken; scan with --rehash, check the store"
    else:
        expected = f"at most {MAX_MEAN_DIFFERENCE} on average and {MAX_DIFFERENCE} anywhere from another renderer"
        fits = difference.mean <= MAX_MEAN_DIFFERENCE and difference.maximum <= MAX_DIFFERENCE
        advice = (
            f"they differ first in {other[0]}; render as the store does, or build the store again with this renderer"
        )
    if not fits:
        raise MismatchError(
            f"pixels of {len(left)} audit crops: expected {expected}; found a difference of {difference.mean:.3f} "
            f"levels on average and {difference.maximum} at most; the store's renderer is {stored_id}, this run's is "
            f"{our_id}; {advice}"
        )
    _require_alike_operators(stored_id, our_id)
    return difference


def _require_alike_operators(stored_id: Json, our_id: Json) -> None:
    """Raise MismatchError if operators on floats differ by more than rounding."""
    stored, ours = _operators(stored_id), _operators(our_id)
    for name, numbers in stored.items():
        found = ours.get(name, [])
        apart = np.abs(np.subtract(numbers, found)).max() if np.shape(numbers) == np.shape(found) else np.inf
        if not apart <= MAX_OPERATOR_DIFFERENCE:
            raise MismatchError(
                f"operator {name}: expected what the store's renderer makes of a known image, to "
                f"{MAX_OPERATOR_DIFFERENCE:g}; found a difference of {apart:g}; the store's renderer is {stored_id}, "
                f"this run's is {our_id}; take the libraries that the store was made with"
            )


def _operators(renderer: Any) -> dict[str, list[float]]:
    """The fingerprints in a renderer's id."""
    return dict(renderer.get("operators", {})) if isinstance(renderer, dict) else {}


def _array(crops: Tensor | Pixels) -> Pixels:
    """The crops as a contiguous array on the CPU."""
    return np.ascontiguousarray(crops.cpu().numpy() if isinstance(crops, Tensor) else crops)
