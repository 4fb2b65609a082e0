"""Several processes train what one trains; when one of them ends, so do the others."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.networks.weights import read_weights
from pipeline.ranks import MEETING_TIMEOUT, Ranks
from tests.journeys.test_torchrun import launch, signalled_at, torchrun
from tests.journeys.world import SIDE, TEACHER, World, draw_images, giftwrap
from trainer import distributed

SGD = ("--optimizer", "SGD", "--optimizer-args", '{"momentum": 0.9}', "--lr", 0.05)


def train_words(world: World, run: Path, *more: object) -> list[object]:
    """A student with instance norm, in batches that no number of processes divides."""
    return [
        "trainer", "train", "--store", world.store, "--images", world.images, "--student", "convnet-d2",
        "--student-args", '{"width": 8}', "--epochs", 5, "--batch-size", 7, "--threads", 1, *SGD, "--run", run,
        "--json", *more,
    ]  # fmt: skip


def require_same_run(ours: Path, theirs: Path) -> None:
    """The same student and losses, within rounding."""
    found, wanted = (read_weights(run / "last.safetensors").tensors for run in (ours, theirs))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    logs: list[list[dict[str, Any]]] = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (ours, theirs)
    ]
    for own, other in zip(*logs, strict=True):
        assert own["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert [own[name] for name in ("epoch", "view", "step")] == [other[name] for name in ("epoch", "view", "step")]


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains."""
    run = tmp_path_factory.mktemp("alone") / "run"
    ended = giftwrap(*train_words(world, run))
    assert ended.code == 0, ended.err
    return run


@pytest.mark.parametrize(("count", "more"), [(2, ()), (3, ("--accumulate", 2)), (4, ())])
def test_processes_train_what_one_trains(
    count: int, more: tuple[object, ...], alone: Path, world: World, tmp_path: Path
) -> None:
    test = draw_images(tmp_path / "test", per_class=4)
    words = train_words(world, tmp_path / "run", "--test-images", test, *more)
    first, *others = torchrun(count, words, tmp_path / "said")
    assert first.code == 0, first.err
    assert [(rank.code, rank.out, rank.err) for rank in others] == [(0, "", "")] * (count - 1)
    require_same_run(tmp_path / "run", alone)
    assert (first.summary["processes"], first.summary["steps"], first.summary["evaluations"]) == (count, 20, 5)
    assert torchrun(1, words, tmp_path / "again")[0].summary["last"] == first.summary["last"]  # only reported


@pytest.mark.parametrize("labels", ["none", "online"])
def test_processes_train_on_fresh_crops_what_one_trains(labels: str, world: World, tmp_path: Path) -> None:
    """Groups of five mix, which neither batches nor slices end with; the teacher's batch is that of each process."""
    teacher = (*TEACHER, "--weights", world.weights) if labels == "online" else ("--loss", "ce")
    plan = ("--size", SIDE, "--mix", "cutmix", "--group", 5, "--epochs", 2, "--labels", labels, *teacher)
    alone, words = (
        [word for word in train_words(world, tmp_path / run, *plan) if word not in ("--store", world.store)]
        for run in ("alone", "run")
    )
    ended = giftwrap(*alone)
    assert ended.code == 0, ended.err
    first, other = torchrun(2, words, tmp_path / "said")
    assert (first.code, other.code) == (0, 0), first.err
    require_same_run(tmp_path / "run", tmp_path / "alone")


def test_a_run_goes_on_on_other_processes(world: World, tmp_path: Path) -> None:
    """Two processes, of which one is told to stop; then three, then one."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    more = ("--epochs", 6, "--checkpoint-every", 40, "--lr", 0.0002)  # a rate that makes nothing of rounding
    assert giftwrap(*train_words(world, whole, *more)).code == 0
    stopped = signalled_at("trainer.train", "step", 6, signal.SIGTERM)
    ranks = launch(2, train_words(world, run, *more), tmp_path / "said", faults={1: stopped})
    for rank in ranks:
        rank.join(300)
    said = [(tmp_path / "said" / f"err{rank}").read_text() for rank in range(2)]
    assert [rank.exitcode for rank in ranks] == [143, 143], said
    assert [text.count("resume with: torchrun") for text in said] == [1, 0]
    state = torch.load(run / "checkpoint.pt", weights_only=True)["state"]
    assert len(state["ranks"]) == 2
    first, *_ = torchrun(3, train_words(world, run, *more), tmp_path / "again")
    assert first.code == 0, first.err
    assert f"step {state['step']}" in first.err
    require_same_run(run, whole)


def test_a_rank_that_is_killed_ends_the_others(world: World, tmp_path: Path) -> None:
    for victim in (1, 0):
        run = tmp_path / f"run{victim}"
        killed = signalled_at("trainer.train", "step", 6, signal.SIGKILL)
        ranks = launch(2, train_words(world, run, "--epochs", 40), tmp_path / "said", faults={victim: killed})
        for rank in ranks:
            rank.join(300)
        said = (tmp_path / "said" / f"err{1 - victim}").read_text()
        assert ranks[victim].exitcode == -signal.SIGKILL
        assert ranks[1 - victim].exitcode == 1, said
        assert "another rank of this training has ended" in said
        assert "Traceback" not in said


def test_more_processes_than_crops_in_a_batch_are_refused(world: World, tmp_path: Path) -> None:
    first, second = torchrun(2, train_words(world, tmp_path / "run", "--batch-size", 1), tmp_path / "said")
    assert (first.code, second.code) == (2, 1)
    assert "one crop for each of 2 processes, found 1" in first.err
    assert not (tmp_path / "run" / "config.json").exists()


def test_batch_norm_over_processes_needs_gpus(world: World, tmp_path: Path) -> None:
    ended = giftwrap(*train_words(world, tmp_path / "run", "--sync-bn"))
    assert ended.code == 2
    assert "--sync-bn: works on GPUs" in ended.err


def test_norms_and_gradients_go_through_one_group_of_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the second of two GPUs: the GPU, then NCCL's group, then norms and gradients by it."""
    calls: list[Any] = []
    groups: list[object] = []

    def new_group(*, backend: str, timeout: Any) -> object:
        calls.append(backend)
        assert timeout > MEETING_TIMEOUT
        groups.append(object())
        return groups[-1]

    class Spread:
        def __init__(self, student: nn.Module, **how: Any) -> None:
            calls.append(how["device_ids"])
            assert how["process_group"] is groups[0]
            assert all(layer.process_group is groups[0] for layer in student.modules() if layer is not student)

        def register_forward_hook(self, _hook: Any) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(torch.distributed, "new_group", new_group)
    monkeypatch.setattr("torch.nn.parallel.DistributedDataParallel", Spread)
    config: Any = SimpleNamespace(render=SimpleNamespace(device="cuda:1"), sync_bn=True, student="two norms")
    ranks: Any = Ranks(1, 2, 1, 2)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    distributed._group.cache_clear()
    student: Any = distributed.prepare(network, config, ranks)
    assert [type(layer) for layer in student] == [nn.SyncBatchNorm] * 2
    distributed.spread(student, config, ranks, some_unused=False)
    assert calls == [1, "nccl", 1, [1]]
    distributed._group.cache_clear()
