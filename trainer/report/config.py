"""The flags of `report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from labelstore.command.flags import Addressable, Group, Positional, Shown
from labelstore.command.output import Output
from labelstore.durable.places import require_apart, require_writable
from labelstore.errors import InputError

SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Flags of `report`."""

    things: Annotated[tuple[Path, ...], Positional(), Addressable(), Shown("PATH [PATH ...]")]
    """Folders of runs, stores, image sets, projectors and generators, folders that contain some, or patterns such as
    'runs/*'."""
    out: Path
    """Page to write, such as page.html; at most 3 MB. Must not exist, unless --replace."""
    title: str | None = None
    """Title of the page; when left out, the names of what is on it."""
    tiles: int = 24
    """Pictures on each contact sheet; fewer and smaller ones where the page grows too large."""
    replace: bool = False
    """Replace the page at --out, if `report` made it."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse no things, and a page that could not be written."""
        if not self.things:
            raise InputError("report: expected a run, a store, an image set, a projector or a generator, found none")
        if self.tiles < 1:
            raise InputError(f"--tiles: expected at least 1, found {self.tiles}")
        if self.out.suffix.lower() not in SUFFIXES:
            raise InputError(f"--out: expected a name that ends in .html, found {self.out}")
        require_apart({"--out": self.out}, {})
        if self.out.is_dir() or not self.out.parent.is_dir():
            raise InputError(f"--out: expected the name of a file in a folder that is there, found {self.out}")
        require_writable(self.out)
