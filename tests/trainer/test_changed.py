"""What may have changed between a run and its continuation: code, weights, test images; and what does not decode."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import InputError, MismatchError
from pipeline.networks.weights import read_weights
from tests.journeys.world import World, draw_images, giftwrap
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.evaluate import EvalResult
from trainer.run import Run
from trainer.run_config import trained_by
from trainer.run_folder import flags_at, trained_as
from trainer.student import Student

LAYERS = """
from torch import nn
def act(x): return x.relu()
class Stem(nn.Module):
    def __init__(self): super().__init__(); self.c = nn.Conv2d(3, 4, 3)
    def forward(self, x): return act(self.c(x))
"""
STUDENT = """
from torch import nn
import {layers}
class Student(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = {layers}.Stem()
        self.head = nn.Linear(4, num_classes)
    def forward(self, x): return self.head(self.stem(x).mean((2, 3)))
def make(num_classes): return nn.Sequential(Student(num_classes))
"""


class Code:
    """A student of two modules, as a user writes them; imported anew when it is changed."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.names = folder, (f"user_student_{number}", f"user_layers_{number}")
        self.write(0, STUDENT.format(layers=self.names[1]))
        self.write(1, LAYERS)

    def write(self, which: int, text: str) -> None:
        path = self.folder / f"{self.names[which]}.py"
        path.write_text(text)
        os.utime(path, ns=(path.stat().st_mtime_ns + 10**10,) * 2)  # else an old .pyc may be taken for it
        for name in self.names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    def change(self, which: int, old: str, new: str) -> None:
        path = self.folder / f"{self.names[which]}.py"
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)
        assert old in path.read_text()
        self.write(which, path.read_text().replace(old, new))


NUMBER = iter(range(100))


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Code:
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return Code(folder, next(NUMBER))


@pytest.fixture
def config(world: World, tmp_path: Path) -> TrainConfig:
    return from_flags(
        TrainConfig,
        store=world.store,
        images=world.images,
        student="convnet-d1",
        epochs=2,
        batch_size=8,
        run_folder=tmp_path / "run",
        test_images=draw_images(tmp_path / "test", per_class=3),
        eval_every=1,
        threads=1,
    )


def document(config: TrainConfig) -> Any:
    return json.loads((config.run / "config.json").read_text())


@pytest.mark.parametrize(("which", "old", "new"), [(0, "mean((2, 3))", "amax((2, 3))"), (1, "x.relu()", "x.abs()")])
@pytest.mark.parametrize("name", ["Student", "make"])
def test_a_student_whose_code_changed_is_continued_only_anyway(
    which: int, old: str, new: str, name: str, code: Code, config: TrainConfig
) -> None:
    run = changed(config, student=f"{code.names[0]}:{name}")
    loop.train(run, Console(as_json=True))
    assert loop.train(run, Console(as_json=True))["steps_now"] == 0
    before = document(run)
    code.change(which, old, new)
    with pytest.raises(MismatchError, match=rf"the code of the student has changed.*code\.{code.names[which]}.*anyway"):
        loop.train(run, Console(as_json=True))
    assert document(run) == before
    loop.train(changed(run, anyway=True), Console(as_json=True))
    (change,) = document(run)["changed"]
    assert (change["at"], change["step"]) == (f"code.{code.names[which]}", 6)
    assert loop.train(run, Console(as_json=True))["steps_now"] == 0  # what was accepted is the run's own now
    assert len(document(run)["changed"]) == 1


def test_a_student_of_other_weights_is_refused_whatever_is_said(code: Code, config: TrainConfig) -> None:
    run = changed(config, student=f"{code.names[0]}:Student")
    loop.train(run, Console(as_json=True))
    code.change(1, "nn.Conv2d(3, 4, 3)", "nn.Conv2d(3, 4, 5)")
    for anyway in (False, True):
        with pytest.raises(MismatchError, match="the student has other weights than when the run started"):
            loop.train(changed(run, anyway=anyway), Console(as_json=True))


def test_code_that_is_not_the_students_may_change(code: Code, config: TrainConfig) -> None:
    run = changed(config, student=f"{code.names[0]}:Student")
    loop.train(run, Console(as_json=True))
    assert set(document(run)["made_of"]["code"]) == set(code.names)
    (code.folder / "other.py").write_text("x = 1")
    assert loop.train(run, Console(as_json=True))["steps_now"] == 0


