"""Every kind of damage to every file is found by check, and never read as data."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore, check
from labelstore.access.reading import Reader
from labelstore.durable import documents
from labelstore.errors import DamagedError, FormatError
from labelstore.format.images import manifest_digest
from labelstore.operations.repair import repair
from tests.labelstore.faults import HARM, flip, killed_after
from tests.labelstore.making import Content, build, make_identity, tree

VIEWS = 4


@pytest.fixture(scope="module")
def content() -> Content:
    return Content(make_identity(block=(2, 4)), VIEWS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, content: Content) -> Path:
    path = tmp_path_factory.mktemp("store") / "s"
    build(path, content, 2)
    build(path, content, VIEWS)
    return path


def everything(path: Path) -> list[np.ndarray]:
    """All that can be read of a store."""
    store = LabelStore.open(path)
    batches = [store.read(view, slice(None)) for view in range(VIEWS)]
    arrays = [array for batch in batches for array in (batch.rows.values, batch.logits, batch.targets)]
    digests = np.array([store.pixels_digest(block) for block in store.sealed_blocks()])
    return [*arrays, *store.audit(), store.image_digests, digests, np.array([str(store.fidelity), str(store.state)])]


@pytest.mark.parametrize("harm", list(HARM))
def test_any_harm_to_any_file_is_found_and_never_read(tmp_path: Path, store: Path, harm: str) -> None:
    whole = everything(store)
    for number, name in enumerate(file for file, kind in tree(store).items() if kind != "folder"):
        path = tmp_path / str(number)
        shutil.copytree(store, path)
        HARM[harm](path / name)
        with suppress(DamagedError, FormatError):
            read = everything(path)
            assert all(np.array_equal(ours, theirs) for ours, theirs in zip(read, whole, strict=True)), name
        if name == "zarr.json":
            with suppress(FormatError):
                assert not check(path).ok
        else:
            assert [damage.file for damage in check(path).damaged] == [name]


def test_two_shards_of_a_store_swapped_are_told_apart(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "s"
    shutil.copytree(store, path)
    first, second = path / "labels/c.0.0.0", path / "labels/c.1.0.0"
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    report = check(path)
    assert [damage.file for damage in report.damaged] == ["labels/c.0.0.0", "labels/c.1.0.0"]
    for view in (0, 2):
        with pytest.raises(DamagedError, match="is not the shard that was published"):
            LabelStore.open(path).read(view, [0])


def test_a_marker_of_another_store_disagrees_with_the_seal(tmp_path: Path, store: Path) -> None:
    path, other = tmp_path / "s", tmp_path / "other"
    shutil.copytree(store, path)
    build(other, Content(make_identity(block=(2, 4)), VIEWS, seed=9), VIEWS)
    shutil.copy(other / "markers/1.1.json", path / "markers/1.1.json")
    shutil.copy(other / "markers/0.1.json", path / "markers/0.0.json")
    assert [(damage.file, damage.why.split()[0]) for damage in check(path).damaged] == [
        ("markers/0.0.json", "block:"),
        ("markers/1.1.json", "differs"),
    ]
    shutil.copy(other / "seals/4.json", path / "seals/2.json")
    with pytest.raises(DamagedError, match=r"seals/2\.json: views: expected integers from 0 to 2, found \[0, 4\]"):
        LabelStore.open(path).read(0, [0])
    changed = documents.read(other / "seals/4.json") | {"identity": "0" * 64}
    (path / "seals/4.json").write_bytes(documents.encode(changed))
    with pytest.raises(DamagedError, match=r"seals/4\.json: seals a store of another identity"):
        LabelStore.open(path).read(3, [0])


def test_damage_names_file_and_next_step(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "s"
    shutil.copytree(store, path)
    flip(0.1)(path / "labels/c.1.1.0")
    opened = LabelStore.open(path)
    message = r"labels/c\.1\.1\.0: the CRC-32C of inner chunk .* does not match; .*python -m labelstore check"
    with pytest.raises(DamagedError, match=message):
        opened.read(2, slice(4, 8))
    assert opened.read(2, slice(0, 4)).view == 2


def test_a_checked_chunk_is_not_checked_again(store: Path) -> None:
    opened = LabelStore.open(store)
    opened.read(0, [0])
    reader: Reader = opened._reader
    (shard,) = (value.result() for key, value in reader._maps._values.items() if key[1] == "labels")
    assert shard._checked.sum() == 1


def test_a_stopped_extension_is_not_damage(tmp_path: Path, store: Path, content: Content) -> None:
    path = tmp_path / "s"
    shutil.copytree(store, path)
    longer = LabelStore.open(store).layout.codes[0].metadata(6)
    (path / "labels/zarr.json").write_bytes(longer)
    assert [damage.file for damage in check(path).damaged] == ["labels/zarr.json"], "nothing extends this store"
    build(path, content, VIEWS)
    assert tree(path) == tree(store)
    steps = 0
    while LabelStore.open(path).state.views_before is None:
        killed_after(steps, lambda: build(path, content, VIEWS + 2, blocks=0))
        (path / "lease.json").unlink(missing_ok=True)  # its process is dead
        steps += 1
    state = LabelStore.open(path).state
    assert (state.views_before, state.views_target) == (VIEWS, VIEWS + 2)
    assert check(path).ok
    (path / "labels/zarr.json").write_bytes(longer.replace(b"6", b"8"))
    assert [damage.file for damage in check(path).damaged] == ["labels/zarr.json"]


def test_progress_counts_blocks(store: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert check(store, lambda done, total: seen.append((done, total))).ok
    assert seen == [(n, 6) for n in range(1, 7)]


def test_tables_of_other_images_are_found(tmp_path: Path, content: Content) -> None:
    identity = replace(content.identity, manifest=manifest_digest(("cat", "dog"), content.targets, content.digests))
    ours, theirs = Content(identity, VIEWS), Content(identity, VIEWS, seed=1)
    build(tmp_path / "s", ours, VIEWS)
    build(tmp_path / "other", theirs, VIEWS)
    assert check(tmp_path / "s").ok
    for name in ("images/target/c.0", "images/digest/c.0.0"):
        path = tmp_path / name.replace("/", "-")
        shutil.copytree(tmp_path / "s", path)
        shutil.copy(tmp_path / "other" / name, path / name)
        damaged = check(path).damaged
        assert [damage.file for damage in damaged] == [name]
        with pytest.raises(DamagedError, match=rf"{name}: is not the shard that was published"):
            _ = LabelStore.open(path).targets if "target" in name else LabelStore.open(path).image_digests
        assert repair(path).left == (name,)
