"""Labels are read as fast as the disk gives them, random rows at 1 M rows/s, and a transform at 50 k rows/s decoded."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from benchmarks.drawn import Drawn
from benchmarks.harness import Report, interleave, machine
from labelstore import LabelStore
from labelstore.access.streaming import Request
from labelstore.operations.convert import convert
from labelstore.spec import Json
from trainer.order import Order

PROMISED: dict[str, float] = {
    "stream_share_of_disk": 0.7,
    "int8_rows_per_s": 1e6,
    "float16_rows_per_s": 1e6,
    "transform_codes_per_s": 330e3,
    "transform_rows_per_s": 50e3,
    "replay_share_of_stream": 0.5,
}
BATCH = 256
STEP = 2.0  # of the transform: some 120 bytes a label
READ_BYTES = 8 << 20

Int64Array = npt.NDArray[np.int64]
Rates = dict[str, list[float]]
Stores = Mapping[str, LabelStore]


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Read drawn labels of 1000 columns, some 2 GB of them, from a folder beside the report, removed afterwards."""
    images, columns, views, rounds = (2_048, 100, 4, 1) if quick else (65_536, 1_000, 8, 5)
    with tempfile.TemporaryDirectory(dir=report.folder, prefix="read-") as folder:
        root = Path(folder)
        drawn = Drawn(images, columns, views)
        stores = {name: drawn.store(root / name, {"name": name}) for name in ("float16", "int8")}
        stores["transform"] = convert(
            stores["float16"], root / "transform", {"name": "transform", "step": STEP}, views=4
        )
        streams = measure_streams(report, stores, rounds)
        rows = measure_rows(report, stores, root, rounds, quick=quick)
    values: dict[str, Json] = {**streams, **rows}
    return {
        **values,
        "columns": columns,
        "batch": BATCH,
        "promised": {**PROMISED},
        "kept": all(float(str(values[name])) >= least for name, least in PROMISED.items()),
        "machine": machine(),
    }


def measure_streams(report: Report, stores: Stores, rounds: int) -> dict[str, Json]:
    """Whole stores from a cold page cache: in stored order, played again, and as plain sequential reads.

    A view that is played again is gathered, which copies every row; in stored order a batch of codes is shown where it
    lies in the file. So the two are compared by the labels in float32, and by codes that are copied both times, as
    every step of a training does.
    """
    for store in stores.values():
        require_same_streams(store)
    shares, replays, rates = [], [], {}
    for name, store in stores.items():
        found = measure_stream(report, name, store, rounds)
        rates[name] = {key: median(values) for key, values in found.items()}
        replays += [
            rates[name]["codes again"] / rates[name]["codes copied"],
            rates[name]["labels again"] / rates[name]["labels"],
        ]
        if name != "transform":
            shares.append(median(ours / disk for ours, disk in zip(found["codes"], found["disk"], strict=True)))
    return {
        "stream_share_of_disk": min(shares),
        "replay_share_of_stream": min(replays),
        "transform_rows_per_s": rates["transform"]["labels"],
        "transform_codes_per_s": rates["transform"]["codes"],
        "streamed_rows_per_s": {name: {**values} for name, values in rates.items()},
    }


