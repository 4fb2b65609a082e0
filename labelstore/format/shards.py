"""The bytes of a shard, by zarr's sharding codec: inner chunks one after another, then their index.

Each inner chunk is followed by its CRC-32C. The index holds offset and length of every chunk, uint64, in row-major
order of the grid, and ends in its CRC-32C. Before the index are bytes that zarr does not read: the CRC-32C of every
chunk once more, uint32, 0 for those left out. Markers and seals hold a digest of these CRCs and the index, the *table
of chunks*, so that reading the end of a shard proves which one it is; each chunk is compared with the table when it is
first read, so that a chunk of another store never reads as this one's. Chunks that lie wholly beyond the edge of the
array are left out, as zarr does, and so are the groups of components that nothing uses; the last one inside is padded
with the fill value. Chunks come in row-major order too, so that the place of a row in a raw shard is arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from labelstore.durable import disk
from labelstore.durable.publish import Described, FileEntry, describe
from labelstore.durable.storage import Mapped, Range, ReadStorage
from labelstore.errors import DamagedError
from labelstore.format import codecs
from labelstore.format.arrays import ArrayLayout

CRC_BYTES = 4
ABSENT = np.uint64(2**64 - 1)
TRANSPOSED_PADDING = 32

Array = npt.NDArray[Any]


def encode_shard(layout: ArrayLayout, values: Array) -> bytes:
    """The bytes of the shard that holds ``values``, which may end before the shard does."""
    return b"".join(piece if isinstance(piece, bytes) else piece.data for piece in shard_pieces(layout, values))


def shard_pieces(layout: ArrayLayout, values: Array) -> list[disk.Bytes]:
    """The bytes of a shard in pieces; those of a raw one are views of ``values``."""
    present = _present(layout, values.shape)
    index = np.full((*layout.grid, 2), ABSENT, "<u8")
    crcs = np.zeros(layout.grid, "<u4")
    pieces: list[disk.Bytes] = []
    offset = 0
    for place in np.ndindex(*present):
        data = codecs.compress(layout.codec, _padded_chunk(layout, values, place))
        crc = disk.crc32c(data)
        pieces += [data, crc.to_bytes(CRC_BYTES, "little")]
        index[place], crcs[place] = (offset, len(data) + CRC_BYTES), crc
        offset += len(data) + CRC_BYTES
    places = index.tobytes()
    table = places + disk.crc32c(places).to_bytes(CRC_BYTES, "little")
    return [*pieces, crcs.tobytes() + table if layout.chunk_crcs else table]


def described(layout: ArrayLayout, values: Array) -> Described:
    """A shard, with what is known of it."""
    pieces = shard_pieces(layout, values)
    return Described.of(*pieces, chunks=table_digest(pieces[-1]) if layout.chunk_crcs else None)


def table_digest(table: disk.Bytes) -> str:
    """XXH3-64 of a shard's table of chunks, hex."""
    return xxhash.xxh3_64(table if isinstance(table, bytes) else table.tobytes()).hexdigest()


def largest_shard(layout: ArrayLayout, extent: tuple[int, ...]) -> int:
    """No shard that holds ``extent`` has more bytes than this; a raw one has exactly as many."""
    chunk = codecs.largest(layout.codec, layout.chunk_bytes) + CRC_BYTES
    return math.prod(_present(layout, extent)) * chunk + _table_bytes(layout)


