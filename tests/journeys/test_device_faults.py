"""No memory left, or a GPU lost, in any command: one line with a remedy, and what was finished is kept."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from labelstore.store import LabelStore
from pipeline.__main__ import main as pipeline_main
from pipeline.build.calibrate import Calibrator
from pipeline.build.watching import Watch
from pipeline.teacher.engine import running
from pipeline.teacher.teacher import Teacher
from tests.journeys.world import TEACHER, World
from tests.pipeline.test_faults import LOST, NO_MEMORY
from trainer.__main__ import main as trainer_main


def run(
    main: Callable[[], int], words: list[object], capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> tuple[int, list[str]]:
    """The exit code of a command, and what it printed after its progress."""
    patch.setattr(sys, "argv", ["giftwrap", *map(str, words)])
    capsys.readouterr()
    code = main()
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = err.splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith("error: ")), len(lines))
    return code, lines[first:]


def fail_at(
    patch: pytest.MonkeyPatch, place: Any, name: str, call: int, error: Exception, after: Event | None = None
) -> None:
    """Let a function fail when it is called for the nth time, from 0, after an event."""
    calls, original = itertools.count(), getattr(place, name)

    def failing(*args: Any, **named: Any) -> Any:
        if next(calls) == call:
            assert after is None or after.wait(60)
            raise error
        return original(*args, **named)

    patch.setattr(place, name, failing)


def words_of(world: World, store: Path, *more: object) -> list[object]:
    return [
        "build", "--images", world.images, *TEACHER, "--weights", world.weights, "--size", 16, "--views", 10,
        "--batch", 32, "--threads", 1, "--store", store, "--encoding", "float16", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("threads", [False, True], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("error", [NO_MEMORY[0], LOST[0]], ids=["memory", "lost"])
@pytest.mark.parametrize(
    ("place", "name", "call", "doing", "flag"),
    [
        ("pipeline.render.crops.CropRenderer", "render", 9, "crops are rendered", "--cache-gib"),
        ("pipeline.teacher.teacher.Teacher", "start", 7, "the store is built", "--batch"),
        ("pipeline.build.filling.OpenBlock", "data", 1, "labels are encoded", "--cache-gib"),
    ],
)
def test_a_fault_in_a_build_keeps_finished_blocks(
    place: str,
    name: str,
    call: int,
    doing: str,
    flag: str,
    error: Exception,
    threads: bool,
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "store"
    with pytest.MonkeyPatch.context() as patch:
        if threads:
            patch.setattr("pipeline.build.labelling._on_gpu", lambda _labeller: True)
        written = Event()
        patch.setattr(Watch, "add_block", lambda _watch, _block: written.set())
        module, kind = place.rsplit(".", 1)
        fail_at(patch, getattr(import_module(module), kind), name, call, error, written)
        code, (line, *rest) = run(pipeline_main, words_of(world, store), capsys, patch)
    assert code == 1
    if error in NO_MEMORY:
        assert f"out of memory while {doing}" in line
        assert flag in line
    else:
        assert line.startswith(f"error: the GPU failed while {doing} (")
        assert line.endswith("then run the same command again")
    assert rest[0] == "finished blocks are kept"
    assert rest[1].startswith("resume with: ")
    assert 0 < len(LabelStore.open(store, follow=True).missing()) < 2
    with pytest.MonkeyPatch.context() as patch:
        assert run(pipeline_main, words_of(world, store), capsys, patch) == (0, [])
    assert LabelStore.open(store).complete


@pytest.mark.parametrize("error", [NO_MEMORY[0], LOST[0]], ids=["memory", "lost"])
def test_a_fault_before_the_first_block(
    error: Exception, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without memory the store, which holds nothing, makes room for one with a smaller --batch."""
    store = tmp_path / "store"
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, Teacher, "start", 0, error)
        code, _lines = run(pipeline_main, words_of(world, store), capsys, patch)
    assert code == 1
    with pytest.MonkeyPatch.context() as patch:
        less = ("--batch", 8) if error in NO_MEMORY else ()
        assert run(pipeline_main, words_of(world, store, *less), capsys, patch) == (0, [])
    for place, name in ((running.Engine, "logits"), (import_module("pipeline.build.build"), "make_renderer")):
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, place, name, 0, error)
            code, lines = run(pipeline_main, words_of(world, tmp_path / "other"), capsys, patch)
        assert code == 1
        assert len(lines) == 1
        assert not (tmp_path / "other").exists()


def test_a_fault_while_calibrating(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.build.build.is_fitted", lambda _encoding: True)
    monkeypatch.setattr(LabelStore, "calibrated", False)
    fail_at(monkeypatch, Calibrator, "_sample", 0, NO_MEMORY[0])
    code, (line,) = run(pipeline_main, words_of(world, tmp_path / "store"), capsys, monkeypatch)
    assert code == 1
    assert "out of memory while the calibration is made (CUDA out of memory" in line
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("error", [NO_MEMORY[0], LOST[0]], ids=["memory", "lost"])
def test_a_fault_in_every_other_command(
    error: Exception, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = ["--store", world.store, "--images", world.images]
    student = [*stored, "--student", "convnet-d2", "--epochs", 2, "--batch-size", 8, "--threads", 1]
    network = ["--weights", world.weights, "--student", "convnet-d2", "--student-args", TEACHER[-1], "--size", 16]
    commands: list[tuple[Callable[[], int], list[object], Any, str, str]] = [
        (pipeline_main, ["verify", *stored], import_module("pipeline.replay.verify"), "check_pixels", "--cache-gib"),
        (pipeline_main, ["show", *stored, "--out", tmp_path / "s.png"], import_module("pipeline.replay.show"),
         "check_pixels", "--cache-gib"),
        (trainer_main, ["train", *student, "--run-folder", tmp_path / "run"], import_module("trainer.train"), "step",
         "--batch-size"),
        (trainer_main, ["evaluate", *network, "--images", world.images, "--mean", 0.5, 0.5, 0.5, "--std", 1, 1, 1],
         import_module("trainer.evaluate"), "count_hits", "--batch"),
    ]  # fmt: skip
    for main, words, place, name, flag in commands:
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, place, name, 1 if name == "step" else 0, error)
            code, lines = run(main, words, capsys, patch)
        assert code == 1
        assert len(lines) == 1
        kind = "out of memory while " if error in NO_MEMORY else "the GPU failed while "
        assert lines[0].startswith(f"error: {kind}")
        assert flag in lines[0] or error in LOST
