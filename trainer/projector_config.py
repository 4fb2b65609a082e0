"""The flags of `train-projector`: those of any run, of the encoder, and of the trained parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from labelstore.command.flags import First, Group
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.config import json_object
from trainer.choices import LossSpec
from trainer.config import ImageRunConfig, TrainConfig
from trainer.label_choices import LabelOptions

ANY_SIZE = 224  # placeholder for the encoder's size while flags are checked


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderOptions:
    """The network that maps crops to features."""

    encoder: str
    """Frozen network whose features the projector uses: timm:NAME, torchvision:NAME, module:attribute, or another name
    that --teacher takes."""
    encoder_weights: str
    """Weights of --encoder: a .safetensors or state-dict file, torchvision:IMAGENET1K_V1 or timm:pretrained."""
    encoder_args: str = "{}"
    """Keyword arguments of the encoder's constructor, as JSON."""
    features: Literal["penultimate", "output"] | None = None
    """Features of the encoder. penultimate: the input of its last linear layer; output: its output. Left out, output
    for module:attribute and timm's CLIP towers, penultimate for all others."""
    encoder_mean: tuple[float, float, float] | None = None
    """Channel means of the encoder's normalisation, for pixels in [0, 1]; left out, what its weights were trained with,
    otherwise ImageNet's."""
    encoder_std: tuple[float, float, float] | None = None
    """Channel standard deviations of the encoder's normalisation; left out, as --encoder-mean."""
    size: int | None = None
    """Side of the encoder's crops in pixels; what its weights were trained with when left out. See also
    --teacher-size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectorOptions:
    """The parts that are trained beside the encoder, and the loss."""

    rank: int = 8
    """Rank of the low-rank matrices (LoRA) that adapt the encoder's layers; 0 trains the head only."""
    lora_alpha: float | None = None
    """Alpha of LoRA: the product of the matrices is scaled by alpha / rank. Left out, the rank, for a scale of 1."""
    lora_on: str | None = None
    """Layers to adapt: a regular expression that is searched in their names. Left out, every linear layer and every
    convolution that is not depthwise."""
    adapt_norms: bool = False
    """Also train the norm layers of the encoder, which otherwise stay in eval mode."""
    text: Path | None = None
    """The head starts from text embeddings of the classes, .npy or .safetensors [C, d], scaled to length 1: a
    zero-shot classifier."""
    head: Literal["means", "zero"] | None = None
    """Without --text: the head starts from the mean features of the classes (means, when left out), or from zero."""
    head_rank: int | None = None
    """Rank of the head's matrices; left out, 128, or 64 below 200 columns, and at most the number of columns and of
    features."""
    head_scale: float = 1.0
    """Factor by which the initial rows of the head are multiplied."""
    hard_weight: float = 0.1
    """Weight of the hard cross-entropy beside the mean squared error of the logits."""
    merge: bool = False
    """Also write merged.safetensors: the adapted encoder and the head in one file, which needs no other weights."""

    def to_json(self) -> dict[str, Json]:
        """The options that determine what is trained."""
        return {name: value for name, value in asdict(self).items() if name not in ("text", "merge")}


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig(ImageRunConfig):
    """Flags of `train-projector`."""

    encoder: Annotated[EncoderOptions, Group("encoder"), First()]
    projector: Annotated[ProjectorOptions, Group("projector")] = field(default_factory=ProjectorOptions)

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have."""
        own, teacher = self.projector, self.teacher
        if teacher.labeller is None and not (teacher.names and teacher.weights):
            raise InputError("train-projector: needs a teacher; give --teacher and --weights, or --labeller")
        if own.rank < 0:
            raise InputError(f"--rank: expected at least 0, found {own.rank}")
        for flag, value in (("--lora-alpha", own.lora_alpha), ("--head-scale", own.head_scale)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{flag}: expected a number > 0, found {value}")
        if not own.rank and (own.lora_on is not None or own.lora_alpha is not None):
            flag = "--lora-alpha" if own.lora_on is None else "--lora-on"
            raise InputError(f"{flag}: has no effect with --rank 0, which adapts no layer; leave it out")
        if own.text is not None and own.head is not None:
            raise InputError(f"--text, --head {own.head}: expected one of them, found both; leave one of them out")
        if own.head == "zero" and own.head_scale != 1:
            raise InputError("--head-scale: has no effect with --head zero; leave it out")
        if own.text is not None:
            require_apart({"--run": self.run}, {"--text": self.projector.text})
        self.encoder_args()
        self.as_train(self.encoder.size or ANY_SIZE)

    def encoder_args(self) -> Mapping[str, Json]:
        """Keyword arguments of the encoder's constructor."""
        return json_object("--encoder-args", self.encoder.encoder_args)

    def as_train(self, size: int) -> TrainConfig:
        """The configuration for the training loop: online labels, and the projector in place of the student.

        Args:
            size: side of the crops in pixels.

        Raises:
            InputError: names the flag of a number that no run can have.
        """
        shared = {each.name: getattr(self, each.name) for each in fields(ImageRunConfig)}
        return TrainConfig(
            **shared,
            student="projector",
            size=size,
            labels=LabelOptions(source="online", exact=True),
            loss=LossSpec(name="mse+ce", hard_weight=self.projector.hard_weight),
        )
