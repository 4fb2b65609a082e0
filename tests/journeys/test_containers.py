"""Images in any container, by whole commands: one set, one store, one student."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore
from tests.journeys.world import SIDE, TEACHER, World, giftwrap, random_teacher
from tests.pipeline.packing import as_parquet, as_webdataset, as_zip, files_in
from tests.pipeline.test_array_sources import cifar10

CLASSES = ("ant", "bee", "cat")
STUDENT = ("--student", "convnet-d2", "--student-args", '{"width": 8}')


def build(images: object, world: World, store: Path, *more: object) -> None:
    ended = giftwrap(
        "pipeline", "build", "--images", images, *TEACHER, "--weights", world.weights, "--size", SIDE, "--views", 2,
        "--batch", 32, "--threads", 1, "--encoding", "int8", "--store", store, *more,
    )  # fmt: skip
    assert ended.code == 0, ended.err


def shards_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_in(folder).items() if "/c." in f"/{name}" and not name.endswith(".json")}


@pytest.fixture(scope="module")
def containers(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The images of the world's class folder in other containers."""
    at, files = tmp_path_factory.mktemp("containers"), files_in(world.images)
    imported = giftwrap("pipeline", "import", world.images, "--out", at / "shards", "--shards", 3, "--json")
    assert imported.code == 0, imported.err
    assert (imported.summary["images"], imported.summary["shards"]) == (len(files), 3)
    return {
        "shards": at / "shards/shards-{000..002}.tar",
        "zip": as_zip(files, at / "set.zip"),
        "parquet": as_parquet(files, at / "set.parquet", CLASSES),
    }


def test_a_store_of_a_folder_verifies_and_trains_from_any_container(
    world: World, containers: dict[str, object], tmp_path: Path
) -> None:
    build(world.images, world, tmp_path / "store")
    students = {}
    for name, images in {"folder": world.images, **containers}.items():
        where = ("--store", tmp_path / "store", "--images", images, "--threads", 1)
        verified = giftwrap("pipeline", "verify", *where, "--weights", world.weights)
        assert verified.code == 0, verified.err
        trained = giftwrap(
            "trainer", "train", *where, *STUDENT, "--epochs", 2, "--batch-size", 8, "--run", tmp_path / name,
            "--test-images", images,
        )  # fmt: skip
        assert trained.code == 0, trained.err
        students[name] = (tmp_path / name / "last.safetensors").read_bytes()
    assert len(set(students.values())) == 1
    again = giftwrap("trainer", "evaluate", "--run", tmp_path / "zip", "--threads", 1, "--json")
    assert again.code == 0, again.err
    sheet = giftwrap(
        "pipeline",
        "show",
        "--store",
        tmp_path / "store",
        "--images",
        containers["zip"],
        "--out",
        tmp_path / "sheet.png",
    )
    assert sheet.code == 0, sheet.err


def test_a_store_of_any_container_is_that_of_the_folder(
    world: World, containers: dict[str, object], tmp_path: Path
) -> None:
    build(world.images, world, tmp_path / "folder")
    expected = shards_of(tmp_path / "folder")
    assert len(expected) > 2
    for name, images in containers.items():
        build(images, world, tmp_path / name)
        assert shards_of(tmp_path / name) == expected
        assert LabelStore.open(tmp_path / name).identity == LabelStore.open(tmp_path / "folder").identity
    assert (tmp_path / "shards.images.tar.npz").is_file()
    build(world.images, world, tmp_path / "zip", "--views", 4)  # begun from the archive, extended from the folder


def test_classes_that_are_numbers_have_names_by_a_flag(world: World, tmp_path: Path) -> None:
    files = {
        f"{name.split('/')[0]}/{number}.png": data for number, (name, data) in enumerate(files_in(world.images).items())
    }
    images = as_webdataset(files, tmp_path / "wds", {name: str(number) for number, name in enumerate(CLASSES)})
    refused = giftwrap(
        "pipeline", "build", "--images", images, *TEACHER, "--weights", world.weights, "--size", SIDE, "--views", 2,
        "--store", tmp_path / "store",
    )  # fmt: skip
    assert (refused.code, "--class-names gives them" in refused.err) == (2, True)
    names = ("--class-names", ",".join(CLASSES))
    build(images, world, tmp_path / "store", *names, "--images-format", "tar")
    trained = giftwrap(
        "trainer", "train", "--store", tmp_path / "store", "--images", images, *names, *STUDENT, "--epochs", 1,
        "--batch-size", 8, "--threads", 1, "--run", tmp_path / "run", "--test-images", images,
        "--test-class-names", ",".join(CLASSES),
    )  # fmt: skip
    assert trained.code == 0, trained.err
    again = giftwrap("trainer", "evaluate", "--run", tmp_path / "run", "--threads", 1)  # as the run tested
    assert again.code == 0, again.err


def test_a_set_of_arrays_is_labelled_as_it_is(tmp_path: Path) -> None:
    images = cifar10(tmp_path / "cifar-10-batches-py") / "train"
    world = World(tmp_path, images, random_teacher(tmp_path / "teacher.safetensors"), tmp_path / "store")
    build(images, world, world.store, "--group", 1)
    identity = LabelStore.open(world.store).identity
    assert (identity.images, identity.classes) == (5, ("plane", "car", "bird"))
    assert giftwrap("pipeline", "import", images, "--out", tmp_path / "folder").code == 0
    for again in (images, tmp_path / "folder"):
        verified = giftwrap("pipeline", "verify", "--store", world.store, "--images", again, "--threads", 1, "--json")
        assert verified.code == 0, verified.err
        assert verified.summary["pixels_equal"]
    both = giftwrap("pipeline", "verify", "--store", world.store, "--images", images.parent)
    assert (both.code, "give one of them" in both.err) == (2, True)
    meta = json.loads((tmp_path / "store" / "zarr.json").read_text())
    assert meta
    assert np.isfinite(LabelStore.open(world.store).read(0, slice(0, 5)).logits).all()
