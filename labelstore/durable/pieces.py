"""A file that is elsewhere, in memory: its bytes are fetched in pieces when they are needed, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from labelstore.errors import DamagedError

if TYPE_CHECKING:
    from labelstore.durable.storage import Mapped, Range, ReadStorage

PIECE_BYTES = 512 << 10  # about an inner chunk of raw codes
TAIL_BYTES = 64 << 10  # the table of chunks is at the end of a shard
REQUEST_BYTES = 8 << 20  # pieces that follow each other are fetched together


class Kept(Protocol):
    """The storage for pieces of one file."""

    def get(self, piece: int, size: int) -> bytes | None:
        """A piece of ``size`` bytes; None if it is not stored."""

    def put(self, piece: int, data: bytes) -> None:
        """Keep a piece."""


class Pieces:
    """The bytes of a remote file that were fetched so far.

    Several threads may fetch: at worst a piece is fetched twice, to the same bytes.

    Args:
        storage: where the file is.
        name: its path there.
        size: bytes that it must have.
        kept: where pieces are looked for first, and put.

    Attributes:
        data: uint8 ``[size]``; what was not fetched has any values.
    """

    def __init__(self, storage: ReadStorage, name: str, size: int, kept: Kept | None = None) -> None:
        self._storage, self._name, self._kept = storage, name, kept
        self.data: npt.NDArray[np.uint8] = np.empty(size, np.uint8)
        self._here = np.zeros(-(-size // PIECE_BYTES), bool)

    def fetch(self, ranges: Sequence[Range], again: bool = False) -> None:
        """Have the bytes of some ranges here.

        Args:
            ranges: first byte and the one after the last of each.
            again: fetch them from the storage although they are here, since they are not what was published.

        Raises:
            DamagedError: the file ends before them.
        """
        wanted = np.zeros(len(self._here), bool)
        for start, stop in ranges:
            wanted[start // PIECE_BYTES : -(-stop // PIECE_BYTES) if stop > start else 0] = True
        if not again:
            wanted &= ~self._here
            for piece in np.flatnonzero(wanted).tolist() if self._kept else ():
                wanted[piece] = not self._take_kept(piece)
        requests = self._requests(np.flatnonzero(wanted).tolist())
        if requests:
            for (start, stop), data in zip(requests, self._storage.read_many(self._name, requests), strict=True):
                self._set(start, stop, data)

    def tail(self) -> int:
        """Fetch the end of the file; returns how many bytes it has, by a request for one more than it must have."""
        size = len(self.data)
        start = max(size - TAIL_BYTES, 0) // PIECE_BYTES * PIECE_BYTES
        pieces = range(start // PIECE_BYTES, len(self._here))
        if pieces and self._kept and all(map(self._take_kept, pieces)):
            return size
        data = self._storage.read(self._name, start, size + 1)
        if len(data) != size - start:
            there = data[: size - start]
            self.data[start : start + len(there)] = np.frombuffer(there, np.uint8)
            return self._storage.size(self._name)
        self._set(start, size, data)
        return size

    def _requests(self, pieces: Sequence[int]) -> list[Range]:
        """The ranges of some pieces, in order; those of pieces that follow each other together."""
        found: list[Range] = []
        for piece in pieces:
            start, stop = self._range(piece)
            if found and found[-1][1] == start and stop - found[-1][0] <= REQUEST_BYTES:
                found[-1] = found[-1][0], stop
            else:
                found.append((start, stop))
        return found

    def _range(self, piece: int) -> Range:
        return piece * PIECE_BYTES, min((piece + 1) * PIECE_BYTES, len(self.data))

    def _set(self, start: int, stop: int, data: bytes) -> None:
        """Bytes that were fetched, of whole pieces."""
        if len(data) != stop - start:
            raise DamagedError.of(
                self._storage.root / self._name, f"expected bytes {start} to {stop}, found {len(data)} of them"
            )
        self.data[start:stop] = np.frombuffer(data, np.uint8)
        for piece in range(start // PIECE_BYTES, -(-stop // PIECE_BYTES)):
            self._here[piece] = True
            if self._kept:
                first, last = self._range(piece)
                self._kept.put(piece, data[first - start : last - start])

    def _take_kept(self, piece: int) -> bool:
        """Whether a piece was kept, and is here now."""
        start, stop = self._range(piece)
        data = self._kept.get(piece, stop - start) if self._kept else None
        if data is None:
            return False
        self.data[start:stop] = np.frombuffer(data, np.uint8)
        self._here[piece] = True
        return True


def fetched(storage: ReadStorage, name: str, size: int, kept: Kept | None = None) -> Mapped:
    """The result of :meth:`ReadStorage.map` for a remote file; the end of the file is fetched.

    Args:
        storage: the storage of the file.
        name: its path there.
        size: bytes that it must have.
        kept: where pieces are looked for first, and put.

    Raises:
        FileNotFoundError: it is not there.
    """
    from labelstore.durable.storage import Mapped

    pieces = Pieces(storage, name, size, kept)
    found = pieces.tail()
    shown = pieces.data[: min(found, size)]
    shown.flags.writeable = False
    return Mapped(shown, lambda: found, held=size, fetch=pieces.fetch)
