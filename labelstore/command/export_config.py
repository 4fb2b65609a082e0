"""The flags of `export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from labelstore.command.cache_options import StoreCacheOptions
from labelstore.command.flags import Addressable, Choices, Group, Positional
from labelstore.command.output import Output
from labelstore.errors import InputError
from labelstore.export_table import EXPORTS


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Flags of `export`."""

    store: Annotated[Path, Positional(), Addressable()]
    """Folder of the store, or its address: s3://BUCKET/FOLDER, https://HOST/FOLDER, ...."""
    out: Annotated[Path, Positional()]
    """File to write, or with --format fkd a folder; must not exist."""
    format: Annotated[str, Choices(EXPORTS)] = "npy"
    """npy: one float16 array, views x images x columns, or images x columns with --view; parquet: one row for each
    crop; fkd: SRe2L's epoch_*/batch_*.tar."""
    view: int | None = None
    """Write this view only, counted from 0."""
    views: int | None = None
    """Write the first views only; all finished views when left out."""
    order: Literal["image", "stored"] = "image"
    """image: row n of a view is image n, in the order of classes and files; stored: row n is position n, as in the
    store."""
    probabilities: bool = False
    """Write softmax(logits / temperature) instead of logits."""
    temperature: float | None = None
    """With --probabilities: temperature (1)."""
    images: Path | None = None
    """The images of the store, which only --format fkd needs."""
    batch_size: int | None = None
    """With --format fkd: crops in a file (1024); for mixed crops it must be the group of the store."""
    store_cache: StoreCacheOptions = field(default_factory=StoreCacheOptions)
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse flags that do not go together."""
        if self.view is not None and self.views is not None:
            raise InputError("--view and --views: expected one of them, found both")
        if self.views is not None and self.views < 1:
            raise InputError(f"--views: expected at least 1, found {self.views}")
        if self.temperature is not None and not self.probabilities:
            raise InputError("--temperature: belongs to --probabilities; logits have none")
        if self.format != "fkd" and (self.images is not None or self.batch_size is not None):
            raise InputError(f"--images and --batch-size: belong to --format fkd, found --format {self.format}")
        if self.format == "fkd" and self.images is None:
            raise InputError("--images: --format fkd needs the images of the store, whose sizes its boxes refer to")
        if self.format == "fkd" and (self.probabilities or self.order == "stored"):
            raise InputError(
                "--format fkd: writes logits in the order of its files; leave out --order and --probabilities"
            )
        self.store_cache.require_address(self.store)
