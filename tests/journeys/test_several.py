"""Several runs as users run them: a sweep that is killed and continued, and a run for each of several seeds."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import InputError
from tests.journeys.test_torchrun import torchrun
from tests.journeys.world import World, draw_images, giftwrap
from trainer.config import TrainConfig
from trainer.runs import read_run
from trainer.seeds import train_seeds
from trainer.train import train

# Kills itself or the sweep, once, in the second epoch of a run: the file `fault` names whom, and in which run.
NETWORK = """
import os, signal
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(48, num_classes))

    def forward(self, x):
        fault = Path("fault")
        if fault.exists():
            whom, run = fault.read_text().split()
            if Path("out/runs", run, "log.jsonl").exists():
                fault.unlink()
                os.kill(os.getppid() if whom == "parent" else os.getpid(), signal.SIGKILL)
                signal.pause()
        return self.layers(x)
"""


@pytest.fixture
def config(world: World, tmp_path: Path) -> TrainConfig:
    """A short run with dropout, so that random numbers count."""
    return from_flags(
        TrainConfig,
        store=world.store,
        images=world.images,
        test_images=draw_images(tmp_path / "test", per_class=2),
        student="convnet-d2",
        student_args='{"width": 8}',
        epochs=3,
        batch_size=8,
        threads=1,
        run_folder=tmp_path / "runs",
    )


def weights(run: Path) -> bytes:
    return (run / "last.safetensors").read_bytes()


@pytest.mark.long
def test_a_sweep_that_is_killed_and_continued_gives_the_same_runs(
    world: World, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty.py").write_text(NETWORK)
    (tmp_path / "grid.toml").write_text(
        f"""
        [train]
        store = "{world.store}"
        images = "{world.images}"
        test-images = "{config.test_images}"
        student = "faulty:Net"
        epochs = 3
        batch-size = 8
        threads = 1
        checkpoint-steps = 2
        lr = [0.01, 0.1]
        """
    )
    words = ("giftwrap", "sweep", "grid.toml", "--run", "out", "--json")
    (tmp_path / "fault").write_text("parent lr=0.01")
    assert giftwrap(*words, cwd=tmp_path).code == -signal.SIGKILL
    (tmp_path / "fault").write_text("child lr=0.1")
    ended = giftwrap(*words, cwd=tmp_path)
    assert ended.code == 1
    assert [(each["name"], each["error"]) for each in ended.summary["failed"]] == [("lr=0.1", "ended by SIGKILL")]
    assert "resuming" in (tmp_path / "out/runs/lr=0.01.log").read_text()
    ended = giftwrap(*words, cwd=tmp_path)
    assert (ended.code, ended.summary["done"]) == (0, 2)
    assert "1 of 2 done before" in ended.err
    assert [group["differences"] for group in ended.summary["groups"]] == [{"lr": 0.01}, {"lr": 0.1}]
    monkeypatch.syspath_prepend(tmp_path)
    for lr in (0.01, 0.1):
        whole = changed(config, student="faulty:Net", student_args="{}", lr=lr, run_folder=tmp_path / f"whole {lr}")
        train(whole, Console(silent=True))
        assert weights(whole.run) == weights(tmp_path / f"out/runs/lr={lr}")


def test_each_seed_is_the_run_of_that_seed(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    several = changed(config, seeds=(3, 1))
    values = train_seeds(several, Console(silent=True))
    alone = changed(config, seed=1, run_folder=config.run.with_name("alone"))
    train(alone, Console(silent=True))
    assert weights(config.run / "seed-1") == weights(alone.run) != weights(config.run / "seed-3")
    runs = {seed: read_run(config.run / f"seed-{seed}") for seed in (3, 1)}
    assert values["last"]["top1"]["mean"] == pytest.approx(sum(run.top1[-1] for run in runs.values()) / 2)
    assert values["last"]["top1"]["count"] == 2
    capsys.readouterr()
    assert train_seeds(several, Console())["last"] == values["last"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["seed 3", "seed 1"]
    assert all("finished before" in line for line in lines)
    with pytest.raises(InputError, match=r"seed-3: expected|different run \(--lr\)"):
        train_seeds(changed(several, lr=0.5), Console(silent=True))
    with pytest.raises(InputError, match="found a run; give another --run-folder"):
        train_seeds(changed(several, run_folder=alone.run), Console(silent=True))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed", 0, "--seeds", 1, 2), "--seed, --seeds: expected one of them"),
        (("--seed=4", "--seeds", 1, 2), "--seed 4, --seeds: expected one of them"),
        (("--seeds", 1, 1), "--seeds: expected different seeds"),
        (("--seeds", -1), "--seeds: expected different seeds of 0"),
    ],
)
def test_seeds_that_no_runs_can_have_are_refused(
    world: World, tmp_path: Path, flags: tuple[object, ...], message: str
) -> None:
    words = ("trainer", "train", "--store", world.store, "--images", world.images, "--student", "convnet-d2")
    ended = giftwrap(*words, "--epochs", 1, "--run", tmp_path / "run", *flags)
    assert ended.code == 2
    assert message in ended.err
    assert not (tmp_path / "run").exists()


def test_several_processes_train_each_seed(config: TrainConfig, tmp_path: Path) -> None:
    words: list[object] = [
        "trainer", "train", "--store", config.store, "--images", config.images, "--student", config.student,
        "--student-args", config.student_args, "--epochs", 1, "--batch-size", 8, "--threads", 1, "--seeds", 0, 1,
        "--test-images", config.test_images, "--run-folder", config.run, "--json",
    ]  # fmt: skip
    first, second = torchrun(2, words, tmp_path / "ranks")
    assert (first.code, second.code, second.out) == (0, 0, ""), first.err + second.err
    assert [run["processes"] for run in first.summary["runs"]] == [2, 2]
    assert first.summary["last"]["top1"]["count"] == 2
    assert weights(config.run / "seed-0") != weights(config.run / "seed-1")
