"""`train --phase`: a sequence of losses, each for some epochs. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from labelstore.command.flags import meant
from labelstore.errors import InputError
from trainer.choices import LossSpec
from trainer.loss_table import LOSSES


@dataclass(frozen=True, slots=True)
class Phase:
    """Consecutive epochs of a run with the same loss.

    Attributes:
        loss: the loss and its numbers.
        epochs: number of epochs.
    """

    loss: LossSpec
    epochs: int


def phases_of(text: str, numbers: LossSpec) -> tuple[Phase, ...]:
    """The phases of ``LOSS:EPOCHS,LOSS:EPOCHS,...``.

    Args:
        text: value of the flag; a loss is one of the table, or ``module:attribute``.
        numbers: numbers of all losses; each loss uses its own.

    Raises:
        InputError: when the text is not valid.
    """
    phases = []
    for part in text.split(","):
        name, _, count = part.strip().rpartition(":")
        if not (count.isdecimal() and int(count) >= 1 and (name in LOSSES or ":" in name)):
            raise InputError(
                f"--phase: expected LOSS:EPOCHS, several of them with commas between, such as kl:75,ce:150,kl:75, with "
                f"losses of {', '.join(LOSSES)} or module:attribute, found {part.strip()!r}{meant(name, LOSSES)}"
            )
        phases.append(Phase(replace(numbers, name=name), int(count)))
    if len(phases) == 1:
        raise InputError(f"--phase {text}: expected several phases, found one; give --loss {phases[0].loss.name}")
    for before, after in pairwise(phases):
        if before.loss == after.loss:
            raise InputError(
                f"--phase {text}: {after.loss.name} follows itself, which is one phase; "
                f"give {after.loss.name}:{before.epochs + after.epochs}"
            )
    return tuple(phases)


def plays_fresh(phases: Sequence[Phase]) -> bool:
    """Whether some phases, but not all, read no labels and so play fresh crops."""
    return len({phase.loss.reads_labels for phase in phases}) > 1


def phase_at(phases: Sequence[Phase], epoch: int) -> int:
    """The number of the phase of an epoch (from 0); epochs after the last phase belong to it."""
    end = 0
    for number, phase in enumerate(phases):
        end += phase.epochs
        if epoch < end:
            return number
    return len(phases) - 1
