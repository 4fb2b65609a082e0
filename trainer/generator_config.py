"""The flags of `train-generator`; this module does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from labelstore.command.flags import Addressable, Choices, First, Group, Named, values_of
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.config import json_object
from pipeline.images.source_table import ImageOptions
from pipeline.networks.backbones import BACKBONES, Shape, shape_of
from pipeline.networks.noise import DiffusionSpec
from pipeline.plan.spec import Interpolation, PlanSpec
from trainer.choices import OptimiserOptions
from trainer.run_config import RunConfig
from trainer.schedules import SCHEDULES, ScheduleSpec

LENGTHS = ("epochs", "steps", "minutes")


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorOptimiser(OptimiserOptions):
    """The optimiser, with the defaults of U-ViT."""

    lr: float | None = 2e-4
    """Learning rate before the schedule changes it."""
    weight_decay: float | None = 0.03
    """Weight decay."""
    args: Annotated[str, Named("optimizer-args")] = '{"betas": [0.99, 0.99]}'
    """Further keyword arguments of the optimiser, as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorSchedule(ScheduleSpec):
    """The schedule, with the defaults of U-ViT."""

    name: Annotated[str, Choices(SCHEDULES), Named("schedule")] = "constant"
    """Learning rate after the warm-up: step, times --drop at each of --milestones; cosine, down to --final;
    constant."""
    warmup_steps: int | None = None
    """Steps in which the rate rises linearly to --lr; left out, 5,000 or a twentieth of the run, whichever is less."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(RunConfig):
    """Flags of `train-generator`."""

    images: Annotated[Path, Group("images"), Addressable(), First()]
    """The images to learn: a class folder, tar shards or other containers, as for build."""
    source: Annotated[ImageOptions, Group("images"), First()] = field(default_factory=ImageOptions)
    epochs: int = 0
    """Epochs, each of which plays every image once; or give --steps or --minutes."""
    steps: int | None = None
    """Instead of --epochs: steps, rounded up to whole epochs."""
    minutes: float | None = None
    """Instead of --epochs: as many as fit into this time, estimated by a measurement before the first step; a continued
    run keeps its number."""
    size: int
    """Side in pixels of the square images, which are cut from the centre."""
    vae: Annotated[str, Group("model")] = "none"
    """Autoencoder in whose latents images are generated: none (pixels), taef2 or taef2:FOLDER (FLUX.2's tiny
    autoencoder), or diffusers:ID-OR-FOLDER (an AutoencoderKL or AutoencoderTiny; needs the extra diffusion)."""
    backbone: Annotated[str, Choices(BACKBONES), Group("model")] = "uvit-s"
    """Size of the U-ViT: s, s-deep, m, l and h as published, or xs, of a few million parameters, for a CPU."""
    backbone_args: Annotated[str, Group("model")] = "{}"
    """Changes to the backbone, as JSON: dim, depth, heads, conv (the final convolution)."""
    patch: Annotated[int | None, Group("model")] = None
    """Side of the backbone's patches, in pixels or latents; 2 when left out."""
    diffusion: Annotated[DiffusionSpec, Group("model")] = field(default_factory=DiffusionSpec)
    drop_labels: Annotated[float, Group("model")] = 0.15
    """Probability of training an image without its class, which classifier-free guidance needs."""
    flip: Annotated[float, Group("images")] = 0.5
    """Probability of a horizontal flip; give 0 where mirror images mean something else, as for digits."""
    interpolation: Annotated[Interpolation, Group("images")] = "bilinear"
    """Antialiased filter of the resize."""
    class_order: Annotated[Literal["auto", "bytes", "numeric"], Group("images")] = "auto"
    """Order of classes that have no numbers: bytes; numeric, class_2 before class_10; auto, bytes, which stops where
    the two would differ."""
    skip_broken: Annotated[bool, Group("images")] = False
    """Leave out images that cannot be decoded; they are listed, counted and recorded."""
    optimiser: Annotated[GeneratorOptimiser, Group("optimiser")] = field(default_factory=GeneratorOptimiser)
    ema: Annotated[float | None, Group("optimiser")] = 0.9999
    """Decay per step of the running mean of the weights, which is saved and sampled from. After n steps it is at most
    (1 + n) / (10 + n), for short runs."""
    schedule: Annotated[GeneratorSchedule, Group("schedule")] = field(default_factory=GeneratorSchedule)
    sheet_every: Annotated[int | None, Group("running")] = None
    """Epochs between evaluations: contact sheets of samples from the same noise, written to samples-STEP.png in the run
    folder, and the loss on fixed images; a tenth of the run when left out."""

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have."""
        require_apart({"--run": self.run}, {"--images": self.images})
        given = [name for name in LENGTHS if getattr(self, name) is not None and (name != "epochs" or self.epochs)]
        if len(given) != 1:
            found = " and ".join(f"--{name}" for name in given) or "none"
            raise InputError(f"--epochs, --steps, --minutes: expected one of them, found {found}")
        for name in LENGTHS:
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf or (name == "epochs" and value == 0)):
                raise InputError(f"--{name}: expected a number > 0, found {value}")
        self.require_numbers()
        for name in ("size", "sheet_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')}: expected at least 1, found {value}")
        if not 0 <= self.drop_labels < 1:
            raise InputError(
                f"--drop-labels: expected a probability of at least 0 and below 1, found {self.drop_labels}"
            )
        self.shape()
        self.plan()
        if self.epochs:
            self.require_length()

    def shape(self) -> Shape:
        """The numbers of the backbone.

        Raises:
            InputError: names the number that no backbone can have.
        """
        args = json_object("--backbone-args", self.backbone_args)
        return shape_of(self.backbone, {**args, **({} if self.patch is None else {"patch": self.patch})})

    def plan(self) -> PlanSpec:
        """The plan of the images: centre crops, in a different order each epoch."""
        return PlanSpec(size=self.size, seed=self.seed, crop="center", flip=self.flip, interpolation=self.interpolation)

    @property
    def subject(self) -> str:
        """The backbone, for messages."""
        return f"backbone {self.backbone}"

    @property
    def made_with(self) -> dict[str, Json]:
        """The path of the images, and what is reported."""
        return {"images": str(self.images), "reported": "the loss of the running mean on fixed images and noise"}

    @property
    def evaluation_interval(self) -> int:
        """Epochs between evaluations."""
        return self.interval(self.epochs)

    def interval(self, epochs: int) -> int:
        """Epochs between evaluations in a run of ``epochs`` epochs."""
        return self.sheet_every or max(epochs // 10, 1)

    def in_effect(self) -> dict[str, Any]:
        """Every flag, by key, with the value that is used."""
        from trainer.optimisers import optimiser_of  # takes seconds to import

        optimiser = optimiser_of(self.optimiser)
        return {**values_of(self), "lr": optimiser.lr, "weight_decay": optimiser.weight_decay}
