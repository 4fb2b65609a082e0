"""The same files in another container are the same set: its order, its digest, its pixels, whatever holds them."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labelstore.errors import InputError
from pipeline.images import parquet, tar_index
from pipeline.images.manifest import Manifest, scan
from pipeline.images.opening import open_images, recognised
from pipeline.images.patterns import expanded
from pipeline.images.source_table import ImageOptions
from pipeline.images.tar_headers import entries
from tests.pipeline.packing import (
    Files,
    add,
    as_parquet,
    as_shards,
    as_tar,
    as_webdataset,
    as_zip,
    python2_names,
)

CLASSES = ("ant", "bee", "cat")
NAMES = (
    "ant/0.jpg", "ant/0.png", "ant/more/0.jpg", "ant/more-0.webp", "bee/b.x.jpg", "bee/1.PNG", "bee/deep/er/2.jpeg",
    "cat/é.png", "cat/0.ppm", "cat/plain",
)  # fmt: skip


def picture(number: int, suffix: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "ppm": "PPM"}.get(suffix.lower(), "PNG")
    Image.fromarray(pixels).resize((12 + number, 20 - number)).save(file, kind)
    return file.getvalue()


FILES: Files = {name: picture(number, name.rpartition(".")[2]) for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(FILES, tmp_path_factory.mktemp("set") / "images")


def written(files: Files, folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def in_several_tables(files: Files, folder: Path, seed: int) -> Path:
    folder.mkdir()
    half = len(files) // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        as_parquet(files, folder / f"train-{number:05d}-of-00002.parquet", CLASSES, seed=seed, part=part)
    return folder


CONTAINERS: dict[str, Callable[[Files, Path, int], Path]] = {
    "tar": lambda files, at, seed: as_tar(files, at / "set.tar", seed),
    "folder of tars": lambda files, at, seed: as_shards(files, at / "shards", 3, seed),
    "pattern of tars": lambda files, at, seed: as_shards(files, at / "shards", 3, seed) / "s-{00..02}.tar",
    "classes in .cls": lambda files, at, seed: as_webdataset(
        files, at / "wds", {name: name for name in CLASSES}, 2, seed
    ),
    "zip": lambda files, at, seed: as_zip(files, at / "set.zip", zipfile.ZIP_DEFLATED, seed),
    "stored zip": lambda files, at, seed: as_zip(files, at / "set.zip", zipfile.ZIP_STORED, seed),
    "folder in a zip": lambda files, at, seed: (
        as_zip({f"all/train/{name}": data for name, data in files.items()}, at / "set.zip", seed=seed) / "all/train"
    ),
    "folder in a tar": lambda files, at, seed: (
        as_tar({f"train/{name}": data for name, data in files.items()}, at / "set.tar", seed) / "train"
    ),
    "folder in shards": lambda files, at, seed: (
        as_shards({f"train/{name}": data for name, data in files.items()}, at / "shards", 3, seed) / "train"
    ),
    "folder in a pattern": lambda files, at, seed: (
        as_shards({f"train/{name}": data for name, data in files.items()}, at / "shards", 3, seed)
        / "s-{00..02}.tar/train"
    ),
    "parquet": lambda files, at, seed: as_parquet(files, at / "set.parquet", CLASSES, seed=seed),
    "several tables": lambda files, at, seed: in_several_tables(files, at / "tables", seed),
}


def require_same(ours: Manifest, theirs: Manifest) -> None:
    assert ours.digest == theirs.digest
    assert list(ours.names) == list(theirs.names)
    assert ours.classes == theirs.classes
    for name in ("targets", "heights", "widths", "digests"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_files_are_the_same_set(folder: Path, tmp_path: Path, kind: str, seed: int) -> None:
    if kind == "classes in .cls":  # no two samples of a name without folders
        files = {f"{name.split('/')[0]}/{number}.png": data for number, (name, data) in enumerate(FILES.items())}
        folder = written(files, tmp_path / "images")
    else:
        files = dict(FILES)
    path = CONTAINERS[kind](files, tmp_path, seed)
    cache = tmp_path / "store.images.npz"
    theirs = scan(folder)
    for _ in range(2):  # read, and from what was kept
        ours = scan(path, cache=cache)
        require_same(ours, theirs)
    assert list(ours.read_many(range(len(ours)))) == list(theirs.read_many(range(len(theirs))))
    assert all(ours.stamp(image)[1] == ours.source.listing.stamps[image] for image in range(len(ours)))
    assert str(tmp_path) in ours.place(0)
    left = scan(path, leave_out=[ours.names[0]])
    assert list(left.names) == list(ours.names[1:])


names = st.text(st.sampled_from("ab.-é0_ "), min_size=1, max_size=4).filter(
    lambda name: name[0] not in ". " and name[-1] != " "
)


@settings(deadline=None, max_examples=12)
@given(
    st.sets(st.tuples(st.sampled_from(CLASSES), st.sampled_from(["", "x/", "x-/"]), names), min_size=3),
    st.integers(0, 9),
)
def test_order_is_that_of_the_folder_whatever_the_names(
    tmp_path_factory: pytest.TempPathFactory, found: set[tuple[str, str, str]], seed: int
) -> None:
    files = {f"{top}/{inner}{name}.png": FILES["ant/0.png"] + name.encode() for top, inner, name in found}
    if len({name.split("/")[0] for name in files}) < len(CLASSES):
        files |= {f"{name}/last.png": FILES["ant/0.png"] for name in CLASSES}
    at = tmp_path_factory.mktemp("order")
    theirs = scan(written(files, at / "images"))
    for kind in ("tar", "pattern of tars", "zip", "parquet"):
        (at / kind).mkdir()
        require_same(scan(CONTAINERS[kind](files, at / kind, seed)), theirs)


def test_many_threads_read_at_once(folder: Path, tmp_path: Path) -> None:
    theirs = scan(folder)
    expected = list(theirs.read_many(range(len(theirs))))
    for kind in ("tar", "zip", "parquet"):
        source = open_images(CONTAINERS[kind](FILES, tmp_path, 0))
        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                assert list(pool.map(source.read, range(len(expected)))) == expected


def test_files_beyond_those_that_stay_open_are_read_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.images.containers._KEPT_OPEN", 1)
    require_same(scan(as_shards(FILES, tmp_path / "shards", 4)), scan(folder))


def test_row_groups_are_kept_within_a_budget(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_parquet(FILES, tmp_path / "set.parquet", CLASSES, rows=1)
    monkeypatch.setattr("pipeline.images.row_groups.KEPT_BYTES", 4_000)
    found = scan(path)
    require_same(found, scan(folder))
    groups = found.source._groups  # type: ignore[attr-defined]
    assert 0 < groups._bytes <= 4_000
    assert groups._bytes == sum(size for _, size in groups._kept.values())


def test_a_scan_reads_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the file, though the images have another one and next to nothing is kept."""
    path = as_parquet(FILES, tmp_path / "set.parquet", CLASSES, rows=2)
    monkeypatch.setattr("pipeline.images.row_groups.KEPT_BYTES", 1)
    read: list[tuple[object, ...]] = []
    real = parquet._Table.read
    monkeypatch.setattr(parquet._Table, "read", lambda *words: read.append(words[2:]) or real(*words))
    scan(path, threads=1)
    assert [group for word in read for group in word] == [0, 1, 2, 3, 4]


