"""A projector in files: its record, which names the encoder, and loading it as a labeller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.errors import InputError
from labelstore.operations.projector import FORMAT, PROJECTOR_WEIGHTS, RECORD, read_record
from labelstore.spec import Json
from labelstore.version import __version__
from pipeline.networks.encoder import Build, Encoder, EncoderSpec, Load, build_encoder, load_encoder
from pipeline.networks.families import PROJECTOR
from pipeline.networks.projector import (
    HEAD_A,
    HEAD_B,
    HEAD_START,
    HEAD_WEIGHT,
    Design,
    Merged,
    Projector,
    make_head,
)
from pipeline.networks.trained import ENCODER_WEIGHTS, TIMM, TORCHVISION, Trained
from pipeline.networks.weight_sets import is_counter, listed
from pipeline.networks.weights import Weights, load_weights, read_weights

HEAD_BIAS = "head.bias"


def record_of(design: Design, encoder: Encoder, trained: Trained) -> dict[str, Json]:
    """The fields of ``projector.json``.

    Args:
        design: of the projector.
        encoder: of the projector.
        trained: its crops, their normalisation, its columns and their classes.
    """
    spec = encoder.spec
    return {
        "format": FORMAT,
        "giftwrap": __version__,
        "encoder": {
            "name": spec.name,
            "args": dict(spec.args),
            "weights": spec.weights,
            "features": spec.features,
            "width": encoder.width,
            "sha256": encoder.weights.digest,
            "bytes": encoder.bytes,
        },
        **asdict(design),
        "trained": trained.to_json(),
    }


@dataclass(frozen=True, slots=True)
class Record:
    """The content of ``projector.json``.

    Attributes:
        design: of the projector.
        spec: of the encoder.
        width: of its features.
        digest: SHA-256 of the tensors of its weights, hex.
        bytes: of its weights.
        trained: what the projector is trained with.
    """

    design: Design
    spec: EncoderSpec
    width: int
    digest: str
    bytes: int
    trained: Trained

    @property
    def size(self) -> int:
        """Side of the crops in pixels."""
        return self.trained.size or 0

    @property
    def columns(self) -> int:
        """C."""
        return self.trained.columns or 0

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record at ``path``.

        Raises:
            InputError: when there is none.
        """
        found = read_record(path)
        encoder = found["encoder"]
        return cls(
            Design(**{name: found[name] for name in Design.__slots__}),
            EncoderSpec(**{name: encoder[name] for name in EncoderSpec.__slots__}),
            *(encoder["width"], encoder["sha256"], encoder["bytes"]),
            Trained.of_json(found["trained"], str(path.parent)),
        )


def load_projector(args: Mapping[str, Any], weights: str, load: Load, build: Build) -> tuple[nn.Module, Weights]:
    """A projector as a labeller, merged, and its weights: the encoder's too, which decide its labels.

    Args:
        args: ``encoder_weights`` is the place of the encoder's weights, if they have moved.
        weights: its folder, or a file of weights in it.
        load: loads the encoder.
        build: builds the encoder of a projector that is merged.

    Raises:
        InputError: when it is none, or the encoder has other weights than in training.
    """
    if unknown := args.keys() - {ENCODER_WEIGHTS}:
        raise InputError(f"network {PROJECTOR}: takes only {ENCODER_WEIGHTS}, found {', '.join(sorted(unknown))}")
    file = file_of(Path(weights))
    record = Record.read(file.parent / RECORD)
    found = read_weights(file)
    require_head(record, found.tensors, file)
    if found.class_names is None:
        found = replace(found, class_names=record.trained.column_names)
    if any(name.startswith("encoder.") for name in found.tensors):
        return _merged(record, found, build)
    place = str(args.get(ENCODER_WEIGHTS) or found_at(record.spec.weights, file.parent))
    advice = f'give them by --teacher-args (or --student-args) \'{{"{ENCODER_WEIGHTS}": "FILE"}}\''
    if not place.startswith((TORCHVISION, TIMM)) and not Path(place).is_file():
        raise InputError(f"encoder weights {place}: no such file; {advice}, or put them beside {RECORD}")
    encoder = load_encoder(replace(record.spec, weights=place), record.size, load)
    if encoder.weights.digest != record.digest:
        raise InputError(
            f"encoder weights {place}: expected those that the projector {file.parent} was trained with (SHA-256 "
            f"{record.digest[:12]}..., {record.bytes:,} bytes), found others ({encoder.weights.digest[:12]}..., "
            f"{encoder.bytes:,} bytes); {advice}"
        )
    if encoder.width != record.width:
        raise InputError(
            f"{encoder.spec.words}: expected features of {record.width:,} numbers, as {file.parent / RECORD} records, "
            f"found {encoder.width:,}; give the record of this projector"
        )
    head = make_head(record.design, record.columns, record.width, None)
    projector = Projector(encoder.network, record.design, head)
    load_trained(projector.trained, found.tensors, str(file))
    merged = projector.merged()
    together = {**found.tensors, **{f"encoder.{name}": value for name, value in encoder.weights.tensors.items()}}
    return merged, replace(found, tensors=together)


def _merged(record: Record, found: Weights, build: Build) -> tuple[nn.Module, Weights]:
    """A projector whose weights are those of `Projector.merged`, the encoder's among them."""
    encoder = build_encoder(record.spec, record.size, record.width, build)
    network = Merged(encoder, nn.Linear(record.width, record.columns))
    load_weights(network, found)
    return network.eval().requires_grad_(False), found


def require_head(record: Record, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse a head of other sizes than the record's, before memory is allocated for those.

    Raises:
        InputError: names both.
    """
    weight, bias = tensors.get(HEAD_WEIGHT, tensors.get(HEAD_A)), tensors.get(HEAD_BIAS)
    if weight is None or bias is None or weight.ndim != 2 or bias.ndim != 1:
        raise InputError(f"weights {file}: expected those of a projector, found no head; give the file of {RECORD}")
    sizes, recorded = (len(bias), weight.shape[1]), (record.columns, record.width)
    if sizes != recorded:
        raise InputError(
            f"weights {file}: expected a head of {recorded[0]:,} x {recorded[1]:,}, as {RECORD} records, found one of "
            f"{sizes[0]:,} x {sizes[1]:,}; give both files of one projector"
        )


def load_trained(trained: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give a projector the numbers of a file.

    Raises:
        InputError: when they are another projector's.
    """
    given = dict(tensors)
    own = {name: value for name, value in trained.state_dict().items() if not is_counter(name)}
    if HEAD_WEIGHT in given:  # the sum, as which nothing is added to the start
        given |= {HEAD_START: given.pop(HEAD_WEIGHT), HEAD_A: own[HEAD_A], HEAD_B: torch.zeros_like(own[HEAD_B])}
    given.setdefault(HEAD_START, torch.zeros_like(own[HEAD_START]))
    problems = [name for name in {**own, **given} if name not in own or name not in given]
    problems += [
        name
        for name in own
        if name in given and (own[name].shape != given[name].shape or not given[name].is_floating_point())
    ]
    if problems:
        raise InputError(f"weights {source}: not of this projector; they differ in {listed(problems)}")
    trained.load_state_dict(given, strict=False)  # only counters can be missing


def file_of(weights: Path) -> Path:
    """The weights file of a folder, or of a file in it."""
    return weights / PROJECTOR_WEIGHTS if weights.is_dir() else weights


def found_at(recorded: str, folder: Path) -> str:
    """The place of an encoder's weights: as in training, or else beside the projector."""
    beside = folder / Path(recorded).name
    return str(beside) if not Path(recorded).exists() and beside.is_file() else recorded
