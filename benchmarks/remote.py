"""A training from a bucket, 20 ms away at 100 MB/s, takes at most 5 % longer a step than from this machine.

The same bytes are also read by litdata where it can be imported. It is no dependency, since what it needs does not fit
other packages; a separate environment with access to the packages of this one is enough:

    python -m venv rival
    python -c "import site; print(site.getsitepackages()[0])" > rival/lib/python3.11/site-packages/giftwrap.pth
    rival/bin/pip install --no-deps litdata
    rival/bin/python -m benchmarks run remote
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.drawn import Drawn
from benchmarks.harness import Interval, Report, machine
from benchmarks.read import BATCH, exhaust, requests
from benchmarks.slow_bucket import BUCKET, slow_bucket
from labelstore import LabelStore, PieceCache
from labelstore.durable.at_once import AT_ONCE
from labelstore.spec import Json
from pipeline.networks import build_network
from trainer.choices import LossSpec
from trainer.losses import make_loss

PROMISED = 0.05
LATENCY, RATE = 0.02, 100e6
SIDE, WIDTH = 32, 64  # of the student
CACHE_BYTES = 64 << 30
ROWS = 256  # random ones
RIVAL, RIVAL_CHUNK = "litdata", 16 << 20
Act = Callable[[], object]


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Train on drawn labels of 1,000 columns and stream them, from a folder and from a bucket of this machine."""
    if find_spec("obstore") is None:
        raise RuntimeError("remote: needs obstore: pip install 'giftwrap[cloud]'")
    images, columns, views, rounds = (1_024, 50, 2, 1) if quick else (32_768, 1_000, 4, 3)
    with tempfile.TemporaryDirectory(dir=report.folder, prefix="remote-") as name:
        folder = Path(name)
        local = Drawn(images, columns, views).store(folder / "labels", {"name": "int8"})
        rival = write_rival(local, folder)
        with slow_bucket(folder, LATENCY, RATE):
            cost = measure_steps(report, local, folder / "cache", rounds, steps=6 if quick else 60)
            streams = measure_streams(report, local, folder, rival, 1 if quick else 2)
    return {
        **cost,
        **streams,
        "latency_ms": LATENCY * 1e3,
        "rate_MB_s": RATE / 1e6,
        "rival": f"{rival} {version(rival)}" if rival else "none is installed",
        "promised": PROMISED,
        "kept": quick or float(str(cost["cost_of_streaming"])) <= PROMISED,
        "machine": machine(),
    }


def measure_steps(report: Report, local: LabelStore, cache: Path, rounds: int, steps: int) -> dict[str, Json]:
    """How much longer steps take whose labels come from the bucket, kept nowhere before, than from the folder."""
    student = Student(local.identity.columns, *((8, 8) if steps < 10 else (SIDE, WIDTH)))
    sources: dict[str, Callable[[], LabelStore]] = {
        "folder": lambda: LabelStore.open(local.path),
        "bucket": lambda: LabelStore.open(address("labels")),
        "bucket, warm": lambda: LabelStore.open(address("labels"), cache=PieceCache(cache, CACHE_BYTES)),
    }
    took: dict[str, list[float]] = {name: [] for name in sources}
    begun: dict[str, list[float]] = {name: [] for name in sources}
    for counted in range(rounds + 1):  # after one round that is not counted, and fills the cache
        for name, source in sources.items():
            first, rest = student.train(source, steps)
            if counted:
                begun[name].append(first)
                took[name].append(rest / steps)
    costs = {}
    for name in sources:
        report.add(f"labels of the {name}", "time a step", [1e3 * value for value in took[name]], "ms")
        report.add(f"labels of the {name}", "time to the first labels", [1e3 * value for value in begun[name]], "ms")
        costs[name] = Interval.of([ours / theirs - 1 for ours, theirs in zip(took[name], took["folder"], strict=True)])
    return {
        "cost_of_streaming": costs["bucket"].median,
        "cost_of_streaming_interval": costs["bucket"].to_json(),
        "cost_when_kept": costs["bucket, warm"].median,
        "step_ms": 1e3 * median(took["folder"]),
        "first_labels_ms": {name: 1e3 * median(values) for name, values in begun.items()},
    }


class Student:
    """A small network that takes steps on drawn images with labels of a store."""

    def __init__(self, columns: int, side: int, width: int) -> None:
        torch.manual_seed(0)
        self._network = build_network("convnet-d3", {"width": width}, classes=columns, size=side)
        self._loss = make_loss(LossSpec(name="gift"))
        self._optimiser = torch.optim.SGD(self._network.parameters(), lr=0.01)
        self._images = torch.randn(BATCH, 3, side, side)

    def train(self, source: Callable[[], LabelStore], steps: int) -> tuple[float, float]:
        """Seconds until the first labels, opening the store included, and of the steps after that."""
        start = time.perf_counter()
        store = source()
        batches = store.stream(requests(store))
        batch = next(batches)
        first = time.perf_counter()
        for _ in range(steps):
            logits, targets = torch.from_numpy(batch.logits), torch.from_numpy(batch.targets)
            loss = self._loss(self._network(self._images[: len(logits)]), logits, targets)
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            self._optimiser.step()
            batch = next(batches)
        return first - start, time.perf_counter() - first


