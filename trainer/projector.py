"""The objective of a projector: few parameters beside a frozen encoder are trained to predict teachers' labels."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.command.console import Console, byte_count
from labelstore.durable.newfile import write_over
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from labelstore.operations.projector import PROJECTOR_WEIGHTS, RECORD, projector_info
from labelstore.spec import Json
from pipeline.networks import load_network, lora
from pipeline.networks.encoder import Encoder, EncoderSpec, features_of, load_encoder
from pipeline.networks.layout import memory_format, takes_channels_last
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD, require_normalisation
from pipeline.networks.pretrained import is_distributed
from pipeline.networks.projector import (
    Design,
    Projector,
    default_head_rank,
    make_head,
    require_used,
    saved,
    start_from_means,
    start_from_text,
)
from pipeline.networks.projector_file import record_of
from pipeline.networks.trained import Trained, numbers, trained_with
from pipeline.networks.weights import packed, require_file, save_weights, state_digest, weights_like
from pipeline.ranks import Ranks
from trainer.checkpoint import seed_all
from trainer.code_digests import code_of
from trainer.config import TrainConfig
from trainer.ema import Average
from trainer.evaluate import EvalResult
from trainer.material import Material, Normal
from trainer.optimisers import optimiser_of
from trainer.projector_config import ProjectorConfig
from trainer.projector_start import MEANS, class_means, read_text
from trainer.run import Run, make_run
from trainer.run_folder import kept_weights
from trainer.stopping import StopSignals
from trainer.student import Student, Test, losses_of
from trainer.trial import Fit

CHECKPOINT = "checkpoint.pt"
LAST = "last.safetensors"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The encoder's flags, with all defaults resolved.

    Attributes:
        spec: the encoder.
        size: side of its crops in pixels.
        normal: the encoder's normalisation.
        notes: for people.
    """

    spec: EncoderSpec
    size: int
    normal: Normal
    notes: tuple[str, ...]


def settle_encoder(config: ProjectorConfig) -> Setup:
    """Resolve the encoder's flags: those that are left out are taken from the record of its weights.

    Raises:
        InputError: when the side of its crops is unknown.
    """
    given, args = config.encoder, config.encoder_args()
    require_normalisation(given.encoder_mean or (), given.encoder_std or (), "encoder: ")
    if not is_distributed(given.encoder_weights):
        require_file(Path(given.encoder_weights))
    known = trained_with(given.encoder, args, given.encoder_weights)
    size = given.size or (known.size if known else None)
    if size is None:
        raise InputError(f"--size: {given.encoder_weights} has no record of the crops it was trained on; give --size")
    mean, of_mean = _chosen(given.encoder_mean, "--encoder-mean", known, "mean", IMAGENET_MEAN)
    std, of_std = _chosen(given.encoder_std, "--encoder-std", known, "std", IMAGENET_STD)
    other = f"; {known.size} px in {known.source}" if known and known.size not in (None, size) else ""
    spec = EncoderSpec(
        name=given.encoder,
        weights=given.encoder_weights,
        args=args,
        features=features_of(given.encoder, given.features),
    )
    return Setup(
        spec=spec,
        size=size,
        normal=(mean, std),
        notes=(
            f"encoder: {spec.name} of {spec.weights}, crops of {size} px, its {spec.features} features{other}",
            f"encoder's normalisation: mean {numbers(mean)} ({of_mean}), std {numbers(std)} ({of_std})",
        ),
    )


def _chosen(
    flag: tuple[float, ...] | None, name: str, known: Trained | None, key: str, default: tuple[float, ...]
) -> tuple[tuple[float, ...], str]:
    """A mean or a deviation, and its origin."""
    if flag is not None:
        return flag, name
    theirs: tuple[float, ...] | None = getattr(known, key) if known else None
    return (theirs, known.source) if known and theirs else (default, f"ImageNet's: the weights name none; see {name}")


