"""A file of another store never reads as this one's, whichever array it is of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore, check
from labelstore.encodings import ENCODINGS
from labelstore.errors import DamagedError, GiftwrapError
from labelstore.operations.convert import convert
from labelstore.operations.export import export
from tests.labelstore.making import PARAMETERS, Content, build, make_identity, tree


def stores(folder: Path, encoding: str, group: int = 1) -> tuple[LabelStore, LabelStore, Content]:
    """Two stores of the same shape, of other labels and other teachers."""
    made = []
    for seed, teacher in ((1, "A"), (2, "B")):
        parameters = {"name": encoding, **PARAMETERS.get(encoding, {})}
        identity = make_identity(
            10, 64, block=(2, 10), encoding=parameters, group=group, teacher={"name": teacher}, size=4
        )
        content = Content(identity, 4, seed=seed)
        made.append((build(folder / teacher, content, 4), content))
    return made[0][0], made[1][0], made[0][1]


USES: dict[str, Callable[[LabelStore, Path], object]] = {
    "read": lambda store, _: [store.read(view, slice(None)) for view in range(4)],
    "read_images": lambda store, _: [store.read_images(view, [3]) for view in range(4)],
    "stream": lambda store, _: list(store.stream((view, [1, 5]) for view in range(4))),
    "audit": lambda store, _: store.audit(),
    "digests": lambda store, _: store.image_digests,
    "export": lambda store, out: export(store, out / "labels.npy"),
    "convert": lambda store, out: convert(store, out / "converted", {"name": "float16", "codec": "zstd"}),
}
# What a use reads, beside the calibration, which all labels need: the rows of the audit do not.
READS = {
    "read": ("labels", "scales", "rows", "images/target"),
    "read_images": ("labels", "scales", "rows", "images/target"),
    "stream": ("labels", "scales", "rows", "images/target"),
    "audit": ("audit",),
    "digests": ("images/digest",),
    "export": ("labels", "scales", "rows", "images/target"),
    "convert": ("labels", "scales", "rows", "images", "audit"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("use", USES)
def test_a_shard_of_another_store_is_never_taken_for_ours(tmp_path: Path, encoding: str, use: str) -> None:
    ours, theirs, content = stores(tmp_path, encoding)
    labels = [ours.read(view, slice(None)).logits for view in range(4)]
    shards = [name for name, kind in tree(ours.path).items() if "/c." in name and kind != "folder"]
    for number, name in enumerate(shards):
        mixed, out = tmp_path / f"mixed-{number}", tmp_path / f"out-{number}"
        shutil.copytree(ours.path, mixed)
        shutil.copy(theirs.path / name, mixed / name)
        out.mkdir()
        same = (theirs.path / name).read_bytes() == (ours.path / name).read_bytes()
        found = name.startswith(READS[use]) or (name.startswith("calibration") and use not in ("digests", "audit"))
        if found and not same:
            with pytest.raises(GiftwrapError) as caught:
                USES[use](LabelStore.open(mixed), out)
            assert isinstance(caught.value, DamagedError), name
            assert not (out / "labels.npy").exists()
        else:
            USES[use](LabelStore.open(mixed), out)
        assert check(mixed).ok == same
    assert all(np.array_equal(ours.read(view, slice(None)).logits, labels[view]) for view in range(4))
    assert content.identity == ours.identity


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_chunk_of_another_store_with_a_right_crc_is_damage(tmp_path: Path, encoding: str) -> None:
    """The bytes of a chunk and its CRC, as a copy that was cut off leaves them; the table of chunks is ours."""
    ours, theirs, _ = stores(tmp_path, encoding)
    name = "labels/c.0.0.0"
    mine, other = bytearray((ours.path / name).read_bytes()), (theirs.path / name).read_bytes()
    first = next(at for at in range(len(mine)) if mine[at] != other[at])
    table = len(mine) - (len(mine) - first) // 2
    (ours.path / name).write_bytes(other[:table] + bytes(mine[table:]) if len(other) == len(mine) else other)
    with pytest.raises(DamagedError):
        LabelStore.open(ours.path).read(0, slice(None))


def test_a_copy_that_was_interrupted_over_an_old_store_is_refused(tmp_path: Path) -> None:
    ours, theirs, _ = stores(tmp_path, "int8", group=2)
    for folder in ("audit", "images", "labels"):
        shutil.copytree(theirs.path / folder, ours.path / folder, dirs_exist_ok=True)
    opened = LabelStore.open(ours.path)
    for read in (lambda: opened.read(0, [0]), opened.audit, lambda: opened.codes(2, [1])):
        with pytest.raises(DamagedError, match=r"is not the shard that was published|expected .* bytes, found"):
            read()


def test_one_read_of_the_end_of_a_shard_tells_which_one_it_is(tmp_path: Path) -> None:
    """Nothing but the table of chunks and the chunks that are asked for is needed: ranged reads stay small."""
    content = Content(make_identity(3000, 400, block=(1, 3000), encoding="int8"), 1)
    store = build(tmp_path / "s", content, 1)
    path = store.path / "labels/c.0.0.0"
    size = path.stat().st_size
    with path.open("r+b") as file:  # all but the first chunk and the table
        file.seek(600_004)
        file.write(bytes(size - 600_004 - 4096))
    opened = LabelStore.open(store.path)
    batch = opened.read(0, slice(0, 1000))
    assert np.abs(batch.logits - content.logits[0, :1000]).max() < 0.05
    with pytest.raises(DamagedError, match="CRC-32C of inner chunk"):
        opened.read(0, slice(2000, 3000))
