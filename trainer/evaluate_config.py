"""The flags of evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from labelstore.command.flags import Addressable, Group, Named
from labelstore.command.output import Output
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from pipeline.config import require_place
from pipeline.images.opening import ImageOptions
from pipeline.render.options import RenderOptions
from pipeline.teacher.engine.spec import DTypeName


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure top-1 and top-5 of a network on a class folder."""

    run: Annotated[Path | None, Named("run-folder")] = None
    """Folder of a run of `train`: its last weights, as it tested them, on its test images."""
    weights: tuple[str, ...] = ()
    """Instead: a .safetensors or state-dict file, torchvision:IMAGENET1K_V1 or timm:pretrained; of several files, or a
    pattern such as 'run/epoch-*.safetensors', a row each, compared with the last."""
    images: Annotated[Path | None, Group("images"), Addressable()] = None
    """Test images, in a class folder or another container; those of the run when left out."""
    source: Annotated[ImageOptions, Group("images")] = field(default_factory=ImageOptions)
    cache_dir: Annotated[Path | None, Group("images")] = None
    """Folder that keeps, of test images at an address, the index of tars and what decodes, for later commands."""
    student: str | None = None
    """Network, by the names that `train --student` takes; the one that the weights say they are of when left out."""
    student_args: str | None = None
    """Keyword arguments of the network's constructor, as JSON; likewise."""
    weights_key: str | None = None
    """Of several sets of weights in the file the one to take, such as model_ema; left out, a running mean (EMA) where
    there is one; what is taken is printed."""
    size: int | None = None
    """Side of the network's input in pixels, cut from the centre; what it was trained with when left out."""
    classes: str | None = None
    """Columns of a wider network: comma-separated indexes or class names, a file with one a line, or imagenet: by its
    public list."""
    resize: int | None = None
    """Short side of an image before the central crop; as the run tested, or the crop's size, when left out."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Antialiased filter of the resize; as the run tested, or bilinear, when left out."""
    mean: tuple[float, float, float] | None = None
    """Channel means of the normalisation, of pixels in [0, 1]; what the network was trained with when left out."""
    std: tuple[float, float, float] | None = None
    """Channel standard deviations of the normalisation; likewise."""
    class_order: Literal["auto", "bytes", "numeric"] = "auto"
    """Order of classes that have names alone; auto is byte order, and stops where numbers in names sort otherwise."""
    batch: int = 128
    """Images a batch."""
    dtype: DTypeName | None = None
    """Precision, under autocast where it is not float32; as the run tested, or float32, when left out."""
    render: Annotated[RenderOptions, Group("engine")] = field(default_factory=RenderOptions)
    csv: Path | None = None
    """File for the accuracy of each class: class, images, hits, top1 in percent; of several weights for their rows."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse, before anything is measured, what could not be written."""
        if (self.run is None) == (not self.weights):
            found = "neither" if self.run is None else "both"
            raise InputError(f"--run, --weights: expected the folder of a run or a file of weights, found {found}")
        for name, value in (("size", self.size), ("resize", self.resize), ("batch", self.batch)):
            if value is not None and value < 1:
                raise InputError(f"--{name}: expected at least 1, found {value}")
        require_apart({"--cache-dir": self.cache_dir}, {"--images": self.images})
        if self.csv:
            require_apart({"--csv": self.csv}, {"--images": self.images} if self.images else {})
            require_place("--csv", self.csv)

    @property
    def several(self) -> bool:
        """Whether several checkpoints are compared: several weights, or a pattern, whatever it matches."""
        return len(self.weights) > 1 or any(is_pattern(name) for name in self.weights)


def is_pattern(weights: str) -> bool:
    """Whether --weights names files by a pattern, and no file that is there."""
    return any(mark in weights for mark in "*?[") and not Path(weights).exists()