# Classes that are numbers.


def test_numbers_need_names_and_keep_their_order(tmp_path: Path) -> None:
    files = {f"{name.split('/')[0]}/{number}.png": data for number, (name, data) in enumerate(FILES.items())}
    path = as_webdataset(files, tmp_path / "wds", {"ant": "2", "bee": "0", "cat": "1"})
    with pytest.raises(InputError, match=r"classes are numbers \(\.cls\), up to 2.*--class-names"):
        scan(path)
    for given_names in ("bee,cat,ant", str(tmp_path / "list.txt"), str(tmp_path / "a.json"), str(tmp_path / "b.json")):
        (tmp_path / "list.txt").write_text("bee\ncat\nant\n")
        (tmp_path / "a.json").write_text('["bee", "cat", "ant"]')
        (tmp_path / "b.json").write_text('{"1": "cat", "0": "bee", "2": "ant"}')
        found = scan(path, options=ImageOptions(class_names=given_names))
        assert found.classes == ("bee", "cat", "ant")
        assert {name.split("/")[0] for name in found.names} == {*CLASSES}
    for wrong, said in (
        ("bee,cat", "expected classes 0 to 1"),
        ("bee,cat,ant,dog", "found none in 'dog'"),
        ("bee,bee,ant", "found 'bee' again"),
        ("bee,,ant", "an empty one"),
    ):
        with pytest.raises(InputError, match=said):
            scan(path, options=ImageOptions(class_names=wrong))
    (tmp_path / "a.json").write_text('{"0": "bee", "3": "cat"}')
    with pytest.raises(InputError, match=r"expected a JSON list"):
        scan(path, options=ImageOptions(class_names=str(tmp_path / "a.json")))


