"""Whether a store contains what a recipe trains on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from labelstore.errors import MismatchError
from labelstore.spec import Identity, first_difference
from pipeline.recipes import recipe_of
from pipeline.recipes.setting import Setting

FIRST = ("crop", "mix", "augment")  # compared first: other differences follow from these
NORMALISATION = ("mean", "std")  # of the teacher; the other flags are the plan's


def require_store(name: str, identity: Identity, student: str) -> None:
    """Refuse a store that does not contain what a recipe trains on.

    Raises:
        MismatchError: names the first difference, and the recipe's two halves.
    """
    recipe = recipe_of(name)
    flags = recipe.build(Setting.of(identity, student))
    if stored_in := getattr(recipe, "stored_in", None):
        flags |= stored_in(len(identity.classes), identity.require("plan"))
    from pipeline.plan.plan import PlanSpec  # takes seconds to import

    plain = asdict(PlanSpec(size=identity.size))
    wanted: dict[str, Any] = {**plain, **flags}
    teacher = identity.require("teacher")
    stored = {**plain, **identity.require("plan"), **{key: teacher[key] for key in NORMALISATION}}
    names = dict.fromkeys((*FIRST, *flags, "mix_per"))
    difference = first_difference({key: wanted[key] for key in names}, {key: stored[key] for key in names})
    if difference:
        place, wants, has = difference
        raise MismatchError(
            f"--recipe {name} trains on a store with {place} {wants!r}, this one has {has!r}; build one with "
            f"`pipeline build --recipe {name}` and nothing in its place, or leave --recipe out and give the values of "
            f"its other half as flags"
        )
