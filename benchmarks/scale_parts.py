"""The measurements of the claim `scale` in separate processes: `python -m benchmarks.scale_parts PART STORE IMAGES`.

Each prints one JSON object: figures by name, times in seconds, memory in bytes.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

BATCH = 256
PLACES = 7  # at which a run is continued
RENDERED = 8  # batches of whole crops
CACHE_GIB = 0.25
SAMPLED = 0.02  # seconds between looks at the memory

Figures = dict[str, float]


class Memory(threading.Thread):
    """Watches the memory of this process: what is its own, without pages of files, which the system takes back."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Look again and again."""
        while not self._ended.wait(SAMPLED):
            self.most = max(self.most, own_bytes())

    def end(self) -> int:
        """The most that there was."""
        self._ended.set()
        self.join()
        return max(self.most, own_bytes())


@contextmanager
def watched(figures: Figures, name: str) -> Iterator[None]:
    """Seconds that the body takes, and the most memory meanwhile."""
    memory, start = Memory(), time.perf_counter()
    yield
    figures[f"{name}_s"] = time.perf_counter() - start
    figures[f"{name}_bytes"] = memory.end()


def own_bytes() -> int:
    """Memory of this process that no file holds."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))


def manifest(store: str, images: str) -> Figures:
    """Read every image, or the cache of what was read."""
    from pipeline.config import manifest_cache
    from pipeline.images.manifest import scan

    figures: Figures = {}
    with watched(figures, "manifest"):
        found = scan(Path(images), cache=manifest_cache(Path(store)))
        figures["images"] = len(found.digest and found)
    return figures


def train(store: str, images: str) -> Figures:
    """What `giftwrap train` does up to its first batch; then continue at other places, and play some batches."""
    figures: Figures = {}
    memory = Memory()
    from labelstore.command.console import Console
    from labelstore.command.flags import from_flags
    from pipeline.ranks import Ranks
    from trainer.config import TrainConfig
    from trainer.run import make_run
    from trainer.run_lock import hold
    from trainer.stopping import StopSignals
    from trainer.train import begin

    figures["imported_bytes"] = own_bytes()
    config = from_flags(
        TrainConfig,
        store=Path(store),
        images=Path(images),
        student=f"{__package__}.scale_student:Pooled",
        batch_size=BATCH,
        epochs=8,
        lr=0.001,
        loss="gift",
        run_folder=Path(store).with_name("run"),
        cache_gib=CACHE_GIB,
    )
    with hold(config.run), closing(make_run(config, Ranks(), StopSignals())) as run:
        begin(run, Console(silent=True))
        batches = run.replay.play(config.epochs)
        next(batches)
        figures["first_batch_at"] = time.time()  # since when the process was started is known to who started it
        figures["first_batch_bytes"] = own_bytes()
        batches.close()
        figures |= continued(run.replay)
        figures["rendered_s"] = timed(lambda: exhaust(run.replay.play(config.epochs), RENDERED))
    figures["train_bytes"] = memory.end()
    return figures


def continued(replay: Any) -> Figures:
    """Seconds to the first batch at random places of views played for the first time, and again."""
    rng, images, seconds = np.random.default_rng(0), replay.crops.images, []
    for place in range(PLACES):
        epoch = int(rng.integers(replay.order.views)) + replay.order.views * (place % 2)
        state = {**replay.state_dict(), "epoch": epoch, "position": int(rng.integers(images) // BATCH * BATCH)}
        replay.load_state_dict(state)
        seconds.append(timed(partial(exhaust, replay.play(epoch + 1), 1)))
    replay.load_state_dict({**replay.state_dict(), "epoch": 0, "position": 0})
    return {"continued_s": median(seconds), "continued_most_s": max(seconds)}


def labels(store: str, _images: str) -> Figures:
    """All labels of an epoch through the loader of a training, without pixels; memory at its middle and end."""
    import torch

    from labelstore import LabelStore
    from labelstore.format.columns import CropRows
    from trainer.crops import CropSource
    from trainer.labels import StoredLabels
    from trainer.loader import Loader

    class NoPixels(CropSource):
        """The crops of a store, without their pixels."""

        def __init__(self, store: LabelStore) -> None:
            identity = store.identity
            self.images, self.group, self.views = identity.images, identity.group, store.state.views_sealed
            self.size = self.drawn_size = identity.size
            self.mean = self.std = (1.0, 1.0, 1.0)
            self.targets, self.identity, self.rows_of = store.targets, {}, store.rows

        def rows(self, view: int, positions: Any) -> CropRows:
            return self.rows_of(view, positions)

        def pixels(self, rows: CropRows) -> torch.Tensor:
            return torch.zeros(len(rows), 1, 1, 3, dtype=torch.uint8)

    figures: Figures = {}
    with watched(figures, "open"):
        opened = LabelStore.open(Path(store))
        opened.read(0, slice(BATCH))
    loader = Loader(NoPixels(opened), StoredLabels(opened, torch.device("cpu"), any_scale=False), batch_size=BATCH)
    with watched(figures, "epoch"):
        for number, _ in enumerate(loader):
            if number == len(loader) // 2:  # when the codes that a reader keeps unpacked have reached their limit
                figures["epoch_half_bytes"] = own_bytes()
        figures["epoch_end_bytes"] = own_bytes()
    return figures


def rates(store: str, _images: str) -> Figures:
    """Rows a second of one view from a cold page cache: codes, labels, and plain reads of the same files."""
    from benchmarks.read import exhaust as take
    from benchmarks.read import forget, read_files
    from labelstore import LabelStore

    opened = LabelStore.open(Path(store))
    count = opened.identity.images
    files = [
        opened.path / array.file(block)
        for block in opened.sealed_blocks()
        if opened.block_views(block)[0] == 0
        for array in opened.layout.codes
    ]
    asked = [(0, slice(start, min(start + BATCH, count))) for start in range(0, count, BATCH)]
    ways: dict[str, Callable[[], object]] = {
        "disk": lambda: read_files(files),
        "codes": lambda: take(opened.stream_codes(asked)),
        "labels": lambda: take(opened.stream(asked)),
    }
    opened.read(0, slice(1))
    figures: Figures = {"view_bytes": sum(path.stat().st_size for path in files)}
    for name, act in ways.items():
        forget(files)
        figures[f"{name}_rows_per_s"] = count / timed(act)
    return figures


def exhaust(batches: Any, most: int) -> None:
    """Take some batches."""
    with closing(batches):
        for number, _ in enumerate(batches, 1):
            if number == most:
                return


def timed(act: Callable[[], object]) -> float:
    """Seconds that something takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


PARTS: dict[str, Callable[[str, str], Figures]] = {
    "manifest": manifest,
    "train": train,
    "labels": labels,
    "rates": rates,
}

if __name__ == "__main__":
    part, *places = sys.argv[1:]
    print(json.dumps(PARTS[part](*places)))
