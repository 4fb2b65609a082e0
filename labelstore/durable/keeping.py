"""Pieces of files that are elsewhere, kept in a folder of this machine within a limit, by the digests of their files.

Each piece is a separate file, written under another name and renamed. Stored pieces are never trusted: a reader of a
piece compares it with the checksums of the store, and has it fetched again where it differs.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from labelstore.durable import disk, removing
from labelstore.durable.pieces import fetched
from labelstore.durable.places import require_local, require_writable
from labelstore.durable.removing import Proof
from labelstore.durable.storage import Mapped, Range, ReadStorage

KEPT_OF_LIMIT = 0.9  # of the limit, after older pieces were removed
_NAME = re.compile(r"[0-9a-f]{16}-\d+\.\d+(\.\d+-\d+\.partial)?")  # digest and size of the file, number of the piece
PIECE = Proof("a piece of a store", lambda path: _NAME.fullmatch(path.name) is not None)


class PieceCache:
    """A folder of pieces; several processes may share it.

    Args:
        folder: created with the first piece if absent.
        limit: bytes of all pieces, after which the ones used least recently are removed.

    Raises:
        InputError: the folder is an address, or cannot be written.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        require_local(folder)
        self.folder, self.limit = folder, limit
        self._used = 0  # bytes that are there, for all that is known; others may have put more
        self._lock = threading.Lock()
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        require_writable(nearest / "pieces")  # the folder is made with the first piece: a refused command leaves none
        self._make_room()

    def get(self, name: str, size: int) -> bytes | None:
        """A piece of ``size`` bytes; None if it is not stored."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data if len(data) == size else None

    def put(self, name: str, data: bytes) -> None:
        """Keep a piece; where it cannot be written, as on a full disk, it is not kept."""
        path = self._path(name)
        aside = path.with_name(f"{name}.{os.getpid()}-{threading.get_ident()}.partial")
        with suppress(OSError):
            disk.make_folder(path.parent)
            disk.write_file(aside, data)
            removing.replace(aside, path, PIECE)
            with self._lock:
                self._used += len(data)
                full = self._used > self.limit
            if full:
                self._make_room()

    def __reduce__(self) -> tuple[type[PieceCache], tuple[Path, int]]:
        return PieceCache, (self.folder, self.limit)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _make_room(self) -> None:
        """Look at what is there, and remove the pieces used least recently where that is too much."""
        with self._lock:
            there = sorted(self._there())
            used = sum(size for _, size, _ in there)
            if used > self.limit:
                for _, size, path in there:
                    if used <= self.limit * KEPT_OF_LIMIT:
                        break
                    removing.remove(path, PIECE)
                    used -= size
            self._used = used

    def _there(self) -> Iterator[tuple[int, int, Path]]:
        """When each piece was last used, its size and its path."""
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            with suppress(OSError):
                for entry in os.scandir(folder):
                    if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        with suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            yield status.st_mtime_ns, status.st_size, Path(entry.path)


@dataclass(frozen=True, slots=True)
class _OfFile:
    """The pieces of one file: `labelstore.durable.pieces.Kept`."""

    cache: PieceCache
    key: str

    def get(self, piece: int, size: int) -> bytes | None:
        return self.cache.get(f"{self.key}.{piece}", size)

    def put(self, piece: int, data: bytes) -> None:
        self.cache.put(f"{self.key}.{piece}", data)


@dataclass(frozen=True, slots=True)
class Cached:
    """A store that is elsewhere, of whose shards pieces are kept here: a `ReadStorage`."""

    storage: ReadStorage
    cache: PieceCache

    @property
    def root(self) -> Path:
        """As of the storage, and so for all methods but :meth:`map`."""
        return self.storage.root

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self.storage.size(name)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """A range of a file."""
        return self.storage.read(name, start, stop)

    def read_many(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        """Several ranges of a file."""
        return self.storage.read_many(name, ranges)

    def map(self, name: str, size: int, digest: str | None = None) -> Mapped:
        """A copy in memory, filled on demand from stored pieces, or from fetched ones, which are then stored."""
        if digest is None:
            return self.storage.map(name, size)
        return fetched(self.storage, name, size, _OfFile(self.cache, f"{digest}-{size}"))

    def list(self, folder: str) -> list[str]:
        """Names in a folder."""
        return self.storage.list(folder)

    def read_ahead(self, name: str) -> bool:
        """Whether a file was prepared."""
        return self.storage.read_ahead(name)
