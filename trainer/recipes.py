"""`train --recipe`: the flags of a published protocol, and the text that lists what is in effect.

The protocols themselves, with what their stores must contain, are in `pipeline.recipes`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from labelstore.spec import Identity
from pipeline.recipes import recipe_of
from pipeline.recipes.flags import describe, given, spelled, without_replaced, words
from pipeline.recipes.setting import Setting, Value
from trainer.config import LOSS_NUMBERS, SCHEDULE_NUMBERS, TrainConfig

# Flags that belong to the choice of another flag: another choice has values of its own.
OWNED = {
    "loss": tuple(LOSS_NUMBERS.values()),
    "optimizer": ("lr", "weight_decay", "optimizer_args"),
    "schedule": tuple(SCHEDULE_NUMBERS),
}
MERGED = ("student_args", "optimizer_args")
NO_PROTOCOL = (
    "recipe", "store", "images", "run", "json", "anyway", "test_images", "checkpoint_every", "checkpoint_steps",
    "log_every", "tensorboard",
)  # fmt: skip


def typed(arguments: Sequence[str]) -> list[str]:
    """The arguments of `train` with the flags of their recipe put first, so that those that are given count.

    What belongs to a loss, optimiser or schedule in whose place another one is given is left out; JSON arguments are
    merged.

    Raises:
        GiftwrapError: when there is no such recipe, or the store does not open.
    """
    also = ("--epochs", "--size", *(f"--{choice}" for choice in OWNED), *(spelled_out(name) for name in MERGED))
    known = given(arguments, "train", "--recipe", "--store", "--student", also=also)
    if known is None:
        return list(arguments)
    from labelstore.store import LabelStore

    identity = LabelStore.open(known["--store"], follow=True).identity
    epochs, side = (int(text) if (text := known[flag] or "").isdecimal() else None for flag in ("--epochs", "--size"))
    setting = Setting.of(identity, known["--student"], epochs, side)
    flags = without_replaced(recipe_of(known["--recipe"]).train(setting), known, OWNED)
    merged = {name: merge(flags[name], known[spelled_out(name)]) for name in MERGED if name in flags}
    last = words({name: value for name, value in merged.items() if known[spelled_out(name)]})
    return ["train", *words(flags), *arguments[1:], *last]


def spelled_out(name: str) -> str:
    """A field's flag."""
    return f"--{spelled(name)}"


def merge(ours: Value, theirs: str | None) -> Value:
    """The JSON object of a recipe with what is given in its place; what is no object is left to the command."""
    try:
        values = json.loads(theirs or "{}")
    except ValueError:
        return theirs
    return json.dumps({**json.loads(str(ours)), **values}) if isinstance(values, dict) else theirs


def describe_recipe(config: TrainConfig, identity: Identity, views: int) -> str:
    """Every value of a run's recipe, what was given instead, all else in effect, and what is not reproduced."""
    name = config.recipe or ""
    side = config.size or identity.size
    recipe = recipe_of(name)
    flags = recipe.train(Setting.of(identity, config.student, config.epochs, config.size))
    used = {**config.in_effect(), "size": side, "test_resize": config.test_resize or side, "views": views}
    text = describe(name, flags, used, NO_PROTOCOL, f"{recipe.build_differs}; {recipe.train_differs}")
    more = (
        f"; the paper draws fresh crops for each epoch: `pipeline build --views {config.epochs}` makes as many"
        if config.epochs > views
        else ""
    )
    return f"{text}{more}"


def plays(epochs: int, views: int) -> str:
    """How often each view of a store is played."""
    times, more = divmod(epochs, views)
    counts = [(views - more, times), (more, times + 1)]
    parts = [f"{count:,} {often(number)}" for count, number in counts if count and (number or not times)]
    return f"{epochs:,} epochs over {views:,} views: {', '.join(parts)}"


def often(number: int) -> str:
    """How often, in words."""
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number:,} times")
