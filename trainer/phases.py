"""`train --phase`: losses one after the other, each for some epochs; read by commands before torch is needed."""

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
        loss: with every number.
        epochs: how many.
    """

    loss: LossSpec
    epochs: int


def phases_of(text: str, numbers: LossSpec) -> tuple[Phase, ...]:
    """The phases of ``LOSS:EPOCHS,LOSS:EPOCHS,...``.

    Args:
        text: value of the flag; a loss is one of the table, or ``module:attribute``.
        numbers: those of the losses, of which each takes its own.

    Raises:
        InputError: names what is wrong with the text.
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
    """Whether some phases read no labels, and play fresh crops, beside others that do."""
    return len({phase.loss.reads_labels for phase in phases}) > 1


def phase_at(phases: Sequence[Phase], epoch: int) -> int:
    """Number of the phase that an epoch (from 0) belongs to; of epochs after the last one, the last phase's."""
    end = 0
    for number, phase in enumerate(phases):
        end += phase.epochs
        if epoch < end:
            return number
    return len(phases) - 1
