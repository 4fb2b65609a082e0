"""`train --relabel`: operators on labels before the loss: pure functions, one file each, applied in the given order.

Labels start as logits. An operator takes logits, or probabilities, or does not read the label; softmax is applied if it
takes probabilities and the label is still logits. After an operator that returns probabilities, the loss must accept
probabilities: `require_loss` checks this. A new operator is one new file, and one line in `OPERATORS`.

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
    """All operators of a run in sequence; called like `Relabel`, without partners if crops are not mixed."""

    def __call__(self, t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None, /) -> Tensor:
        """New labels ``[n, C]`` from labels ``t [n, C]``, which are not modified."""


class Operator(Protocol):
    """The interface of an operator's module."""

    @property
    def argument(self) -> str:
        """Placeholder of the argument after "="; empty if there is none."""

    @property
    def takes(self) -> Kind | None:
        """Its input; None if it does not read the label."""

    @property
    def gives(self) -> Kind:
        """Its output."""

    def check(self, text: str) -> None:
        """Raise InputError if the argument is invalid for any labels."""

    def make(self, text: str, columns: LabelColumns) -> Relabel:
        """Construct the operator for these label columns; InputError if the argument does not fit them."""


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
    """The values of ``--relabel``: each operator with its argument, such as ``topk=K``."""
    return [f"{name}={each.argument}".rstrip("=") for name, each in OPERATORS.items()]


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of ``--relabel``.

    Attributes:
        word: the text that was given.
        operator: the operator of that name.
        text: its argument; empty if it has none.
        softmax: whether softmax is applied before it.
    """

    word: str
    operator: Operator
    text: str
    softmax: bool


def steps_of(words: Sequence[str]) -> list[Step]:
    """The operators that ``words`` name, in order.

    Raises:
        InputError: there is no such operator, its argument is wrong, or it has no effect or is meaningless at its
        position.
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
    """Refuse a loss that is meaningless for labels after these operators, or does not read labels.

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
    """Construct one function that applies the operators in order.

    Raises:
        InputError: when an operator does not fit the columns.
    """
    made = [(step.softmax, step.operator.make(step.text, columns)) for step in steps_of(words)]

    def relabel(t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None) -> Tensor:
        if not t.is_floating_point():
            raise InputError(f"relabel: expected decoded labels, found codes in {t.dtype}; leave any_scale out")
        t = t if t.dtype.itemsize >= 4 else t.float()  # half precision is too coarse for a distribution
        for softmax, operator in made:
            t = operator(t.softmax(1) if softmax else t, y, y2, lam)
        return t

    return relabel


def describe(words: Sequence[str]) -> str:
    """A line about the operators, printed when a run starts."""
    done = [word for step in steps_of(words) for word in (*(["softmax"] if step.softmax else []), step.word)]
    kind = "probabilities" if gives_probabilities(words) else "logits"
    return f"relabel: {', then '.join(done)}; the loss compares {kind}"