@pytest.mark.parametrize("given", ["/none/names.txt", "names.txt", "./names", "names.JSON"])
def test_a_file_of_names_that_is_not_there_is_named(tmp_path: Path, given: str) -> None:
    with tarfile.open(path := tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", FILES["ant/0.png"])
        add(tar, "0.cls", b"0")
    with pytest.raises(InputError, match=f"--class-names {given}: expected a file of names, found none there"):
        scan(path, options=ImageOptions(class_names=given))


def test_names_are_refused_where_classes_have_them(folder: Path, tmp_path: Path) -> None:
    options = ImageOptions(class_names="a,b,c")
    for path in (folder, *(CONTAINERS[kind](FILES, tmp_path, 0) for kind in ("tar", "zip", "parquet"))):
        with pytest.raises(InputError, match="have names already; leave it out"):
            scan(path, options=options)


def test_numbers_of_a_table_need_names_where_it_has_none(folder: Path, tmp_path: Path) -> None:
    path = as_parquet(FILES, tmp_path / "set.parquet", CLASSES, metadata=False)
    with pytest.raises(InputError, match=r"up to 2, and the file has no names of them.*--class-names"):
        scan(path)
    require_same(scan(path, options=ImageOptions(class_names="ant,bee,cat")), scan(folder))


# Damage and disorder.


def cut(path: Path, count: int) -> Path:
    path.write_bytes(path.read_bytes()[:count])
    return path


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4000))
def test_a_truncated_container_is_one_clear_line(tmp_path_factory: pytest.TempPathFactory, lost: int) -> None:
    at = tmp_path_factory.mktemp("cut")
    for path in (
        as_tar(FILES, at / "a.tar"),
        as_zip(FILES, at / "a.zip"),
        as_parquet(FILES, at / "a.parquet", CLASSES),
    ):
        whole = path.stat().st_size
        padding = 0 if path.suffix != ".tar" else whole - len(path.read_bytes().rstrip(b"\0")) - 512
        cut(path, max(whole - lost - padding, 0))
        if path.suffix == ".tar" and not any(path.read_bytes()[-512:]) and path.stat().st_size % 512 == 0:
            continue  # a whole end marker is left
        with pytest.raises(InputError) as error:
            scan(path)
        assert "\n" not in str(error.value)
        assert path.name in str(error.value)


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_a_damaged_container_never_gives_other_images(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    at = tmp_path_factory.mktemp("damage")
    contents = set(map(bytes, scan(written(FILES, at / "images")).digests))
    for path in (
        as_zip(FILES, at / "a.zip"),
        as_parquet(FILES, at / "a.parquet", CLASSES),
        as_tar(FILES, at / "a.tar"),
    ):
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        try:
            found = scan(path)
        except InputError:
            continue
        if path.suffix == ".zip":  # which has checksums
            assert {*map(bytes, found.digests)} <= contents


def test_what_is_wrong_with_a_tar_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"

    def refused(said: str) -> None:
        with pytest.raises(InputError, match=said):
            scan(path)

    data = FILES["ant/0.png"]
    for names, said in (
        (["a/0.png", "a/0.png"], r"each image once, found 'a/0\.png' twice \(in a\.tar\)"),
        (["../a/0.png"], r"relative paths, found '\.\./a/0\.png'"),
        (["/a/0.png"], "relative paths"),
        (["0.png"], "expected a folder for each class, found none and 1 image"),
    ):
        with tarfile.open(path, "w") as tar:
            for name in names:
                add(tar, name, data)
        refused(said)
    with tarfile.open(path, "w") as tar:
        add(tar, "a/0.png", data)
        link = tarfile.TarInfo("a/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        tar.addfile(link)
    refused(r"a/1\.png: expected a file, found a link.*--dereference")
    path.write_bytes(b"no tar at all" * 100)
    refused("expected a whole tar file, found it damaged")
    path.write_bytes(b"")
    refused("expected a whole tar file")
    whole = as_tar(FILES, tmp_path / "b.tar").read_bytes()
    path.write_bytes(whole + whole)
    refused("found more after it, as in several tars in one")
    path.write_bytes(gzip.compress(whole))
    refused("expected a tar that is not compressed.*gunzip")
    for label in (b"-1", b"", b"a\0", b"\xff"):
        with tarfile.open(path, "w") as tar:
            add(tar, "0.png", data)
            add(tar, "0.cls", label)
        refused(r"a\.tar: 0\.cls: expected the name or the number of a class")
    with tarfile.open(path, "w") as tar:
        device = tarfile.TarInfo("a/1.png")
        device.type = tarfile.FIFOTYPE
        tar.addfile(device)
    refused("expected a file, found a sparse file or a device.*without `--sparse`")
    (tmp_path / "b.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match=r"expected a tar that is not compressed.*gunzip"):
        scan(tmp_path / "b.tar.gz")
    with pytest.raises(InputError, match=r"expected 3 files, 3 of them cannot be found: .*x-0\.tar"):
        scan(tmp_path / "x-{0..2}.tar")
    (tmp_path / "shards").mkdir()
    for name in ("0", "1"):
        with tarfile.open(tmp_path / f"shards/{name}.tar", "w") as tar:
            add(tar, "a/0.png", data)
    with pytest.raises(InputError, match=r"'a/0\.png' twice \(in 0\.tar and 1\.tar\)"):
        scan(tmp_path / "shards")
    with tarfile.open(tmp_path / "shards/1.tar", "w") as tar:
        add(tar, "a/1.png", data)
        add(tar, "a/1.cls", b"a")
    with pytest.raises(InputError, match=r"expected images, each with a \.cls .*found none for a/0\.png"):
        scan(tmp_path / "shards")


FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
entry_names = st.one_of(
    st.text(st.sampled_from("ab/é. "), min_size=1, max_size=8),
    st.integers(90, 280).map(lambda length: "/".join(["long" * 12] * (length // 49 + 1))[:length]),
)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(entry_names, st.integers(0, 1200), st.sampled_from(["file", "folder", "link"]), entry_names),
        max_size=6,
    ),
    st.sampled_from(FORMATS),
    st.booleans(),
)
def test_headers_are_those_that_tarfile_reads(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, int, str, str]], form: int, odd_times: bool
) -> None:
    path = tmp_path_factory.mktemp("headers") / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, size, kind, target in found:
            info = tarfile.TarInfo(name)
            info.type = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.LNKTYPE}[kind]
            info.size, info.linkname = size if kind == "file" else 0, target if kind == "link" else ""
            info.mtime = 1.5 if odd_times else 1
            with suppress(ValueError):  # too long for USTAR
                tar.addfile(info, io.BytesIO(b"x" * info.size))
    with tarfile.open(path) as tar:
        expected = [
            (
                info.name,
                "folder" if info.isdir() else "link" if info.islnk() else "file",
                info.offset_data,
                info.size,
                info.linkname,
            )
            for info in tar
        ]
    assert [*entries(str(path))] == expected


def test_a_hard_link_is_the_file_that_it_links_to(tmp_path: Path) -> None:
    written({"a/0.png": FILES["ant/0.png"], "b/1.png": FILES["ant/0.jpg"]}, tmp_path / "images")
    os.link(tmp_path / "images/a/0.png", tmp_path / "images/b/0.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "images", ".")
    require_same(scan(tmp_path / "a.tar"), scan(tmp_path / "images"))


def test_what_is_wrong_with_a_zip_is_named(tmp_path: Path) -> None:
    path = as_zip(FILES, tmp_path / "a.zip", zipfile.ZIP_BZIP2)
    with pytest.raises(InputError, match="expected stored or deflated members, found compression 12"):
        scan(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/0.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/0.png", b"2")
    with pytest.raises(InputError, match=r"found 'a/0\.png' twice"):
        scan(path)
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("a/0.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "1.png")
    with pytest.raises(InputError, match="found a symbolic link"):
        scan(path)
    raw = bytearray(as_zip(FILES, path, zipfile.ZIP_STORED).read_bytes())
    at = raw.index(FILES["ant/0.png"][20:40])
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"ant/0\.png: cannot be read \(the archive has changed or is damaged"):
        scan(path)


def test_what_is_wrong_with_a_table_is_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    tables = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    for table, said in (
        ({"text": ["a"], "label": [0]}, "expected one column of images .*'text', 'label'"),
        ({"image": [{"bytes": b"x", "path": "a"}]}, "expected one column of classes"),
        ({"image": [{"bytes": b"x", "path": "a"}], "label": [-1]}, "expected a class for each row, found -1"),
        ({"image": [{"bytes": b"x", "path": "a"}], "label": pa.array([None], pa.int64())}, "found None"),
        ({"image": pa.array([], pa.struct([("bytes", pa.binary())])), "label": pa.array([], pa.int64())}, "no rows"),
        ({"image": [{"bytes": b"x"}], "img": [{"bytes": b"x"}], "label": [0]}, "found several, 'image', 'img'"),
    ):
        tables.write_table(pa.table(table), path)
        with pytest.raises(InputError, match=said):
            scan(path)
    as_parquet(FILES, path, CLASSES, content=False)
    with pytest.raises(InputError, match=r"expected the bytes of each image, found 10 of 10 rows with only a path"):
        scan(path)
    splits = tmp_path / "set"
    splits.mkdir()
    for split in ("train", "test"):
        as_parquet(FILES, splits / f"{split}-00000-of-00001.parquet", CLASSES)
    with pytest.raises(InputError, match=r"expected one split, found 'test', 'train'.*train-\*\.parquet"):
        scan(splits)
    assert len(scan(splits / "train-*.parquet")) == len(FILES)
    as_parquet(FILES, splits / "train-00001-of-00002.parquet", ("cat", "bee", "ant"))
    with pytest.raises(InputError, match="expected the columns and classes of"):
        scan(splits / "train-*.parquet")


def test_a_table_may_have_bytes_alone(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    tables = pytest.importorskip("pyarrow.parquet")
    data = [FILES["ant/0.png"], FILES["ant/0.jpg"]]
    for image in ([{"bytes": each} for each in data], data):
        tables.write_table(pa.table({"image": image, "label": ["b", "a"]}), tmp_path / "a.parquet")
        found = scan(tmp_path / "a.parquet")
        assert (list(found.names), list(found.read_many([0, 1]))) == (["a/1", "b/0"], data[::-1])
    as_parquet(FILES, tmp_path / "a.parquet", ("ant", "bee", "cat", "ant"))
    with pytest.raises(InputError, match="each class name once, found 'ant' again"):
        scan(tmp_path / "a.parquet")


def test_rows_without_paths_are_named_by_their_number(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    tables = pytest.importorskip("pyarrow.parquet")
    data = [FILES["ant/0.png"], FILES["ant/0.jpg"], FILES["bee/1.PNG"]]
    table = pa.table({"image": [{"bytes": each, "path": None} for each in data], "label": ["b", "a", "b"]})
    tables.write_table(table, tmp_path / "a.parquet")
    found = scan(tmp_path / "a.parquet")
    assert list(found.names) == ["a/1", "b/0", "b/2"]
    assert list(found.read_many([0, 1, 2])) == [data[1], data[0], data[2]]


def test_pyarrow_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_parquet(FILES, tmp_path / "a.parquet", CLASSES)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"pip install 'giftwrap\[parquet\]'"):
        scan(path)


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_a_container_that_changes_is_noticed(tmp_path: Path, kind: str) -> None:
    """Another file in its place, or other bytes: the stamp is another, and nothing of it is taken from the cache."""
    path = CONTAINERS[kind](FILES, tmp_path, 0)
    cache = tmp_path / "c.images.npz"
    before = scan(path, cache=cache)
    stamp = before.stamp(0)
    other = {**FILES, "ant/0.png": FILES["cat/é.png"]}
    (tmp_path / "new").mkdir()
    shutil.move(CONTAINERS[kind](other, tmp_path / "new", 0), path)
    os.utime(path, ns=(1, stamp[1] + 1))
    assert before.stamp(0) != stamp
    assert scan(path, cache=cache).digest == scan(path).digest != before.digest


def test_an_index_is_kept_while_its_tars_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = as_shards(FILES, tmp_path / "shards"), tmp_path / "store.images.npz"
    made: list[str] = []
    real = tar_index.make
    monkeypatch.setattr(
        tar_index, "make", lambda containers, location: made.append(location) or real(containers, location)
    )
    first = scan(path, cache=cache)
    kept = tmp_path / "store.images.tar.npz"
    assert kept.is_file()
    require_same(scan(path, cache=cache), first)
    assert len(made) == 1
    for damage in (b"", b"PK\3\4", kept.read_bytes()[:-100]):
        kept.write_bytes(damage)
        require_same(scan(path, cache=cache), first)
    assert len(made) == 4
    shard = path / "s-00.tar"
    os.utime(shard, ns=(1, shard.stat().st_mtime_ns + 1))
    require_same(scan(path, cache=cache), first)
    assert len(made) == 5
    kept.unlink()
    kept.write_bytes(b"something of the user's")
    require_same(scan(path, cache=cache), first)
    assert kept.read_bytes() == b"something of the user's"


# What a path is.


def test_patterns_of_braces() -> None:
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]
    assert expanded("a-{2..0}") == ["a-2", "a-1", "a-0"]
    for wrong in ("a-{0}.tar", "a-{0..9999999}.tar", "a-{0..999}{0..999}{0..9}"):
        with pytest.raises(InputError):
            expanded(wrong)


def test_patterns_take_tars_and_tables_of_this_machine(folder: Path, tmp_path: Path) -> None:
    at = tmp_path / "sets [1]"  # brackets in what is there are no wildcards
    as_shards(FILES, at)
    for part in range(2):
        as_parquet(FILES, at / f"t-{part}-of-2.parquet", CLASSES, part=slice(part, None, 2))
    expected = scan(folder)
    for pattern in ("s-*.tar", "s-{00..02}.tar", "s-0[0-2].tar", "t-*-of-2.parquet", "t-{0..1}-of-2.parquet"):
        require_same(scan(at / pattern), expected)
    for pattern, said in (
        ("s-{00..03}.tar", r"expected 4 files, 1 of them cannot be found: .*s-03\.tar"),
        ("q-*.tar", r"expected files that match q-\*\.tar, found none in .*sets \[1\]"),
        ("t-{0..3}-of-2.parquet", "expected 4 files, 2 of them cannot be found"),
        ("q-*.parquet", "expected files that match"),
    ):
        with pytest.raises(InputError, match=said):
            scan(at / pattern)


def test_a_path_is_recognised_by_what_is_there(folder: Path, tmp_path: Path) -> None:
    assert recognised(folder) == "class-folder"
    for kind, make in CONTAINERS.items():
        at = tmp_path / kind
        at.mkdir()
        expected = {"zip": "zip", "parquet": "parquet", "several": "parquet"}
        word = next((name for part, name in expected.items() if part in kind), "tar")
        assert recognised(make(FILES, at, 0)) == word, kind
    odd = as_shards(FILES, tmp_path / "both")
    as_parquet(FILES, odd / "x.parquet", CLASSES)
    with pytest.raises(InputError, match=r"what could be tar or parquet; --images-format takes one of them"):
        open_images(odd)
    assert open_images(odd, options=ImageOptions(images_format="parquet")).listing.names
    with pytest.raises(InputError, match="expected one of class-folder, tar"):
        open_images(odd, options=ImageOptions(images_format="rar"))
    with pytest.raises(InputError, match="expected a path on this machine, or an address with http://"):
        open_images(Path("ftp://host/set"))
    assert python2_names(["a"]).endswith(b".")


@pytest.mark.parametrize("kind", ["zip", "tensors"])
def test_a_folder_that_is_named_as_a_file_is_called_a_folder(folder: Path, kind: str) -> None:
    with pytest.raises(InputError, match="expected a file, found a folder"):
        open_images(folder, options=ImageOptions(images_format=kind))


def test_a_file_of_no_kind_is_refused_by_the_kinds_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"notes: .*found a file of none of these kinds: tar, zip, .*--images-format"):
        open_images(tmp_path / "notes")