@dataclass
class Parts:
    """The parts of a projector's objective that other students do not have.

    Attributes:
        config: the command's flags.
        encoder: the encoder as loaded.
        design: the sizes of the trained parts.
        projector: the network.
        start: digest of the text embeddings from which the head starts, or None.
        notes: for people.
    """

    config: ProjectorConfig
    encoder: Encoder
    design: Design
    projector: Projector
    start: str | None
    notes: tuple[str, ...] = field(default=())


class ProjectorObjective(Student):
    """A projector: a student of which only a few parameters are trained, saved and averaged.

    Args:
        parts: parts of the projector.
        run: configuration of the run for the training loop.
        material: the training data.
        channels_last: memory layout of its images and weights.
        test: the test images, if any.
        processes: number of training processes.
    """

    name = "projector"

    def __init__(
        self, parts: Parts, run: TrainConfig, material: Material, channels_last: bool, test: Test | None, processes: int
    ) -> None:
        found = Fit(channels_last=channels_last, some_unused=False)
        losses = losses_of(run, material)
        super().__init__(run, material, parts.projector.trained, found, losses, test, processes)
        self.called, self.flags, self._parts = parts.projector, parts.config, parts
        spec = parts.encoder.spec
        code: Any = self.made_of["code"]
        described: dict[str, Json] = {
            "format": self.made_of["format"],
            "projector": {
                "encoder": {
                    "name": spec.name,
                    "args": dict(spec.args),
                    "features": spec.features,
                    "sha256": parts.encoder.weights.digest,
                },
                **parts.config.projector.to_json(),
                "text": parts.start,
            },
            **{name: value for name, value in self.made_of.items() if name != "format"},
            "code": {**code, **code_of(parts.projector, spec.name)},
        }
        self.made_of = json.loads(json.dumps(described))
        record = record_of(parts.design, parts.encoder, self.trained)
        self._record = json.dumps(record, indent=1).encode() + b"\n"

    def begin(self, console: Console) -> None:
        """Print the trained parts and the labels."""
        super().begin(console)
        console.report(self._parts.notes)

    def average(self, decay: float) -> Average:
        """The running mean of the trained parameters."""
        return Average(copy.deepcopy(self.network), decay)

    def files(self) -> Mapping[str, Proof]:
        """The weights of this projector, its record, and the table of its classes."""
        state = saved(self.network.state_dict())
        weights = weights_like(packed(state, None, self.trained))
        kept = map(kept_weights, self._config.kept_epochs())
        found = {name: proof for name, proof in super().files().items() if not name.endswith(".safetensors")}
        return {
            **found,
            **dict.fromkeys(("best.safetensors", *kept), weights),
            PROJECTOR_WEIGHTS: weights_like(packed(state, None)),
            RECORD: self._is_record(),
        }

    def _is_record(self) -> Proof:
        """Recognises a record of the same projector."""

        def holds(path: Path) -> bool:
            try:
                found, ours = (json.loads(text) for text in (path.read_text(), self._record))
            except ValueError:
                return False
            return isinstance(found, dict) and found | {"giftwrap": None} == ours | {"giftwrap": None}

        return Proof("the record of this projector", holds)

    def evaluate(self, network: nn.Module) -> EvalResult:
        """Accuracy of the projector with the parameters of ``network``."""
        assert isinstance(self.called, Projector)  # noqa: S101  made so in __init__
        with having(self.network, network):
            return super().evaluate(self.called)

    def save_weights(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write the weights: the last ones with projector.json beside them, others with the record in the file."""
        if path.name != LAST:
            save_weights(saved(state), path, trained=self.trained)
            return
        write_over(path.with_name(RECORD), self._record, self._is_record())
        save_weights(saved(state), path.with_name(PROJECTOR_WEIGHTS))

    def report(self) -> Mapping[str, Json]:
        """Parameters and bytes by part."""
        return {**super().report(), "projector": projector_info(self._config.run)}


@contextmanager
def having(network: nn.Module, other: nn.Module) -> Iterator[None]:
    """A network with the parameters of another network of its class; restored on exit."""
    if network is other:
        yield
        return
    own = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(other.state_dict())
    try:
        yield
    finally:
        network.load_state_dict(own)


def make_projector_run(
    own: ProjectorConfig, setup: Setup, config: TrainConfig, ranks: Ranks, stops: StopSignals
) -> Run:
    """The run of a projector."""
    return make_run(config, ranks, stops, partial(make_objective, own, setup), setup.normal)


def make_objective(
    own: ProjectorConfig, setup: Setup, config: TrainConfig, ranks: Ranks, material: Material, test: Test | None
) -> ProjectorObjective:
    """Construct the projector that the flags describe; refuses incompatible flags and images."""
    optimiser_of(config.optimiser)  # checked before the encoder is loaded, which is slower
    encoder, columns = load_encoder(setup.spec, setup.size, load_network), material.columns
    options, design = own.projector, design_of(own, columns, encoder.width)
    make_head(design, columns, encoder.width, None)  # refuses a rank that is too large before features are computed
    start, bias, text = None, None, None
    if options.text:
        rows = read_text(options.text, material)
        start, text = start_from_text(rows, columns, encoder.width, f"--text {options.text}", options.head_scale), rows
    device = torch.device(config.render.device)
    channels_last = lay_out(encoder.network, setup, device)
    if design.head == "means" and ranks.first and not (config.run / CHECKPOINT).exists():
        means = class_means(encoder, setup.normal, config, material, channels_last)
        start, bias = start_from_means(means, options.head_scale)
    seed_all(config.seed)
    encoder.network.cpu()
    head = make_head(design, columns, encoder.width, start, bias, kept=design.head != "zero")
    projector = Projector(encoder.network, design, head)
    require_used(projector, setup.size)
    if options.merge and (grouped := [place.name for place in projector.places if place.groups > 1]):
        raise InputError(
            f"--merge: the matrices of grouped convolutions cannot be merged ({grouped[0]}); leave it out, or these "
            f"layers, by --lora-on"
        )
    projector = projector.to(device=device, memory_format=memory_format(channels_last))  # type: ignore[call-overload]
    digest = state_digest({"text": text}) if text is not None else None
    notes = (*setup.notes, *described(projector, design, encoder, columns))
    parts = Parts(own, encoder, design, projector, digest, notes)
    return ProjectorObjective(parts, config, material, channels_last, test, ranks.world)


def design_of(own: ProjectorConfig, columns: int, width: int) -> Design:
    """The sizes of a projector, with all defaults resolved."""
    options = own.projector
    rank = options.head_rank
    return Design(
        rank=options.rank,
        alpha=float(options.rank if options.lora_alpha is None else options.lora_alpha),
        lora_on=options.lora_on,
        head="text" if options.text else options.head or "means",
        head_rank=default_head_rank(columns, width) if rank is None else rank,
        adapt_norms=options.adapt_norms,
    )


def described(projector: Projector, design: Design, encoder: Encoder, columns: int) -> list[str]:
    """Lines to print: the trained parts."""
    found = lora.listed(projector.places, design.rank) if design.rank else ["low-rank matrices: none in the encoder"]
    count = projector.parameters_by_part
    norms = f"; norm layers {count['norms']:,} parameters" if count["norms"] else ""
    start = {"text": "text embeddings", "means": f"mean features of at most {MEANS} images a class", "zero": "zero"}
    head = f"from {start[design.head]}, rank {design.head_rank}, {count['head']:,} parameters"
    return [
        *found,
        f"head: {columns:,} x {encoder.width:,}, {head}{norms}",
        f"trained: {sum(count.values()):,} parameters; the encoder's {byte_count(encoder.bytes)} stay as they are",
    ]


def lay_out(network: nn.Module, setup: Setup, device: torch.device) -> bool:
    """Move an encoder to its device, in a memory layout that it supports; returns whether that is channels-last."""

    def trial(channels_last: bool) -> None:
        network.to(device=device, memory_format=memory_format(channels_last))  # type: ignore[call-overload]
        images = torch.zeros(2, 3, setup.size, setup.size, device=device)
        with torch.no_grad():
            network(images.contiguous(memory_format=memory_format(channels_last)))

    return takes_channels_last(trial)
