"""`topk=K`: keep the K largest probabilities of a label, zero the others, and do not renormalise.

As in sunnytqin/no-distillation, softlabel/nodistill.py, lines 303-312. Ties go to the lowest columns.
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
check = partial(check_count, "topk")


def make(text: str, columns: LabelColumns) -> Relabel:
    """The operator; InputError if K exceeds the number of columns."""
    return partial(largest, kept=columns.require("topk", int(text)))


def largest(t: Tensor, y: Tensor, y2: Tensor | None, lam: Tensor | None, *, kept: int) -> Tensor:
    """The ``kept`` largest values of each row of ``t [n, C]``, and 0 elsewhere."""
    del y, y2, lam
    order = t.argsort(dim=1, descending=True, stable=True)[:, :kept]
    return t.new_zeros(t.shape).scatter_(1, order, t.gather(1, order))
