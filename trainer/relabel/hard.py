"""`hard`: the one-hot hard target in place of the label; for a mixed crop the weighted mean of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.relabel.columns import LabelColumns

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.relabel.columns import Kind, Relabel

argument = ""
takes: Kind | None = None
gives: Kind = "probabilities"


def check(text: str) -> None:
    """Refuse an argument."""
    del text


def make(text: str, columns: LabelColumns) -> Relabel:
    """The operator."""
    del text, columns
    return one_hot


def one_hot(t: Tensor, y: Tensor, y2: Tensor | None, lam: Tensor | None) -> Tensor:
    """``lam onehot(y) + (1 - lam) onehot(y2)``, ``[n, C]`` as ``t``."""
    own = t.new_zeros(t.shape).scatter_(1, y[:, None], 1)
    if y2 is None or lam is None:
        return own
    share = lam.to(t.dtype)[:, None]
    return share * own + (1 - share) * t.new_zeros(t.shape).scatter_(1, y2[:, None], 1)
