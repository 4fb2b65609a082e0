"""A generator is trained, draws a set, and the set is labelled, trained on and compared; by several processes too."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelstore import LabelStore
from tests.journeys.test_torchrun import torchrun
from tests.journeys.world import SIDE, TEACHER, World, giftwrap

TOY = ("--backbone", "uvit-xs", "--backbone-args", '{"dim": 16, "depth": 2, "heads": 2}', "--patch", 4)


def train(world: World, run: Path) -> list[object]:
    return [
        "giftwrap", "train-generator", "--images", world.images, "--size", SIDE, *TOY, "--epochs", 2, "--batch-size", 8,
        "--lr", 1e-3, "--threads", 1, "--run-folder", run,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("model") / "run"
    trained = giftwrap(*train(world, run))
    assert trained.code == 0, trained.err
    assert "backbone: uvit-xs" in trained.out
    assert "synthesize diffusion --model" in trained.out.splitlines()[-1]
    return run


def draw(model: Path, out: Path, *more: object) -> list[object]:
    flags = ("--ipc", 3, "--steps", 2, "--image-batch", 4, "--threads", 1)
    return ["pipeline", "synthesize", "diffusion", "--model", model, "--out", out, *flags, *more]


def test_generate_build_train_compare(world: World, model: Path, tmp_path: Path) -> None:
    out, labels, runs = tmp_path / "set", tmp_path / "labels", tmp_path / "runs"
    teacher = (*TEACHER, "--weights", world.weights, "--batch", 16)
    more = ("--candidates", 2, "--select", "ce", "--size", SIDE)
    made = giftwrap(*draw(model, out, *more, *teacher, "--json"))
    assert made.code == 0, made.err
    assert (made.summary["images"], made.summary["classes"]) == (9, 3)
    assert "generated: " in made.err
    checked = giftwrap("pipeline", "synthesize", "--check", out, "--threads", 1)
    assert checked.code == 0, checked.err
    assert "9 images compared, all as the record states (9 made again" in checked.out
    built = giftwrap(
        "pipeline", "build", "--images", out, *teacher, "--size", SIDE, "--views", 2, "--threads", 1, "--store", labels
    )
    assert built.code == 0, built.err
    info = giftwrap("labelstore", "info", labels)
    assert "9 images made by diffusion, seed 0" in info.out
    assert LabelStore.open(labels).identity.classes == ("ant", "bee", "cat")
    student = ("--student", "convnet-d2", "--student-args", '{"width": 16}', "--batch-size", 6, "--threads", 1)
    tested = (*student, "--images", out, "--test-images", world.images, "--epochs", 2)
    soft = giftwrap("trainer", "train", "--store", labels, *tested, "--run-folder", runs / "gift")
    assert soft.code == 0, soft.err
    hard = giftwrap(
        "trainer", "train", "--recipe", "eccv24", "--labels", "none", "--size", SIDE, *tested, "--seeds", 0, 1,
        "--run-folder", runs / "hard",
    )  # fmt: skip
    assert hard.code == 0, hard.err
    table = giftwrap("trainer", "compare", runs / "gift", runs / "hard")
    assert table.code == 0, table.err


def test_two_processes_draw_what_one_draws(model: Path, tmp_path: Path) -> None:
    alone = giftwrap(*draw(model, tmp_path / "one" / "set"))
    assert alone.code == 0, alone.err
    ended = torchrun(2, draw(model, tmp_path / "two" / "set"), tmp_path / "ranks")
    assert [rank.code for rank in ended] == [0, 0], ended
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "set").rglob("*.png")} for name in ("one", "two")
    )
    assert one == two


def test_two_processes_train_a_generator(world: World, tmp_path: Path) -> None:
    for place in ("ranks", "again"):  # the second reports a finished run
        ended = torchrun(2, train(world, tmp_path / "run"), tmp_path / place)
        assert [rank.code for rank in ended] == [0, 0], ended
    assert (tmp_path / "run" / "generator.json").exists()


def test_bad_flags_are_one_line(world: World, model: Path, tmp_path: Path) -> None:
    for words in (
        draw(model, tmp_path / "set", "--guidance", -1),
        draw(tmp_path, tmp_path / "set"),
        [*train(world, tmp_path / "run"), "--vae", "sd"],
        [*train(world, tmp_path / "run"), "--patch", 5],
    ):
        ended = giftwrap(*words)
        assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended
    assert not [*tmp_path.iterdir()]
