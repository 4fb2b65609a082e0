"""The flags of `synthesize`: those of every method, and those of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from labelstore.command.flags import Addressable, Choices, Group, Named, flags_of, values_of
from labelstore.command.output import Output
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.config import EngineOptions, TeacherOptions, manifest_cache, require_one_labeller
from pipeline.images.opening import ImageOptions
from pipeline.launch.options import LaunchOptions
from pipeline.networks.noise import Sampler
from pipeline.render.options import RenderOptions
from pipeline.synthesis import CLASSES, METHODS, WITHOUT_IPC

FileFormat = Literal["png", "jpeg"]
Taking = Literal["copy", "link", "center", "crop"]
Fit = Literal["pad", "resize"]
Start = Literal["noise", "real"]
Statistics = Literal["batch", "class"]
Features = Literal["penultimate", "output"]
WITH_CHECK = ("check", "images", "source", "rehash", "render", "output")  # fields whose flags a check has
Selection = Literal["none", "ce", "kcenter"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomOptions:
    """Which real images `random` takes, and how."""

    take: Taking = "copy"
    """random: the files as they are (copy, or link to them), or cut to --size: center, or one frozen random crop."""
    ce_decile: int | None = None
    """random: draw from one tenth of each class alone, by the teacher's cross-entropy: 1 easiest, 10 hardest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RdedOptions:
    """The numbers of `rded` (arXiv 2312.03526)."""

    pool: int = 300
    """rded: images of each class that crops are taken from; all where there are fewer."""
    crops: int = 5
    """rded: crops of each image of the pool, of which the best is kept."""
    factor: int | None = None
    """rded: cells a side of a collage; 1 below 128 px and 2 from there on when left out."""
    fit: Fit = "pad"
    """rded: how the teacher gets a crop of --size / --factor: padded to --size as by the authors, or resized."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sre2lOptions:
    """The numbers of `sre2l` (arXiv 2306.13092)."""

    iterations: int = 1000
    """sre2l: steps of Adam on each batch of images; published are 1000 (CIFAR) and 4000."""
    lr: float = 0.25
    """sre2l: learning rate of the first step; it falls to 0 along half a cosine."""
    betas: tuple[float, float] = (0.5, 0.9)
    """sre2l: of Adam."""
    bn_weight: float = 0.01
    """sre2l: weight of the distance between the batch's statistics and those of the teacher's batch norms, beside a
    cross-entropy of weight 1."""
    first_bn: float = 10.0
    """sre2l: weight of the first batch norm within that distance, where the others have 1; 10 is the authors' code's, 1
    the plain sum of the paper."""
    tv_weight: float = 0.0
    """sre2l: weight of the total variation of what the teacher is shown; the published sets have none."""
    l2_weight: float = 0.0
    """sre2l: weight of the norm of what the teacher is shown; the published sets have none."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """sre2l: range of the share of an image's area that a step shows, stretched to the whole; 1 1 shows all of it, as
    the authors' code for CIFAR does."""
    jitter: int | None = None
    """sre2l: largest shift of what a step shows, in pixels; what leaves at one side comes in at the other. Left out, a
    seventh of the side: 32 at 224 px and 4 at 32 px, as published."""
    start: Annotated[Start, Named("start-from")] = "noise"  # torchrun takes --start for its own
    """sre2l: images begin as noise or as real images."""
    statistics: Statistics = "batch"
    """sre2l: batches take classes in turn and match the teacher's running statistics (batch), or hold one class and
    match that class's own (class, as LPLD)."""

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be optimised with."""
        low, high = self.crop_scale
        for name, right, expected in (
            ("iterations", 1 <= self.iterations < 2**31, "at least 1 step"),
            ("lr", 0 < self.lr < math.inf, "a number above 0"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            ("bn_weight", 0 <= self.bn_weight < math.inf, "a number that is not negative"),
            ("first_bn", 0 <= self.first_bn < math.inf, "a number that is not negative"),
            ("tv_weight", 0 <= self.tv_weight < math.inf, "a number that is not negative"),
            ("l2_weight", 0 <= self.l2_weight < math.inf, "a number that is not negative"),
            ("crop_scale", 0 < low <= high <= 1, "two shares of the area, 0 < low <= high <= 1"),
            ("jitter", self.jitter is None or 0 <= self.jitter <= 65_535, "pixels, 0 or more"),
        ):
            if not right:
                raise InputError(f"--{name.replace('_', '-')}: expected {expected}, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionOptions:
    """How images are drawn from a model of `train-generator` (arXiv 2409.03929 publishes no numbers of its own)."""

    model: str | None = None
    """diffusion: folder of the model, made by train-generator; it needs no --images."""
    vae: str | None = None
    """diffusion: where the model's autoencoder is now, if it is not where it was in training."""
    steps: int = 50
    """diffusion: calls of the network for each image; 25 take half of the time."""
    guidance: float = 1.4
    """diffusion: how far from images of no class: 1 is the plain network, 1.4 U-ViT's."""
    sampler: Sampler = "dpm"
    """diffusion: dpm: DPM-Solver++(2M); ddim: DDIM without added noise."""
    image_batch: int = 64
    """diffusion: images made at a time, always as many, whatever is wanted of them; each pixel may depend on it. With
    --candidates at most those of a class."""
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    """diffusion: precision of the network; bfloat16 under autocast."""
    candidates: int = 1
    """diffusion: make so many times as many images, of which --select keeps --ipc a class."""
    select: Selection = "none"
    """diffusion: ce: of each class those with the teacher's smallest cross-entropy; kcenter: those that are far from
    each other in the teacher's logits, one after the other."""

    def __post_init__(self) -> None:
        """Refuse numbers that no image can be made with."""
        for name, right, expected in (
            ("steps", 1 <= self.steps <= 1000, "1 to 1,000"),
            ("guidance", 0 <= self.guidance < math.inf, "a number >= 0"),
            ("image_batch", 1 <= self.image_batch <= 65_536, "1 to 65,536"),
            ("candidates", 1 <= self.candidates <= 1000, "1 to 1,000"),
        ):
            if not right:
                raise InputError(f"--{name.replace('_', '-')}: expected {expected}, found {getattr(self, name)}")
        if (self.candidates > 1) != (self.select != "none"):
            raise InputError(
                f"--candidates {self.candidates}, --select {self.select}: expected both, more than 1 candidate and ce "
                f"or kcenter, or neither"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class HelloUpdateOptions:
    """The numbers of `hello-update` (arXiv 2408.08201, which publishes none): all defaults are ours."""

    encoder: str | None = None
    """hello-update: network whose features are to stay, as for train-projector: timm:NAME, torchvision:NAME,
    module:attribute, or a network of giftwrap's own."""
    encoder_weights: str | None = None
    """hello-update: its weights: a .safetensors or state-dict file, torchvision:IMAGENET1K_V1 or timm:pretrained."""
    encoder_args: str = "{}"
    """hello-update: keyword arguments of its constructor, as JSON."""
    features: Features | None = None
    """hello-update: penultimate: a classifier without its last linear layer; output: the network as it is. Left out, as
    for train-projector."""
    encoder_size: int | None = None
    """hello-update: side of its crops in pixels; what its weights were trained with when left out."""
    encoder_mean: tuple[float, float, float] | None = None
    """hello-update: channel means of its normalisation, of pixels in [0, 1]; left out, what its weights were trained
    with, or else ImageNet's."""
    encoder_std: tuple[float, float, float] | None = None
    """hello-update: channel standard deviations of its normalisation; likewise."""
    update_steps: int = 100
    """hello-update: steps of Adam on each batch of images."""
    update_lr: float = 0.01
    """hello-update: learning rate of the first step, of pixels in [0, 1]; it falls to 0 along half a cosine."""
    update_scale: float = 0.5
    """hello-update: side of a patch's small copy, as a share of the patch's."""
    update_cells: int | None = None
    """hello-update: patches a side of an image; left out, the cells of RDED's collages by the record of --images, or 1:
    the whole image."""

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be optimised with."""
        for name, right, expected in (
            ("encoder_size", self.encoder_size is None or 1 <= self.encoder_size <= 65_535, "1 to 65,535"),
            ("update_steps", 1 <= self.update_steps < 2**31, "at least 1 step"),
            ("update_lr", 0 < self.update_lr < math.inf, "a number above 0"),
            ("update_scale", 0 < self.update_scale < 1, "a number above 0 and below 1"),
            ("update_cells", self.update_cells is None or 1 <= self.update_cells <= 65_535, "1 to 65,535"),
        ):
            if not right:
                raise InputError(f"--{name.replace('_', '-')}: expected {expected}, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """Make a small image set from a large one: a class folder with a record of what each image was made of.

    Typing the same command again continues a stopped one, to the same files.
    """

    method: Annotated[tyro.conf.Positional[str], Choices(METHODS)] = None  # type: ignore[assignment]  # as `out` is
    """What makes the images:"""
    out: Path = None  # type: ignore[assignment]  # left out with --check alone, for which no method is called
    """Class folder to make; continued when a stopped command left it."""
    images: Annotated[Path, Group("images"), Addressable()] = None  # type: ignore[assignment]  # diffusion needs none
    """Real images: a class folder, tar shards or other containers, as for build; diffusion needs none."""
    source: Annotated[ImageOptions, Group("images")] = field(default_factory=ImageOptions)
    ipc: int = None  # type: ignore[assignment]  # as `out` is
    """Images a class; hello-update makes one of each image when it is left out, or of the first ones of each class."""
    size: int | None = None
    """Side of the square images in pixels."""
    seed: int = 0
    """Seed of all draws."""
    check: Path | None = None
    """Instead of a method and --out: a set that was made of --images; its files, and what its record says that they are
    made of, are compared."""
    class_order: Annotated[Literal["auto", "bytes", "numeric"], Group("images")] = "auto"
    """Order of the class folders, as for build: it is the order of the teacher's columns."""
    rehash: Annotated[bool, Group("images")] = False
    """Read every image again instead of trusting size and modification time."""
    skip_broken: Annotated[bool, Group("images")] = False
    """Leave out images that do not decode, and list them."""
    drop_classes: Annotated[tuple[str, ...], Group("images")] = ()
    """Classes of which no images are made; the teacher keeps their columns."""
    allow_fewer: Annotated[bool, Group("images")] = False
    """Make fewer images of a class that has too few of its own, instead of stopping."""
    format: Annotated[FileFormat, Group("files")] = "png"
    """How made images are stored: png keeps every pixel; jpeg rounds. Copied files stay as they are."""
    quality: Annotated[int | None, Group("files")] = None
    """Of JPEG files, 1 to 100; 95 when left out. Their colours are not subsampled."""
    sheet: Annotated[Path | None, Group("files")] = None
    """PNG to write: a contact sheet of the finished set."""
    random: Annotated[RandomOptions, Group("random")] = field(default_factory=RandomOptions)
    rded: Annotated[RdedOptions, Group("rded")] = field(default_factory=RdedOptions)
    sre2l: Annotated[Sre2lOptions, Group("sre2l")] = field(default_factory=Sre2lOptions)
    diffusion: Annotated[DiffusionOptions, Group("diffusion")] = field(default_factory=DiffusionOptions)
    hello_update: Annotated[HelloUpdateOptions, Group("hello_update")] = field(default_factory=HelloUpdateOptions)
    teacher: Annotated[TeacherOptions, Group("teacher")] = field(default_factory=TeacherOptions)
    engine: Annotated[EngineOptions, Group("engine")] = field(default_factory=EngineOptions)
    render: Annotated[RenderOptions, Group("engine")] = field(default_factory=RenderOptions)
    launch: Annotated[LaunchOptions, Group("running")] = field(default_factory=LaunchOptions)
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse flags that no set can be made with."""
        if self.check is None:
            needed = ["method", "out"]
            needed += ["ipc"] if self.method not in WITHOUT_IPC else []
            needed += ["images"] if self.method not in CLASSES else []
            absent = [name for name in needed if getattr(self, name) is None]
            if absent:
                names = {name: f"--{name}" for name in needed} | {"method": f"METHOD ({', '.join(METHODS)})"}
                raise InputError(f"{' and '.join(names[name] for name in absent)}: missing")
            require_own_flags(self)
            if self.method in CLASSES and self.images is not None:
                raise InputError(f"--images {self.images}: {self.method} needs none; leave it out")
        else:
            require_check_alone(self)
        for name, low, high in (("ipc", 1, 99_999), ("size", 1, 65_535), ("seed", 0, 2**63 - 1), ("quality", 1, 100)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"--{name}: expected {low} to {high}, found {value}")
        jitter = self.sre2l.jitter
        if self.size is not None and jitter is not None and jitter >= self.size:
            raise InputError(f"--jitter {jitter}: expected less than --size {self.size}, the side of the images")
        if self.quality is not None and self.format != "jpeg":
            raise InputError(f"--quality {self.quality}: has an effect only with --format jpeg, found {self.format}")
        require_one_labeller(self)
        if self.out is not None:
            require_apart(
                {"--out": self.out, "the cache of --out": manifest_cache(self.out)}, {"--images": self.images}
            )
        if self.sheet is not None:
            if self.sheet.suffix != ".png":
                raise InputError(f"--sheet: expected a name that ends in .png, found {self.sheet}")
            require_apart({"--sheet": self.sheet}, {"--images": self.images, "--out": self.out, "--check": self.check})

    @property
    def jpeg_quality(self) -> int | None:
        """Quality of the JPEG files; None where made images are PNG."""
        return (self.quality or 95) if self.format == "jpeg" else None


def require_check_alone(config: SynthesizeConfig) -> None:
    """Refuse, beside --check, a flag that has no effect on a check.

    Raises:
        InputError: names it.
    """
    values = values_of(config)
    for key, flag in flags_of(type(config)).items():
        if flag.path[0] not in WITH_CHECK and values[key] != flag.default:
            name = f"method {config.method}" if key == "method" else f"--{flag.name}"
            raise InputError(f"--check {config.check} and {name}: expected one of them, found both")


def require_own_flags(config: SynthesizeConfig) -> None:
    """Refuse a flag of another method than the chosen one that is not at its default.

    Raises:
        InputError: names the flag and its method.
    """
    values = values_of(config)
    for key, flag in flags_of(type(config)).items():
        owner = method_of(flag.path[0])
        if owner in METHODS and owner != config.method and values[key] != flag.default:
            raise InputError(f"--{flag.name}: is a flag of {owner}, found method {config.method}; leave it out")


def method_of(field: str) -> str:
    """The method whose numbers a field of the flags would hold."""
    return field.replace("_", "-")


def require_size(config: SynthesizeConfig, why: str) -> int:
    """The side of the images.

    Args:
        config: the flags.
        why: what needs it, such as ``rded``, for the message.

    Raises:
        InputError: when it is left out.
    """
    if config.size is None:
        raise InputError(f"--size: missing; {why} needs the side of the images in pixels")
    return config.size


def flags_in_effect(config: SynthesizeConfig) -> dict[str, Json]:
    """The flags that decide what the images are, by key, as JSON: the method's own, and those of every method."""
    values: dict[str, Any] = values_of(config)
    shared = {"ipc", "size", "seed", "allow_fewer", "drop_classes", "format"}
    found = {
        key: values[key]
        for key, flag in flags_of(type(config)).items()
        if key in shared or method_of(flag.path[0]) == config.method
    }
    found["quality"] = config.jpeg_quality
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
