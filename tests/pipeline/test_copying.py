"""Images of any source, written as a class folder or tar shards: byte for byte, whole or not at all, continued."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from pipeline.images.manifest import scan
from pipeline.importing import copying
from pipeline.importing.config import ImportConfig
from pipeline.importing.copying import CopyReport, copy_images
from tests.pipeline.packing import as_parquet, as_zip, files_in
from tests.pipeline.test_array_sources import cifar10
from tests.pipeline.test_containers import CLASSES, CONTAINERS, FILES, require_same, written


def copied(data: Path, out: Path, **flags: object) -> CopyReport:
    return copy_images(from_flags(ImportConfig, data=data, out=out, **flags))


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet", "several tables"])
def test_a_source_is_written_as_the_folder_that_it_was_made_of(tmp_path: Path, kind: str) -> None:
    path = CONTAINERS[kind](FILES, tmp_path, 0)
    done: list[tuple[int, int]] = []
    report = copy_images(
        from_flags(ImportConfig, data=path, out=tmp_path / "out"), lambda count, total: done.append((count, total))
    )
    assert files_in(tmp_path / "out") == dict(FILES)
    assert (report.images, report.classes, report.shards) == (len(FILES), 3, 0)
    assert done[-1] == (len(FILES), len(FILES))


@pytest.mark.parametrize("kind", ["folder", "zip", "parquet"])
@pytest.mark.parametrize("count", [1, 3])
def test_shards_are_read_back_as_the_same_set(tmp_path: Path, kind: str, count: int) -> None:
    folder = written(FILES, tmp_path / "images")
    path = folder if kind == "folder" else CONTAINERS[kind](FILES, tmp_path, 0)
    report = copied(path, tmp_path / "shards", shards=count)
    assert report.shards == count == len(list((tmp_path / "shards").iterdir()))
    require_same(scan(tmp_path / "shards"), scan(folder))
    again = tmp_path / "again"
    copied(path, again, shards=count)
    assert files_in(again) == files_in(tmp_path / "shards")  # no times, no owners
    with tarfile.open(tmp_path / "shards/shards-000.tar") as tar:
        names = tar.getnames()
    labels = [name for name in names if name.endswith(".cls")]
    assert len(labels) == len(set(labels)) >= 1


READ = """
import sys, webdataset
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False):
    print(sample["__key__"], sample["png"].hex(), sample["cls"].decode())
"""


def test_webdataset_reads_what_is_written(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    files = {f"{top}/{number:02d}.png": FILES["ant/0.png"] + bytes([number]) for top in CLASSES for number in range(3)}
    copied(written(files, tmp_path / "images"), tmp_path / "shards", shards=2)
    shards = sorted(map(str, (tmp_path / "shards").iterdir()))
    command = [sys.executable, "-c", READ, *shards]  # a process of its own: it leaves files open
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {f"{key}.png": (bytes.fromhex(data), int(label)) for key, data, label in map(str.split, lines)}
    assert found == {name: (data, CLASSES.index(name.split("/")[0])) for name, data in files.items()}


def test_a_stopped_call_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = written(FILES, tmp_path / "images"), tmp_path / "shards"
    real, written_shards = copying.write_shard, list[int]()

    def failing(file: object, source: object, images: object) -> None:
        if len(written_shards) == 2:
            raise KeyboardInterrupt
        written_shards.append(1)
        real(file, source, images)  # type: ignore[arg-type]

    monkeypatch.setattr(copying, "write_shard", failing)
    with pytest.raises(KeyboardInterrupt):
        copied(folder, out, shards=3)
    assert sorted(path.name for path in out.iterdir()) == ["shards-000.tar", "shards-001.tar"]
    first = (out / "shards-000.tar").stat().st_mtime_ns
    monkeypatch.setattr(copying, "write_shard", real)
    copied(folder, out, shards=3)
    assert (out / "shards-000.tar").stat().st_mtime_ns == first
    require_same(scan(out), scan(folder))
    with pytest.raises(InputError, match=r"shards-000\.tar: exists already, and is not the shard of these images"):
        copied(folder, out, shards=5)
    with pytest.raises(InputError, match=r"absent or empty, or some of these 2 shards, found shards-002\.tar"):
        copied(folder, out, shards=2)


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = as_zip(FILES, tmp_path / "a.zip", 0)
    raw = bytearray(path.read_bytes())
    raw[raw.index(FILES["cat/plain"][30:50])] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"cat/plain: cannot be read \(the archive has changed or is damaged"):
        copied(path, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.zip"]


def test_arrays_become_a_folder_of_the_same_set(tmp_path: Path) -> None:
    cifar = cifar10(tmp_path / "cifar-10-batches-py") / "train"
    report = copied(cifar, tmp_path / "out")
    theirs = scan(cifar)
    assert report.notes == (
        "the classes have another order than their names: a store made of the folder has the names' order",
    )
    ours = scan(tmp_path / "out")
    assert {*map(bytes, ours.digests)} == {*map(bytes, theirs.digests)}
    copied(cifar, tmp_path / "shards", shards=2)
    require_same(scan(tmp_path / "shards"), theirs)  # the numbers of the classes are kept


def test_shards_keep_the_order_of_classes(tmp_path: Path) -> None:
    files = {f"class_{number}/0.png": FILES["ant/0.png"] + bytes([number]) for number in (1, 2, 10)}
    folder = written(files, tmp_path / "images")
    copied(folder, tmp_path / "copy")
    with pytest.raises(InputError, match="sort differently as text"):
        copied(folder, tmp_path / "shards", shards=1)
    copied(folder, tmp_path / "shards", shards=1, class_order="numeric")
    require_same(scan(tmp_path / "shards"), scan(folder, class_order="numeric"))


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    folder = written(FILES, tmp_path / "images")
    with pytest.raises(InputError, match="at most one for each of the 10 images, found 11"):
        copied(folder, tmp_path / "out", shards=11)
    table = as_parquet(
        {f"a,b/{name}": data for name, data in FILES.items()}, tmp_path / "a.parquet", ["a,b"], metadata=True
    )
    with pytest.raises(InputError, match=r"--shard-mib: the sizes of these images are not known"):
        copied(table, tmp_path / "out", shard_mib=1)
    assert copied(folder, tmp_path / "one", shard_mib=1).shards == 1
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for label, path, said in (
        ("a/b", "0.png", "class 'a/b': cannot name a folder"),
        (".a", "0.png", "cannot name a folder"),
        ("a", ".0.png", r"image 'a/\.0\.png': is hidden"),
    ):
        images = [{"bytes": FILES["ant/0.png"], "path": path}]
        parquet.write_table(pa.table({"image": images, "label": [label]}), tmp_path / "b.parquet")
        with pytest.raises(InputError, match=said):
            copied(tmp_path / "b.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for flags, said in (
        ({"shards": 0}, "--shards: expected at least 1"),
        ({"shards": 1, "shard_mib": 1}, "expected one of them, found both"),
    ):
        with pytest.raises(InputError, match=said):
            copied(folder, tmp_path / "out", **flags)
    np.testing.assert_array_equal(scan(folder).targets, scan(tmp_path / "one").targets)
