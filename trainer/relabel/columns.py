"""Types and arguments of operators on labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from labelstore.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Kind: TypeAlias = Literal["logits", "probabilities"]
Relabel: TypeAlias = Callable[["Tensor", "Tensor", "Tensor | None", "Tensor | None"], "Tensor"]
"""Called as ``relabel(t, y, y2, lam)`` with labels ``t [n, C]`` and hard targets as in `trainer.losses`; returns labels
``[n, C]``, and does not modify ``t``."""


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """The columns of labels, and their classes.

    Attributes:
        count: C, the columns of a label.
        classes: names of the classes, in their order.
        of_classes: the column of each class.
    """

    count: int
    classes: Sequence[str]
    of_classes: Sequence[int]

    def named(self, operator: str, text: str) -> list[int]:
        """The columns of classes, given by name or by index, with commas between them.

        Names take precedence: if a class is called "3", "3" means that class.

        Raises:
            InputError: when there is no such class, one is given twice, or no column would be left.
        """
        found = [self._of_class(operator, word) for word in text.split(",")]
        if len(set(found)) < len(found):
            raise InputError(f"--relabel {operator}={text}: names a class twice; leave one out")
        if len(found) == self.count:
            raise InputError(
                f"--relabel {operator}={text}: leaves none of the {self.count} columns; drop fewer classes"
            )
        return found

    def _of_class(self, operator: str, word: str) -> int:
        if word in self.classes:
            return self.of_classes[list(self.classes).index(word)]
        if word.isdecimal() and int(word) < len(self.classes):
            return self.of_classes[int(word)]
        shown = ", ".join([*self.classes[:3], *(["..."] if len(self.classes) > 3 else [])])
        raise InputError(
            f"--relabel {operator}: expected classes ({shown}) or their indexes, 0 to {len(self.classes) - 1}, "
            f"found {word!r}"
        )

    def require(self, operator: str, count: int) -> int:
        """Return ``count``; InputError if it exceeds the number of columns."""
        if count > self.count:
            raise InputError(f"--relabel {operator}={count}: expected at most {self.count}, the columns of the labels")
        return count


def check_count(operator: str, text: str) -> None:
    """Raise InputError unless the text is a whole number of columns, 1 and more."""
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--relabel {operator}: expected a whole number of columns, at least 1, found {text!r}")


def check_classes(operator: str, text: str) -> None:
    """Raise InputError unless the text names classes."""
    if not all(text.split(",")):
        raise InputError(f"--relabel {operator}: expected classes with commas between them, found {text!r}")
