"""Folders as people have them, by whole commands: wild names, other Unicode forms, ImageNet's ids, numbers in names."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from labelstore import LabelStore
from pipeline.teacher.imagenet import public_classes
from tests.journeys.world import SIDE, World, draw_images, giftwrap, random_teacher

WILD = ("a\x1b[31mred", "b\nnew: line", "c\u202eright, left")
IDS = tuple(public_classes()[column].wordnet_id for column in (0, 217, 701))
NORMALISED = ("--mean", 0.485, 0.456, 0.406, "--std", 0.229, 0.224, 0.225)


def world_of(world: World, folder: Path, classes: tuple[str, ...], columns: int = 3, per_class: int = 4) -> World:
    images = draw_images(folder / "images", per_class=per_class, classes=classes)
    return World(folder, images, random_teacher(folder / "teacher.safetensors", columns=columns), folder / "store")


def words(made: World, *more: object) -> list[object]:
    """The words of a build of few views."""
    return made.build_words(made.store, "--images", made.images, "--views", 4, *more)


def test_wild_names_break_no_line_and_no_terminal(world: World, tmp_path: Path) -> None:
    made = world_of(world, tmp_path, WILD)
    (made.images / WILD[1] / "x\n\x1b.gif").write_bytes(b"GIF89a")
    broken = made.images / WILD[1] / "y\n.png"
    broken.write_bytes(b"")
    refused = giftwrap(*words(made))
    assert (refused.code, r"y\n.png: expected" in refused.err) == (2, True)
    built = giftwrap(*words(made, "--skip-broken", "--log", tmp_path / "log"))
    assert built.code == 0, built.err
    where = ("--store", made.store, "--images", made.images)
    shown = giftwrap("pipeline", "show", *where, "--out", tmp_path / "sheet.png")
    assert shown.code == 0, shown.err
    about = giftwrap("labelstore", "info", made.store)
    network = ("--student-args", '{"width": 16, "norm": "batch"}')
    measured = giftwrap(
        "trainer", "evaluate", "--student", "convnet-d2", *network, "--weights", made.weights, "--images",
        made.images, "--size", SIDE, "--threads", 1, "--csv", tmp_path / "classes.csv", *NORMALISED,
    )  # fmt: skip
    assert measured.code == 2  # evaluation leaves nothing out
    broken.unlink()
    measured = giftwrap(
        "trainer", "evaluate", "--student", "convnet-d2", *network, "--weights", made.weights, "--images",
        made.images, "--size", SIDE, "--threads", 1, "--csv", tmp_path / "classes.csv", *NORMALISED,
    )  # fmt: skip
    assert measured.code == 0, measured.err
    for ended in (refused, built, shown, about, measured):
        assert all(line.isprintable() for line in (ended.out + ended.err).split("\n"))
        assert "\nnew: line" not in ended.out + ended.err
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == [r"a\x1b[31mred", r"b\nnew: line", r"c\u202eright, left"]
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 4
    for line in (tmp_path / "log").read_text().splitlines():
        json.loads(line)


def test_a_terminal_that_cannot_show_a_name_is_no_crash(world: World, tmp_path: Path) -> None:
    made = world_of(world, tmp_path, ("ä", "ö", "ü"))
    typed = [str(word) for word in words(made, "--class-columns", "ä,ö,é", "--dry-run")]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-m", *typed], env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert r"\xe4" in ended.stderr


def test_a_copy_in_the_other_unicode_form_continues_the_store(world: World, tmp_path: Path) -> None:
    made = world_of(world, tmp_path, ("z", "é", "ü"))
    for number, path in enumerate(sorted(made.images.rglob("*.*"))):
        path.rename(path.with_name(f"{'é' if number % 2 else 'f'}{path.name}"))
    assert giftwrap(*words(made)).code == 0
    identity = LabelStore.open(made.store).identity
    assert identity.classes == ("z", "é", "ü")
    other = tmp_path / "other"
    for path in made.images.rglob("*.*"):
        relative = Path(unicodedata.normalize("NFD", str(path.relative_to(made.images))))
        (other / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other / relative)
    assert sorted(path.name for path in other.iterdir()) != [*identity.classes]
    verified = giftwrap("pipeline", "verify", "--store", made.store, "--images", other, "--weights", made.weights)
    assert verified.code == 0, verified.err
    longer = giftwrap(*made.build_words(made.store, "--images", other, "--views", 8))
    assert longer.code == 0, longer.err
    assert LabelStore.open(made.store).identity == identity
    assert LabelStore.open(made.store).state.views_sealed == 8


def test_wordnet_ids_are_asked_about_mapped_and_kept(world: World, tmp_path: Path) -> None:
    made = world_of(world, tmp_path, IDS, columns=1000)
    asked = giftwrap(*words(made))
    assert asked.code == 2
    assert "--teacher-classes imagenet (or --class-columns imagenet)" in asked.err
    assert "n01440764 -> column 0 (tench), n02102040 -> column 217 (English springer)" in asked.err
    assert not made.store.exists()
    for flag in ("--teacher-classes", "--class-columns"):
        shutil.rmtree(made.store, ignore_errors=True)
        built = giftwrap(*words(made, flag, "imagenet"))
        assert built.code == 0, built.err
        assert "n02102040 -> column 217 (English springer)" in built.out
        identity = LabelStore.open(made.store).identity
        again = giftwrap(*made.build_words(made.store, "--images", made.images, "--views", 8, flag, "0,217,701"))
        assert again.code == 0, again.err
        assert (
            giftwrap(*made.build_words(made.store, "--images", made.images, "--views", 12, flag, "imagenet")).code == 0
        )
        assert LabelStore.open(made.store).identity == identity
        verified = giftwrap(
            "pipeline", "verify", "--store", made.store, "--images", made.images, "--weights", made.weights
        )
        assert verified.code == 0, verified.err
    measured = giftwrap(
        "trainer", "evaluate", "--student", "convnet-d2", "--student-args", '{"width": 16, "norm": "batch"}',
        "--weights", made.weights, "--images", made.images, "--size", SIDE, "--threads", 1, "--classes", "imagenet",
        "--json", *NORMALISED,
    )  # fmt: skip
    assert measured.code == 0, measured.err
    assert "n01440764 -> column 0 (tench)" in measured.err


@pytest.mark.parametrize("order", ["bytes", "numeric"])
def test_the_store_keeps_the_order_that_was_chosen(world: World, tmp_path: Path, order: str) -> None:
    made = world_of(world, tmp_path, ("class_1", "class_2", "class_10"))
    asked = giftwrap(*words(made))
    assert (asked.code, "--class-order numeric" in asked.err) == (2, True)
    recipe = giftwrap(*words(made, "--class-order", order, "--recipe", "gift"))
    assert recipe.code == 0, recipe.err
    shutil.rmtree(made.store)
    assert giftwrap(*words(made, "--class-order", order)).code == 0
    assert giftwrap(*made.build_words(made.store, "--images", made.images, "--views", 8)).code == 0
    where = ("--store", made.store, "--images", made.images)
    assert giftwrap("pipeline", "verify", *where).code == 0
    other = "bytes" if order == "numeric" else "numeric"
    refused = giftwrap(*words(made, "--class-order", other))
    assert refused.code == 2
    assert "different images (classes[1])" in refused.err


def test_more_images_than_an_older_store_has_are_explained(world: World, tmp_path: Path) -> None:
    made = world_of(world, tmp_path, ("ant", "bee", "cat"))
    assert giftwrap(*words(made)).code == 0
    shutil.copy(made.images / "ant" / "00.jpg", made.images / "ant" / "00.jfif")
    for refused in (
        giftwrap(*words(made)),
        giftwrap("pipeline", "verify", "--store", made.store, "--images", made.images),
    ):
        assert refused.code == 2
        assert "1 of these are not named .jpg, .jpeg, .png, .webp, as ant/00.jfif" in refused.err


def test_parents_of_splits_and_files_that_are_not_read_are_told(world: World, tmp_path: Path) -> None:
    made = world_of(world, tmp_path, ("train/a", "train/b", "val/a"), columns=2)
    (made.images / "train" / "a" / "x.bmp").write_bytes(b"BM")
    (made.images / "train" / "a" / "notes.txt").write_text("x")
    ended = giftwrap(*words(made, "--dry-run", "--json"))
    assert ended.code == 0, ended.err
    assert f"give one of them: --images {made.images}/train" in ended.err
    assert "1 BMP (train/a/x.bmp)" in ended.err
    assert "left out: 1 text (train/a/notes.txt)" in ended.err
    assert ended.summary["crops"] == 48
