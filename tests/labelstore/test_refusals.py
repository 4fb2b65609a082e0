"""Bad input is named and changes nothing; a disk that is full loses nothing that was finished."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import AuditRows, BlockIndex, LabelStore, check
from labelstore.durable import documents
from labelstore.encodings import ENCODINGS
from labelstore.errors import DamagedError, FormatError, GiftwrapError, InputError, LeaseError, NotStoredError
from labelstore.operations.repair import repair
from labelstore.writing.lease import LEASE, Lease
from tests.labelstore.faults import HARM, full_after
from tests.labelstore.making import PARAMETERS, Content, build, create, make_identity, tree


@pytest.fixture
def content() -> Content:
    return Content(make_identity(), 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ENCODINGS)
def test_nan_and_inf_are_named_by_image_and_view(tmp_path: Path, name: str, bad: float) -> None:
    content = Content(make_identity(10, 64, encoding={"name": name, **PARAMETERS.get(name, {})}), 4)
    path = tmp_path / "s"
    store = build(path, content, 4, blocks=4)
    block = BlockIndex(1, 1)
    data = content.block(store, block)
    logits = data.logits.copy()
    logits[1, 2, 5] = bad
    image = content.order[3, 6]
    before = tree(path)
    message = (
        rf"logit of image {image} in view 3 \(position 6\), class 5: expected .*, found {bad}; look at the teacher"
    )
    with store.lease() as writer, pytest.raises(InputError, match=message):
        writer.write(block, replace(data, logits=logits))
    assert tree(path) == before
    build(path, content, 4)
    assert check(path).ok


def test_audit_logits_that_float16_cannot_hold_are_named(tmp_path: Path, content: Content) -> None:
    store = create(tmp_path / "s", content, 2)
    data = content.block(store, BlockIndex(0, 0))
    assert data.audit is not None
    logits = data.audit.logits.copy()
    logits[3, 1] = np.inf
    before = tree(store.path)
    with (
        store.lease() as writer,
        pytest.raises(InputError, match=rf"logit of image {content.order[0, 3]} in view 0 \(position 3\), class 1"),
    ):
        writer.write(BlockIndex(0, 0), replace(data, audit=AuditRows(data.audit.crops, logits)))
    assert tree(store.path) == before


@pytest.mark.parametrize("name", ["images", "columns", "size", "group"])
@pytest.mark.parametrize("value", [0, -1])
def test_sets_of_size_zero_are_refused(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name}: expected at least 1, found {value}"):
        replace(make_identity(), **dict[str, Any]({name: value}))


def test_more_columns_than_a_label_may_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="columns: expected at most 65535, found 65536"):
        make_identity(columns=65_536)
    content = Content(make_identity(1, 65_535, block=(1, 1)), 1)
    store = build(tmp_path / "s", content, 1)
    assert store.read(0, [0]).logits.shape == (1, 65_535)
    assert check(store.path).ok


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("images", [1, 3, 7])
def test_one_image_and_counts_that_groups_do_not_divide(tmp_path: Path, name: str, images: int) -> None:
    identity = make_identity(
        images, 64, group=2, size=4, block=(2, 4), encoding={"name": name, **PARAMETERS.get(name, {})}
    )
    content = Content(identity, 4)
    partner = identity.crop_columns.index("partner")
    content.rows[:, partner] = 0  # the last group has one crop, which can only be its own partner
    path = tmp_path / "s"
    store = build(path, content, 3)
    assert store.state.views_sealed == 4
    for view in range(4):
        batch = store.read(view, slice(None))
        assert np.array_equal(batch.rows.image, content.order[view])
        assert np.isfinite(batch.logits).all()
        assert len(batch) == images
    assert check(path).ok


def test_blocks_that_cut_a_group_are_refused() -> None:
    with pytest.raises(InputError, match="block of 4 positions: expected whole groups of 3"):
        make_identity(10, group=3, block=(1, 4))


@pytest.mark.parametrize("view", [-1, 2, 10**9])
def test_views_that_are_not_there_are_named(tmp_path: Path, content: Content, view: int) -> None:
    store = build(tmp_path / "s", content, 2)
    for follow in (False, True):
        opened = LabelStore.open(store.path, follow=follow)
        for read in (opened.read, opened.read_images, opened.codes):
            with pytest.raises(
                NotStoredError, match=f"view {view} cannot be read: 2 of 2 views are sealed; ask for another"
            ):
                read(view, [0])


def newer(attributes: dict) -> None:
    attributes["giftwrap_format"] = 3


def other_columns(attributes: dict) -> None:
    attributes["identity"]["columns"] = 2


def more_views(attributes: dict) -> None:
    attributes["state"]["views_sealed"] = 4


def no_stamp(attributes: dict) -> None:
    del attributes["crc32c"]


def stamped(change: Callable[[dict], None]) -> Callable[[dict], None]:
    """Somebody who knows about the stamp."""

    def act(attributes: dict) -> None:
        change(attributes)
        attributes.update(documents.stamp(attributes))

    return act


def no_seed(attributes: dict) -> None:
    del attributes["identity"]["seed"]


def no_such_encoding(attributes: dict) -> None:
    attributes["identity"]["encoding"] = {"name": "int3"}


def views_of_text(attributes: dict) -> None:
    attributes["state"]["views_target"] = "many"


EDITS: dict[str, tuple[Callable[[dict], None], type[GiftwrapError], str]] = {
    "a newer format": (newer, FormatError, "reads formats 1, 2, the store has format 3; install a version"),
    "an edited identity": (other_columns, DamagedError, "changed or damaged: .*; restore it from a copy"),
    "an edited state": (more_views, DamagedError, "changed or damaged: .*; restore it from a copy"),
    "no stamp": (no_stamp, DamagedError, "changed or damaged: .*; restore it from a copy"),
    "no seed": (stamped(no_seed), DamagedError, "identity.seed: expected a value, found nothing"),
    "an encoding of tomorrow": (stamped(no_such_encoding), FormatError, "expected one of .*, found 'int3'"),
    "views of text": (stamped(views_of_text), DamagedError, "state.views_target: expected an integer from 0"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_attributes_that_are_edited_by_hand_are_refused(tmp_path: Path, content: Content, edit: str) -> None:
    path = tmp_path / "s"
    build(path, content, 2)
    whole = (path / "zarr.json").read_bytes()
    change, kind, message = EDITS[edit]
    metadata = json.loads(whole)
    change(metadata["attributes"])
    (path / "zarr.json").write_text(json.dumps(metadata, indent=2) + "\n")
    before = tree(path)
    for use in (LabelStore.open, repair, lambda store: build(store, content, 4)):
        with pytest.raises(kind, match=message):
            use(path)
    if kind is DamagedError:
        assert [damage.file for damage in check(path).damaged] == ["zarr.json"]
    else:
        with pytest.raises(kind, match=message):
            check(path)
    assert tree(path) == before
    (path / "zarr.json").write_bytes(whole)
    build(path, content, 4)
    assert check(path).ok


def test_a_state_that_claims_views_that_are_not_there_is_found(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "s"
    build(path, content, 4, blocks=3)
    metadata = json.loads((path / "zarr.json").read_bytes())
    stamped(more_views)(metadata["attributes"])
    (path / "zarr.json").write_text(json.dumps(metadata, indent=2) + "\n")
    with pytest.raises(DamagedError, match=r"seals/4\.json: is not there, though the views before 4 are sealed"):
        LabelStore.open(path).read(3, [0])
    assert not check(path).ok
    assert repair(path).unsealed == 4
    assert check(path).ok
    build(path, content, 4)
    build(tmp_path / "whole", content, 4)
    assert tree(path) == tree(tmp_path / "whole")


def test_a_lease_from_elsewhere_is_taken_over_as_its_message_says(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "s"
    store = build(path, content, 2, blocks=1)
    shutil.copy(build(tmp_path / "whole", content, 2).path / "labels/c.0.1.0", path / "labels/c.0.1.0")
    (path / ".partial").mkdir()
    (path / ".partial/rows~c.0.0.1").write_bytes(b"half")
    left = replace(Lease.of_this_process(), host="far")
    (path / LEASE).write_bytes(documents.encode({name: getattr(left, name) for name in Lease.__slots__}))
    before = tree(path)
    for use in (lambda: build(path, content, 2), lambda: repair(path)):
        with pytest.raises(LeaseError, match=rf"process {left.pid} on far.*make sure that it is dead.*--take-over"):
            use()
        assert tree(path) == before
    with store.lease(take_over=True):
        pass
    build(path, content, 2)
    assert tree(path) == tree(tmp_path / "whole")


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_disk_that_fills_at_any_step_loses_nothing(tmp_path: Path, name: str) -> None:
    identity = make_identity(4, 64, encoding={"name": name, **PARAMETERS.get(name, {})}, block=(1, 4))
    content = Content(identity, 2)

    def work(path: Path) -> None:
        build(path, content, 1)
        build(path, content, 2)

    work(tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    steps = 0
    while True:
        path = tmp_path / str(steps)
        if not full_after(steps, partial(work, path)):
            break
        if LabelStore.exists(path):
            assert check(path).ok, steps
            assert not (path / LEASE).exists(), steps
            published = {file for file in tree(path) if file.startswith(("labels/c.", "rows/c."))}
            assert all(tree(path)[file] == whole[file] for file in published if marked(path, file))
        work(path)
        assert tree(path) == whole, steps
        steps += 4 if name == "int8" else 5
    assert steps > 60


def marked(path: Path, file: str) -> bool:
    """Whether the block of a shard has a marker; blocks here are whole views."""
    return (path / f"markers/{file.split('.')[1]}.0.json").exists()


def test_a_repair_on_a_disk_that_is_full_is_finished_later(tmp_path: Path, content: Content) -> None:
    whole = build(tmp_path / "whole", content, 2).path
    build(whole, content, 4)
    steps, full = 0, True
    while full:
        path = tmp_path / str(steps)
        build(path, content, 2)
        build(path, content, 4)
        for name in ("seals/4.json", "markers/0.1.json", "rows/zarr.json", "labels/c.1.1.0"):
            HARM["cut short"](path / name)
        full = full_after(steps, partial(repair, path))
        repair(path)
        assert check(path).ok, steps
        build(path, content, 4)
        assert tree(path) == tree(whole), steps
        steps += 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 192 KiB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k", "giftwrap", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_is_filled_and_the_build_goes_on_when_there_is_room(tmp_path: Path, small_disk: Path) -> None:
    content = Content(make_identity(64, 64, block=(1, 16)), 16)
    whole = tree(build(tmp_path / "whole", content, 16).path)
    path = small_disk / "s"
    with pytest.raises(OSError, match="No space left on device"):
        build(path, content, 16)
    assert check(path).ok
    finished = {file for file in tree(path) if file.startswith("markers/") and file.endswith(".json")}
    assert finished
    with pytest.raises(OSError, match="No space left on device"):
        build(path, content, 16)
    assert finished <= tree(path).keys()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    build(path, content, 16)
    assert tree(path) == whole
