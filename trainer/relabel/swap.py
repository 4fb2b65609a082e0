"""`swap=K`: the K-th largest probability of a label changes places with the smallest.

As in sunnytqin/no-distillation, softlabel/nodistill.py, lines 288-301. Their text reads as if the K-th largest changed
places with the K-th smallest; their code takes the smallest, whatever K is, and so does this. Ties go to the lowest
column, for both the largest and the smallest.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from trainer.relabel.columns import LabelColumns, check_count

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.relabel.columns import Kind, Relabel

argument = "K"
takes: Kind | None = "probabilities"
gives: Kind = "probabilities"
check = partial(check_count, "swap")


def make(text: str, columns: LabelColumns) -> Relabel:
    """The operator; InputError if K exceeds the number of columns."""
    return partial(swapped, place=columns.require("swap", int(text)))


def swapped(t: Tensor, y: Tensor, y2: Tensor | None, lam: Tensor | None, *, place: int) -> Tensor:
    """``t [n, C]`` with the values of two columns of each row exchanged; ``place`` counts from 1."""
    import torch  # here, so that command lines are checked without it

    del y, y2, lam
    high = t.argsort(dim=1, descending=True, stable=True)[:, place - 1]
    pair = torch.stack([high, t.argmin(1)], 1)
    return t.scatter(1, pair, t.gather(1, pair.flip(1)))
