from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore import AuditRows, BlockIndex, LabelStore, check, store_bytes
from labelstore.access import reading
from labelstore.encodings import Pairs
from labelstore.errors import FormatError, InputError, LeaseError, NotStoredError
from tests.labelstore.making import Content, build, create, make_identity, tree


@pytest.fixture
def content() -> Content:
    return Content(make_identity(), 8)


@settings(deadline=None, max_examples=12)
@given(
    images=st.integers(1, 12),
    columns=st.integers(1, 4),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    group=st.sampled_from([1, 2]),
    encoding=st.sampled_from(["int8", "float16"]),
    views=st.integers(1, 4),
    data=st.data(),
)
def test_what_is_written_is_read_here_and_in_zarr(
    tmp_path_factory: pytest.TempPathFactory,
    images: int,
    columns: int,
    shape: tuple[int, int],
    group: int,
    encoding: str,
    views: int,
    data: st.DataObject,
) -> None:
    identity = make_identity(
        images, columns, block=(shape[0], shape[1] * group), group=group, encoding=encoding, seed=1
    )
    content = Content(identity, 6)
    path = tmp_path_factory.mktemp("store") / "s"
    store = build(path, content, views)
    assert store.complete
    assert store.state.views_sealed == -(-views // shape[0]) * shape[0]
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) <= store_bytes(identity, views)
    group_of: Any = zarr.open_group(path, mode="r")
    for view in range(store.state.views_sealed):
        positions = data.draw(st.lists(st.integers(0, images - 1), max_size=2 * images))
        for index in (slice(None), slice(1, -1), slice(None, None, -2), positions):
            batch = store.read(view, index)
            places = np.arange(images)[index] if isinstance(index, slice) else np.array(index, int)
            assert np.array_equal(batch.positions, places)
            assert np.array_equal(batch.rows.values, content.rows[view][:, places])
            assert np.array_equal(batch.rows.values, group_of["rows"][view][:, places])
            assert np.array_equal(batch.targets, content.targets[content.order[view, places]])
            expected = rounded(store, content.logits[view, places])
            assert np.array_equal(batch.logits, expected)
            for name, codes in store.codes(view, index).items():
                assert np.array_equal(codes, group_of[name][view][places])
        chosen = store.read_images(view, content.order[view, places])
        assert np.array_equal(chosen.positions, places)
    assert check(path).ok


def rounded(store: LabelStore, logits: np.ndarray) -> np.ndarray:
    """Logits as they come back from an encoding of single rows."""
    pairs = Pairs.unmixed(np.zeros(logits.shape[:-1], np.int64))
    return store.encoding.decode(store.encoding.encode(logits, pairs), pairs)


def test_identity_state_images_and_audit_rows_survive(tmp_path: Path, content: Content) -> None:
    build(tmp_path / "s", content, 3)
    store = LabelStore.open(tmp_path / "s")
    assert store.identity == content.identity
    assert (store.state.views_target, store.state.views_sealed) == (4, 4)
    assert np.array_equal(store.targets, content.targets)
    assert np.array_equal(store.image_digests, content.digests)
    crops, logits = store.audit()
    assert np.array_equal(crops, content.crops[:4])
    assert np.array_equal(logits, content.logits[0, :4].astype(np.float16))
    assert store.fidelity["unmixed"]["rows"] == 4
    assert store.fidelity["mixed"] is None
    assert len({store.pixels_digest(block) for block in store.sealed_blocks()}) == 6


def test_fidelity_keeps_mixed_and_unmixed_rows_apart(tmp_path: Path) -> None:
    content = Content(make_identity(10, 5, group=2, size=4, block=(1, 10)), 1)
    names = content.identity.crop_columns
    content.rows[:, names.index("mix_height"), ::2] = 0
    content.rows[:, names.index("mix_height"), 1::2] = 2
    content.rows[:, names.index("mix_width")] = 3
    content.rows[:, [names.index("mix_top"), names.index("mix_left")]] = 1
    fidelity = build(tmp_path / "s", content, 1).fidelity
    assert (fidelity["unmixed"]["rows"], fidelity["mixed"]["rows"]) == (5, 5)
    assert 0.99 < fidelity["mixed"]["p1"] <= fidelity["mixed"]["mean"] <= 1


def test_bytes_per_label_are_measured(tmp_path: Path) -> None:
    content = Content(make_identity(512, 100, block=(8, 512)), 8)
    store = create(tmp_path / "s", content, 8)
    assert store.bytes_per_label() == {"labels": 0, "columns": 0, "side": 0}
    build(tmp_path / "s", content, 8)
    found = LabelStore.open(tmp_path / "s").bytes_per_label()
    assert found["labels"] == pytest.approx(100, abs=0.1)
    assert found["side"] == pytest.approx(3.7, abs=0.1)  # of 8: offsets are zeros, and scales alike
    columns = (tmp_path / "s/rows/c.0.0.0").stat().st_size / 4096
    assert found["columns"] == pytest.approx(columns, abs=1e-3)


