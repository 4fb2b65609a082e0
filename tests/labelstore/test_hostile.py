"""Whatever is changed in a store, what is read is what was published or is refused, and check says what was changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labelstore import LabelBatch, LabelStore, check
from labelstore.durable import disk
from labelstore.errors import FormatError, GiftwrapError
from labelstore.format.images import manifest_digest
from labelstore.operations.info import info
from labelstore.spec import Identity
from tests.labelstore.making import Content, build, make_identity

VIEWS, SEALED = 4, 2  # the views above are published, and their markers are read
SECONDS = 20  # no use of these stores takes one
TRANSFORM = {"name": "transform", "step": 0.5}
IDENTITIES: dict[str, Identity] = {
    "int8": make_identity(5),
    "int8 zstd": make_identity(5, 40, encoding={"name": "int8", "codec": "zstd"}),
    "float16": make_identity(5, encoding="float16"),
    "transform": make_identity(5, 64, encoding=TRANSFORM),
    "transform zstd mixed": make_identity(6, 64, encoding={**TRANSFORM, "codec": "zstd"}, group=2),
    "int8 mixed": make_identity(6, group=2),
}


@dataclass(frozen=True)
class Published:
    """A store as it was published.

    Attributes:
        path: its folder, put right again after each harm.
        files: the bytes of each file.
        batches: logits, rows and targets of each view.
    """

    path: Path
    files: dict[str, bytes]
    batches: list[tuple[np.ndarray, ...]]

    @classmethod
    def make(cls, path: Path, identity: Identity, seed: int = 0) -> Published:
        """Build a store of which only the first views are sealed."""
        content = Content(identity, VIEWS, seed)
        manifest = manifest_digest(identity.classes, content.targets, content.digests)
        content.identity = replace(identity, manifest=manifest)
        build(path, content, SEALED)
        build(path, content, VIEWS, blocks=0)
        store = LabelStore.open(path, follow=True)
        with store.lease() as writer:
            for block in store.missing():
                writer.write(block, content.block(store, block))
        files = {
            file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()
        }
        return cls(path, files, [read(store, view) for view in range(VIEWS)])

    @contextmanager
    def harmed(self, name: str, harm: Callable[[Path], object]) -> Iterator[Path]:
        """The store with one file harmed."""
        path = self.path / name
        try:
            harm(path)
            yield self.path
        finally:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            path.write_bytes(self.files[name])


def parts(batch: LabelBatch) -> tuple[np.ndarray, ...]:
    return batch.logits, batch.rows.values, batch.targets


def read(store: LabelStore, view: int) -> tuple[np.ndarray, ...]:
    return parts(store.read(view, slice(None)))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Published]:
    root = tmp_path_factory.mktemp("stores")
    made = {name: Published.make(root / name, identity) for name, identity in IDENTITIES.items()}
    # Of the same identity but for the images, with other labels: sizes and names are the same.
    twins = {f"twin of {name}": Published.make(root / f"twin of {name}", IDENTITIES[name], 1) for name in made}
    return made | twins


class HangsError(BaseException):
    """Something waits for ever."""


@contextmanager
def no_waiting() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangsError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def require_published_or_refused(published: Published, path: Path, count: int = 3, compared: int = VIEWS) -> None:
    """Every way to read gives what was published, or raises an error of ours.

    Args:
        published: the store as it was.
        path: its folder.
        count: how many of the arrays of a view are compared.
        compared: how many views are.
    """
    for follow in (False, True):
        with suppress(GiftwrapError):
            store = LabelStore.open(path, follow=follow)
            with suppress(GiftwrapError):
                assert info(store)["images"] == store.identity.images
            views = range(VIEWS if follow else SEALED)
            for view in views:
                with suppress(GiftwrapError):
                    found = read(store, view)[:count]
                    assert view >= compared or all(map(np.array_equal, found, published.batches[view]))
            with suppress(GiftwrapError):
                for batch in store.stream((view, slice(None)) for view in views):
                    found = parts(batch)[:count]
                    assert batch.view >= compared or all(map(np.array_equal, found, published.batches[batch.view]))


def found(path: Path, name: str) -> bool:
    """Whether a check finds damage, or that a block is not there."""
    try:
        report = check(path)
        return not report.ok or report.missing > 0
    except FormatError:
        assert name == "zarr.json"
        return True


def put(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        path.unlink()
        make(path)

    return act


KINDS: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "FIFO": in_its_place(os.mkfifo),
    "folder": in_its_place(Path.mkdir),
    "link": in_its_place(lambda path: path.symlink_to("/dev/zero")),
    "link to nothing": in_its_place(lambda path: path.symlink_to("nothing")),
    "link to itself": in_its_place(lambda path: path.symlink_to(path.name)),
}


@st.composite
def harms(draw: st.DrawFn, stores: dict[str, Published]) -> tuple[str, str, str, Callable[[Path], object]]:
    """A store, a file of it, and what is done to that: in words, and as a function of its path."""
    of = draw(st.sampled_from(list(IDENTITIES)))
    published = stores[of]
    name = draw(st.sampled_from(sorted(published.files)))
    data = published.files[name]
    kind = draw(st.sampled_from(["byte", "byte", "byte", "byte", "cut", "empty", "longer", "other", "kind"]))
    if kind == "byte":
        at = draw(st.integers(0, len(data) - 1))
        byte = draw(st.one_of(st.integers(0, 255), st.sampled_from(b'eE.-+0\\"')))
        return of, name, f"byte {at} is {byte}", put(data[:at] + bytes([byte]) + data[at + 1 :])
    if kind == "cut":
        size = draw(st.integers(0, len(data) - 1))
        return of, name, f"cut to {size}", put(data[:size])
    if kind == "longer":
        return of, name, "longer", put(data + draw(st.binary(min_size=1, max_size=20)))
    if kind == "other":
        other = stores[draw(st.sampled_from(list(stores)))]
        file = draw(st.sampled_from([name] if name in other.files else sorted(other.files)))
        return of, name, f"{file} of {other.path.name}", put(other.files[file])
    if kind == "kind":
        what = draw(st.sampled_from(list(KINDS)))
        return of, name, what, KINDS[what]
    return of, name, "emptied", put(b"")


def require_safe(stores: dict[str, Published], data: st.DataObject) -> None:
    of, name, what, harm = data.draw(harms(stores))
    published = stores[of]
    # Nothing vouches for a whole table of targets but the manifest's digest, which a check compares.
    count = 2 if name == "images/target/c.0" and " of " in what else 3
    with no_waiting(), published.harmed(name, harm) as path:
        regular = (path / name).is_file() and not (path / name).is_symlink()
        same = regular and (path / name).read_bytes() == published.files[name]
        require_published_or_refused(published, path, count)
        assert found(path, name) != same


def fuzz(stores: dict[str, Published], examples: int) -> None:
    run = settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    run(given(st.data())(lambda data: require_safe(stores, data)))()


def test_any_change_to_any_file_is_refused_or_harmless(stores: dict[str, Published]) -> None:
    fuzz(stores, 60)


@pytest.mark.long
def test_any_of_many_changes_to_any_file_is_refused_or_harmless(stores: dict[str, Published]) -> None:
    fuzz(stores, 10_000)


DOCUMENTS = ("zarr.json", "markers/", "seals/")
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1e300]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.integers(),
    st.floats(),
)
TEXTS = st.one_of(st.sampled_from(["", "int8", "0", "\ud800", "\n", "../../outside", "x" * 3000]), st.text(max_size=5))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda values: st.one_of(st.lists(values, max_size=3), st.dictionaries(TEXTS, values, max_size=3)),
    max_leaves=6,
)


def places(value: object, at: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Where the values of a document are, inner ones too."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(inner, (*at, key))


def stamped(document: dict[str, Any]) -> bytes:
    """The text of a document with the CRC-32C that belongs to it, whatever it holds."""
    plain = {key: value for key, value in document.items() if key != "crc32c"}
    crc = disk.crc32c(json.dumps(plain, separators=(",", ":")).encode())
    return json.dumps({**plain, "crc32c": crc}, separators=(",", ":")).encode()


def rewritten(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A document, changed, with its stamp made right: the attributes of the root, all of a marker or a seal."""
    document = json.loads(data)
    if "node_type" not in document:
        change(document)
        return stamped(document) + b"\n"
    change(document["attributes"])
    attributes = json.loads(stamped(document["attributes"]))
    return json.dumps({**document, "attributes": attributes}, indent=2).encode() + b"\n"


