"""Whether a teacher's labels are those that were made elsewhere, by an engine of which nothing is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from labelstore.command.console import quantity
from labelstore.encodings.fidelity import agreement

MIN_COSINE, MIN_TOP1 = 0.99, 0.9

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Alike:
    """The difference between two sets of logits of the same crops.

    Attributes:
        crops: number of crops.
        cosine: mean cosine of their labels, without what all logits of a label have in common.
        top1: share of crops with the same first choice.
        largest: largest difference.
    """

    crops: int
    cosine: float
    top1: float
    largest: float

    @classmethod
    def of(cls, theirs: Float32Array, ours: Float32Array) -> Alike:
        """Of logits ``[n, C]``."""
        return cls(
            len(ours),
            float(cosines(theirs, ours).mean()),
            float(agreement(theirs, ours).mean()),
            float(np.abs(theirs - ours).max()),
        )

    @property
    def ok(self) -> bool:
        """Whether they can be one teacher's."""
        return self.cosine >= MIN_COSINE and self.top1 >= MIN_TOP1

    @property
    def text(self) -> str:
        """The figures, and what is expected of them."""
        return (
            f"{quantity(self.crops, 'crop')} rendered and labelled again; cosine with the labels {self.cosine:.5f} "
            f"(at least "
            f"{MIN_COSINE}), same first choice on {100 * self.top1:.1f} % (at least {100 * MIN_TOP1:.0f} %), largest "
            f"difference {self.largest:.3g}"
        )


def cosines(theirs: Float32Array, ours: Float32Array) -> npt.NDArray[np.float64]:
    """Cosine of logits ``[n, C]`` without what all logits of a label have in common, row by row: float64 ``[n]``."""
    left, right = (logits - logits.mean(axis=1, keepdims=True, dtype=np.float64) for logits in (theirs, ours))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: npt.NDArray[np.float64] = (left * right).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return found


def softmax(logits: Float32Array) -> Float32Array:
    """Probabilities of logits ``[n, C]``."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Float32Array = shifted / shifted.sum(axis=1, keepdims=True)
    return found


def known_alike(theirs: Float32Array, ours: Float32Array, masked: float) -> Alike:
    """Compare labels with content topk: as probabilities, in the columns that are not masked."""
    known = theirs > masked
    return Alike.of(softmax(theirs), softmax(np.where(known, ours, np.float32(masked))))