def test_extension_adds_blocks_and_a_seal_and_changes_nothing_else(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "s"
    build(path, content, 3)
    before = tree(path)
    store = build(path, content, 7)
    after = tree(path)
    grown = {"zarr.json", "labels/zarr.json", "scales/zarr.json", "rows/zarr.json"}
    assert {name for name in before if after[name] != before[name]} == grown
    assert {"seals/4.json", "seals/8.json", "markers/3.2.json"} <= after.keys()
    assert store.state.views_sealed == 8
    for view in (0, 7):
        assert np.array_equal(LabelStore.open(path).read(view, slice(None)).rows.values, content.rows[view])
    assert zarr.open_group(path, mode="r")["labels"].shape == (8, 10, 3)
    assert tree(path) == after
    build(path, content, 2)
    assert tree(path) == after


def test_views_above_the_seal_are_for_followers(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "s"
    build(path, content, 2)
    build(path, content, 4, blocks=2)
    plain, follower = LabelStore.open(path), LabelStore.open(path, follow=True)
    assert plain.read(1, slice(0, 2)).view == 1
    with pytest.raises(NotStoredError, match="view 2 cannot be read: 2 of 4 views are sealed; finish the build"):
        plain.read(2, slice(0, 2))
    assert np.array_equal(follower.read(2, [0, 7]).rows.values, content.rows[2][:, [0, 7]])
    with pytest.raises(NotStoredError, match=r"block 1.2 is not written yet"):
        follower.read(2, slice(None))
    build(path, content, 6)
    assert np.array_equal(follower.read(5, slice(None)).rows.values, content.rows[5])
    with pytest.raises(NotStoredError, match="view 6 cannot be read"):
        follower.read(6, slice(None))


def test_a_new_engine_begins_a_version(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "s"
    build(path, content, 4, blocks=4)
    store = LabelStore.open(path)
    with store.lease() as writer:
        assert writer.raise_target(4, engine={"device": "other"}) == 4
        for block in store.missing():
            writer.write(block, content.block(store, block))
        writer.seal()
        writer.raise_target(4, engine={"device": "third"})
    store = LabelStore.open(path)
    assert [version["engine"]["device"] for version in store.state.versions] == ["test", "other"]
    assert [version["first_view"] for version in store.state.versions] == [0, 2]
    assert store.version(BlockIndex(1, 0))["engine"]["device"] == "test"
    assert store.version(BlockIndex(1, 1))["engine"]["device"] == "other"
    assert check(path).ok


def test_a_store_travels_to_another_process_as_its_path(tmp_path: Path, content: Content) -> None:
    build(tmp_path / "s", content, 2)
    store = pickle.loads(pickle.dumps(LabelStore.open(tmp_path / "s", follow=True)))  # noqa: S301  our own bytes
    assert store.follow
    assert np.array_equal(store.read(0, [3]).rows.values, content.rows[0][:, [3]])


def test_caches_are_bounded(tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_MAPS", 3)
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1)
    monkeypatch.setattr(reading, "MAX_ORDER_BYTES", 1)
    build(tmp_path / "s", content, 8)
    store = LabelStore.open(tmp_path / "s")
    for view in (*range(8), 0):
        assert np.array_equal(store.read(view, slice(None)).rows.values, content.rows[view])
        assert store.read_images(view, [3]).rows.image == 3
        reader = store._reader
        assert [len(cache._values) for cache in (reader._maps, reader._rows, reader._orders)] == [3, 1, 1]


def test_threads_share_a_store(tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_MAPS", 2)
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1)
    build(tmp_path / "s", content, 8)
    store = LabelStore.open(tmp_path / "s")

    def right(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        view, places = int(rng.integers(8)), rng.integers(0, 10, 5)
        batch = store.read(view, places)
        expected = rounded(store, content.logits[view, places])
        same_rows = np.array_equal(batch.rows.values, content.rows[view][:, places])
        return same_rows and np.array_equal(batch.logits, expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(200)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"logits": np.zeros((2, 4, 2), np.float32)},
            r"logits: expected float32 \[2, 4, 3\], found float32 \[2, 4, 2\]",
        ),
        ({"logits": np.zeros((2, 4, 3))}, r"logits: expected float32 \[2, 4, 3\], found float64"),
        ({"rows": np.zeros((2, 7, 4), np.int32)}, r"rows: expected uint16 \[2, 7, 4\], found int32"),
        ({"rows": np.full((2, 7, 4), 9 * 65537 % 65536 + 1, np.uint16)}, r"image index: expected below 10, found"),
        ({"pixels_digest": "x"}, r"pixels_digest: expected 16 hex digits, found 'x'"),
        ({"audit": None}, r"audit rows belong to block 0.0"),
        (
            {"audit": AuditRows(np.zeros((4, 2, 2, 3), np.uint8), np.zeros((3, 3), np.float16))},
            r"audit/logits: expected",
        ),
    ],
)
def test_what_is_not_a_block_is_refused(tmp_path: Path, content: Content, change: dict, message: str) -> None:
    store = create(tmp_path / "s", content, 2)
    before = tree(tmp_path / "s")
    data = replace(content.block(store, BlockIndex(0, 0)), **change)
    with store.lease() as writer, pytest.raises(InputError, match=message):
        writer.write(BlockIndex(0, 0), data)
    assert tree(tmp_path / "s") == before


@pytest.mark.parametrize(
    ("encoding", "bad"), [("int8", np.nan), ("int8", -np.inf), ("float16", np.nan), ("float16", 7e4)]
)
def test_nan_and_inf_never_enter(tmp_path: Path, encoding: str, bad: float) -> None:
    content = Content(make_identity(encoding=encoding), 8)
    store = build(tmp_path / "s", content, 4, blocks=4)
    data = content.block(store, BlockIndex(1, 1))
    data.logits[1, 2, 0] = bad
    with (
        store.lease() as writer,
        pytest.raises(InputError, match=r"logit of image \d in view 3 \(position 6\), class 0: .*(nan|-inf|7000)"),
    ):
        writer.write(BlockIndex(1, 1), data)
    assert BlockIndex(1, 1) in store.missing()


def test_blocks_are_written_once_under_the_lease_and_within_the_target(tmp_path: Path, content: Content) -> None:
    store = create(tmp_path / "s", content, 2)
    block = BlockIndex(0, 1)
    data = content.block(store, block)
    with store.lease() as ended:
        pass
    with pytest.raises(LeaseError, match="writing needs the lease"):
        ended.write(block, data)
    with store.lease() as writer:
        writer.write(block, data)
        with pytest.raises(InputError, match=r"block 0\.1 is published already"):
            writer.write(block, data)
        for wrong in (BlockIndex(1, 0), BlockIndex(0, 3), BlockIndex(-1, 0), BlockIndex(0, -1)):
            with pytest.raises(InputError, match="not one of the blocks to be written"):
                writer.write(wrong, data)
        with pytest.raises(NotStoredError, match=r"2 blocks are missing, first 0\.0"):
            writer.seal()


def test_bad_positions_are_named(tmp_path: Path, content: Content) -> None:
    store = build(tmp_path / "s", content, 2)
    with pytest.raises(InputError, match="positions: expected 0 to 9, found 10"):
        store.read(0, [3, 10])
    with pytest.raises(InputError, match="images: expected 0 to 9, found -1"):
        store.read_images(0, [-1])
    with pytest.raises(InputError, match=r"positions: expected a slice or integers \[n\], found float64 \[1\]"):
        store.read(0, [0.5])
    for view in (-1, 2):
        with pytest.raises(NotStoredError, match=f"view {view} cannot be read"):
            store.read(view, [0])
    assert len(store.read(0, [])) == 0


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, content: Content) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"expected an empty folder, found 'notes.txt'"):
        create(tmp_path, content, 2)
    with pytest.raises(InputError, match="expected a folder, found a file"):
        create(tmp_path / "notes.txt", content, 2)
    assert tree(tmp_path).keys() == {"notes.txt"}
    create(tmp_path / "deep" / "s", content, 2)
    with pytest.raises(InputError, match="is a label store already"):
        create(tmp_path / "deep" / "s", content, 2)


