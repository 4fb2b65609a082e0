"""Defaults of a build: the teacher's normalisation and arguments, and the label encoding."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from labelstore.command.console import Console
from labelstore.encoding_table import ENCODINGS
from labelstore.encodings import make_encoding
from labelstore.encodings.int8 import masked_value
from labelstore.spec import Json
from labelstore.store import LabelStore
from pipeline.build import choosing
from pipeline.build.labelling import first_labels
from pipeline.config import BuildConfig, EngineOptions, TeacherOptions
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD, require_normalisation
from pipeline.networks.settling import differences, normalisation, require_network
from pipeline.networks.trained import trained_with
from pipeline.plan.plan import Plan
from pipeline.render import Renderer
from pipeline.render.options import RenderOptions
from pipeline.teacher.labeller import Labeller

UNKNOWN = "ImageNet's: the weights name none; see --mean, --std"


def encoding_of(
    config: BuildConfig,
    plan: Plan,
    renderer: Renderer,
    labeller: Labeller,
    console: Console,
    store: LabelStore | None = None,
) -> dict[str, Json]:
    """The label encoding: that of the store; for a new store, that of the flags, or the smaller of two.

    The masked value of ``int8`` is determined from the first labels of a new store, except in a dry run.
    """
    stored = store.identity.encoding if store else None
    asked = config.encoding or config.codes.implied_encoding
    if stored is not None:
        if asked is None and config.codes.codec is None:
            return dict(stored)
        name = asked or str(stored["name"])
    else:
        name = choose_encoding(config, plan.images, labeller.columns, console)
    parameters = config.codes.parameters(name)
    if name == "int8":
        if stored is not None:
            masked: Json = stored.get("masked")
        else:
            masked = None if config.dry_run else masked_value(first_labels(plan, renderer, labeller))
        parameters |= {} if masked is None else {"masked": masked}
    return make_encoding(parameters, labeller.columns).to_json()


def choose_encoding(config: BuildConfig, images: int, columns: int, console: Console) -> str:
    """Choose the encoding of a new store by flags, or the smaller of ``int8`` and ``transform``; prints its size."""
    labels = images * config.views
    found = choosing.estimates(
        columns,
        images,
        labels,
        fidelity=config.codes.fidelity,
        mixed=config.crops.mix != "none",
        mean_steps=config.codes.mean_steps,
    )
    asked = config.encoding or config.codes.implied_encoding
    least = ENCODINGS["transform"].least_columns
    why = "the smaller one" if "transform" in found else f"transform needs {least} columns"
    if asked:
        why = "--encoding" if config.encoding else "by its flags"
    name = asked or choosing.smaller(found)
    if name in found:  # otherwise refused when it is constructed
        console.line(choosing.describe(name, found, images, columns, why))
    return name


def settled(config: BuildConfig, console: Console) -> BuildConfig:
    """Resolve the teacher's flags that are left out from the record of its weights.

    Raises:
        InputError: when the weights are of another network than the flags name, or of several that differ.
    """
    found = settle_teacher(config.teacher, config.crops.size, config.crops.interpolation)
    console.report(found.notes, found.warnings)
    return replace(config, teacher=found.teacher)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A teacher's flags, with all defaults resolved.

    Attributes:
        teacher: the flags.
        notes: lines to print about the defaults.
        warnings: where flags differ from the record of the weights.
    """

    teacher: TeacherOptions
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def settle_teacher(given: TeacherOptions, size: int, interpolation: str) -> Settled:
    """Resolve a teacher's flags that are left out from the record of its weights.

    Args:
        given: the flags.
        size: side of the crops that it labels.
        interpolation: filter with which they are resized.

    Raises:
        InputError: when the weights are of another network than the flags name, or of several that differ.
    """
    require_normalisation(given.mean or (), given.std or ())
    trained, args = [], []
    for member in given.spec(EngineOptions(), RenderOptions()).members:
        own = member.args if given.args else None
        found = trained_with(member.name, own or {}, member.weights)
        trained.append(found)
        args.append(json.dumps(require_network(found, member.name, own, ("--teacher", "--teacher-args"))[1]))
    normal = normalisation({"mean": given.mean, "std": given.std}, trained)
    normal = normal.or_else(IMAGENET_MEAN, IMAGENET_STD, UNKNOWN)
    others = [note for each in filter(None, trained) if (note := differences(each, size, interpolation))]
    return Settled(
        teacher=replace(given, mean=normal.mean, std=normal.std, args=tuple(args)),
        notes=(normal.text, *(f"note: {note}" for note in others)),
        warnings=normal.warnings,
    )