def test_other_test_images_under_the_same_names(config: TrainConfig) -> None:
    loop.train(config, Console(as_json=True))
    assert config.test_images
    first, second = sorted((config.test_images / "ant").iterdir())[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(MismatchError, match=r"not the test images with which the run started: test\.digest"):
        loop.train(config, Console(as_json=True))
    first.write_bytes(content)  # moved and touched, they are the same images
    shutil.move(config.test_images, config.test_images.with_name("moved"))
    moved = changed(config, test_images=config.test_images.with_name("moved"))
    assert loop.train(moved, Console(as_json=True))["steps_now"] == 0


@pytest.mark.parametrize("epochs_before_the_change", [1, 3])
def test_scores_on_other_test_images_do_not_compete(
    epochs_before_the_change: int, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a run and after its end: the best is one of the scores on the images that there are now."""
    run = changed(config, epochs=3, run_folder=tmp_path / "changed", checkpoint_every=1)
    original, calls = loop.save, 0

    def stopping(this: Run) -> None:
        nonlocal calls
        original(this)
        calls += 1
        if calls == epochs_before_the_change < 3:
            raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Student, "evaluate", lambda *_: EvalResult(9, 100.0, 100.0, 0.0, (3, 3, 3), (3, 3, 3)))
        patch.setattr(loop, "save", stopping)
        with pytest.raises(RuntimeError) if epochs_before_the_change < 3 else nullcontext():
            loop.train(run, Console(as_json=True))
    other = changed(run, test_images=draw_images(tmp_path / "other", per_class=4), anyway=True)
    real, scores = Student.evaluate, list[EvalResult]()

    def noted(*args: Any) -> EvalResult:
        scores.append(real(*args))
        return scores[-1]

    monkeypatch.setattr(Student, "evaluate", noted)
    summary: Any = loop.train(other, Console(as_json=True))
    assert len(scores) == summary["evaluations"] == max(3 - epochs_before_the_change, 1)
    assert summary["best"]["top1"] == max(score.top1 for score in scores)
    assert summary["last"]["top1"] == scores[-1].top1
    again: Any = loop.train(changed(other, anyway=False), Console(as_json=True))
    assert (again["best"], again["last"]) == (summary["best"], summary["last"])
    best, last = (read_weights(run.run / f"{name}.safetensors").tensors for name in ("best", "last"))
    if summary["best"]["epoch"] == 2:
        assert all(torch.equal(best[name], value) for name, value in last.items())


def broken(folder: Path) -> Path:
    """One JPEG of a class folder without its end."""
    path = next(path for path in sorted((folder / "bee").iterdir()) if path.suffix == ".jpg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def test_a_broken_test_image_stops_a_run_before_its_first_step(config: TrainConfig, tmp_path: Path) -> None:
    assert config.test_images
    path = broken(config.test_images)
    with pytest.raises(InputError, match=rf"(?s)--skip-broken.*{path.name}"):
        loop.train(config, Console(as_json=True))
    assert not config.run.exists()  # what is refused leaves nothing behind
    config.run.mkdir()
    with pytest.raises(InputError, match="--skip-broken"):
        loop.train(config, Console(as_json=True))
    assert not list(config.run.iterdir())
    summary = loop.train(changed(config, skip_broken=True), Console(as_json=True))
    assert summary["test_images"] == {"used": 8, "skipped": 1}
    assert document(config)["made_of"]["test"]["skipped"] == [f"bee/{path.name}"]
    rows = [line.split(",")[1] for line in (config.run / "classes.csv").read_text().splitlines()[1:]]
    assert rows == ["3", "2", "3"]


def test_the_command_names_what_it_leaves_out(world: World, tmp_path: Path) -> None:
    path = broken(draw_images(tmp_path / "test", per_class=3))
    words = ("trainer", "train", "--store", world.store, "--images", world.images, "--student", "convnet-d1",
             "--epochs", 1, "--threads", 1, "--test-images", tmp_path / "test", "--run", tmp_path / "run")  # fmt: skip
    assert giftwrap(*words).code == 2
    taken = giftwrap(*words, "--skip-broken")
    assert taken.code == 0, taken.err
    assert f"bee/{path.name}" in taken.err


def test_a_folder_of_others_stays_what_it_is(config: TrainConfig, tmp_path: Path) -> None:
    assert config.test_images
    broken(config.test_images)
    for name, why in (("test.images.npz", "expected an empty folder or a run"), (".lock", "--skip-broken")):
        config.run.mkdir()
        (config.run / name).write_bytes(b"mine")
        with pytest.raises(InputError, match=why):
            loop.train(config, Console(as_json=True))
        assert [path.read_bytes() for path in config.run.iterdir()] == [b"mine"]
        shutil.rmtree(config.run)


def test_runs_are_told_apart_by_what_they_train() -> None:
    made: dict[str, object] = {"run": {}}
    kinds: list[dict[str, object]] = [{}, {"projector": {}}, {"objective": "generator"}]
    assert [trained_by(made | more) for more in kinds] == ["a student", "a projector", "a generator"]
    with pytest.raises(InputError, match="expected a run that trains a student, found one that trains a generator"):
        trained_as({"objective": "generator"}, "runs/generator")


def test_places_in_the_plan_of_fresh_crops_are_named_by_their_flags() -> None:
    flags = flags_at(
        from_flags(TrainConfig, store=Path("s"), images=Path("a"), run_folder=Path("b"), student="convnet-d3", epochs=1)
    )
    assert [flags[f"crops.plan.{name}"] for name in ("flip", "seed", "size")] == ["--flip", "--plan-seed", "--size"]
