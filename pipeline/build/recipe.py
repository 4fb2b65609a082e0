"""`build --recipe`: the flags of a published protocol, and a description of what is in effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.command.flags import flags_of, values_of
from labelstore.errors import GiftwrapError
from pipeline.config import BuildConfig
from pipeline.images.opening import open_images
from pipeline.images.source_table import options_of
from pipeline.launch.options import LaunchOptions
from pipeline.recipes import recipe_of
from pipeline.recipes.flags import describe, given, without_replaced, words
from pipeline.recipes.setting import Setting, listed

if TYPE_CHECKING:
    from pipeline.images.manifest import Manifest

# Flags that depend on the value of another flag; they are left out if the user gives it another value.
OWNED = {"crop": ("scale", "ratio", "pad", "resize", "factor"), "mix": ("alpha", "group", "mix_per")}
# A user's labeller defines its normalisation.
OWNED_LABELLER: dict[str, tuple[str, ...]] = {"labeller": ("mean", "std")}
# Flags that affect neither pixels nor labels, or that are printed elsewhere.
NO_PROTOCOL = (
    "recipe", "images", "images_format", "class_names", "store", "progress_log", "metrics_port", "metrics_host", "json",
    "dry_run", "rehash", "take_over", *flags_of(LaunchOptions),
)  # fmt: skip
LATER = ("mix_per", "augment")  # in effect even at their defaults, which a plan's identity leaves out


def typed(arguments: Sequence[str]) -> list[str]:
    """Put the flags of the recipe before the arguments of `build`, so that given flags override them.

    Raises:
        GiftwrapError: when there is no such recipe, or no class folder.
    """
    known = given(
        arguments,
        "build",
        "--recipe",
        "--images",
        "--size",
        also=("--images-format", "--class-names", "--teacher", "--store", "--crop", "--mix", "--labeller"),
    )
    if known is None:
        return list(arguments)
    listing = open_images(
        Path(known["--images"]), "bytes", options=options_of(known)
    ).listing  # only counted, so the order does not matter
    if not known["--size"].isdecimal():
        return list(arguments)  # refused by the command's parser
    setting = Setting(
        images=in_store(known["--store"]) or len(listing.names),
        classes=len(listing.classes),
        size=int(known["--size"]),
        student=known["--teacher"] or "",
        teacher=known["--teacher"] or "",
    )
    flags = without_replaced(recipe_of(known["--recipe"]).build(setting), known, OWNED | OWNED_LABELLER)
    return ["build", *words(flags), *arguments[1:]]


def in_store(store: str | None) -> int:
    """Number of images of the store that is resumed or extended; 0 if there is no store yet."""
    from labelstore.store import LabelStore

    try:
        identity = LabelStore.open(store, follow=True).identity if store else None
    except (GiftwrapError, OSError):
        return 0  # the build refuses it
    return listed(identity.images, identity.skipped) if identity else 0


def describe_recipe(config: BuildConfig, manifest: Manifest) -> str:
    """Describe a build's recipe: its values, overrides, other flags in effect, and differences from the paper."""
    name, teacher = config.recipe or "", next(iter(config.teacher.names), "")
    images = listed(len(manifest), manifest.skipped)
    setting = Setting(
        images=images, classes=len(manifest.classes), size=config.crops.size, student=teacher, teacher=teacher
    )
    plan = config.crops
    used: dict[str, Any] = values_of(config)
    idle = [name for name in asdict(plan) if name not in plan.to_json() and name in used and name not in LATER]
    effective = {key: value for key, value in used.items() if key not in idle}
    recipe = recipe_of(name)
    return describe(name, recipe.build(setting), effective, NO_PROTOCOL, recipe.build_differs)