class Shard:
    """A published shard, read straight from its mapped file.

    Readers of the map check the file's size first: the system kills a process (SIGBUS) that reads a page of a map
    beyond the file's end. A file that is cut in the moment between the two still does that.

    Args:
        layout: the array it belongs to.
        extent: shape of what it holds.
        storage: where the store is read from.
        file: path of the shard in the store.
        entry: what was published; None where only the structure of the file is known.

    Raises:
        DamagedError: when the file is not there, has another size, or another table of chunks. Reading raises it when
            an inner chunk is not what was published, which is checked once, when it is first read, or the file is gone
            or has another size since.
    """

    def __init__(
        self,
        layout: ArrayLayout,
        extent: tuple[int, ...],
        storage: ReadStorage,
        file: str,
        entry: FileEntry | None = None,
    ) -> None:
        self.layout, self.extent, self._path, self._published = layout, extent, storage.root / file, entry
        self._mapped = self._map(storage, file, entry)
        self._data = self._mapped.data
        self._present = _present(layout, extent)
        self._index, self._crcs = self._read_table(entry.chunks if entry else None)
        self._checked = np.zeros(self._present, bool)
        self._whole = False  # whether all chunks are checked
        self._dtype = np.dtype(layout.dtype).newbyteorder("<")
        self._row = math.prod(layout.chunk[2:]) * self._dtype.itemsize
        self._step = layout.chunk_bytes + CRC_BYTES
        # Rows of a raw shard by the byte that they begin at: they overlap, but none reaches beyond the file.
        count = len(self._data) - self._row + 1 if layout.codec == "raw" else 0
        self._rows = np.ndarray((count,), f"V{self._row}", self._data, strides=(1,))

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self._data)

    @property
    def held(self) -> int:
        """Bytes of memory that it takes; 0 if the file is mapped."""
        return self._mapped.held

    def load(self) -> None:
        """Fetch all of a file that is elsewhere; nothing is checked."""
        self._fetch((0, len(self._data)))

    def take(self, view: int | npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> Array:
        """Rows of a raw shard with axes (view, position, ...): ``[n, ...]``, copied.

        Args:
            view: of the shard's views; one for all rows, or one for each.
            positions: of the shard's positions, ``[n]``.
        """
        views, run = self.layout.chunk[:2]
        head, inside = divmod(view, views)
        of_run = positions // run
        if not self._whole:
            heads, runs = np.divmod(np.unique(head * self._present[1] + of_run), self._present[1])
            chunks = list(zip(heads.tolist(), runs.tolist(), strict=True))
            self._prepare(chunks)
            for chunk in chunks:
                self._check(*chunk)
        # A chunk and its CRC are longer than its rows: from one run to the next that much is added.
        step = self._step
        self._require_size()
        first = head * self._present[1] * step + inside * run * self._row
        rows = self._rows[of_run * (step - run * self._row) + (positions * self._row + first)]
        return np.ndarray((len(positions), *self.extent[2:]), self._dtype, rows)

    def unit(self, head: int, run: int) -> Array:
        """The rows of an inner chunk, or of a column of them where codes are planar: ``[views, positions, ...]``.

        Args:
            head: which chunk along the views.
            run: which one along the positions; rows beyond the end of the view hold the fill value.
        """
        if not self.layout.planar:
            return self._chunk((head, run, *(0 for _ in self._present[2:])))
        views, width, positions = self.layout.chunk
        self._prepare([(head, group, run) for group in range(self._present[1])])
        rows = np.empty((views, positions, self.extent[1]), self.layout.dtype)
        for group in range(self._present[1]):
            part = rows[:, :, group * width : (group + 1) * width]
            part[...] = self._chunk((head, group, run))[:, : part.shape[2]].swapaxes(1, 2)
        return rows

    def column(self, run: int) -> Array:
        """Of an array with axes (component, image) the images of one inner chunk, a view ``[images, components]``."""
        width, images = self.layout.chunk
        # Rows a whole number of pages long would share few places of the processor's cache when they are transposed.
        padded = np.empty((self._present[0] * width, images + TRANSPOSED_PADDING), self.layout.dtype)
        for group in range(self._present[0]):
            padded[group * width : (group + 1) * width, :images] = self._chunk((group, run))
        return padded[: self.extent[0], : min(images, self.extent[1] - run * images)].T

    def read(self, *heads: int) -> Array:
        """All that the shard holds, or what its inner chunk(s) at grid place ``heads`` hold along the first axes.

        Without ``heads``, shape ``extent``; with them, the chunk's extent along those axes.
        """
        places = [heads + rest for rest in np.ndindex(*self._present[len(heads) :])]
        lead = tuple(
            slice(h * c, min((h + 1) * c, e)) for h, c, e in zip(heads, self.layout.chunk, self.extent, strict=False)
        )
        shape = tuple(s.stop - s.start for s in lead) + self.extent[len(heads) :]
        out = np.empty(shape, self.layout.dtype)
        self._prepare(places)
        for place in places:
            start = [0 if axis < len(heads) else p * self.layout.chunk[axis] for axis, p in enumerate(place)]
            target = out[tuple(slice(s, s + c) for s, c in zip(start, self.layout.chunk, strict=True))]
            target[...] = self._chunk(place)[tuple(slice(0, size) for size in target.shape)]
        return out

    def describe(self) -> FileEntry:
        """Size and digests of the file, all of which is read."""
        self.load()
        self._require_size()
        found = describe([self._data])
        if self._published and self._published.xxh3 != found.xxh3 and self._mapped.fetch:
            self._fetch((0, len(self._data)), again=True)
            found = describe([self._data])
        return found

    def _map(self, storage: ReadStorage, file: str, entry: FileEntry | None) -> Mapped:
        size = largest_shard(self.layout, self.extent) if entry is None else entry.bytes
        try:
            mapped = storage.map(file, size, entry.xxh3 if entry else None)
            found = mapped.size()
            found = len(mapped.data) if found == size else found
        except FileNotFoundError as error:
            raise self._damaged(f"expected a shard of {size} bytes, found no file") from error
        if found != size:
            raise self._damaged(f"expected {size} bytes, found {found}")
        return mapped

    def _require_size(self) -> None:
        """Raise DamagedError unless the file is there with the size that it was mapped with."""
        try:
            found = self._mapped.size()
        except FileNotFoundError as error:
            raise self._damaged(f"expected {self._data.size} bytes, found no file any more") from error
        if found != self._data.size:
            raise self._damaged(f"expected {self._data.size} bytes, found {found} since it was opened")

    def _read_table(self, wanted: str | None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32] | None]:
        """Offsets and lengths of the chunks inside the array, ``[*present, 2]``, and their CRC-32Cs ``[*present]``.

        Checked to be within the file, and against the digest ``wanted`` of what was published.
        """
        size, places = _table_bytes(self.layout), _index_bytes(self.layout)
        end = len(self._data) - size
        if end < 0:
            raise self._damaged(f"expected a table of chunks of {size} bytes, found a file of {len(self._data)}")
        table = self._data[end:]
        self._fetch((end, len(self._data)))
        if wanted is not None and table_digest(table) != wanted:
            self._fetch((end, len(self._data)), again=True)
        if wanted is not None and (found := table_digest(table)) != wanted:
            raise self._damaged(f"is not the shard that was published: its chunks have digest {found}, not {wanted}")
        index, crc = table[-places:-CRC_BYTES], table[-CRC_BYTES:]
        if disk.crc32c(index) != int.from_bytes(crc.tobytes(), "little"):
            raise self._damaged("the CRC-32C of its index does not match")
        inside = tuple(slice(0, count) for count in self._present)
        # As int64, what is marked as left out has length -1 and is refused below.
        found_at = np.frombuffer(index.tobytes(), "<i8").reshape(*self.layout.grid, 2)[inside].astype(np.int64)
        lengths = found_at[..., 1].reshape(-1)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        in_order = np.array_equal(found_at[..., 0].reshape(-1), starts[:-1]) and starts[-1] == end
        if not in_order or lengths.min(initial=CRC_BYTES) < CRC_BYTES or lengths.max(initial=0) > end:
            raise self._damaged("its inner chunks are not one after another in row-major order")
        if self.layout.codec == "raw" and not np.all(lengths == self.layout.chunk_bytes + CRC_BYTES):
            raise self._damaged("its inner chunks have another size than the array's")
        if not self.layout.chunk_crcs:
            return found_at, None
        crcs = np.frombuffer(table[:-places].tobytes(), "<u4").reshape(self.layout.grid)[inside]
        return found_at, crcs.astype(np.uint32)

    def _body(self, place: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Bytes of an inner chunk without its CRC, checked against it."""
        self._require_size()
        offset, length = (int(number) for number in self._index[place])
        body = self._data[offset : offset + length - CRC_BYTES]
        if not self._checked[place]:
            self._fetch((offset, offset + length))
            if not self._is_published(place):
                self._fetch((offset, offset + length), again=True)
            if not self._is_published(place):
                raise self._damaged(f"the CRC-32C of inner chunk {list(place)} (bytes {offset} on) does not match")
            self._checked[place] = True
        return body

    def _is_published(self, place: tuple[int, ...]) -> bool:
        """Whether the bytes of an inner chunk are those that were published, by its CRC."""
        offset, length = (int(number) for number in self._index[place])
        end = offset + length - CRC_BYTES
        own = int.from_bytes(self._data[end : offset + length].tobytes(), "little")
        published = own if self._crcs is None else int(self._crcs[place])
        return own == published == disk.crc32c(self._data[offset:end])

    def _prepare(self, heads: Sequence[tuple[int, ...]]) -> None:
        """For remote stores, fetch the inner chunks that begin at these grid places, all at once."""
        if self._mapped.fetch:
            places = [(*head, *(0 for _ in range(len(self._present) - len(head)))) for head in heads]
            found = [self._index[place].tolist() for place in places if not self._checked[place]]
            self._fetch(*((offset, offset + length) for offset, length in found))

    def _fetch(self, *ranges: Range, again: bool = False) -> None:
        """Have some ranges here, of a file that is elsewhere.

        Raises:
            DamagedError: it is gone, or ends before them.
        """
        if self._mapped.fetch:
            try:
                self._mapped.fetch(ranges, again)
            except FileNotFoundError as error:
                raise self._damaged(f"expected {self._data.size} bytes, found no file any more") from error

    def _check(self, *head: int) -> None:
        place = (*head, *(0 for _ in range(len(self._present) - len(head))))
        if not self._checked[place]:
            self._body(place)
            self._whole = bool(self._checked.all())

    def _chunk(self, place: tuple[int, ...]) -> Array:
        """The values of an inner chunk."""
        body = self._body(place)
        try:
            return codecs.decompress(self.layout.codec, body, self._dtype, self.layout.chunk)
        except (ValueError, RuntimeError) as error:
            raise self._damaged(f"inner chunk {list(place)} does not unpack to the array's chunk: {error}") from error

    def _damaged(self, what: str) -> DamagedError:
        return DamagedError.of(self._path, what)


def _present(layout: ArrayLayout, extent: tuple[int, ...]) -> tuple[int, ...]:
    """Inner chunks along each axis that hold anything."""
    return tuple(-(-size // chunk) for size, chunk in zip(extent, layout.chunk, strict=True))


def _index_bytes(layout: ArrayLayout) -> int:
    return math.prod(layout.grid) * 16 + CRC_BYTES


def _table_bytes(layout: ArrayLayout) -> int:
    """Bytes of a shard after its last chunk."""
    return _index_bytes(layout) + (math.prod(layout.grid) * CRC_BYTES if layout.chunk_crcs else 0)


def _padded_chunk(layout: ArrayLayout, values: Array, place: tuple[int, ...]) -> Array:
    """The inner chunk at ``place``, contiguous, padded with the fill value beyond the edge."""
    part = values[tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, layout.chunk, strict=True))]
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    if part.shape == layout.chunk:
        return np.ascontiguousarray(part, dtype)
    chunk = np.full(layout.chunk, float("nan") if layout.fill == "NaN" else layout.fill, dtype)
    chunk[tuple(slice(0, size) for size in part.shape)] = part
    return chunk
