"""Images in a bucket are those of the folder that was copied there."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labelstore.durable import objects
from labelstore.errors import AddressError, InputError
from pipeline.images import remote
from pipeline.images.manifest import scan
from pipeline.images.opening import open_images, recognised
from pipeline.images.source_table import ImageOptions
from tests.labelstore.buckets import BUCKET, Proxy, bucket, patience, put, put_folder

pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Path]]:
    """A class folder in a bucket, its tars beside it, and the folder on this machine."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / name).mkdir()
        for image in range(3):
            pixels = rng.integers(0, 255, (20 + image, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{image}.png")
    (folder / ".DS_Store").touch()
    with bucket() as proxy:
        put_folder(folder, "set")
        for shard, name in enumerate(("ant", "bee")):
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w") as tar:
                tar.add(folder / name, name)
            put(f"tars/s-{shard}.tar", data.getvalue())
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.glob("*/*.png"), reverse=True):
                archive.write(path, f"all/{path.relative_to(folder)}")
        put("zips/set.zip", data.getvalue())
        put_folder(packed_parquet(folder, tmp_path_factory.mktemp("tables")), "tables")
        yield proxy, folder


def packed_parquet(folder: Path, into: Path) -> Path:
    """Two Parquet files of a class folder, with a row group an image."""
    for part, name in enumerate(("ant", "bee")):
        paths = sorted((folder / name).iterdir())
        images = pa.array([{"bytes": path.read_bytes(), "path": f"{name}/{path.name}"} for path in paths])
        table = pa.table({"image": images, "label": [name] * len(paths)})
        parquet.write_table(table, into / f"train-{part}.parquet", row_group_size=1)
    return into


@pytest.fixture
def proxy(shelf: tuple[Proxy, Path], monkeypatch: pytest.MonkeyPatch) -> Proxy:
    found, _ = shelf
    found.faults, found.always = [], ""
    found.requests.clear()
    patience(monkeypatch, FIRST_WAIT=timedelta(milliseconds=1), LONGEST_WAIT=timedelta(milliseconds=2))
    return found


@pytest.mark.parametrize(
    "address",
    [
        f"s3://{BUCKET}/set",
        f"s3://{BUCKET}/tars/s-{{0..1}}.tar",
        f"s3://{BUCKET}/tables/train-*.parquet",
        f"s3://{BUCKET}/zips/set.zip/all",
    ],
)
def test_they_are_the_images_of_the_folder(
    proxy: Proxy, shelf: tuple[Proxy, Path], address: str, tmp_path: Path
) -> None:
    proxy.faults = ["", "500", "", "truncate", "", "drop"]
    ours, theirs = scan(Path(address), cache=tmp_path / "images.npz"), scan(shelf[1])
    assert (ours.digest, ours.names, ours.classes) == (theirs.digest, theirs.names, theirs.classes)
    assert [*ours.read_many([3, 0, 5])] == [*theirs.read_many([3, 0, 5])]
    assert ours.place(0).startswith(f"s3://{BUCKET}/")
    assert str(ours.location) == address
    proxy.requests.clear()
    again = scan(Path(address), cache=tmp_path / "images.npz")
    assert again.digest == theirs.digest
    assert len(proxy.requests) <= (
        {"parquet": 7, "zip": 4}.get(recognised(Path(address)), 2)
    )  # the listing, and what the kind is known by; footers, names and classes; the directory of an archive


def test_etags_without_quotes_are_those_with_them(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    library = objects._obstore()

    class Azure:
        """Lists ETags without quotes, and answers with them."""

        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def list(self, *words: Any) -> Iterator[list[dict[str, Any]]]:
            for some in library.list(*words):
                yield [{**each, "e_tag": each["e_tag"].strip('"')} for each in some]

    monkeypatch.setattr(objects, "_obstore", lambda *_: Azure())
    assert len(scan(Path(f"s3://{BUCKET}/set"))) == 6


def test_one_tar_and_its_headers_are_read_by_megabytes(proxy: Proxy) -> None:
    source = open_images(Path(f"s3://{BUCKET}/tars/s-0.tar"))
    assert source.listing.classes == ("ant",)
    assert len(proxy.requests) <= 3


def test_an_image_that_changes_is_an_error(proxy: Proxy, shelf: tuple[Proxy, Path]) -> None:
    put_folder(shelf[1], "changing")
    source = open_images(Path(f"s3://{BUCKET}/changing"))
    put("changing/bee/1.png", (shelf[1] / "bee/2.png").read_bytes())
    found = source.read_many(range(6))
    assert [len(next(found)) > 0 for _ in range(4)] == [True] * 4
    with pytest.raises(OSError, match="the file has changed since it was listed"):
        next(found)


def test_what_cannot_be_read_there_is_named(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, options, said in (
        (
            f"s3://{BUCKET}/set",
            ImageOptions(images_format="idx"),
            "expected class-folder or tar or zip or parquet at an address, found idx; download it, and give its path",
        ),
        (f"s3://{BUCKET}/a/cifar-10-python.tar.gz/train", None, "found cifar; download it"),
        (f"s3://{BUCKET}/a/train-images-idx3-ubyte.gz", None, "found idx; download it"),
        (f"s3://{BUCKET}/a/set.npz/train", None, "found tensors; download it"),
        (f"s3://{BUCKET}/zips/set.zip/none", None, r"set\.zip: no folder 'none' with classes in it, found 'all'"),
        (f"s3://{BUCKET}/zips/none.zip", None, "expected a file, 1 is not there: none.zip; there are 'set.zip'"),
        (f"s3://{BUCKET}/none", None, "expected a class folder, found no file there; check the address"),
        (f"s3://{BUCKET}/tars/none.tar", None, "expected a file, 1 is not there: none.tar; there are 's-"),
        (f"s3://{BUCKET}/set/ant", None, "expected a folder for each class, found none and 3 images"),
        (f"s3://{BUCKET}/tars/s-{{0..4}}.tar", None, "expected 5 files, 3 are not there: s-2.tar"),
    ):
        with pytest.raises(InputError, match=said):
            open_images(Path(address), options=options)
    with pytest.raises(AddressError, match="there is no bucket nowhere"):
        open_images(Path("s3://nowhere/set"))
    put("bad/t.parquet", b"no table" * 1000)
    with pytest.raises(InputError, match=rf"s3://{BUCKET}/bad/t\.parquet: expected a whole Parquet file"):
        open_images(Path(f"s3://{BUCKET}/bad/t.parquet"))
    with pytest.raises(InputError, match="expected files, found none; there are 't"):
        open_images(Path(f"s3://{BUCKET}/bad/u-*.parquet"))
    with monkeypatch.context() as patient:
        patience(patient, RETRIES=1)
        proxy.faults = ["", "500", "500", "500", "500"]
        with pytest.raises(AddressError, match="cannot be reached after retries"):
            open_images(Path(f"s3://{BUCKET}/tables/train-0.parquet"))
    proxy.faults = []
    put("bad/s.tar", b"no tar" * 1000)
    with pytest.raises(InputError, match=rf"s3://{BUCKET}/bad/s\.tar: expected a whole tar file"):
        open_images(Path(f"s3://{BUCKET}/bad/s.tar"))
    put("bad/s.zip", b"no zip" * 1000)
    with pytest.raises(InputError, match=rf"s3://{BUCKET}/bad/s\.zip: expected a whole ZIP archive"):
        open_images(Path(f"s3://{BUCKET}/bad/s.zip"))
    monkeypatch.setattr(remote, "MOST_FILES", 5)
    with pytest.raises(InputError, match=r"expected at most 5 files, found more: .*giftwrap import"):
        open_images(Path(f"s3://{BUCKET}/set"))
