"""Published protocols in full, one file each, as flags of `build` and `train`; flags that are typed override them.

A file holds both halves: what a store must contain, and how a student is trained on it. A new recipe is a file and a
line in `RECIPES`; nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Protocol, TypeAlias

from labelstore.command.flags import Choices
from labelstore.errors import InputError
from labelstore.tables import Table
from pipeline.recipes.setting import Flags, Setting


class Recipe(Protocol):
    """The interface of a recipe's module.

    An optional ``stored_in`` names what its stores may have instead. An optional ``fresh`` gives the flags of a
    student's fresh crops, where they are not those of `build`. An optional ``few_views`` is true of a protocol that
    stores labels for fewer views than it has epochs.
    """

    @property
    def build_differs(self) -> str:
        """Differences of `build` from the paper."""

    @property
    def train_differs(self) -> str:
        """Differences of `train` from the paper."""

    def build(self, setting: Setting, /) -> Flags:
        """The flags of `build`."""

    def train(self, setting: Setting, /) -> Flags:
        """The flags of `train`."""


RECIPES: Table[Recipe] = Table(
    {
        "gift": "pipeline.recipes.gift",
        "rded": "pipeline.recipes.rded",
        "sre2l": "pipeline.recipes.sre2l",
        "no-distillation": "pipeline.recipes.no_distillation",
        "eccv24": "pipeline.recipes.eccv24",
        "hello": "pipeline.recipes.hello",
        "lpqld": "pipeline.recipes.lpqld",
        "hald": "pipeline.recipes.hald",
        "cim": "pipeline.recipes.cim",
        "g-vbsm": "pipeline.recipes.g_vbsm",
        "edc": "pipeline.recipes.edc",
        "delt": "pipeline.recipes.delt",
    }
)
RecipeName: TypeAlias = Annotated[str, Choices(RECIPES)]


def recipe_of(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: when there is none.
    """
    if name not in RECIPES:
        raise InputError(f"--recipe: expected one of {', '.join(RECIPES)}, found {name!r}")
    return RECIPES[name]
