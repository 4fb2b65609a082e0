"""The flags of the commands: a frozen dataclass for each command, with a field for each flag.

Nothing slow is imported here, so that help and usage errors are printed at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from labelstore.command.cache_options import StoreCacheOptions
from labelstore.command.encoding_options import CodeOptions, EncodingName
from labelstore.command.flags import Addressable, Group, Named, Positional, Words, flags_of, values_of
from labelstore.command.output import Output
from labelstore.durable.places import is_store, require_apart, require_new_file
from labelstore.errors import InputError, reason
from labelstore.storage_table import scheme_of
from pipeline.images.patterns import names_files
from pipeline.images.source_table import ImageOptions
from pipeline.launch.options import LaunchOptions
from pipeline.networks.families import network_names
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.plan.spec import PlanSpec
from pipeline.recipes import RecipeName
from pipeline.render.options import RenderOptions
from pipeline.teacher.engine.spec import CompileMode, EngineDType, TeacherSpec, make_members

# fields of the teacher's options that also apply to a user's labeller
OF_LABELLER = ("labeller", "labeller_args", "size")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOptions:
    """The networks that label, and their input."""

    names: Annotated[tuple[str, ...], Named("teacher"), Words(network_names)] = ()
    """Networks; several label together: the weighted mean of their logits. torchvision:NAME, timm:NAME,
    module:attribute, or one of"""
    weights: tuple[str, ...] = ()
    """Weights, one for each teacher, or several for one --teacher (an ensemble): a .safetensors or state-dict file,
    torchvision:IMAGENET1K_V1, timm:pretrained, or the folder of a projector."""
    weights_key: tuple[str, ...] = ()
    """Which set of weights to take from a file with several, such as model_ema or model.state_dict; one for each
    teacher, or one for all. Left out, a running mean (EMA) if the file has one; the choice is printed."""
    args: Annotated[tuple[str, ...], Named("teacher-args")] = ()
    """Keyword arguments of the teacher's constructor, as JSON; one for each teacher, or one for all. Left out, what its
    weights record, or none."""
    shares: Annotated[tuple[float, ...], Named("teacher-weights")] = ()
    """With several teachers: weights of their logits in the mean, in any scale; equal when left out."""
    classes: Annotated[str | None, Named("teacher-classes")] = None
    """Columns to keep of a teacher that has more classes than --images: comma-separated indexes or class names, or a
    file with one a line; imagenet: found by WordNet id or ImageNet class name; folders: column k is folder k."""
    class_columns: str | None = None
    """Keep all columns of a teacher that has more classes than --images. The value selects the columns of --images, in
    the same forms as --teacher-classes."""
    mean: tuple[float, float, float] | None = None
    """Channel means of the teacher's normalisation, for pixels in [0, 1]. Left out, what its weights record (a
    student's, timm's, torchvision's), otherwise ImageNet's; printed."""
    std: tuple[float, float, float] | None = None
    """Channel standard deviations of the teacher's normalisation; left out, as --mean."""
    labeller: str | None = None
    """Instead of --teacher and --weights: your own code that labels crops, as module:attribute; it is called with size,
    classes and --labeller-args."""
    labeller_args: str | None = None
    """Keyword arguments of the labeller, as JSON."""

    def spec(self, engine: EngineOptions, render: RenderOptions) -> TeacherSpec:
        """The teacher, run by an engine."""
        return TeacherSpec(
            members=make_members(
                self.names,
                self.weights,
                [json_object("--teacher-args", text) for text in self.args] or [{}],
                self.shares,
                self.weights_key,
            ),
            classes=self.classes,
            class_columns=self.class_columns,
            mean=self.mean or IMAGENET_MEAN,
            std=self.std or IMAGENET_STD,
            device=render.device,
            threads=render.threads,
            **asdict(engine),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How the teacher runs. All of these options affect the bytes of labels."""

    dtype: EngineDType = "float32"
    """Precision of the teacher; tf32 is float32 with products in TF32, on a GPU. Part of the engine."""
    batch: int | None = None
    """Crops in a batch of the teacher; the last batch is padded. Part of the engine. Left out, the store's; for a new
    store 128 on a CPU, or less if memory is short, and on a GPU what fits into half of its free memory, at most 1,024;
    in training, at most the crops of a step."""
    fold: bool = False
    """Fold the teacher's batch norms into the convolutions before them. Part of the engine."""
    compile: CompileMode = "off"
    """on: compile the teacher with torch.compile; if that fails, run it uncompiled, with a warning; require: stop if it
    fails. Part of the engine."""
    cuda_graph: bool = False
    """Replay the teacher's batch as one CUDA graph. Part of the engine."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Flags of `build`."""

    store: Path
    """Folder of the store; created if absent, else resumed or extended."""
    views: int
    """Crops of each image; rounded up to whole blocks, by a tenth at most."""
    recipe: RecipeName | None = None
    """Crops and augmentations of a published protocol; its values are printed, and flags override them."""
    images: Annotated[Path, Group("images"), Addressable()]
    """Class folder, with one subfolder for each class, of JPEG, PNG, WebP or PPM files; or tar shards such as
    'shards-{000..099}.tar', a zip, Parquet files, CIFAR, IDX or tensor files (docs/IMAGES.md); or an address of
    some."""
    source: Annotated[ImageOptions, Group("images")] = field(default_factory=ImageOptions)
    class_order: Annotated[Literal["auto", "bytes", "numeric"], Group("images")] = "auto"
    """Order of classes that have no numbers, by name: bytes; numeric, which puts class_2 before class_10; auto, the
    store's (bytes for a new store), which stops where the two would differ."""
    rehash: Annotated[bool, Group("images")] = False
    """Compute the digest of every image again, even if size and modification time are unchanged."""
    skip_broken: Annotated[bool, Group("images")] = False
    """Leave out images that cannot be decoded; they are listed, and recorded in the store. Without it they stop the
    build."""
    crops: Annotated[PlanSpec, Group("crops")]
    teacher: Annotated[TeacherOptions, Group("teacher")] = field(default_factory=TeacherOptions)
    encoding: Annotated[EncodingName | None, Group("encoding")] = None
    """How labels are stored: float16, 2 bytes a logit; int8, 1 byte; transform, far smaller, with a small loss
    (docs/ENCODINGS.md). Left out, the store's; for a new store int8 or transform, whichever is smaller."""
    codes: Annotated[CodeOptions, Group("encoding")] = field(default_factory=CodeOptions)
    render: Annotated[RenderOptions, Group("engine")] = field(default_factory=RenderOptions)
    engine: Annotated[EngineOptions, Group("engine")] = field(default_factory=EngineOptions)
    allow_engine_change: Annotated[bool, Group("engine")] = False
    """Continue a store on another engine, if it reproduces the audit rows; the store records the engine of each
    view."""
    take_over: Annotated[bool, Group("running")] = False
    """Take over the store from a build on another host that you know to be dead."""
    dry_run: Annotated[bool, Group("running")] = False
    """Check the flags and a few crops, print the teacher's agreement with the classes and estimates of bytes and time,
    and write nothing."""
    progress_log: Annotated[Path | None, Group("running")] = None
    """File to which a line of JSON is appended every ten seconds: crops done, how busy each stage is, and the
    bottleneck."""
    metrics_port: Annotated[int | None, Group("running")] = None
    """Serve the progress as Prometheus metrics on this port (needs the extra metrics)."""
    metrics_host: Annotated[str, Group("running")] = "127.0.0.1"
    """Address to serve metrics at; 0.0.0.0 lets other machines read them."""
    launch: Annotated[LaunchOptions, Group("running")] = field(default_factory=LaunchOptions)
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse numbers that no build can have."""
        for name, value in (("views", self.views), ("batch", self.engine.batch)):
            if value is not None and value < 1:
                raise InputError(f"--{name}: expected at least 1, found {value}")
        if self.metrics_port is not None and not 1 <= self.metrics_port <= 65_535:
            raise InputError(f"--metrics-port: expected 1 to 65535, found {self.metrics_port}")
        require_one_labeller(self)
        self.codes.parameters(self.encoding or self.codes.implied_encoding or "transform")
        places = {
            "--store": self.store,
            "the cache of --store": self.manifest_cache,
            "--progress-log": self.progress_log,
        }
        require_apart(places, {"--images": self.images})
        require_apart({"--progress-log": self.progress_log}, {"--store": self.store})

    def teacher_spec(self) -> TeacherSpec:
        """The teacher, and the engine that runs it."""
        return self.teacher.spec(self.engine, self.render)

    @property
    def manifest_cache(self) -> Path:
        """The manifest cache beside the store, with sizes and digests of the images."""
        return manifest_cache(self.store)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Flags of `verify`."""

    store: Annotated[Path, Addressable()]
    """Folder of the store, or its address: s3://BUCKET/FOLDER, https://HOST/FOLDER, ...."""
    images: Annotated[Path, Group("images"), Addressable()]
    """The images of the store, in any container, as for build."""
    source: Annotated[ImageOptions, Group("images")] = field(default_factory=ImageOptions)
    weights: tuple[str, ...] = ()
    """Weights of the store's teacher, one for each of several; without them only pixels are compared."""
    weights_key: tuple[str, ...] = ()
    """Which set of weights to take from a file with several, as for build."""
    teacher_args: tuple[str, ...] = ()
    """Arguments of the networks that the store does not record, as JSON, one for each or one for all. For a projector
    whose encoder has moved: '{"encoder_weights": "FILE"}'."""
    labeller: str | None = None
    """For a store that was built with --labeller: the labeller, module:attribute, as for build."""
    labeller_args: str | None = None
    """Keyword arguments of the labeller, as JSON."""
    render: Annotated[RenderOptions, Group("engine")] = field(default_factory=RenderOptions)
    rehash: bool = False
    """Compute the digest of every image again, even if size and modification time are unchanged."""
    store_cache: StoreCacheOptions = field(default_factory=StoreCacheOptions)
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse flags that do not go together."""
        require_labeller_args(self.labeller, self.labeller_args)
        self.store_cache.require_address(self.store)
        require_apart({"--cache-dir": self.store_cache.cache_dir}, {"--images": self.images})
        flags = {"--weights": self.weights, "--weights-key": self.weights_key, "--teacher-args": self.teacher_args}
        given = [flag for flag, value in flags.items() if value]
        if self.labeller and given:
            raise InputError(f"--labeller {self.labeller} and {given[0]}: expected one of them, found both")
        if given and not self.weights:
            raise InputError(f"{given[0]}: belongs to --weights; give both or neither")


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Flags of `show`."""

    data: Annotated[Path | None, Positional(), Addressable()] = None
    """An image set or a store, instead of --images or --store. An address is taken for a store's, unless it names files
    of images."""
    store: Annotated[Path | None, Addressable()] = None
    """Folder of the store, or its address: s3://BUCKET/FOLDER, https://HOST/FOLDER, ...."""
    images: Annotated[Path, Group("images"), Addressable()] = None  # type: ignore[assignment]  # there from __post_init__ on
    """The images of the store, as for build; without a store, the images to draw."""
    source: Annotated[ImageOptions, Group("images")] = field(default_factory=ImageOptions)
    out: Path
    """PNG to write; must not exist."""
    view: int = 0
    """View to show, counted from 0."""
    start: int = 0
    """First position to show, counted from 0; without a store, the first image, in an order that starts with the first
    image of each class."""
    count: int = 32
    """Number of crops or images to show."""
    columns: int = 8
    """Crops or images in a row of the sheet."""
    render: Annotated[RenderOptions, Group("engine")] = field(default_factory=RenderOptions)
    store_cache: StoreCacheOptions = field(default_factory=StoreCacheOptions)
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse invalid flags, and files that could not be written, before anything is drawn."""
        data = self.data
        if data is not None:
            stored = not names_files(data) if scheme_of(data) else is_store(data)
            name = "store" if stored else "images"
            if getattr(self, name) is not None:
                raise InputError(f"{data} and --{name} {getattr(self, name)}: expected one of them, found both")
            object.__setattr__(self, name, data)
            object.__setattr__(self, "data", None)  # so that --print-config writes one of them
        if self.images is None:
            where = f"; of images at {data}: --images {data}" if self.store is data is not None else ""
            raise InputError(f"--images: missing; give the images that the store was made of{where}")
        if self.store is None and self.view:
            raise InputError(f"--view {self.view}: has an effect only with --store, found none")
        if self.count < 1 or self.columns < 1 or self.start < 0:
            raise InputError("--count and --columns: expected at least 1, and --start at least 0")
        if self.out.suffix != ".png":
            raise InputError(f"--out: expected a name that ends in .png, found {self.out}")
        self.store_cache.require_address(self.store)
        places = {"--out": self.out, "--cache-dir": self.store_cache.cache_dir}
        require_apart(places, {"--images": self.images, "--store": self.store})
        require_new_file("--out", self.out)


def require_one_labeller(config: Any) -> None:
    """Refuse --labeller beside a flag of a teacher, and --labeller-args without it.

    Args:
        config: of a command, with the options of a teacher in ``teacher`` and of its engine in ``engine``.

    Raises:
        InputError: names both flags.
    """
    values = values_of(config)
    labeller = values["labeller"]
    require_labeller_args(labeller, values["labeller_args"])
    if labeller is None:
        return
    for key, flag in flags_of(type(config)).items():
        if flag.path[0] in ("teacher", "engine") and flag.path[-1] not in OF_LABELLER and values[key] != flag.default:
            raise InputError(
                f"--labeller {labeller} and --{flag.name}: expected one of them, found both; a labeller of your own "
                f"takes no flag of a teacher"
            )


def require_labeller_args(labeller: str | None, args: str | None) -> None:
    """Refuse --labeller-args that are no JSON object, or belong to nothing.

    Raises:
        InputError: names the flag.
    """
    if args is not None:
        json_object("--labeller-args", args)
        if labeller is None:
            raise InputError("--labeller-args: belongs to --labeller; give both or neither")


def require_labels(teacher: TeacherOptions) -> None:
    """Refuse a build without a teacher or a labeller.

    Raises:
        InputError: names the flags that are missing.
    """
    needed = (("--teacher", teacher.names), ("--weights", teacher.weights))
    absent = [flag for flag, value in needed if not value]
    if absent and teacher.labeller is None:
        raise InputError(f"{' and '.join(absent)}: missing; give --teacher and --weights, or --labeller")


def manifest_cache(store: Path) -> Path:
    """The manifest cache beside a store."""
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
