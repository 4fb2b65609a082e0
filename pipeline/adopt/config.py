"""The flags of `adopt`; nothing that takes long to import is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from labelstore.command.encoding_options import EncodingName
from labelstore.command.flags import Addressable, Group, Positional
from labelstore.command.output import Output
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from pipeline.adopt import FormatName
from pipeline.config import TeacherOptions, manifest_cache, require_one_labeller
from pipeline.images.source_table import ImageOptions
from pipeline.plan.spec import Interpolation
from pipeline.render.options import RenderOptions


@dataclass(frozen=True, kw_only=True)
class AdoptConfig:
    """Flags of `adopt`."""

    labels: Annotated[Path, Positional()]
    """Folder of the labels: epoch_0/batch_0.tar and so on; or, of FKD, one .tar an image."""
    store: Path
    """Folder of the store; created if absent, else resumed or extended."""
    format: FormatName | None = None
    """Format of the labels; recognised when left out."""
    views: int | None = None
    """Adopt the first epochs only; of FKD, this many crops of each image. All when left out."""
    size: int
    """Side of the square crops that were labelled, in pixels."""
    interpolation: Interpolation | None = None
    """Filter with which the crops were resized; left out, that of the authors' code: bicubic for fkd, otherwise
    bilinear."""
    sampler_seed: int | None = None
    """sre2l: seed from which the order of images is rebuilt, --fkd-seed of the authors' code; 42 when left out."""
    order: Path | None = None
    """sre2l: instead of a seed, a file of the image numbers of each epoch: JSON, {"0": [...], ...}, or .npy [V, N].
    Left out, sampler_indices_epoch.json of the folder, if there is one."""
    image_list: Path | None = None
    """Text file with the path of one image a line, in the order in which the authors' code numbered them. Left out,
    torchvision's ImageFolder order."""
    images: Annotated[Path, Group("images"), Addressable()]
    """The images that were labelled, as for build."""
    source: Annotated[ImageOptions, Group("images")] = field(default_factory=ImageOptions)
    class_order: Annotated[Literal["auto", "bytes", "numeric"], Group("images")] = "auto"
    """Order of classes that have no numbers, as for build; torchvision's ImageFolder has bytes."""
    rehash: Annotated[bool, Group("images")] = False
    """Compute the digest of every image again, even if size and modification time are unchanged."""
    teacher: Annotated[TeacherOptions, Group("teacher")] = field(default_factory=TeacherOptions)
    encoding: Annotated[EncodingName | None, Group("encoding")] = None
    """How labels are stored: float16 (the default), or int8 (the default for fkd). `giftwrap convert` then makes a
    store of transform, which needs a calibration."""
    render: Annotated[RenderOptions, Group("engine")] = field(default_factory=RenderOptions)
    take_over: Annotated[bool, Group("running")] = False
    """Take over the store from a command on another host that you know to be dead."""
    dry_run: Annotated[bool, Group("running")] = False
    """Check everything, print how often labels agree with the classes, and write nothing."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse values that no store can have, and flags that exclude each other."""
        for name, value in (("views", self.views), ("size", self.size)):
            if value is not None and value < 1:
                raise InputError(f"--{name}: expected at least 1, found {value}")
        if self.sampler_seed is not None and not 0 <= self.sampler_seed < 2**63:
            raise InputError(f"--sampler-seed: expected 0 to 2**63 - 1, found {self.sampler_seed}")
        if self.order is not None and self.sampler_seed is not None:
            raise InputError("--order, --sampler-seed: expected one of them, found both")
        if (self.teacher.mean is None) != (self.teacher.std is None):
            raise InputError("--mean, --std: expected both or neither, found one")
        require_one_labeller(self)
        if self.teacher.names and not self.teacher.weights:
            raise InputError("--weights: missing; give the weights of --teacher")
        places = {"--store": self.store, "the cache of --store": manifest_cache(self.store)}
        require_apart(places, {"--images": self.images, "LABELS": self.labels})