def measure_stream(report: Report, name: str, store: LabelStore, rounds: int) -> Rates:
    """Rows a second of one store, candidate by candidate, each from a cold page cache."""
    files = [path for array in ("labels", "scales") for path in sorted((store.path / array).glob("c.*"))]
    rows = sorted((store.path / "rows").glob("c.*"))
    count = store.state.views_sealed * store.identity.images
    candidates: dict[str, Callable[[], object]] = {
        "disk": lambda: read_files(files),
        "codes": lambda: exhaust(store.stream_codes(requests(store))),
        "codes copied": lambda: exhaust(map(copied, store.stream_codes(requests(store)))),
        "codes again": lambda: exhaust(store.stream_codes(requests(store, again=True))),
        "labels": lambda: exhaust(store.stream(requests(store))),
        "labels again": lambda: exhaust(store.stream(requests(store, again=True))),
    }
    rates: Rates = {candidate: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate, act in candidates.items():
            forget([*files, *rows])
            start = time.perf_counter()
            act()
            rates[candidate].append(count / (time.perf_counter() - start))
    size = sum(path.stat().st_size for path in files) / count
    for candidate, values in rates.items():
        contender = "plain sequential reads" if candidate == "disk" else f"stream of {candidate}"
        report.add(f"{name}, {contender}", "rate", values, "rows/s")
        report.add(f"{name}, {contender}", "rate of codes", [size * value / 1e6 for value in values], "MB/s")
    return rates


def measure_rows(report: Report, stores: Stores, root: Path, rounds: int, *, quick: bool) -> dict[str, Json]:
    """Random rows of one view in batches, everything in memory; beside a plain memory map, tensorstore and zarr."""
    batches, few = (20, 2) if quick else (1_000, 10)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, stores["int8"].identity.images, BATCH) for _ in range(batches)]
    plain = memmap(stores["int8"], root / "plain.npy")
    path = stores["int8"].path / "labels"
    array: Any = zarr.open_array(path, mode="r")
    readers: dict[str, tuple[int, Callable[[Int64Array], Any]]] = {
        "memmap": (batches, lambda rows: plain[rows]),
        "int8": (batches, lambda rows: stores["int8"].codes(0, rows)["labels"]),
        "float16": (batches, lambda rows: stores["float16"].codes(0, rows)["labels"]),
        "int8 labels": (batches, lambda rows: stores["int8"].read(0, rows).logits),
        "float16 labels": (batches, lambda rows: stores["float16"].read(0, rows).logits),
        "zarr": (few, lambda rows: array.oindex[0, rows]),
    }
    if importlib.util.find_spec("tensorstore"):
        opened = open_tensorstore(path)
        readers["tensorstore"] = few, lambda rows: opened[0, rows].read().result()
    for name in ("int8", "zarr", "tensorstore"):
        if name in readers and not np.array_equal(readers[name][1](drawn[0]), plain[drawn[0]]):
            raise RuntimeError(f"other rows than {name}'s")
    timing = interleave(
        {name: partial(read_all, read, drawn[:count]) for name, (count, read) in readers.items()},
        rounds,
    )
    rates = {name: [count * BATCH / second for second in timing.wall[name]] for name, (count, _) in readers.items()}
    for name, values in rates.items():
        report.add(f"{name}, random rows", "rate", values, "rows/s")
    return {f"{name.replace(' ', '_')}_rows_per_s": median(values) for name, values in rates.items()}


def requests(store: LabelStore, *, again: bool = False) -> Iterator[Request]:
    """Every view in batches, as an epoch plays it for the first time, or again in windows (P5)."""
    views, images = store.state.views_sealed, store.identity.images
    order = Order(views=views, images=images, mode="cycle")
    for view in range(views):
        for start in range(0, images, BATCH):
            yield view, order.positions(view + views * again, start, min(start + BATCH, images))


def require_same_streams(store: LabelStore) -> None:
    """Compare what streams give with what is read row by row."""
    last = store.state.views_sealed - 1
    whole = store.codes(last, slice(None))
    for again in (False, True):
        asked = [request for request in requests(store, again=again) if request[0] == last]
        for (_, positions), codes in zip(asked, store.stream_codes(asked), strict=True):
            if any(not np.array_equal(codes[name], whole[name][np.asarray(positions)]) for name in whole):
                raise RuntimeError(f"{store}: other codes in the stream")


def read_all(read: Callable[[Int64Array], object], batches: Iterable[Int64Array]) -> None:
    """Read batches one after another."""
    for rows in batches:
        read(rows)


def exhaust(items: Iterable[object]) -> None:
    """Take all and keep none."""
    for _ in items:
        pass


def copied(codes: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Codes in separate memory."""
    return [array.copy() for array in codes.values()]


def read_files(files: Iterable[Path]) -> None:
    """Sequential reads, as fast as they come."""
    buffer = bytearray(READ_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def forget(files: Iterable[Path]) -> None:
    """Drop files from the page cache; what is mapped stays, so maps go first."""
    gc.collect()
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memmap(store: LabelStore, path: Path) -> npt.NDArray[Any]:
    """The codes of view 0 in a file of nothing else."""
    np.save(path, store.codes(0, slice(None))["labels"])
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def open_tensorstore(path: Path) -> Any:
    """An array as tensorstore opens it."""
    tensorstore: Any = importlib.import_module("tensorstore")
    return tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result()