def test_labels_are_not_lost_to_a_new_store_where_their_root_is_gone(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "s"
    build(path, content, 4, blocks=1)
    (path / "zarr.json").unlink()
    before = tree(path)
    with pytest.raises(InputError, match=r"found a label store \(1 markers and seals, 0\.0\.json first\)"):
        create(path, content, 4)
    assert tree(path) == before


@pytest.mark.parametrize(
    ("digests", "targets", "message"),
    [
        (np.zeros((10, 31), np.uint8), np.zeros(10, int), r"image_digests: expected uint8 \[10, 32\]"),
        (np.zeros((10, 32), np.uint8), np.zeros(9, int), r"targets: expected integers \[10\], found int64 \[9\]"),
        (np.zeros((10, 32), np.uint8), np.full(10, 2), r"targets: expected 0 to 1, found 2 to 2"),
    ],
)
def test_images_must_fit(tmp_path: Path, digests: np.ndarray, targets: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelStore.create(tmp_path / "s", make_identity(), image_digests=digests, targets=targets, views=1)
    assert not (tmp_path / "s").exists()


def test_what_is_not_a_store_is_named(tmp_path: Path, content: Content) -> None:
    with pytest.raises(FormatError, match="no such folder"):
        LabelStore.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"expected a label store, found no zarr\.json in it"):
        LabelStore.open(tmp_path / "empty")
    zarr.create_group(tmp_path / "other")
    with pytest.raises(FormatError, match="found a zarr hierarchy without giftwrap_format"):
        LabelStore.open(tmp_path / "other")
    create(tmp_path / "s", content, 2)
    file = tmp_path / "s/zarr.json"
    metadata = json.loads(file.read_bytes())
    assert next(iter(metadata["attributes"])) == "giftwrap_format"
    metadata["attributes"]["giftwrap_format"] = 3
    file.write_text(json.dumps(metadata))
    with pytest.raises(FormatError, match="this version reads formats 1, 2, the store has format 3; install"):
        LabelStore.open(tmp_path / "s")
    with pytest.raises(FormatError, match="this version reads formats 1, 2, the store has format 3; install"):
        check(tmp_path / "s")
