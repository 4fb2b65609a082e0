"""The flags of `synthesize`: those of every method, and those of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from labelstore.command.flags import Addressable, Choices, Group, Named, Positional, flags_of, values_of
from labelstore.command.output import Output
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.config import EngineOptions, TeacherOptions, manifest_cache, require_one_labeller
from pipeline.images.source_table import ImageOptions
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
    """The choice of real images in `random`."""

    take: Taking = "copy"
    """random: copy the files, hard-link them (link), or cut images to --size: the centre (center), or one
    RandomResizedCrop that is drawn once (crop)."""
    ce_decile: int | None = None
    """random: draw from one tenth of each class only, by the teacher's cross-entropy: from 1, the easiest, to 10, the
    hardest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RdedOptions:
    """The numbers of `rded` (arXiv 2312.03526)."""

    pool: int = 300
    """rded: images of each class from which crops are taken; all if there are fewer."""
    crops: int = 5
    """rded: crops of each of these images, of which the best is kept."""
    factor: int | None = None
    """rded: cells on each side of a collage. Left out, 1 for --size below 128, otherwise 2."""
    fit: Fit = "pad"
    """rded: how a crop of --size / --factor is shown to the teacher: padded with zeros to --size, as in the authors'
    code, or resized to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sre2lOptions:
    """The numbers of `sre2l` (arXiv 2306.13092)."""

    iterations: int = 1000
    """sre2l: steps of Adam on each batch of images; published: 1000 for CIFAR, 4000 for ImageNet and Tiny-ImageNet."""
    lr: float = 0.25
    """sre2l: learning rate of the first step; it falls to 0 along half a cosine."""
    betas: tuple[float, float] = (0.5, 0.9)
    """sre2l: betas of Adam."""
    bn_weight: float = 0.01
    """sre2l: weight of the distance between the batch's statistics and those of the teacher's batch norms; the
    cross-entropy has weight 1."""
    first_bn: float = 10.0
    """sre2l: weight of the first batch norm within that distance, where the others have 1; the authors' code has 10,
    the paper 1."""
    tv_weight: float = 0.0
    """sre2l: weight of the total variation of the teacher's input; 0 for the published sets."""
    l2_weight: float = 0.0
    """sre2l: weight of the L2 norm of the teacher's input; 0 for the published sets."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """sre2l: range of the area, as a share of the image's, that each step cuts out and resizes to the whole side; 1 1
    takes the whole image, as the authors' code for CIFAR does."""
    jitter: int | None = None
    """sre2l: largest cyclic shift of the input of a step, in pixels. Left out, a seventh of the side: 32 at 224 px and
    4 at 32 px, as published."""
    start: Annotated[Start, Named("start-from")] = "noise"  # torchrun takes --start for its own
    """sre2l: initial images: noise or real images."""
    statistics: Statistics = "batch"
    """sre2l: batch: a batch has all classes in turn, and matches the teacher's running statistics; class: a batch has
    one class, and matches the statistics of its real images (as in LPLD)."""

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
    """Options for drawing images from a model of `train-generator` (arXiv 2409.03929 publishes no numbers)."""

    model: str | None = None
    """diffusion: run folder of train-generator; no --images are needed."""
    vae: str | None = None
    """diffusion: the model's autoencoder, if it is no longer where it was in training."""
    steps: int = 50
    """diffusion: sampling steps of each image."""
    guidance: float = 1.4
    """diffusion: scale of classifier-free guidance; 1 is no guidance, 1.4 U-ViT's."""
    sampler: Sampler = "dpm"
    """diffusion: dpm: DPM-Solver++(2M); ddim: DDIM without added noise."""
    image_batch: int = 64
    """diffusion: images in a batch, which is always full; the last bits of pixels may depend on it. With --candidates a
    batch has images of one class only."""
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    """diffusion: precision of the backbone; bfloat16 under autocast."""
    candidates: int = 1
    """diffusion: make this many times --ipc images of each class, of which --select keeps --ipc."""
    select: Selection = "none"
    """diffusion: which candidates are kept: ce, those with the teacher's smallest cross-entropy; kcenter, those far
    from each other in the teacher's logits (greedy k-center)."""

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
    """hello-update: frozen network whose features of a patch and of its small copy are to agree; named as for
    train-projector."""
    encoder_weights: str | None = None
    """hello-update: weights of --encoder: a .safetensors or state-dict file, torchvision:IMAGENET1K_V1 or
    timm:pretrained."""
    encoder_args: str = "{}"
    """hello-update: keyword arguments of the encoder's constructor, as JSON."""
    features: Features | None = None
    """hello-update: penultimate: the encoder without its last linear layer; output: the whole encoder. Left out, as for
    train-projector."""
    encoder_size: int | None = None
    """hello-update: side of the encoder's input in pixels; what its weights were trained with when left out."""
    encoder_mean: tuple[float, float, float] | None = None
    """hello-update: channel means of the encoder's normalisation, for pixels in [0, 1]; left out, what its weights were
    trained with, otherwise ImageNet's."""
    encoder_std: tuple[float, float, float] | None = None
    """hello-update: channel standard deviations of the encoder's normalisation; left out, as --encoder-mean."""
    update_steps: int = 100
    """hello-update: steps of Adam on each batch of images."""
    update_lr: float = 0.01
    """hello-update: learning rate of the first step, for pixels in [0, 1]; it falls to 0 along half a cosine."""
    update_scale: float = 0.5
    """hello-update: side of a patch's small copy, as a share of the patch's."""
    update_cells: int | None = None
    """hello-update: patches on each side of an image. Left out, the cells of RDED's collages, if the record of --images
    states them, otherwise 1: the whole image."""

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
    """Flags of `synthesize`."""

    method: Annotated[str, Positional(), Choices(METHODS)] = None  # type: ignore[assignment]  # as `out` is
    """Method that makes the images:"""
    out: Path = None  # type: ignore[assignment]  # left out only with --check, which calls no method
    """Class folder to make; the same command continues a stopped one."""
    images: Annotated[Path, Group("images"), Addressable()] = None  # type: ignore[assignment]  # diffusion needs none
    """Real images: a class folder, tar shards or other containers, as for build; diffusion needs none."""
    source: Annotated[ImageOptions, Group("images")] = field(default_factory=ImageOptions)
    ipc: int = None  # type: ignore[assignment]  # as `out` is
    """Images of each class; hello-update changes only the first ones of each class, or all when left out."""
    size: int | None = None
    """Side of the square images in pixels; needed by methods that cut or make images."""
    seed: int = 0
    """Seed of all draws."""
    check: Path | None = None
    """Instead of METHOD and --out: compare a set with its record, and with its source images, --images."""
    class_order: Annotated[Literal["auto", "bytes", "numeric"], Group("images")] = "auto"
    """Order of the classes, as for build; it is the order of the teacher's columns."""
    rehash: Annotated[bool, Group("images")] = False
    """Compute the digest of every image again, even if size and modification time are unchanged."""
    skip_broken: Annotated[bool, Group("images")] = False
    """Leave out images that cannot be decoded, and list them."""
    drop_classes: Annotated[tuple[str, ...], Group("images")] = ()
    """Names of classes for which no images are made; the teacher keeps their columns."""
    allow_fewer: Annotated[bool, Group("images")] = False
    """Make fewer images of a class that has too few real ones, instead of stopping."""
    format: Annotated[FileFormat, Group("files")] = "png"
    """File format of generated images: png is lossless; jpeg, see --quality. Copied files keep their format."""
    quality: Annotated[int | None, Group("files")] = None
    """JPEG quality, 1 to 100, without chroma subsampling; 95 when left out."""
    sheet: Annotated[Path | None, Group("files")] = None
    """PNG to write with a contact sheet of the finished set."""
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
