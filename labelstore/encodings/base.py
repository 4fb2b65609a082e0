"""The interface of encodings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from labelstore.errors import InputError
from labelstore.spec import Json

Logits = npt.NDArray[np.float32]
Codes = Mapping[str, npt.NDArray[Any]]
Codec = Literal["raw", "shuffle", "bitshuffle", "pcodec"]


class Pairs(NamedTuple):
    """The two images of each crop and the weight; all three of the same shape ``[...]``.

    Attributes:
        images: index of the crop's own image, int64.
        partners: index of the image that is mixed into it, int64; any where the weight is 1.
        weights: weight of the crop's own image, float64.
    """

    images: npt.NDArray[np.int64]
    partners: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]

    @classmethod
    def unmixed(cls, images: npt.NDArray[np.integer[Any]]) -> Pairs:
        """Crops that show one image each."""
        own = images.astype(np.int64)
        return cls(own, own, np.ones(own.shape))

    def take(self, part: Any) -> Pairs:
        """The pairs at ``part``."""
        return Pairs(self.images[part], self.partners[part], self.weights[part])

    def flat(self) -> Pairs:
        """The same pairs ``[n]``."""
        return Pairs(self.images.reshape(-1), self.partners.reshape(-1), self.weights.reshape(-1))


@dataclass(frozen=True, slots=True)
class CodeArray:
    """One array of codes.

    Attributes:
        name: its name in the store.
        dtype: a numpy dtype name.
        fill: what a row that was never written reads as.
        width: codes in a row; None if a row is a single code, without an axis.
        codec: how its inner chunks are compressed.
        planar: stored as ``[V, width, N]`` in chunks of a few codes of many rows, else ``[V, N, width]``.
        axis: name of the axis of a row's codes, if they are not planar.
    """

    name: str
    dtype: str
    fill: int | str
    width: int | None
    codec: Codec
    planar: bool = False
    axis: str = "class"


class Bands(NamedTuple):
    """The least fidelity, the largest mean KL at temperatures 1 and 20, the least top-1 agreement."""

    fidelity: float
    kl_1: float
    kl_20: float
    top1: float

    def kept(self, fidelity: float, kl_1: float, kl_20: float, top1: float, rows: int) -> bool:
        """Whether the means over ``rows`` labels lie within; of few labels, a share of one may be missed."""
        hits = math.floor(self.top1 * rows) / max(rows, 1)
        return fidelity >= self.fidelity and kl_1 <= self.kl_1 and kl_20 <= self.kl_20 and top1 >= hits


class Encoding(Protocol):
    """Turns logits into codes and back, row by row.

    Attributes:
        name: as the table of encodings names it.
        codec: how its codes are compressed, as ``--codec`` names it.
        arrays: the arrays of codes; the first is ``labels``.
        limit: the largest magnitude that a logit may have.
        needs_calibration: whether it codes only after a calibration, from which it predicts labels: its codes then
            depend on the pairs. Where it needs none, any pairs will do.
        scaled: whether each row of ``labels`` is proportional to the logits; what else ``scales`` may hold, an
            offset or masked values, is for the decoder to look at.
        bands: limits for the quality of its labels; None if they follow from the requested fidelity.
        advice: what to do where labels miss the bands, in words.
        least_columns: the fewest columns of a label that it takes.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def codec(self) -> str: ...  # noqa: D102
    @property
    def arrays(self) -> tuple[CodeArray, ...]: ...  # noqa: D102
    @property
    def limit(self) -> float: ...  # noqa: D102
    @property
    def needs_calibration(self) -> bool: ...  # noqa: D102
    @property
    def scaled(self) -> bool: ...  # noqa: D102
    @property
    def bands(self) -> Bands | None: ...  # noqa: D102
    @property
    def advice(self) -> str: ...  # noqa: D102
    @property
    def least_columns(self) -> int: ...  # noqa: D102

    @staticmethod
    def label_bytes(columns: int) -> float | None:
        """About what a label of so many columns takes in bytes; None if that also depends on a calibration."""
        ...

    def to_json(self) -> dict[str, Json]:
        """Name and parameters, as the store's identity keeps them."""
        ...

    def encode(self, logits: Logits, pairs: Pairs) -> dict[str, npt.NDArray[Any]]:
        """Codes of float32 ``[..., C]`` within the limit: for each of ``arrays`` ``[...]`` or ``[..., r]``."""
        ...

    def decode(self, codes: Codes, pairs: Pairs) -> Logits:
        """Logits of codes, float32 ``[..., C]``."""
        ...

    def current(self, codes: Codes) -> Codes:
        """Stored codes as the current format has them, for those who decode or store them by it."""
        ...


class EncodingClass(Protocol):
    """An entry of the table of encodings: the class, with those attributes that need no columns."""

    def __call__(self, *args: Any, **kwargs: Any) -> Encoding: ...  # noqa: D102
    @property
    def bands(self) -> Bands | None: ...  # noqa: D102
    @property
    def advice(self) -> str: ...  # noqa: D102
    @property
    def least_columns(self) -> int: ...  # noqa: D102

    def label_bytes(self, columns: int, /) -> float | None: ...  # noqa: D102


def require_codec(name: str, codec: str, codecs: tuple[str, ...]) -> None:
    """Refuse a codec that the encoding called ``name`` does not come with."""
    if codec not in codecs:
        raise InputError(f"codec of {name}: expected {' or '.join(codecs)}, found {codec!r}")
