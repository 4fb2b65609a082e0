"""Every thread that works on a GPU makes it the current one first: no rank takes memory of another one's GPU."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from labelstore.command.console import Console
from pipeline import ranks as ranks_module
from pipeline.build import build
from pipeline.build.labelling import Rows, label
from pipeline.build.stages import hand_over
from pipeline.device.current import make_current
from trainer.loader import Loader
from trainer.prefetch import Prefetcher
from trainer.train import train

ROOT = Path(__file__).parents[2]
# Each file that starts threads, and why they are on the right GPU.
THREADS = {
    "pipeline/build/stages.py": "makes it the current one before each call",
    "trainer/prefetch.py": "runs `Loader._made`, which makes it the current one first",
    "pipeline/images/manifest.py": "decodes files, on the CPU",
    "pipeline/importing/copying.py": "reads and writes files",
    "pipeline/importing/importing.py": "reads files",
    "pipeline/render/crops.py": "renders on the CPU",
    "pipeline/render/dali_crops.py": "reads files",
    "pipeline/synthesis/making.py": "writes files",
    "pipeline/synthesis/job_writer.py": "writes files",
    "trainer/replay.py": "unpacks the means of labels, on the CPU",
    "pipeline/render/device.py": "reads and decodes files, on the CPU",
}


@pytest.fixture
def made_current(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Thread and number of each GPU that is made the current one, of eight."""
    found: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: found.append((threading.current_thread().name, gpu)))
    return found


def test_all_files_that_start_threads_are_known() -> None:
    words = ("ThreadPoolExecutor(", "threading.Thread(", " Queue(")
    files = [path for package in ("pipeline", "trainer") for path in (ROOT / package).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if any(word in path.read_text() for word in words)}
    assert found == set(THREADS)


def test_names_that_are_no_gpu_of_this_machine_are_left_to_others(made_current: list[Any]) -> None:
    for name in ("cpu", "cuda", "cuda:8", "cuda:x", "gpu", torch.device("cuda"), torch.device("cpu")):
        make_current(name)
    assert not made_current
    make_current("cuda:7")
    make_current(torch.device("cuda", 2))
    assert [gpu for _, gpu in made_current] == [7, 2]


def test_a_stage_works_on_its_gpu(made_current: list[Any]) -> None:
    seen: list[Any] = []
    with hand_over(lambda item: seen.append((item, *made_current[-1])), 1, torch.device("cuda", 3)) as call:
        for item in range(2):
            call(item)
    assert seen == [(0, "giftwrap-queue", 3), (1, "giftwrap-queue", 3)]


def test_a_build_labels_and_encodes_on_its_gpu(made_current: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the labeller's first call, which fails here."""

    class Labeller:
        device, batch, columns, size = torch.device("cuda", 5), 2, 3, 8

        def start(self, *_: Any) -> Any:
            assert made_current[-1] == ("giftwrap-queue", 5)
            raise RuntimeError("the first call")

    crops, rows = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), SimpleNamespace()
    batch: Any = SimpleNamespace(rows=rows, crops=crops, ready=lambda: crops)
    monkeypatch.setattr("pipeline.build.labelling._batches", lambda *_: iter([batch]))
    renderer: Any = None
    labeller: Any = Labeller()
    with pytest.raises(RuntimeError, match="the first call"):
        list(label(renderer, labeller, 1, [Rows([], [])]))


def test_a_loader_makes_its_batches_on_its_gpu(made_current: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(device: torch.device) -> Any:
        assert made_current[-1] == ("giftwrap-prefetch", device.index)
        raise RuntimeError("the first call")

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    loader = Loader.__new__(Loader)
    loader._device = torch.device("cuda", 6)
    with pytest.raises(RuntimeError, match="the first call"), Prefetcher(loader._made(0, 0, 1), 1) as batches:
        next(batches)


@pytest.mark.parametrize("work", ["build", "train"])
def test_a_rank_takes_its_gpu_before_anything_else(
    work: str, made_current: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = SimpleNamespace(render=SimpleNamespace(device="cuda:5", threads=1), store=tmp_path, run=tmp_path)
    monkeypatch.setattr(ranks_module.Ranks, "own_resources", lambda *_: config)
    monkeypatch.setattr("trainer.train.with_its_interval", lambda given: given)

    def stop(*_: Any) -> Any:
        assert made_current == [("MainThread", 5)]
        raise RuntimeError("the next call")

    monkeypatch.setattr("labelstore.store.LabelStore.exists", stop)
    monkeypatch.setattr("trainer.train.hold", stop)
    with pytest.raises(RuntimeError, match="the next call"):
        (build.build if work == "build" else train)(config, Console(silent=True))
