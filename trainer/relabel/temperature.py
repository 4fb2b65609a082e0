"""`temperature=T`: logits over T, so that T above 1 softens and T below 1 sharpens.

sunnytqin/no-distillation multiplies: its ``--temp`` is 1 / T.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from labelstore.errors import InputError
from trainer.relabel.columns import LabelColumns

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.relabel.columns import Kind, Relabel

argument = "T"
takes: Kind | None = "logits"
gives: Kind = "logits"


def check(text: str) -> None:
    """Raise InputError unless the text is a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"--relabel temperature: expected a number > 0, found {text!r}")


def make(text: str, columns: LabelColumns) -> Relabel:
    """The operator."""
    del columns
    return partial(divided, temperature=float(text))


def divided(t: Tensor, y: Tensor, y2: Tensor | None, lam: Tensor | None, *, temperature: float) -> Tensor:
    """``t / temperature``, ``[n, C]``."""
    del y, y2, lam
    return t / temperature
