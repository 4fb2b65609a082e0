"""Copy what is sealed of a store to a bucket, or from an address to a folder.

Files that never change come first, the root metadata last: a reader of the copy sees the store either as it was before,
or as it is after. A copy that was stopped continues with the files that are not there yet. Nothing is deleted, and but
for the metadata that grows with the store nothing is overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from labelstore.durable import disk, documents, publish, removing
from labelstore.durable.at_once import at_once
from labelstore.durable.objects import ObjectStorage
from labelstore.durable.publish import PARTIAL, Described, FileEntry
from labelstore.durable.removing import Proof
from labelstore.durable.storage import LocalStorage, ReadStorage, read_pieces, storage_at
from labelstore.errors import DamagedError, InputError, MismatchError, NotStoredError
from labelstore.format import calibration
from labelstore.format.arrays import ArrayLayout, group_metadata
from labelstore.format.leftovers import LEASE, metadata_of
from labelstore.format.root import ROOT, folders, groups, proof_of, read_root, root_document
from labelstore.format.seals import marker_file, seal_file
from labelstore.format.shards import Shard
from labelstore.format.table import sealed_views
from labelstore.spec import first_difference
from labelstore.storage_table import as_typed, scheme_of
from labelstore.store import LabelStore
from labelstore.writing import lease as leases

GROUP_FILES, GROUP_BYTES = 64, 64 << 20  # that are copied together
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a store that never changes.

    Attributes:
        name: its path in the store.
        entry: of a shard, what was published.
        layout: of a shard, its array.
        extent: of a shard, the shape of what it holds.
    """

    name: str
    entry: FileEntry | None = None
    layout: ArrayLayout | None = None
    extent: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Transfer:
    """The result of a copy.

    Attributes:
        store: the store that was copied.
        files: how many files it has.
        copied: how many of them were copied now.
        bytes: of these.
    """

    store: LabelStore
    files: int
    copied: int
    bytes: int