def measure_streams(report: Report, local: LabelStore, folder: Path, rival: str, rounds: int) -> dict[str, Json]:
    """Bytes a second of all codes in stored order, and time of random rows: nothing kept, then all of it."""
    count = local.state.views_sealed * local.identity.images
    size = sum(path.stat().st_size for array in ("labels", "scales") for path in (local.path / array).glob("c.*"))
    order = np.random.default_rng(0).permutation(local.identity.images)[:ROWS]
    contenders: dict[str, tuple[Callable[[Path], Act], Callable[[Path], Act]]] = {
        "giftwrap": (partial(stream_ours, None), partial(rows_ours, order))
    }
    if rival:
        require_same(local, folder)
        contenders[rival] = stream_theirs, partial(rows_theirs, order)
    found: dict[str, Json] = {}
    for name, makers in contenders.items():
        for maker, metric, unit in zip(makers, ("all labels", "random rows"), (size / 1e6, None), strict=True):
            seconds: dict[str, list[float]] = {"cold": [], "warm": []}
            for _ in range(rounds):
                with tempfile.TemporaryDirectory(prefix="kept-", dir=folder) as kept:
                    for state in seconds:
                        start = time.perf_counter()
                        maker(Path(kept))()
                        seconds[state].append(time.perf_counter() - start)
            for state, values in seconds.items():
                shown = [unit / value for value in values] if unit else [1e3 * value for value in values]
                report.add(f"{name}, {state}", metric, shown, "MB/s" if unit else "ms")
                found[f"{name}_{state}_{'MB_s' if unit else f'{ROWS}_random_rows_ms'}"] = median(shown)
    return {**found, "labels": count, "bytes": size}


def stream_ours(_: None, kept: Path) -> Act:
    """All codes of the store in the bucket, in stored order."""
    store = LabelStore.open(address("labels"), cache=PieceCache(kept, CACHE_BYTES))
    return lambda: exhaust(store.stream_codes(requests(store)))


def rows_ours(order: np.ndarray[Any, Any], kept: Path) -> Act:
    """Some codes of the store in the bucket."""
    store = LabelStore.open(address("labels"), cache=PieceCache(kept, CACHE_BYTES))
    return lambda: store.codes(0, order)


def address(name: str) -> str:
    """Of a folder in the bucket."""
    return f"s3://{BUCKET}/{name}"


def write_rival(local: LabelStore, folder: Path) -> str:
    """Write the same codes, a row a sample, as litdata does; its name, or nothing where it cannot be imported."""
    try:
        writer = import_module("litdata.streaming.writer").BinaryWriter(str(folder / RIVAL), chunk_bytes=RIVAL_CHUNK)
    except ImportError:  # of it, or of what it imports
        return ""
    import_module("litdata.streaming.downloader")._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # the bucket is no https
    for number, row in enumerate(rows_of(local)):
        writer[number] = row
    writer.done()
    writer.merge()
    return RIVAL


def require_same(local: LabelStore, folder: Path) -> None:
    """Compare what the rival reads with what was written, before any time is taken."""
    with tempfile.TemporaryDirectory(prefix="compared-", dir=folder) as kept:
        if any(bytes(ours) != theirs for ours, theirs in zip(rival_set(Path(kept)), rows_of(local), strict=True)):
            raise RuntimeError(f"{RIVAL} reads other bytes than were written")


def rows_of(local: LabelStore) -> Iterator[bytes]:
    """Codes and scale of each label, in stored order."""
    for codes in local.stream_codes(requests(local)):
        for row, scale in zip(codes["labels"], codes["scales"], strict=True):
            yield row.tobytes() + scale.tobytes()


def rival_set(kept: Path) -> Any:
    """The data set of litdata in the bucket."""
    found = import_module("litdata").StreamingDataset(address(RIVAL), str(kept), max_cache_size="64GB")
    len(found)  # reads the index
    return found


def stream_theirs(kept: Path) -> Act:
    """All samples in order, as its iterator gives them."""
    found = rival_set(kept)
    return lambda: exhaust(found)


def rows_theirs(order: np.ndarray[Any, Any], kept: Path) -> Act:
    """Some samples by index, each with separate requests, as many at a time as ours."""
    found = rival_set(kept)

    def act() -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            exhaust(pool.map(found.__getitem__, order.tolist()))

    return act
