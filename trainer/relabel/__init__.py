"""`train --relabel`: pure functions of labels on their way to the loss, one file each, applied in the order given.

A label comes as logits. An operator takes logits, or probabilities, or neither; where one takes probabilities and there
are logits, softmax comes before it. From the first operator on that gives probabilities the loss is one of
probabilities: `require_loss` names those that are not. A new operator is one new file, and one line in `OPERATORS`.

Command lines are checked without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from labelstore.command.flags import meant
from labelstore.errors import InputError
from labelstore.tables import Table
from trainer.choices import LossSpec
from trainer.loss_table import on_probabilities
from trainer.relabel import temperature
from trainer.relabel.columns import Kind, LabelColumns, Relabel

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OPERATORS", "Kind", "LabelColumns", "Operator", "Relabel", "describe", "make_relabel", "require_loss"]


class Relabelling(Protocol):
    """All operators of a run, one after the other; called as `Relabel` is, where nothing is mixed without partners."""

    def __call__(self, t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None, /) -> Tensor:
        """Labels ``[n, C]`` of labels ``t [n, C]``, which stay as they are."""


class Operator(Protocol):
    """An operator on labels, as its file implements it."""

    @property
    def argument(self) -> str:
        """What follows its name and "="; empty where nothing does."""

    @property
    def takes(self) -> Kind | None:
        """What it works on; None where it does not read the label."""

    @property
    def gives(self) -> Kind:
        """What it makes."""

    def check(self, text: str) -> None:
        """Raise InputError for an argument that it can never take."""

    def make(self, text: str, columns: LabelColumns) -> Relabel:
        """The operator for labels of these columns; InputError for an argument that does not fit them."""


OPERATORS: Table[Operator] = Table(
    {
        "topk": "trainer.relabel.topk",
        "swap": "trainer.relabel.swap",
        "temperature": "trainer.relabel.temperature",
        "drop": "trainer.relabel.drop",
        "drop-others": "trainer.relabel.drop_others",
        "soften": "trainer.relabel.soften",
        "hard": "trainer.relabel.hard",
    }
)


def known_words() -> list[str]:
    """What ``--relabel`` takes, each operator with its argument: ``topk=K``."""
    return [f"{name}={each.argument}".rstrip("=") for name, each in OPERATORS.items()]


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of ``--relabel``.

    Attributes:
        word: as it was given.
        operator: of that name.
        text: its argument; empty where it has none.
        softmax: whether it gets the softmax of the labels.
    """

    word: str
    operator: Operator
    text: str
    softmax: bool


def steps_of(words: Sequence[str]) -> list[Step]:
    """The operators that ``words`` name, in their order.

    Raises:
        InputError: there is no such operator, its argument is wrong, or it has no effect or no meaning at its place.
    """
    steps: list[Step] = []
    kind: Kind = "logits"
    for word in words:
        name, equals, text = word.partition("=")
        if name not in OPERATORS or bool(equals) != bool(OPERATORS[name].argument):
            known = ", ".join(known_words())
            raise InputError(f"--relabel: expected {known}, found {word!r}{meant(name, OPERATORS)}")
        operator = OPERATORS[name]
        operator.check(text)
        if operator.takes == "logits" and kind == "probabilities":
            raise InputError(
                f"--relabel {word}: takes logits, and {steps[-1].word} before it gives probabilities; "
                f"put it first, or leave it out"
            )
        if operator.takes is None and steps:
            raise InputError(f"--relabel {word}: replaces labels, so that {steps[-1].word} before it has no effect")
        steps.append(Step(word, operator, text, operator.takes == "probabilities" and kind == "logits"))
        kind = operator.gives
    return steps


def gives_probabilities(words: Sequence[str]) -> bool:
    """Whether labels are probabilities after these operators."""
    return any(step.operator.gives == "probabilities" for step in steps_of(words))


def require_loss(words: Sequence[str], loss: LossSpec) -> None:
    """Refuse a loss that has no meaning for labels that were changed so, or does not read them.

    Raises:
        InputError: names the loss and the operator.
    """
    for step in steps_of(words):
        if not loss.reads_labels:
            raise InputError(f"--loss {loss.name}: reads no labels, so that --relabel {step.word} has no effect")
        if step.operator.gives == "probabilities" and not loss.takes_probabilities:
            raise InputError(
                f"--loss {loss.name}: is a loss of logits, and --relabel {step.word} gives probabilities; "
                f"take {on_probabilities()}"
            )
        if step.operator is temperature and loss.any_scale:
            raise InputError(
                f"--loss {loss.name}: is the same for labels of any scale, so that --relabel {step.word} has no effect"
            )


def make_relabel(words: Sequence[str], columns: LabelColumns) -> Relabelling:
    """One function that applies the operators in their order.

    Raises:
        InputError: an operator does not fit the columns.
    """
    made = [(step.softmax, step.operator.make(step.text, columns)) for step in steps_of(words)]

    def relabel(t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None) -> Tensor:
        if not t.is_floating_point():
            raise InputError(f"relabel: expected decoded labels, found codes in {t.dtype}; leave any_scale out")
        t = t if t.dtype.itemsize >= 4 else t.float()  # half precision cannot hold a distribution
        for softmax, operator in made:
            t = operator(t.softmax(1) if softmax else t, y, y2, lam)
        return t

    return relabel


def describe(words: Sequence[str]) -> str:
    """What is done to labels, in one line for the start of a run."""
    done = [word for step in steps_of(words) for word in (*(["softmax"] if step.softmax else []), step.word)]
    kind = "probabilities" if gives_probabilities(words) else "logits"
    return f"relabel: {', then '.join(done)}; the loss compares {kind}"