class Target(Protocol):
    """The target of a copy."""

    @property
    def storage(self) -> ReadStorage:
        """A storage that reads the target."""

    def size(self, name: str) -> int | None:
        """Bytes of a file that is there; None of one that is not."""

    def proves(self, file: File) -> bool:
        """Whether a shard of the right size is the one that was published."""

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Put files that are not there, each whole or not at all."""

    def replace(self, name: str, data: bytes, proof: Proof) -> None:
        """Put a file that may be there, in one step."""


def push(path: Path, address: Path | str, progress: Progress | None = None) -> Transfer:
    """Copy what is sealed of a store in a folder to a bucket.

    Args:
        path: folder of the store.
        address: of its folder in the bucket, which is empty, holds part of this copy, or an earlier state of the store.
        progress: called with files done and files in all.

    Raises:
        InputError: nothing is sealed; the address is not of a bucket, or holds something else.
        AddressError: the bucket cannot be reached.
        DamagedError: a file of the store is not what was published; it is not copied.
    """
    storage = storage_at(address)
    if not isinstance(storage, ObjectStorage):
        raise InputError(
            f"{storage.root}: expected the address of a bucket (s3://, gs:// or az://), found another one; to a hub, "
            f"copy the folder with its own program: `hf upload`"
        )
    return _copied(LabelStore.open(path), _Bucket(storage), progress)


def pull(address: Path | str, path: Path, progress: Progress | None = None) -> Transfer:
    """Copy what is sealed of a store at an address to a folder; arguments as of :func:`push`, errors too.

    Raises:
        LeaseError: another process writes to the folder.
    """
    if scheme_of(address) is None:
        raise InputError(f"{address}: expected the address of a store, found a path; copy the folder")
    source = LabelStore.open(as_typed(Path(address)))
    _require_ours(path, source)
    disk.make_folder(path)
    with leases.hold(path):
        for folder in folders(source.layout):
            disk.make_folder(path / folder)
        return _copied(source, _Folder(LocalStorage(path)), progress)


def _copied(source: LabelStore, target: Target, progress: Progress | None) -> Transfer:
    """Copy a store; arguments and errors as of :func:`push`."""
    _require_sealed(source)
    _require_before(source, target.storage)
    report = progress or (lambda _done, _total: None)
    files = [*_files(source)]
    total, done, copied, size = len(files) + len(source.layout.all) + 1, 0, 0, 0
    for group in _grouped(files):
        there = at_once(lambda file: _is_there(file, source.storage, target), group)
        missing = [file for file, found in zip(group, there, strict=True) if not found]
        contents = at_once(lambda file: _content(file, source.storage), missing)
        target.put([(file.name, data) for file, data in zip(missing, contents, strict=True)])
        done, copied, size = done + len(group), copied + len(missing), size + sum(map(len, contents))
        report(done, total)
    views = source.state.views_target
    grown = [(f"{array.name}/{ROOT}", array.metadata(views), metadata_of(array)) for array in source.layout.all]
    root = root_document(read_root(source.storage)._replace(state=source.state))
    for name, data, proof in (*grown, (ROOT, root, proof_of(source.identity))):
        if target.size(name) != len(data) or target.storage.read(name, 0, len(data)) != data:
            target.replace(name, data, proof)
            copied, size = copied + 1, size + len(data)
    report(total, total)
    return Transfer(source, total, copied, size)


def _files(store: LabelStore) -> Iterator[File]:
    """The files of all that is sealed which never change; what others name comes before them."""
    layout, state = store.layout, store.state
    yield from (File(f"{group}/{ROOT}") for group in groups(layout))
    for array in (layout.digest, layout.target):
        yield File(array.file(), store.files.get(array.name), array, array.shape)
    planar = {}
    if used := store.calibration:
        planar = {"component": used.components}
        for array in layout.calibration:
            yield File(array.file(), used.shards[array.name], array, array.extent(planar))
        yield File(calibration.FILE)
    sealed = sealed_views(store.storage, store.grid, state.views_sealed, lambda stop: store.table.seal(stop - 1, state))
    for of in reversed(sealed):
        for block in store.grid.blocks(of.first, of.stop):
            extent, entries = store.grid.extent(block), store.marker(block).shards
            for array in layout.of_block(block):
                shape = array.extent({**extent, **(planar if array.planar else {})})
                yield File(array.file(block), entries[array.name], array, shape)
            yield File(marker_file(block))
        yield from (File(name) for name in (of.seal.files if of.seal else ()))
        yield File(seal_file(of.stop))


def _grouped(files: Sequence[File]) -> Iterator[list[File]]:
    """Files that are copied together: not many, and not many bytes."""
    group, size = list[File](), 0
    for file in files:
        group.append(file)
        size += file.entry.bytes if file.entry else 0
        if len(group) == GROUP_FILES or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    yield group


def _is_there(file: File, source: ReadStorage, target: Target) -> bool:
    """Whether a file was copied already.

    Raises:
        InputError: another one has its name.
    """
    found = target.size(file.name)
    if found is None:
        return False
    if file.entry is None:
        data = _content(file, source)
        same = found == len(data) and target.storage.read(file.name, 0, found) == data
    else:
        same = found == file.entry.bytes and target.proves(file)
    if not same:
        raise InputError(
            f"{target.storage.root / file.name}: expected the file of {source.root}, or none, found another one; "
            f"nothing is overwritten: give another place"
        )
    return True


def _content(file: File, source: ReadStorage) -> bytes:
    """The bytes of a file, proven to be those that were published.

    Raises:
        DamagedError: when they are not.
    """
    path = source.root / file.name
    try:
        data = b"".join(read_pieces(source, file.name))
    except FileNotFoundError as error:
        raise DamagedError.of(path, "is not there, though its views are sealed") from error
    if file.entry is not None:
        if publish.describe([data])[:3] != file.entry[:3]:
            raise DamagedError.of(path, "is not the file that was published")
    elif not file.name.endswith(f"/{ROOT}"):
        documents.load(path, data)
    elif data != group_metadata({}):
        raise DamagedError.of(path, "is not the metadata of a group")
    return data


def _require_sealed(source: LabelStore) -> None:
    """Refuse a store of which nothing is sealed, or of which sealed blocks are missing."""
    if not source.state.views_sealed:
        raise NotStoredError(f"{source.path}: no view is sealed yet; finish the build, then copy the store")
    if source.state.missing:
        raise NotStoredError(
            f"{source.path}: {len(source.state.missing)} damaged blocks were removed; run the `{source.maker}` that "
            f"made the store, which makes them again, then copy it"
        )


def _require_before(source: LabelStore, target: ReadStorage) -> None:
    """Refuse a place that holds another store, or more of this one."""
    try:
        target.size(ROOT)
    except FileNotFoundError:
        return
    there = read_root(target)
    if difference := first_difference(source.identity.to_json(), there.identity.to_json()):
        path, ours, theirs = difference
        raise MismatchError(
            f"{target.root}: holds another store than {source.path}: {path} is {theirs!r}, not {ours!r}; give another "
            f"place"
        )
    if there.state.views_sealed > source.state.views_sealed:
        raise InputError(
            f"{target.root}: has {there.state.views_sealed} views sealed, {source.path} has "
            f"{source.state.views_sealed}; copy it the other way"
        )


def _require_ours(path: Path, source: LabelStore) -> None:
    """Refuse a folder that holds anything else than a store, or part of one."""
    names = {name.partition("/")[0] for name in folders(source.layout)} | {ROOT, LEASE, PARTIAL}
    try:
        others = sorted({*os.listdir(path)} - names)  # noqa: PTH208  names, not paths
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InputError(f"{path}: expected a folder, found a file; give another one") from None
    if others:
        raise InputError(f"{path}: expected an empty folder, or a copy of the store, found {others[0]!r}; give another")


class _Bucket:
    """A folder of a bucket."""

    def __init__(self, storage: ObjectStorage) -> None:
        self.storage = storage
        self._there = storage.tags()

    def size(self, name: str) -> int | None:
        return self._there[name][0] if name in self._there else None

    def proves(self, file: File) -> bool:
        """By its table of chunks, which is all that is read: objects are there whole or not at all."""
        assert file.layout  # noqa: S101  of a shard
        try:
            Shard(file.layout, file.extent, self.storage, file.name, file.entry)
        except DamagedError:
            return False
        return True

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        at_once(lambda each: self.storage.put(*each), files)

    def replace(self, name: str, data: bytes, proof: Proof) -> None:  # noqa: ARG002  a bucket keeps the old one whole
        self.storage.put(name, data)


class _Folder:
    """A folder of this machine."""

    def __init__(self, storage: LocalStorage) -> None:
        self.storage = storage

    def size(self, name: str) -> int | None:
        try:
            return self.storage.size(name)
        except FileNotFoundError:
            return None

    def proves(self, file: File) -> bool:
        """By all of its bytes."""
        return file.entry is not None and publish.describe(read_pieces(self.storage, file.name))[:3] == file.entry[:3]

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        if files:
            publish.publish(self.storage.root, {name: Described.of(data) for name, data in files})

    def replace(self, name: str, data: bytes, proof: Proof) -> None:
        if self.size(name) is None:
            self.put([(name, data)])
        else:
            removing.require(self.storage.root / name, proof)
            publish.replace(self.storage.root, name, data, proof)
