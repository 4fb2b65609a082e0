"""`drop=CLASS,...`: the columns of some classes are 0 in every label; nothing is renormalised.

In sunnytqin/no-distillation the images of a dropped class keep their labels: that is `drop-others`.
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
check = partial(check_classes, "drop")


def make(text: str, columns: LabelColumns) -> Relabel:
    """The operator; InputError for unknown classes."""
    return partial(zeroed, columns=columns.named("drop", text))


def zeroed(t: Tensor, y: Tensor, y2: Tensor | None, lam: Tensor | None, *, columns: list[int]) -> Tensor:
    """``t [n, C]`` with 0 in these columns."""
    import torch  # here, so that command lines are checked without it

    del y, y2, lam
    return t.index_fill(1, torch.tensor(columns, device=t.device), 0)
