"""Labels of SRe2L become a store, flushed, at no less than a twentieth of the rate of reading them with torch.load."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Report, machine
from benchmarks.write import use_memory
from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.spec import Json
from pipeline.adopt.adopting import Work, open_for, prepare, write
from pipeline.adopt.config import AdoptConfig
from pipeline.adopt.epochs import SEED
from pipeline.adopt.orders import SamplerOrder

PROMISED = 0.05
SIDE, BATCH = 16, 1_024


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Adopt the same folder into one store after the other, and read its files, in turns."""
    classes, per_class, epochs, rounds = (10, 26, 2, 1) if quick else (1_000, 10, 8, 5)
    with tempfile.TemporaryDirectory(dir=report.folder, prefix="adopt-") as place:
        folder = Path(place)
        files = write_labels(folder, classes, per_class, epochs)
        size = sum(file.stat().st_size for file in files)
        config = AdoptConfig(labels=folder / "labels", store=folder / "store", images=folder / "images", size=SIDE)
        work = prepare(config, Console(silent=True), None)

        def adopted(at: Path) -> None:
            into = AdoptConfig(labels=config.labels, store=at / "store", images=config.images, size=SIDE)
            write(into, work, open_for(into, work, None, Console(silent=True)), Console(silent=True))

        def loaded(_at: Path) -> None:
            for file in files:
                torch.load(file, weights_only=False)  # as their loader does; this program wrote them

        rates = measure(folder, size, rounds, work, {"adopt": adopted, "torch.load": loaded})
        work.renderer.close()
    for name, values in rates.items():
        report.add(name, "rate", values, "MB/s")
    share = median(ours / theirs for ours, theirs in zip(rates["adopt"], rates["torch.load"], strict=True))
    return {
        "share_of_torch_load": share,
        "labels_per_second": median(rates["adopt"]) * 1e6 / size * classes * per_class * epochs,
        "columns": classes,
        "promised": PROMISED,
        "kept": share >= PROMISED,
        "machine": machine(),
    }


def measure(
    folder: Path, size: int, rounds: int, work: Work, contenders: dict[str, Callable[[Path], None]]
) -> dict[str, list[float]]:
    """MB of files a second, round by round; the first round is compared and does not count."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, act in contenders.items():
            use_memory(folder, 3 * size // 2)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                start = time.perf_counter()
                act(Path(place))
                seconds = time.perf_counter() - start
                if number:
                    rates[name].append(size / seconds / 1e6)
                elif name == "adopt":
                    require_same(Path(place) / "store", work)
    return rates


def write_labels(folder: Path, classes: int, per_class: int, epochs: int) -> list[Path]:
    """Images of one colour, and files of labels as SRe2L writes them that agree with their folders."""
    for target in range(classes):
        (folder / "images" / f"{target:04d}").mkdir(parents=True)
        for image in range(per_class):
            colour = (target % 256, target // 256, image)
            Image.new("RGB", (SIDE, SIDE), colour).save(folder / "images" / f"{target:04d}" / f"{image:02d}.png")
    images, files = classes * per_class, []
    order, draws = SamplerOrder(images, SEED, 2), torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        (folder / "labels" / f"epoch_{epoch}").mkdir(parents=True)
        for number, some in enumerate(np.split(order.images(epoch), range(BATCH, images, BATCH))):
            logits = torch.randn((len(some), classes), generator=draws)
            logits[torch.arange(len(some)), torch.from_numpy(some // per_class)] += 8
            record: list[Any] = [
                torch.tensor([[0.25, 0.25, 0.5, 0.5]]).repeat(len(some), 1),
                torch.rand(len(some), generator=draws) < 0.5,
                torch.randperm(len(some), generator=draws),
                0.75,
                [*map(np.int64, (0, 0, SIDE // 2, SIDE // 2))],
                logits.half(),
            ]
            files.append(folder / "labels" / f"epoch_{epoch}" / f"batch_{number}.tar")
            torch.save(record, files[-1])
    return files


def require_same(store: Path, work: Work) -> None:
    """Compare what was adopted with the files, at the first and the last view."""
    opened = LabelStore.open(store)
    for view in (0, work.labels.views - 1):
        theirs = work.labels.crops(view, 0, min(BATCH, work.labels.images))
        ours = opened.read(view, slice(0, len(theirs.rows)))
        if not (np.array_equal(ours.logits, theirs.logits) and np.array_equal(ours.rows.values, theirs.rows.values)):
            raise RuntimeError("other labels than the files hold")
