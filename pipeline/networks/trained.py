"""The training record of weights: stored in their files, or published by timm and torchvision."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torchvision

from labelstore.errors import InputError
from labelstore.operations.projector import PROJECTOR_WEIGHTS, RECORD
from labelstore.spec import Json
from pipeline.networks.families import PROJECTOR
from pipeline.networks.file_kinds import LARGEST_HEADER

RECORD_KEY = "giftwrap"  # of the metadata of a .safetensors file
CLOSE = 1e-3  # numbers of a mean or a deviation that are one number, rounded differently
TORCHVISION, TIMM = "torchvision:", "timm:"
ENCODER_WEIGHTS = "encoder_weights"  # their argument for the place of the encoder's weights


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The training record of a network; None for unknown values.

    Attributes:
        source: where this comes from, for messages.
        version: of giftwrap, where that has trained it.
        network: its name, as ``build_network`` takes it.
        args: keyword arguments of its constructor.
        size: side of its input in pixels.
        mean: channel means of the normalisation.
        std: channel standard deviations of the normalisation.
        resize: short side of a test image before the central crop.
        interpolation: filter of the resize.
        columns: number of columns C.
        classes: names of the class folders in target order.
        class_columns: the column of each class folder; empty where folder k has column k.
    """

    source: str
    version: str | None = None
    network: str | None = None
    args: Mapping[str, Json] | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    interpolation: str | None = None
    columns: int | None = None
    classes: tuple[str, ...] | None = None
    class_columns: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The record; without its source, which is the file that holds it."""
        record: dict[str, Json] = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in record.items() if name != "source"}

    @classmethod
    def of_json(cls, record: Any, source: str) -> Trained:
        """A record that ``to_json`` made.

        Raises:
            InputError: when it is none.
        """
        try:
            return cls(source=source, **_checked(record))
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"weights {source}: metadata {RECORD_KEY!r}: expected what they were trained with, found something "
                f"else ({error}); save them without it"
            ) from error

    @property
    def label_columns(self) -> tuple[int, ...] | None:
        """The column of each class folder; None where classes are not known."""
        if self.classes is None:
            return None
        return self.class_columns or tuple(range(len(self.classes)))

    @property
    def column_names(self) -> tuple[str, ...] | None:
        """The class of each column, where all have one."""
        if self.classes is None or self.label_columns is None or len(self.classes) != self.columns:
            return None
        return tuple(name for _, name in sorted(zip(self.label_columns, self.classes, strict=True)))


def _checked(record: Any) -> dict[str, Any]:
    """The fields of a record by their kinds; those of later versions are passed over."""
    known = {field.name for field in fields(Trained)} - {"source"}
    given = {name: value for name, value in record.items() if name in known and value is not None}
    kinds = {"version": str, "network": str, "args": dict, "interpolation": str}
    for name, kind in kinds.items():
        if not isinstance(given.get(name, kind()), kind):
            raise ValueError(f"{name} {given[name]!r}")
    for name in ("size", "resize", "columns"):
        if name in given and not (type(given[name]) is int and given[name] > 0):
            raise ValueError(f"{name} {given[name]!r}")
    for name in ("mean", "std"):
        if name in given:
            given[name] = tuple(float(value) for value in given[name])
            if len(given[name]) != 3 or not all(map(math.isfinite, given[name])):
                raise ValueError(f"{name} {given[name]!r}")
    if "classes" in given:
        if not all(isinstance(name, str) for name in given["classes"]):
            raise ValueError("classes that are no names")
        given["classes"] = tuple(given["classes"])
    chosen = given["class_columns"] = tuple(given.get("class_columns", ()))
    if not all(type(column) is int and column >= 0 for column in chosen):
        raise ValueError(f"class_columns {chosen[:5]!r}")
    if chosen and len(chosen) != len(given.get("classes", ())):
        raise ValueError(f"{len(chosen)} class_columns of {len(given.get('classes', ()))} classes")
    return given


def trained_with(name: str | None, args: Mapping[str, Json], weights: str) -> Trained | None:
    """The record of the weights, or of the library of the network and its weights; None if there is neither.

    Args:
        name: the network, where it is given.
        args: keyword arguments of its constructor.
        weights: a file, ``torchvision:ENUM`` or ``timm:pretrained``.

    Raises:
        InputError: when the file's record cannot be read.
    """
    return recorded_in(weights) or (own_configuration(name, args, weights) if name else None)


def recorded_in(weights: str) -> Trained | None:
    """The record of a .safetensors file, from its header or the file beside it; None if there is none, or no such file.

    Args:
        weights: the file, or the folder of a projector.
    """
    path = Path(weights)
    if path.is_dir():
        return _of_projector(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 2 <= length <= LARGEST_HEADER else None
        metadata = header.get("__metadata__") if isinstance(header, dict) else None
        text = metadata.get(RECORD_KEY) if isinstance(metadata, dict) else None
    except (OSError, ValueError, RecursionError):
        return None  # reported where the weights are read
    if text is not None:
        return parsed(text, weights)
    return _of_projector(path.parent) if path.name == PROJECTOR_WEIGHTS else None


def _of_projector(folder: Path) -> Trained | None:
    """The record of a projector; None if there is none."""
    try:
        record = json.loads((folder / RECORD).read_text())["trained"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # reported where it is loaded
    return Trained.of_json(record, str(folder))


def parsed(text: Any, source: str) -> Trained:
    """The record of a metadata value.

    Raises:
        InputError: when it is none.
    """
    try:
        record = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"weights {source}: metadata {RECORD_KEY!r} is no JSON ({error}); save them without"
        ) from error
    return Trained.of_json(record, source)


def own_configuration(name: str, args: Mapping[str, Json], weights: str) -> Trained | None:
    """The record of a timm network, or of torchvision weights; None if there is neither."""
    try:
        if weights.startswith(TORCHVISION) and name.startswith(TORCHVISION):
            return _of_torchvision(name.removeprefix(TORCHVISION), weights)
        if name.startswith(TIMM):
            return _of_timm(name, args)
    except Exception:  # no such network, no timm, no network connection: reported where the network is made
        return None
    return None


def _of_torchvision(model: str, weights: str) -> Trained | None:
    transforms: Any = torchvision.models.get_model_weights(model)[weights.removeprefix(TORCHVISION)].transforms()
    if not hasattr(transforms, "crop_size"):
        return None
    return Trained(
        source=weights,
        size=int(transforms.crop_size[0]),
        mean=tuple(map(float, transforms.mean)),
        std=tuple(map(float, transforms.std)),
        resize=int(transforms.resize_size[0]),
        interpolation=str(transforms.interpolation.value),
    )


def _of_timm(name: str, args: Mapping[str, Json]) -> Trained | None:
    import timm

    model = name.removeprefix(TIMM)
    config: Any = None
    keywords: dict[str, Any] = dict(args)
    if not any("cfg" in key for key in args):
        config = timm.models.get_pretrained_cfg(model)
    if config is None:  # of a hub, or changed by arguments
        config = timm.create_model(model, **keywords).pretrained_cfg
    known: Mapping[str, Any] = config if isinstance(config, Mapping) else asdict(config)
    if len(known["mean"]) != 3 or len(known["std"]) != 3:
        return None
    size = int(known["input_size"][-1])
    return Trained(
        source=f"timm's configuration of {model}",
        size=size,
        mean=tuple(map(float, known["mean"])),
        std=tuple(map(float, known["std"])),
        resize=round(size / float(known.get("crop_pct") or 1)),
        interpolation=str(known.get("interpolation") or "bicubic"),
    )


def same_network(one: str, other: str) -> bool:
    """Whether two names are of one architecture: timm's tags name weights, modules may be imported by any path."""
    plain = [name.partition(".")[0] if name.startswith(TIMM) else name for name in (one, other)]
    if plain[0] == plain[1]:
        return True
    libraries, attributes = zip(*((name.rpartition(":")[0], name.rpartition(":")[2]) for name in plain), strict=True)
    own = all(library not in ("", "timm", "torchvision") for library in libraries)
    return own and attributes[0] == attributes[1]


def without_places(name: str, args: Mapping[str, Json]) -> dict[str, Json]:
    """The arguments that make a network what it is: where the weights of a projector's encoder are does not."""
    return {key: value for key, value in args.items() if name != PROJECTOR or key != ENCODER_WEIGHTS}


def close(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two means or deviations are the same but for rounding."""
    return all(abs(ours - theirs) <= CLOSE for ours, theirs in zip(one, other, strict=True))


def numbers(values: Sequence[float]) -> str:
    """A mean or a deviation, as flags take it."""
    return " ".join(f"{value:.6g}" for value in values)
