"""The flags of `import` and `text-embeddings`; nothing that takes long to import is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from labelstore.command.flags import Addressable, Group
from labelstore.command.output import Output
from labelstore.errors import InputError
from pipeline.config import require_place
from pipeline.images.opening import ImageOptions


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Write images from any container as a class folder or tar shards; of a tensor file, as PNG of 8 bits a channel."""

    data: Annotated[tyro.conf.Positional[Path], Addressable()]
    """A tensor file, as GIFT and other distillation repositories publish it: data.pt; or images that --images takes:
    tar shards, a zip, Parquet, CIFAR, IDX, a class folder; or their address."""
    out: Path
    """Class folder to make; with --shards or --shard-mib, folder for the tar shards."""
    source: Annotated[ImageOptions, Group("images")] = field(default_factory=ImageOptions)
    class_order: Literal["auto", "bytes", "numeric"] = "auto"
    """Order of classes that have names alone, for the numbers in tar shards; auto is byte order, and stops where
    numbers in the names sort otherwise."""
    shards: int | None = None
    """Write as many tar shards, as WebDataset reads them; the same command continues a stopped one."""
    shard_mib: int | None = None
    """Write tar shards of about as many MiB."""
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
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse numbers of shards that cannot be."""
        for flag, value in (("--shards", self.shards), ("--shard-mib", self.shard_mib)):
            if value is not None and value < 1:
                raise InputError(f"{flag}: expected at least 1, found {value}")
        if self.shards is not None and self.shard_mib is not None:
            raise InputError("--shards, --shard-mib: expected one of them, found both")

    @property
    def of_tensors(self) -> tuple[str, ...]:
        """The flags that are given and that tensor files alone have."""
        names = ("mean", "std", "normalise", "labels", "argmax", "index")
        return tuple(f"--{name}" for name in names if getattr(self, name) not in (None, False))


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Make text embeddings of class names [C, d], which the head of a projector can start from; needs the extra `clip`.

    Prompts of several templates are averaged: of each the embedding has length 1, and so has the mean.
    """

    model: str
    """open_clip:MODEL/WEIGHTS, such as open_clip:RN50/openai; downloaded where it is not in the cache."""
    classes: str
    """Names of the classes, comma-separated, or a file with one a line, or a class folder, whose folders they are then
    the names of; in the order of the labels' columns."""
    template: tuple[str, ...] = ("a photo of a {}.",)
    """Prompts, in which {} stands for the class."""
    out: Path
    """File to write, .npy or .safetensors; the latter holds the names of the classes too."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse, before a model is loaded, what could not be made or written."""
        library, _, name = self.model.partition(":")
        model, slash, weights = name.rpartition("/")
        if library != "open_clip" or not (model and slash and weights):
            raise InputError(f"--model: expected open_clip:MODEL/WEIGHTS, found {self.model}")
        for template in self.template:
            if not has_one_place(template):
                raise InputError(f"--template: expected a prompt with one {{}} for the class, found {template!r}")
        if not self.template:
            raise InputError("--template: expected at least one, found none")
        if self.out.suffix not in (".npy", ".safetensors"):
            raise InputError(f"--out: expected a name that ends in .npy or .safetensors, found {self.out}")
        require_place("--out", self.out)


def has_one_place(template: str) -> bool:
    """Whether a class name is put into a prompt once; other braces are doubled."""
    name = "name of a class"
    try:
        return template.count("{}") == 1 and template.format(name).count(name) == 1 + template.count(name)
    except (LookupError, ValueError, AttributeError):
        return False
