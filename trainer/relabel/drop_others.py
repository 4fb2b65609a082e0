"""`drop-others=CLASS,...`: the columns of some classes are 0 in the labels of images of other classes.

As in sunnytqin/no-distillation, softlabel/nodistill.py, lines 272-286 (``data_efficient_treat_label``), which drops one
class; several classes are dropped one after the other. A mixed crop keeps a column if either of its images is of that
class. Nothing is renormalised.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from trainer.relabel.columns import LabelColumns, check_classes

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.relabel.columns import Kind, Relabel

argument = "CLASS,..."
takes: Kind | None = "probabilities"
gives: Kind = "probabilities"
check = partial(check_classes, "drop-others")


def make(text: str, columns: LabelColumns) -> Relabel:
    """The operator; InputError for unknown classes."""
    return partial(zeroed, columns=columns.named("drop-others", text))


def zeroed(t: Tensor, y: Tensor, y2: Tensor | None, lam: Tensor | None, *, columns: list[int]) -> Tensor:
    """``t [n, C]`` with 0 in each of these columns, except in rows of crops that show an image of its class."""
    import torch  # here, so that command lines are checked without it

    dropped = torch.tensor(columns, device=t.device)
    shown = y[:, None] == dropped
    if y2 is not None and lam is not None:
        shown = (shown & (lam > 0)[:, None]) | ((y2[:, None] == dropped) & (lam < 1)[:, None])
    return t.index_copy(1, dropped, torch.where(shown, t[:, dropped], 0))
