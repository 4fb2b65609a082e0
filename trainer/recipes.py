"""`train --recipe`: the flags of a published protocol, and a description of what is in effect.

The protocols themselves, and their requirements on stores, are in `pipeline.recipes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from labelstore.command.cache_options import StoreCacheOptions
from labelstore.command.console import quantity
from labelstore.command.flags import flags_of as flags_of_class
from pipeline.build.recipe import OWNED as OWNED_CROPS
from pipeline.build.recipe import OWNED_LABELLER
from pipeline.images.opening import open_images
from pipeline.images.source_table import options_of
from pipeline.launch.options import LaunchOptions
from pipeline.plan.spec import CropOptions
from pipeline.recipes import recipe_of
from pipeline.recipes.flags import describe, given, spelled, without_replaced, words
from pipeline.recipes.setting import Flags, Setting, Value
from pipeline.recipes.stores import NORMALISATION
from trainer.choices import LossSpec
from trainer.config import LOSS_NUMBERS, TrainConfig
from trainer.order import UNBOUNDED
from trainer.phases import phases_of, plays_fresh
from trainer.run_config import SCHEDULE_NUMBERS
from trainer.temperatures import TemperatureOptions

BESIDE = (
    "--store",
    "--images",
    "--images-format",
    "--class-names",
    "--labels",
    "--teacher",
    "--epochs",
    "--size",
)  # flags on which numbers of recipes depend
CROPS = (*flags_of_class(CropOptions),)
IDLE = tuple(name for names in OWNED_CROPS.values() for name in names if name != "mix_per")
# Flags that depend on the value of another flag; they are left out if the user gives it another value.
TEMPERATURES = tuple(flags_of_class(TemperatureOptions))
OWNED = {
    "loss": (*LOSS_NUMBERS.values(), *TEMPERATURES, "phase"),
    "phase": (*LOSS_NUMBERS.values(), *TEMPERATURES, "loss"),
    "optimizer": ("lr", "weight_decay", "optimizer_args"),
    "schedule": tuple(SCHEDULE_NUMBERS.values()),
}
MERGED = ("student_args", "optimizer_args")
IMAGE_OPTIONS = ("images_format", "class_names", "test_images_format", "test_class_names")
NO_PROTOCOL = (
    *flags_of_class(LaunchOptions), *flags_of_class(StoreCacheOptions),
    "recipe", "store", "images", "run_folder", "json", "anyway", "test_images", *IMAGE_OPTIONS,
    "checkpoint_every", "checkpoint_steps", "log_every", "tensorboard", "keep_every", "keep", "seeds",
)  # fmt: skip


def typed(arguments: Sequence[str]) -> list[str]:
    """Put the flags of the recipe before the arguments of `train`, so that given flags override them.

    If the user gives another loss, optimiser or schedule, the recipe's flags of it are left out. JSON arguments are
    merged.

    Raises:
        GiftwrapError: when the recipe does not exist, or the store cannot be opened.
    """
    choices = {**OWNED, **OWNED_CROPS, **OWNED_LABELLER}
    also = (*BESIDE, *(f"--{choice}" for choice in choices), *(spelled_out(name) for name in MERGED))
    known = given(arguments, "train", "--recipe", "--student", also=also)
    setting = setting_of(known) if known else None
    if known is None or setting is None:
        return list(arguments)
    labels, store = known["--labels"], known["--store"]
    flags = without_replaced(flags_of(known["--recipe"], setting, labels, store, fresh=True), known, choices)
    phase = known["--phase"] or str(flags.get("phase", ""))
    if replays(flags, labels, store) and not (phase and plays_fresh(phases_of(phase, LossSpec()))):
        flags = {name: value for name, value in flags.items() if name not in CROPS}
    merged = {name: merge(flags[name], known[spelled_out(name)]) for name in MERGED if name in flags}
    last = words({name: value for name, value in merged.items() if known[spelled_out(name)]})
    return ["train", *words(flags), *arguments[1:], *last]


def setting_of(known: Mapping[str, str]) -> Setting | None:
    """The inputs of a recipe's formulas; None if flags are missing or not numbers, which the command refuses later.

    Args:
        known: the values of the flags that are given.
    """
    epochs, side = (int(text) if (text := known[flag] or "").isdecimal() else None for flag in ("--epochs", "--size"))
    if known["--store"]:
        from labelstore.store import LabelStore  # imports numpy

        return Setting.of(LabelStore.open(known["--store"], follow=True).identity, known["--student"], epochs, side)
    if not known["--images"] or side is None:
        return None
    listing = open_images(
        Path(known["--images"]), "bytes", options=options_of(known)
    ).listing  # only counted, so the order does not matter
    return Setting(
        images=len(listing.names),
        classes=len(listing.classes),
        size=side,
        student=known["--student"],
        teacher=known["--teacher"] or known["--student"],
        epochs=epochs,
    )


def flags_of(recipe: str, setting: Setting, labels: str | None, store: Path | str | None, *, fresh: bool) -> Flags:
    """The flags of a recipe. Fresh crops need both halves; with a store, the normalisation is that of its labels.

    Args:
        recipe: its name.
        setting: the inputs of its formulas.
        labels: value of --labels, if given.
        store: of the run.
        fresh: whether there are fresh crops besides those of a store.
    """
    found = recipe_of(recipe)
    student = found.train(setting)
    if replays(student, labels, store) and not fresh:
        return student
    plan: Flags = getattr(found, "fresh", found.build)(setting)
    crops = {name: value for name, value in plan.items() if not store or name not in NORMALISATION}
    return {**crops, **student}


def replays(student: Flags, labels: str | None, store: Path | str | None) -> bool:
    """Whether a run replays the crops of a store."""
    return bool(store) and (labels or student.get("labels")) != "image"


def spelled_out(name: str) -> str:
    """The flag of a field."""
    return f"--{spelled(name)}"


def merge(ours: Value, theirs: str | None) -> Value:
    """The JSON object of a recipe, updated with the given one; other JSON is left for the command to refuse."""
    try:
        values = json.loads(theirs or "{}")
    except ValueError:
        return theirs
    return json.dumps({**json.loads(str(ours)), **values}) if isinstance(values, dict) else theirs


def describe_recipe(config: TrainConfig, setting: Setting, views: int) -> str:
    """Describe a run's recipe: its values, overrides, other flags in effect, and differences from the paper."""
    name = config.recipe or ""
    side = setting.crop_side
    recipe = recipe_of(name)
    flags = flags_of(name, setting, config.labels.source, config.store, fresh=config.hard_phases)
    used = {**config.in_effect(), "size": side, "test_resize": config.test_resize or side, "views": views}
    if config.draws_crops:
        plan = config.plan(side).to_json()
        used = {key: value for key, value in used.items() if key not in IDLE or key in plan}
    if views == UNBOUNDED:
        del used["views"]
    text = describe(name, flags, used, NO_PROTOCOL, f"{recipe.build_differs}; {recipe.train_differs}")
    more = (
        f"; the paper draws fresh crops for each epoch: `pipeline build --views {config.epochs}` makes as many"
        if config.epochs > views and not config.fresh and not getattr(recipe, "few_views", False)
        else ""
    )
    return f"{text}{more}"


def plays(epochs: int, views: int) -> str:
    """How often each view of a store is played, as text."""
    times, more = divmod(epochs, views)
    counts = [(views - more, times), (more, times + 1)]
    parts = [f"{count:,} {often(number)}" for count, number in counts if count and (number or not times)]
    if not more:
        parts = [f"each {often(times)}"]
    return f"{quantity(epochs, 'epoch')} over {quantity(views, 'view')}: {', '.join(parts)}"


def often(number: int) -> str:
    """A number of times as text."""
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number:,} times")
