"""An image set is made, checked, looked at, labelled and trained on; by several processes as by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelstore import LabelStore
from pipeline.synthesis import METHODS
from tests.journeys.test_torchrun import torchrun
from tests.journeys.world import SIDE, TEACHER, World, draw_images, giftwrap, start


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images") / "train", per_class=12)


def words(images: Path, out: Path, *more: object) -> list[object]:
    return ["pipeline", "synthesize", "random", "--images", images, "--out", out, "--threads", 1, *more]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_synthesize_build_train(world: World, images: Path, tmp_path: Path) -> None:
    out, labels, sheet = tmp_path / "set", tmp_path / "labels", tmp_path / "sheet.png"
    teacher = (*TEACHER, "--weights", world.weights, "--batch", 16)
    cut = ("--ipc", 4, "--take", "crop", "--size", SIDE)
    made = giftwrap(*words(images, out, *cut, *teacher, "--sheet", sheet, "--json"))
    assert made.code == 0, made.err
    assert (made.summary["images"], made.summary["made"]) == (12, 12)
    assert made.summary["bytes"] == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert set(made.summary["teacher"]["worst"]) == {"ant", "bee", "cat"}
    assert "the teacher agrees with the folders on" in made.err
    assert np.asarray(Image.open(sheet)).ndim == 3

    checked = giftwrap("pipeline", "synthesize", "--check", out, "--images", images)
    assert checked.code == 0, checked.err
    assert "12 images compared, all as the record states (12 made again" in checked.out

    built = giftwrap(
        "pipeline", "build", "--images", out, *teacher, "--size", SIDE, "--views", 2, "--threads", 1, "--store", labels
    )
    assert built.code == 0, built.err
    assert "left out" not in built.out
    record = json.loads((out / "synthesis.json").read_text())
    del record["crc32c"], record["giftwrap_synthesis"]
    assert LabelStore.open(labels).notes == {"synthesis": record}
    info = giftwrap("labelstore", "info", labels)
    assert "image set        12 images made by random, seed 0" in info.out.splitlines()
    about = giftwrap("labelstore", "info", out, "--json")
    assert about.summary == {"set": str(out), **record}
    shown = dict(line.split(maxsplit=1) for line in giftwrap("labelstore", "info", out).out.splitlines()[:2])
    assert shown == {"images": "12 images made by random, seed 0", "classes": "3"}
    assert giftwrap("labelstore", "info", out, "--weights", world.weights).code == 2

    trained = giftwrap(
        "trainer", "train", "--store", labels, "--images", out, "--student", "convnet-d2", "--student-args",
        '{"width": 16}', "--epochs", 2, "--batch-size", 6, "--threads", 1, "--run", tmp_path / "run",
    )  # fmt: skip
    assert trained.code == 0, trained.err


def test_a_changed_pixel_ends_a_check_with_1(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert giftwrap(*words(images, out, "--ipc", 2, "--take", "center", "--size", 9)).code == 0
    pixels = np.asarray(Image.open(out / "bee/00001.png")).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(out / "bee/00001.png")
    checked = giftwrap("pipeline", "synthesize", "--check", out, "--images", images, "--json")
    assert checked.code == 1
    assert checked.summary["different"] == ["bee/00001.png (another file)"]


def test_two_processes_make_what_one_makes(world: World, images: Path, tmp_path: Path) -> None:
    teacher = (*TEACHER, "--weights", world.weights, "--size", SIDE, "--batch", 16)
    flags = ("--ipc", 1, "--ce-decile", 3, "--take", "crop", *teacher)
    alone = giftwrap(*words(images, tmp_path / "one", *flags))
    assert alone.code == 0, alone.err
    ended = torchrun(2, words(images, tmp_path / "two", *flags), tmp_path / "ranks")
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]
    assert ended[1].out == ""
    assert "3 images in 3 classes, 3 made now" in ended[0].out
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    again = torchrun(2, words(images, tmp_path / "two", *flags), tmp_path / "ranks")
    assert [each.code for each in again] == [0, 0], [each.err for each in again]
    assert "is there already" in again[0].out


def test_several_processes_that_are_refused_leave_nothing(images: Path, tmp_path: Path) -> None:
    ended = torchrun(2, words(images, tmp_path / "set", "--ipc", 13), tmp_path / "ranks")
    assert ended[0].code == 2
    assert all(each.code != 0 for each in ended)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranks"]


def test_the_line_that_resumes_and_exit_codes(images: Path, tmp_path: Path) -> None:
    missing = giftwrap("pipeline", "synthesize", "--images", images)
    assert (missing.code, missing.err) == (
        2,
        f"error: METHOD ({', '.join(name for name in METHODS if name != 'toy')}) and --out and --ipc: missing\n",
    )
    typo = giftwrap("pipeline", "synthesize", "randon", "--images", images, "--ipc", 1, "--out", tmp_path / "set")
    assert typo.code == 2
    assert "random" in typo.err
    store = giftwrap("pipeline", "synthesize", "random", "--images", images, "--ipc", 1, "--out", images / "set")
    assert store.code == 2
    running = start(tmp_path, "pipeline", "synthesize", "--help").end()
    assert running.code == 0
    assert "random" in running.out


# --- show ---


def test_show_draws_a_class_folder(images: Path, tmp_path: Path) -> None:
    by_flag = giftwrap("pipeline", "show", "--images", images, "--out", tmp_path / "one.png", "--count", 7, "--json")
    assert by_flag.summary == {"out": str(tmp_path / "one.png"), "images": 7}
    by_place = giftwrap("pipeline", "show", images, "--out", tmp_path / "two.png", "--count", 7)
    assert by_place.code == 0, by_place.err
    assert "7 images drawn" in by_place.out
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_show_draws_a_store_named_without_a_flag(world: World, tmp_path: Path) -> None:
    drawn = giftwrap("pipeline", "show", world.store, "--images", world.images, "--out", tmp_path / "a.png")
    assert drawn.code == 0, drawn.err
    assert "crops drawn" in drawn.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (lambda world: (world.images, "--images", world.images), "expected one of them, found both"),
        (lambda world: ("--store", world.store), "--images: missing"),
        (lambda world: (world.images, "--view", 3), "--view 3: has an effect only with --store"),
        (lambda world: (world.images, "--start", 99), "--start 99"),
        (lambda world: (world.images, "--count", 0), "--count"),
    ],
)
def test_what_show_refuses(world: World, tmp_path: Path, flags: object, message: str) -> None:
    ended = giftwrap("pipeline", "show", *flags(world), "--out", tmp_path / "a.png")
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
