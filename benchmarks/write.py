"""Blocks are written, checked and flushed at no less than half of the rate of plain flushed torch.save files."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.drawn import Drawn
from benchmarks.harness import Report, machine
from labelstore import BlockData, BlockIndex, LabelStore, check
from labelstore.spec import Json

PROMISED = 0.5


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Write the same codes of 1000 columns as stores and as torch files, in a folder beside the report."""
    images, columns, views, rounds = (2_048, 100, 4, 1) if quick else (16_384, 1_000, 16, 5)
    drawn = Drawn(images, columns, views)
    with tempfile.TemporaryDirectory(dir=report.folder, prefix="write-") as folder:
        shares = {}
        for name in ("float16", "int8"):
            with tempfile.TemporaryDirectory(dir=folder) as inner:
                shares[name] = measure(report, Path(inner), drawn, name, rounds)
    least = min(share["codes"] for share in shares.values())
    return {
        "share_of_torch_save": least,
        "from_codes": {name: share["codes"] for name, share in shares.items()},
        "from_float32_labels": {name: share["labels"] for name, share in shares.items()},
        "columns": columns,
        "promised": PROMISED,
        "kept": least >= PROMISED,
        "machine": machine(),
    }


def measure(report: Report, folder: Path, drawn: Drawn, name: str, rounds: int) -> dict[str, float]:
    """Shares of the rate of torch.save: of blocks whose codes are made already, and of float32 labels."""
    empty = drawn.create(folder / "empty", {"name": name})
    blocks = empty.missing()
    made = [drawn.block(empty, block) for block in blocks[:2]]
    with empty.lease() as writer, writer.queue() as write:
        for block, data in zip(blocks[:2], made, strict=True):
            write(block, data)
    follower = LabelStore.open(empty.path, follow=True)
    known = [known_codes(follower, block, data) for block, data in zip(blocks, made, strict=False)]
    files = [{**(data.codes or {}), "rows": data.rows} for data in known]
    size = len(blocks) * sum(array.nbytes for array in files[-1].values())

    def store(blocks_made: list[BlockData]) -> Callable[[Path], None]:
        def act(place: Path) -> None:
            made_store = drawn.create(place / "store", {"name": name})
            with made_store.lease() as writer:
                with writer.queue() as write:
                    for number, block in enumerate(blocks):
                        write(block, blocks_made[min(number, 1)])
                writer.seal()

        return act

    def torch_files(place: Path) -> None:
        (place / "torch").mkdir()
        for number in range(len(blocks)):
            tensors = {key: torch.from_numpy(array) for key, array in files[min(number, 1)].items()}
            with (place / "torch" / f"{number}.pt").open("xb") as file:
                torch.save(tensors, file)
                file.flush()
                os.fsync(file.fileno())

    contenders = {"codes": store(known), "labels": store(made), "torch.save": torch_files}
    rates: dict[str, list[float]] = {contender: [] for contender in contenders}
    for number in range(rounds + 1):  # the first one is for what is done once
        for contender, act in contenders.items():
            use_memory(folder, 3 * size // 2)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                start = time.perf_counter()
                act(Path(place))
                seconds = time.perf_counter() - start
                if number:
                    rates[contender].append(size / seconds / 1e6)
                else:
                    require_same(Path(place), contender, files)
    for contender, values in rates.items():
        report.add(f"{name}, {contender}", "rate", values, "MB/s")
    return {
        contender: median(ours / theirs for ours, theirs in zip(rates[contender], rates["torch.save"], strict=True))
        for contender in ("codes", "labels")
    }


def use_memory(folder: Path, size: int) -> None:
    """Let the page cache have ``size`` bytes and give them back: a virtual machine's first use of memory is slow."""
    piece = bytes(1 << 20)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(0, size, len(piece)):
            file.write(piece)


def known_codes(store: LabelStore, block: BlockIndex, data: BlockData) -> BlockData:
    """The block with its codes, made already."""
    each = [store.codes(view, slice(*store.positions(block))) for view in range(*store.block_views(block))]
    return replace(data, codes={name: np.stack([codes[name] for codes in each]) for name in each[0]})


def require_same(folder: Path, contender: str, files: list[dict[str, np.ndarray]]) -> None:
    """Compare what was written with what was given."""
    if contender == "torch.save":
        found = torch.load(folder / "torch" / "1.pt", weights_only=True)
        same = all(np.array_equal(found[key].numpy(), array) for key, array in files[1].items())
    else:
        store = LabelStore.open(folder / "store")
        first = store.block_views(store.sealed_blocks()[1])[0]
        codes = store.codes(first, slice(None))
        same = check(store.path).ok and all(np.array_equal(codes[key], files[1][key][0]) for key in codes)
    if not same:
        raise RuntimeError(f"other codes than were written: {contender}")
