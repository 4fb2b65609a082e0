"""The flags of `import` and `text-embeddings`; nothing that takes long to import is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from labelstore.command.flags import Addressable, Group, Positional
from labelstore.command.output import Output
from labelstore.durable.places import require_new_file
from labelstore.errors import InputError
from pipeline.images.source_table import ImageOptions


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Flags of `import`."""

    data: Annotated[Path, Positional(), Addressable()]
    """A tensor file such as data.pt, as distillation repositories publish; or images in any container that --images of
    build takes, or their address."""
    out: Path
    """Class folder to make; with --shards or --shard-mib, folder for the tar shards."""
    source: Annotated[ImageOptions, Group("images")] = field(default_factory=ImageOptions)
    class_order: Literal["auto", "bytes", "numeric"] = "auto"
    """Order of classes that have no numbers, which numbers them in tar shards: bytes; numeric, class_2 before class_10;
    auto, bytes, which stops where the two would differ."""
    shards: int | None = None
    """Write tar shards instead, this many, as WebDataset reads them."""
    shard_mib: int | None = None
    """Write tar shards instead, of about this many MiB each."""
    mean: tuple[float, ...] | None = None
    """Channel means that the images of a tensor file were normalised with; needed for floating-point images."""
    std: tuple[float, ...] | None = None
    """Channel standard deviations that the images were normalised with; likewise needed."""
    normalise: Literal["mean-std", "per-image", "min-max"] | None = None
    """For values that do not fit --mean and --std, such as ZCA-whitened images, which are refused when this is left
    out: stretch each image (per-image) or all alike (min-max) to 0 to 255, or use mean and deviation nevertheless
    (mean-std)."""
    labels: Path | None = None
    """File of the labels, if it is another one (MTT, FTD, TESLA, DATM: labels_best.pt)."""
    argmax: bool = False
    """Replace soft labels by their largest class. Soft labels are refused when this is left out."""
    index: int | None = None
    """Which of several sets of images in the file, counted from 0 (DC, DSA and DM store one for each experiment)."""
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
        """The given flags that apply only to tensor files."""
        names = ("mean", "std", "normalise", "labels", "argmax", "index")
        return tuple(f"--{name}" for name in names if getattr(self, name) not in (None, False))


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Flags of `text-embeddings`."""

    model: str
    """open_clip:MODEL/WEIGHTS, such as open_clip:RN50/openai; downloaded if it is not in the cache."""
    classes: str
    """Names of the classes, in the order of the labels' columns: comma-separated, a file with one a line, or a class
    folder, whose subfolders are the classes."""
    template: tuple[str, ...] = ("a photo of a {}.",)
    """Prompts, with {} as placeholder of the class."""
    out: Path
    """File to write, .npy or .safetensors; the latter also has the names of the classes. Must not exist."""
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
        require_new_file("--out", self.out)


def has_one_place(template: str) -> bool:
    """Whether a class name is put into a prompt once; other braces are doubled."""
    name = "name of a class"
    try:
        return template.count("{}") == 1 and template.format(name).count(name) == 1 + template.count(name)
    except (LookupError, ValueError, AttributeError):
        return False
