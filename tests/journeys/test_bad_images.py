"""Containers that hold no set, or another one: every command ends with one clear line, and makes nothing."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.journeys.world import CLASSES, SIDE, TEACHER, World, giftwrap
from tests.pipeline.packing import add, as_parquet, as_tar, as_webdataset, files_in

COMMANDS = ("build", "train", "import")
TROUBLES = {
    "truncated": "truncated",
    "twice": "expected each image once, found",
    "truncated-parquet": "expected a whole Parquet file, found it damaged or truncated",
    "paths-parquet": "with only a path",
    "plain-parquet": "expected one column of images (a struct of bytes and path), found the columns 'text'",
}


def truncated(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def bad_images(kind: str, images: Path, at: Path) -> Path:
    """A container of some kind of trouble."""
    files = files_in(images)
    path = at / f"{kind}.{'parquet' if 'parquet' in kind else 'tar'}"
    if kind == "truncated":
        return truncated(as_tar(files, path))
    if kind == "truncated-parquet":
        return truncated(as_parquet(files, path, CLASSES))
    if kind == "paths-parquet":
        return as_parquet(files, path, CLASSES, content=False)
    if kind == "plain-parquet":
        table = pytest.importorskip("pyarrow").table({"text": ["a"], "label": [0]})
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
        return path
    name, data = next(iter(files.items()))
    with tarfile.open(path, "w") as tar:
        for _ in range(2):
            add(tar, name, data)
    return path


def words(command: str, images: Path, world: World, at: Path) -> list[object]:
    """A command on these images; what it would make lies in a folder."""
    if command == "import":
        return ["giftwrap", "import", images, "--out", at / "out"]
    if command == "train":
        student = ("--student", "convnet-d2", "--student-args", '{"width": 8}')
        return [
            "giftwrap",
            "train",
            "--store",
            world.store,
            "--images",
            images,
            *student,
            "--epochs",
            1,
            "--run",
            at / "out",
        ]
    return [
        "giftwrap", "build", "--images", images, *TEACHER, "--weights", world.weights, "--size", SIDE, "--views", 2,
        "--store", at / "out",
    ]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", TROUBLES)
def test_a_container_without_whole_images_is_one_line(world: World, tmp_path: Path, kind: str, command: str) -> None:
    images = bad_images(kind, world.images, tmp_path)
    ended = giftwrap(*words(command, images, world, tmp_path))
    require_one_line(ended.code, ended.err, TROUBLES[kind], images.name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("container", ["parquet", "numbers"])
def test_other_names_of_classes_than_the_stores_are_one_line(world: World, tmp_path: Path, container: str) -> None:
    files, names = files_in(world.images), ("ant", "bee", "dog")
    if container == "parquet":
        others = {name.replace("cat/", "dog/"): data for name, data in files.items()}
        images, more = as_parquet(others, tmp_path / "set.parquet", names), []
    else:
        numbered = {f"{name.split('/')[0]}/{k}.png": data for k, (name, data) in enumerate(files.items())}
        images = as_webdataset(numbered, tmp_path / "set", {name: str(k) for k, name in enumerate(CLASSES)})
        more = ["--class-names", ",".join(names)]
    ended = giftwrap(*words("train", images, world, tmp_path), *more)
    require_one_line(ended.code, ended.err, "class 2 of the store is 'cat'", "it is 'dog'")


def test_a_store_of_other_images_is_one_line(world: World, tmp_path: Path) -> None:
    files = files_in(world.images)
    first = sorted(files)[0]
    images = as_tar({**files, first: files[sorted(files)[1]]}, tmp_path / "other.tar")
    ended = giftwrap(*words("train", images, world, tmp_path))
    require_one_line(ended.code, ended.err, "other images: image 0 of the store", "other.tar")


def require_one_line(code: int, err: str, *said: str) -> None:
    """Bad input, named in the last line, and nothing of Python's."""
    assert (code, "Traceback" in err) == (2, False), err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: "), err
    for words in said:
        assert words in last
