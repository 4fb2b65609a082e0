"""The flags of each command: one frozen dataclass each, whose fields are the flags.

Nothing that takes long to import is imported here, so that help and the errors of a command line come at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from labelstore.durable.places import require_apart, require_writable
from labelstore.durable.removing import require_absent
from labelstore.encodings import CodecName, EncodingName, encoding_parameters
from labelstore.errors import InputError, reason
from labelstore.spec import Json
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.plan.augment import CropName, MixName
from pipeline.plan.plan import Interpolation, MixPer, PlanSpec
from pipeline.recipes import RecipeName
from pipeline.render import DecoderName
from pipeline.teacher.engine.spec import CompileMode, DTypeName, TeacherSpec, make_members

DEFAULT_GROUP = 128


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Make a label store: a teacher labels augmented crops of a class folder of images.

    Typing the same command again resumes a stopped build; a larger --views extends a finished store.
    """

    images: Path
    """Class folder: one subfolder a class, with JPEG, PNG or WebP files."""
    recipe: RecipeName | None = None
    """What a published protocol augments its images with; its values are printed, and flags override them."""
    teacher: tuple[str, ...]
    """torchvision:NAME, timm:NAME, convnet-dN, cifar-resnetN, resnet18/101-modified or module:attribute.
    Several label together: the weighted mean of their logits."""
    weights: tuple[str, ...]
    """Weights, one a teacher: a .safetensors or state-dict file, torchvision:IMAGENET1K_V1 or timm:pretrained."""
    weights_key: tuple[str, ...] = ()
    """Of several sets of weights in a file the one to take, such as model_ema or model.state_dict; one a teacher, or
    one for all. Left out, a running mean (EMA) where there is one; what is taken is printed."""
    size: int
    """Side S of the square crops in pixels."""
    views: int
    """Crops per image; rounded up to whole blocks."""
    store: Path
    """Folder of the store; made when absent, resumed or extended when present."""
    teacher_args: tuple[str, ...] = ()
    """Keyword arguments of the teacher's constructor, as JSON; of several, one for each or one for all."""
    teacher_weights: tuple[float, ...] = ()
    """Weights of several teachers' logits in the mean, in any scale; equal when left out."""
    teacher_classes: str | None = None
    """Columns of a wider teacher to keep: comma-separated indexes or class names, or a file with one a line; imagenet:
    those of folders named as ImageNet's classes, by its public list; folders: column k is folder k."""
    class_columns: str | None = None
    """Keep all columns of a teacher wider than the folders: which of them are the folders', in the folders' order, or
    imagenet."""
    mean: tuple[float, float, float] | None = None
    """Channel means of the teacher's normalisation, of pixels in [0, 1]; left out, what its weights were trained with
    (a student's, timm's, torchvision's), or else ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Channel standard deviations of the teacher's normalisation; likewise."""
    crop: CropName = "resized"
    """resized: RandomResizedCrop; center: centre fit; padded: zero-padded random crop (CIFAR); factor: GIFT's."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the resized crop's share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the resized crop's aspect ratio."""
    pad: int = 4
    """Zero padding of a padded crop, in pixels on each side."""
    resize: int | None = None
    """Centre fit: short side before the crop; the crop's size when left out."""
    factor: int = 1
    """Factor crop: with probability 1 - 1/F^2 one cell of the F x F grid, else the whole image."""
    augment: tuple[str, ...] = ()
    """Further augmentations: patch-shuffle=F (RDED: strips of F x F collages), dsa (GIFT: on the normalised crop)."""
    interpolation: Interpolation = "bilinear"
    """Antialiased filter of the resize."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    mix: MixName = "none"
    """Mix crops with partners of their group; labels are made after mixing."""
    alpha: float = 1.0
    """Mixing weights are drawn from Beta(alpha, alpha)."""
    group: int | None = None
    """Positions that mix with each other; 128 when left out."""
    mix_per: MixPer = "group"
    """What has a mixing weight or box of its own: a group, or each crop with its partner."""
    seed: int = 0
    """Seed of the plan: orders, boxes, flips, mixes."""
    encoding: EncodingName | None = None
    """How labels are stored: int8 is C + 4 bytes a label, float16 2 C, transform C / 20 to C / 5 and a calibration for
    the whole store. Left out, the store's, and of a new store int8 or transform, whichever is smaller."""
    codec: CodecName | None = None
    """How codes are compressed: int8, float16: raw (their own) or zstd; transform: pcodec (its own) or zstd."""
    fidelity: float | None = None
    """transform: mean cosine between the GIFT targets of the exact and the stored labels, to be reached (0.98)."""
    step: float | None = None
    """transform: its quantiser's step, instead of --fidelity."""
    dtype: DTypeName = "float32"
    """Precision of the teacher."""
    device: str = "cpu"
    """cpu, cuda or cuda:N, for the renderer and the teacher."""
    decoder: DecoderName | None = None
    """What decodes files: cpu; gpu, in software (the default on a GPU); gpu-hw, by its JPEG hardware."""
    batch: int | None = None
    """Crops per teacher batch, fixed and padded: part of the engine. Left out, the store's, and in a new store 128 on a
    CPU, fewer where memory is short, and on a GPU what half of its free memory takes, at most 1,024."""
    fold: bool = False
    """Fold the teacher's batch norms into the convolutions before them. Part of the engine."""
    compile: CompileMode = "off"
    """on: torch.compile the teacher, and run it uncompiled, with a warning, where that fails; require: stop there. A
    store that was begun compiled is never continued otherwise. Part of the engine."""
    cuda_graph: bool = False
    """Replay the teacher's batch as one CUDA graph. Part of the engine."""
    threads: int | None = None
    """CPU threads; all cores when left out. Part of the engine on a CPU."""
    cache_gib: float = 2.0
    """Memory for decoded images; a larger set is decoded region by region, with the same pixels."""
    class_order: Literal["auto", "bytes", "numeric"] = "auto"
    """Order of the class folders; numeric counts digits that stand together as one number; auto is the store's order,
    of a new store byte order, and stops where numbers in the names sort otherwise."""
    rehash: bool = False
    """Read every image again instead of believing size and modification time."""
    skip_broken: bool = False
    """Leave out images that do not decode, list them, and record them in the store."""
    allow_engine_change: bool = False
    """Resume on another engine; the store records which views came from which."""
    take_over: bool = False
    """Take the lease of a build on another host that is known to be dead."""
    dry_run: bool = False
    """Check everything, measure a short probe, print crops, bytes and time, and write nothing."""
    progress_log: Path | None = None
    """File that gets a line of JSON every ten seconds: what is done, how busy each stage is, and which one binds."""
    metrics_port: int | None = None
    """Serve the same as Prometheus metrics on this port."""
    metrics_host: str = "127.0.0.1"
    """Address on which metrics are served: others can read them when it is not this machine's own."""
    json: bool = False
    """Print the summary as one JSON object on standard output and all else on standard error."""

    def __post_init__(self) -> None:
        """Refuse numbers that no build can have."""
        for name, value in (("views", self.views), ("threads", self.threads), ("batch", self.batch)):
            if value is not None and value < 1:
                raise InputError(f"--{name}: expected at least 1, found {value}")
        if self.metrics_port is not None and not 1 <= self.metrics_port <= 65_535:
            raise InputError(f"--metrics-port: expected 1 to 65535, found {self.metrics_port}")
        self.encoding_parameters(self.encoding or self.implied_encoding or "transform")
        places = {
            "--store": self.store,
            "the cache of --store": self.manifest_cache,
            "--progress-log": self.progress_log,
        }
        require_apart(places, {"--images": self.images})
        require_apart({"--progress-log": self.progress_log}, {"--store": self.store})

    def plan_spec(self) -> PlanSpec:
        """The plan's part of the flags."""
        return PlanSpec(
            size=self.size,
            seed=self.seed,
            crop=self.crop,
            scale=self.scale,
            ratio=self.ratio,
            pad=self.pad,
            resize=self.resize,
            factor=self.factor,
            augment=self.augment,
            interpolation=self.interpolation,
            flip=self.flip,
            mix=self.mix,
            alpha=self.alpha,
            mix_per=self.mix_per,
            group=self.group if self.group is not None else (DEFAULT_GROUP if self.mix != "none" else 1),
        )

    @property
    def implied_encoding(self) -> EncodingName | None:
        """The encoding that other flags belong to; None where they leave the choice."""
        if self.fidelity is not None or self.step is not None or self.codec == "pcodec":
            return "transform"
        return "int8" if self.codec == "raw" else None

    def encoding_parameters(self, name: str) -> dict[str, Json]:
        """The label encoding's part of the flags, of the encoding of that name."""
        return encoding_parameters(name, codec=self.codec, fidelity=self.fidelity, step=self.step)

    def teacher_spec(self) -> TeacherSpec:
        """The teacher's part of the flags."""
        return TeacherSpec(
            members=make_members(
                self.teacher,
                self.weights,
                [json_object("--teacher-args", text) for text in self.teacher_args] or [{}],
                self.teacher_weights,
                self.weights_key,
            ),
            classes=self.teacher_classes,
            class_columns=self.class_columns,
            mean=self.mean or IMAGENET_MEAN,
            std=self.std or IMAGENET_STD,
            dtype=self.dtype,
            batch=self.batch,
            device=self.device,
            threads=self.threads,
            fold=self.fold,
            compile=self.compile,
            cuda_graph=self.cuda_graph,
        )

    @property
    def cache_bytes(self) -> int:
        """The memory budget of decoded images, in bytes."""
        return gibibytes("--cache-gib", self.cache_gib)

    @property
    def manifest_cache(self) -> Path:
        """The file beside the store that keeps sizes and digests of the images."""
        return manifest_cache(self.store)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Render stored crops again, run the teacher on them, and compare with what the store holds."""

    store: Path
    """Folder of the store."""
    images: Path
    """Class folder that the store was made of."""
    weights: tuple[str, ...] = ()
    """Weights of the store's teacher, of several one each; without them only the pixels are compared."""
    weights_key: tuple[str, ...] = ()
    """Of several sets of weights in a file the one to take, as for build."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    decoder: DecoderName | None = None
    """What decodes files: cpu, gpu or gpu-hw; on a GPU what decoded the store's when left out."""
    threads: int | None = None
    """CPU threads; the teacher takes as many as the store's did when left out."""
    cache_gib: float = 2.0
    """Memory for decoded images."""
    rehash: bool = False
    """Read every image again instead of believing size and modification time."""
    json: bool = False
    """Print the summary as one JSON object on standard output and all else on standard error."""


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Draw a contact sheet (PNG): crops as the student sees them, with target, the teacher's top-3, confidence."""

    store: Path
    """Folder of the store."""
    images: Path
    """Class folder that the store was made of."""
    out: Path
    """The PNG to write."""
    view: int = 0
    """View to show."""
    start: int = 0
    """First position to show."""
    count: int = 32
    """Crops to show."""
    columns: int = 8
    """Crops a row of the sheet."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    decoder: DecoderName | None = None
    """What decodes files: cpu, gpu or gpu-hw; on a GPU what decoded the store's when left out."""
    threads: int | None = None
    """CPU threads; all cores when left out."""
    cache_gib: float = 2.0
    """Memory for decoded images."""
    json: bool = False
    """Print the summary as one JSON object on standard output and all else on standard error."""

    def __post_init__(self) -> None:
        """Refuse, before anything is drawn, what could not be written."""
        require_apart({"--out": self.out}, {"--images": self.images, "--store": self.store})
        require_place("--out", self.out)
        if self.out.suffix != ".png":
            raise InputError(f"--out: expected a name that ends in .png, found {self.out}")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Turn a published tensor file (images and labels) into a class folder of PNG, 8 bits a channel."""

    data: tyro.conf.Positional[Path]
    """The file, as GIFT and other distillation repositories publish it: data.pt."""
    out: Path
    """Class folder to make."""
    mean: tuple[float, ...] | None = None
    """Channel means that the images were normalised with; needed for float images."""
    std: tuple[float, ...] | None = None
    """Channel standard deviations that the images were normalised with."""
    normalise: Literal["mean-std", "per-image", "min-max"] | None = None
    """Stretch each image (per-image) or all alike (min-max) to 0 to 255 instead of --mean and --std; mean-std: take
    these though the values do not fit them, as of ZCA-whitened images, which are refused when this is left out."""
    labels: Path | None = None
    """File of the labels, where they are not with the images (MTT, FTD, TESLA, DATM: labels_best.pt)."""
    argmax: bool = False
    """Of soft labels keep the class of the largest, and drop the rest; left out, they are refused."""
    index: int | None = None
    """Which of several sets of images in the file (DC, DSA, DM: one an experiment), from 0."""
    class_names: str | None = None
    """Names of the classes 0, 1, ..., comma-separated or a file with one a line; they name the folders, preceded by
    the index where their own order is another."""
    json: bool = False
    """Print the summary as one JSON object on standard output and all else on standard error."""


def manifest_cache(store: Path) -> Path:
    """The file beside a store that keeps its images' sizes and digests."""
    named = Path(os.path.abspath(store))  # noqa: PTH100  "." has no name, and links stay
    return named.with_name(f"{named.name}.images.npz")


def json_object(flag: str, text: str) -> Mapping[str, Any]:
    """The JSON object given to ``flag``."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{flag}: expected a JSON object, found {text[:80]!r} ({reason(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{flag}: expected a JSON object, found {text!r}")
    return value


def gibibytes(flag: str, value: float) -> int:
    """``value`` GiB in bytes."""
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{flag}: expected a number of GiB that is not negative, found {value}")
    return int(value * 2**30)


def require_place(flag: str, path: Path) -> None:
    """Refuse a file that could not be written, or is there already, before the work that it is for."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{flag}: expected the name of a file in a folder that is there, found {path}")
    require_absent(path)
    require_writable(path)
