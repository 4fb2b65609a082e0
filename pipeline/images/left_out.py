"""Files in an image folder that are not read: those of systems and tools, hidden ones, and other kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from labelstore.command.names import printable
from pipeline.images.kinds import IMAGES

_SYSTEM = frozenset(
    {
        # network storage: Synology, QNAP, NetApp
        "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@snapshot", "@sharesnap", "@__thumb", ".@__thumb",
        ".@__qini", "#recycle", "#snapshot", "~snapshot",
        # Windows
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler",
        "system volume information",
        # macOS
        "__macosx", ".ds_store", ".appledouble", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems",
        "network trash folder", "temporary items", "icon\r",
        # Linux, Android, Python, programs that manage photographs
        "lost+found", "lost.dir", ".thumbnails", "__pycache__", ".ipynb_checkpoints", ".git", "picasa.ini",
        ".picasa.ini", "zbthumbnail.info",
    }
)  # fmt: skip
HIDDEN = "hidden"
SHOWN_KINDS = 20


def left_out_kind(name: str) -> str | None:
    """What a file or folder that is never read counts as: its own name, a pattern, or hidden; else None."""
    lower = name.lower()
    if lower in _SYSTEM:
        return name
    if lower[0] == ".":
        return "._*" if lower[1:2] == "_" else HIDDEN  # ._*: AppleDouble, which macOS keeps beside a file
    if lower.endswith(("@synoresource", "@synoeastream")):
        return "@Syno*"
    return "found.*" if lower.startswith("found.") and len(lower) == 9 and lower[6:].isdecimal() else None


@dataclass(slots=True)
class _Found:
    """The count of a kind, and its first example."""

    count: int
    example: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Files of an image folder that are not read, counted by kind.

    Attributes:
        images: images of other kinds than JPEG, PNG, WebP and PPM.
        loose: files beside the class folders that look like images; they belong to no class.
        others: everything else: text, archives, folders of systems.
    """

    images: dict[str, _Found] = field(default_factory=dict)
    loose: dict[str, _Found] = field(default_factory=dict)
    others: dict[str, _Found] = field(default_factory=dict)

    def add(self, kind: str, path: str) -> None:
        """Count a file or folder that is not read."""
        _add(self.images if kind in IMAGES else self.others, kind, path)

    def add_loose(self, path: str) -> None:
        """Count an image outside of the class folders."""
        _add(self.loose, "image", path)

    def counts(self) -> Mapping[str, int]:
        """The count of each kind."""
        return {
            kind: found.count
            for table in (self.images, self.loose, self.others)
            for kind, found in sorted(table.items())
        }

    def to_json(self) -> list[list[list[str | int]]]:
        """All that was counted, as `from_json` takes it."""
        tables = (self.images, self.loose, self.others)
        return [[[kind, found.count, found.example] for kind, found in table.items()] for table in tables]

    @classmethod
    def from_json(cls, tables: list[list[tuple[str, int, str]]]) -> LeftOut:
        """Inverse of `to_json`."""
        images, loose, others = (
            {str(kind): _Found(int(count), str(example)) for kind, count, example in table} for table in tables
        )
        return cls(images, loose, others)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Files that may have been meant as images, one line for each kind."""
        warnings = []
        if self.images:
            warnings.append(f"not read, since only JPEG, PNG, WebP and PPM are: {_listed(self.images.items())}")
        if found := self.loose.get("image"):
            files = "1 image file lies" if found.count == 1 else f"{found.count:,} image files lie"
            warnings.append(f"{files} beside the class folders, in no class, and not read: {printable(found.example)}")
        return tuple(warnings)

    @property
    def line(self) -> str | None:
        """A line with the counts of all other files; None if there are none."""
        return f"left out: {_listed(self.others.items())}" if self.others else None


def _add(table: dict[str, _Found], kind: str, path: str) -> None:
    if found := table.get(kind):
        found.count += 1
        found.example = min(found.example, path)
    else:
        table[kind] = _Found(1, path)


def _listed(found: Iterable[tuple[str, _Found]]) -> str:
    """Kinds with their counts, the most frequent first, and an example of each."""
    ordered = sorted(found, key=lambda item: (-item[1].count, item[0]))
    shown = [f"{item.count:,} {printable(kind)} ({printable(item.example)})" for kind, item in ordered[:SHOWN_KINDS]]
    more = len(ordered) - SHOWN_KINDS
    return ", ".join(shown) + (f" and {more} more kinds" if more > 0 else "")