def require_documents_safe(stores: dict[str, Published], data: st.DataObject) -> None:
    published = stores[data.draw(st.sampled_from(list(IDENTITIES)))]
    name = data.draw(st.sampled_from([file for file in sorted(published.files) if file.startswith(DOCUMENTS)]))
    document = json.loads(published.files[name])
    inner = document.get("attributes", document)
    place: Any = data.draw(st.sampled_from([place for place in places(inner) if place != ("crc32c",)]))
    *path, last = place
    what = data.draw(st.sampled_from(["other", "other", "other", "gone", "added"]))
    value = data.draw(VALUES)

    def change(whole: dict[str, Any]) -> None:
        holder: Any = whole
        for key in path:
            holder = holder[key]
        if what == "other":
            holder[last] = value
        elif what == "gone":
            del holder[last]
        elif isinstance(holder, list):
            holder.insert(last, value)
        else:
            holder["another"] = value

    with no_waiting(), published.harmed(name, put(rewritten(published.files[name], change))) as root:
        # A seal knows the identity; above the last one, a root that is changed and stamped is another store's.
        require_published_or_refused(published, root, compared=SEALED if name == "zarr.json" else VIEWS)
        with suppress(GiftwrapError):  # where the root is no root of a store any more
            check(root)


def fuzz_documents(stores: dict[str, Published], examples: int) -> None:
    run = settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    run(given(st.data())(lambda data: require_documents_safe(stores, data)))()


def test_any_value_of_any_document_is_refused_or_harmless_though_its_stamp_is_right(
    stores: dict[str, Published],
) -> None:
    fuzz_documents(stores, 60)


@pytest.mark.long
def test_any_of_many_values_of_any_document_is_refused_or_harmless(stores: dict[str, Published]) -> None:
    fuzz_documents(stores, 10_000)
