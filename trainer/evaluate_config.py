"""The flags of evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from labelstore.command.flags import Addressable, Group, Named
from labelstore.command.output import Output
from labelstore.durable.places import require_apart, require_new_file
from labelstore.errors import InputError
from pipeline.images.source_table import ImageOptions
from pipeline.render.options import RenderOptions
from pipeline.teacher.engine.spec import DTypeName


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Flags of `evaluate`."""

    run: Annotated[Path | None, Named("run-folder")] = None
    """Folder of a run of `train`: test its last weights the way the run did, on its test images."""
    weights: tuple[str, ...] = ()
    """Instead of --run-folder: a .safetensors or state-dict file, torchvision:IMAGENET1K_V1 or timm:pretrained. Several
    files, or a pattern such as 'run/epoch-*.safetensors', give a row each, compared with the last."""
    images: Annotated[Path | None, Group("images"), Addressable()] = None
    """Test images, in a class folder or another container; with --run-folder, those of the run when left out."""
    source: Annotated[ImageOptions, Group("images")] = field(default_factory=ImageOptions)
    cache_dir: Annotated[Path | None, Group("images")] = None
    """For test images at an address: folder that keeps the index of tars and which images decode, for later
    commands."""
    student: str | None = None
    """Network, named as --student of `train`; the one that the weights record when left out."""
    student_args: str | None = None
    """Keyword arguments of the network's constructor, as JSON; those that the weights record when left out."""
    weights_key: str | None = None
    """Which set of weights to take from a file with several, such as model_ema. Left out, a running mean (EMA) if the
    file has one; the choice is printed."""
    size: int | None = None
    """Side of the centre crop in pixels; what the weights record when left out."""
    classes: str | None = None
    """Columns of --images in a network of more classes: comma-separated indexes or class names, a file with one a line,
    or imagenet: found by WordNet id or class name."""
    resize: int | None = None
    """Length in pixels to which the short side of an image is resized before the centre crop; left out, as the run
    tested, otherwise the side of the crop."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Antialiased filter of the resize; left out, as the run tested, otherwise bilinear."""
    mean: tuple[float, float, float] | None = None
    """Channel means of the normalisation, for pixels in [0, 1]; what the weights record when left out."""
    std: tuple[float, float, float] | None = None
    """Channel standard deviations of the normalisation; left out, as --mean."""
    class_order: Literal["auto", "bytes", "numeric"] = "auto"
    """Order of classes that have no numbers: bytes; numeric, class_2 before class_10; auto, bytes, which stops where
    the two would differ."""
    batch: int = 128
    """Images in a batch."""
    dtype: DTypeName | None = None
    """Precision, by autocast unless it is float32; left out, as the run tested, otherwise float32."""
    render: Annotated[RenderOptions, Group("engine")] = field(default_factory=RenderOptions)
    csv: Path | None = None
    """CSV file to write, with class, images, hits, and top1 in percent for each class; with several weights, a row for
    each. Must not exist."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse invalid flags, and files that could not be written, before anything is measured."""
        if (self.run is None) == (not self.weights):
            found = "neither" if self.run is None else "both"
            raise InputError(f"--run, --weights: expected the folder of a run or a file of weights, found {found}")
        for name, value in (("size", self.size), ("resize", self.resize), ("batch", self.batch)):
            if value is not None and value < 1:
                raise InputError(f"--{name}: expected at least 1, found {value}")
        require_apart({"--cache-dir": self.cache_dir}, {"--images": self.images})
        if self.csv:
            require_apart({"--csv": self.csv}, {"--images": self.images} if self.images else {})
            require_new_file("--csv", self.csv)

    @property
    def several(self) -> bool:
        """Whether several checkpoints are compared: several weights, or a pattern, even if it matches one file."""
        return len(self.weights) > 1 or any(is_pattern(name) for name in self.weights)


def is_pattern(weights: str) -> bool:
    """Whether a value of --weights is a pattern, and not the name of an existing file."""
    return any(mark in weights for mark in "*?[") and not Path(weights).exists()
