"""The flags of each command: one frozen dataclass each, whose fields are the flags; imported without numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from labelstore.command.cache_options import StoreCacheOptions
from labelstore.command.encoding_options import CodeOptions, EncodingName
from labelstore.command.flags import Addressable, Group, Positional
from labelstore.command.output import Output
from labelstore.durable.places import require_apart
from labelstore.errors import InputError


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Flags of `info`."""

    store: Annotated[Path, Positional(), Addressable()]
    """Folder of the store, or its address: s3://BUCKET/FOLDER, https://HOST/FOLDER, ...; of a projector or a
    generator; or of an image set of synthesize."""
    weights: Path | None = None
    """File of the teacher's weights, whose size is printed beside that of the labels."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Flags of `check`."""

    store: Annotated[Path, Positional(), Addressable()]
    """Folder of the store, or its address: s3://BUCKET/FOLDER, https://HOST/FOLDER, ...."""
    repair: bool = False
    """Rebuild damaged seals, markers and metadata from the rest of the store, and remove damaged blocks; the command
    that made the store then makes only these again."""
    take_over: bool = False
    """With --repair: take over the store from a build on another host that you know to be dead."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse flags that do not go together."""
        if self.take_over and not self.repair:
            raise InputError("--take-over: belongs to --repair; a check without it takes no lease")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Flags of `convert`."""

    source: Annotated[Path, Positional(), Addressable()]
    """Folder of the store to read, or its address: s3://BUCKET/FOLDER, https://HOST/FOLDER, ...."""
    destination: Annotated[Path, Positional()]
    """Folder of the store to make, resume or extend."""
    encoding: EncodingName
    """How labels are stored: float16, 2 bytes a logit; int8, 1 byte; transform, far smaller, with a small loss
    (docs/ENCODINGS.md)."""
    codes: CodeOptions = field(default_factory=CodeOptions)
    views: int | None = None
    """Convert the first views only, rounded up to whole blocks; all finished views when left out."""
    take_over: bool = False
    """Take over the new store from a conversion on another host that you know to be dead."""
    store_cache: StoreCacheOptions = field(default_factory=StoreCacheOptions)
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse numbers that no conversion can have, and a cache of a folder."""
        self.store_cache.require_address(self.source)
        require_apart({"--cache-dir": self.store_cache.cache_dir}, {})
        if self.views is not None and self.views < 1:
            raise InputError(f"--views: expected at least 1, found {self.views}")


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Flags of `push`."""

    store: Annotated[Path, Positional()]
    """Folder of the store."""
    address: Annotated[Path, Positional(), Addressable()]
    """Folder in a bucket: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """Flags of `pull`."""

    address: Annotated[Path, Positional(), Addressable()]
    """Address of the store: s3://BUCKET/FOLDER, hf://datasets/OWNER/NAME/FOLDER, https://HOST/FOLDER, ...."""
    store: Annotated[Path, Positional()]
    """Folder of the copy; made, completed or brought up to date."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)
