"""A student trains from a store at the pace of labels in memory: at most 10 % slower on a CPU, 1 % on a GPU.

Fresh crops, drawn and rendered on demand, make a step at most 10 % slower than a store of the same crops. They are
trained with the store's labels, so that the steps are the same.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.fkd_files import Files
from benchmarks.harness import Interval, Report, Timing, interleave, machine
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.spec import Json
from pipeline.build.build import build
from pipeline.config import BuildConfig
from pipeline.device.memory import keep_freed_memory
from pipeline.networks import build_network, save_weights
from pipeline.ranks import Ranks
from trainer.batch import TrainBatch
from trainer.config import TrainConfig
from trainer.loader import Loader
from trainer.material import open_material
from trainer.run import Run, make_run
from trainer.step import step
from trainer.stopping import StopSignals

COST = {"cpu": 0.10, "cuda": 0.01}
FRESH_COST = 0.10  # of fresh crops over a store of them
VIEWS = 8
CLASSES = 10
MOST_ROUNDS = 60


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        network: student and teacher.
        side: of crops in pixels.
        source: height and width of the images in pixels; JPEG where they are larger than crops, PNG where they are not.
        images: of a view, and of a round.
        batch: crops a step.
        rounds: at least.
        workers: processes of FKD's loader.
        seconds: for rounds with a student, and half as many for those without; no more rounds begin after that than
            must be.
    """

    network: str
    side: int
    source: tuple[int, int]
    images: int
    batch: int
    rounds: int
    workers: int
    seconds: float = math.inf


QUICK = Size("convnet-d2", 16, (16, 16), 40, 8, 1, 0), Size("convnet-d2", 24, (40, 50), 40, 8, 1, 0)
SIZES: dict[str, tuple[Size, ...]] = {
    "cpu": (
        Size("resnet18-modified", 32, (32, 32), 128, 32, 9, 2),
        Size("torchvision:resnet18", 224, (375, 500), 128, 32, 9, 2),
    ),
    "cuda": (
        Size("resnet18-modified", 32, (32, 32), 4_096, 256, 4, 8, seconds=14),  # one: time on a GPU is short
    ),
}


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Crops with their labels from the store, as FKD keeps them, and by a teacher: alone, and in epochs of a student.

    The student's steps are measured at the smaller side, where it leaves least room for anything else.
    """
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = QUICK if quick else SIZES[device]
    values: dict[str, Any] = {}
    for size in sizes:
        values |= measure(report, size, device, train=size is sizes[0])
    ahead = [values[f"cpu_of_fkd_{size.side}px"][2] < 1 for size in sizes]
    kept = values["streaming_cost"][2] <= COST[device] and values["fresh_cost"][2] <= FRESH_COST and all(ahead)
    return {
        **values,
        "intervals": "median, and where it lies with 95 % confidence",
        "promised": {
            "streaming_cost": COST[device],
            "fresh_cost": FRESH_COST,
            **{f"cpu_of_fkd_{size.side}px": 1 for size in sizes},
        },
        **({} if quick else {"kept": kept}),
        "machine": machine(),
    }


def measure(report: Report, size: Size, device: str, *, train: bool) -> dict[str, Any]:
    """All ways at one size: crops a second and processor time a crop without a student, then the time of a step."""
    with tempfile.TemporaryDirectory(dir=report.folder, prefix="step-") as folder, torch.random.fork_rng():
        config = prepare(Path(folder), size, device)
        online = open_material(labelled_online(config, Path(folder), size), Ranks(), None)
        fresh = open_material(cut_anew(config, size), Ranks(), VIEWS)
        with (
            closing(make_run(config, Ranks(), StopSignals())) as student,
            closing(online),
            closing(online.loader),
            closing(fresh.loader),
        ):
            for loader in (online.loader, fresh.loader):
                loader.channels_last = student.replay.channels_last
            ways = contenders(student, online.loader, fresh.loader, Path(folder), size)
            loading = interleave(
                {name: way.load for name, way in ways.items() if name != "memory"},
                size.rounds if size.seconds == math.inf else 1,
                until=in_time(
                    size.seconds / 2, lambda timing: timing.interval("store", "FKD's files", "cpu").width < 0.1
                ),
                most=MOST_ROUNDS,
            )
            training = train_in_turns(ways, size, COST[device]) if train else None
    side, steps = f"{size.side} px", -(-size.images // size.batch)
    for name in loading.wall:
        report.add(f"{name}, {side}", "crops with labels", [size.images / s for s in loading.wall[name]], "crops/s")
        report.add(f"{name}, {side}", "processor time a crop", [1e3 * s / size.images for s in loading.cpu[name]], "ms")
    found: dict[str, Any] = {
        f"crops_per_second_{size.side}px": loading.rate("store", size.images)["wall"],
        f"cpu_of_fkd_{size.side}px": loading.interval("store", "FKD's files", "cpu").to_json(),
    }
    if training is None:
        return found
    for name in training.wall:
        report.add(f"{name}, {side}", "step", [1e3 * second / steps for second in training.wall[name]], "ms")
        report.add(f"{name}, {side}", "processor time of a step", [1e3 * s / steps for s in training.cpu[name]], "ms")
    return {
        "streaming_cost": above_one(training.interval("store", "memory")),
        "fresh_cost": above_one(training.interval("fresh crops", "store")),
        "over_fkd_loader": training.speedup("store", "FKD's files"),
        "over_online_teacher": training.speedup("store", "online teacher"),
        "steps_per_second": steps / median(training.wall["store"]),
        "rounds": training.rounds,
        "student": size.network,
        "batch": size.batch,
        **found,
    }


def above_one(ratio: Interval) -> list[float]:
    """A ratio of times as the share that the first takes longer: median, low, high."""
    return [ratio.median - 1, ratio.low - 1, ratio.high - 1]


def train_in_turns(ways: Mapping[str, Way], size: Size, narrow: float) -> Timing:
    """Epochs of the student by each way, until the cost of the store is determined to within the interval's width.

    The cost of fresh crops likewise, to within what is promised of it.
    """
    return interleave(
        {name: way.epoch for name, way in ways.items()},
        size.rounds,
        until=in_time(
            size.seconds,
            lambda timing: (
                timing.interval("store", "memory").width < narrow
                and timing.interval("fresh crops", "store").width < FRESH_COST
            ),
        ),
        most=MOST_ROUNDS,
    )


def in_time(seconds: float, enough: Callable[[Timing], bool]) -> Callable[[Timing], bool]:
    """Whether rounds were enough, or took all the time that there is."""
    start = time.monotonic()
    return lambda timing: enough(timing) or time.monotonic() - start > seconds


def prepare(folder: Path, size: Size, device: str) -> TrainConfig:
    """Drawn images, a random teacher and its store of CutMix crops; the run that trains from it."""
    torch.manual_seed(0)
    images, weights = draw_set(folder / "images", size.images, size.source), folder / "teacher.safetensors"
    teacher = build_network(size.network, {}, CLASSES, size=size.side)
    save_weights(teacher.state_dict(), weights)
    store = from_flags(
        BuildConfig,
        images=images,
        teacher=(size.network,),
        weights=(str(weights),),
        size=size.side,
        views=VIEWS,
        store=folder / "store",
        mix="cutmix",
        group=size.batch,
        encoding="float16",
        device=device,
        decoder="cpu",  # needs no DALI
    )
    build(store, Console(as_json=True))
    return from_flags(
        TrainConfig,
        store=store.store,
        images=images,
        student=size.network,
        epochs=1_000,
        batch_size=size.batch,
        run_folder=folder / "run",
        view_order="cycle",
        device=device,
    )


def labelled_online(config: TrainConfig, folder: Path, size: Size) -> TrainConfig:
    """The same run with the store's crops labelled again by its teacher, on their way."""
    weights = (str(folder / "teacher.safetensors"),)
    return changed(config, labels="online", teacher=(size.network,), weights=weights)


def cut_anew(config: TrainConfig, size: Size) -> TrainConfig:
    """The same run on fresh crops, of the plan that the store was built by."""
    return changed(
        config,
        store=None,
        labels="none",
        loss="ce",
        size=size.side,
        mix="cutmix",
        group=size.batch,
        plan_seed=0,
        views=VIEWS,
    )


def draw_set(folder: Path, count: int, source: tuple[int, int]) -> Path:
    """A class folder of ``count`` smooth pictures: small ones without loss, large ones as JPEG."""
    generator, (height, width) = np.random.default_rng(0), source
    for target in range(CLASSES):
        (folder / f"class {target}").mkdir(parents=True)
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
        path = folder / f"class {index % CLASSES}" / f"{index:06d}"
        if max(source) > 100:
            picture.save(path.with_suffix(".jpg"), quality=90)
        else:
            picture.save(path.with_suffix(".png"), compress_level=1)
    return folder


@dataclass(frozen=True)
class Way:
    """A way to come by crops and labels.

    Attributes:
        run: trains.
        batches: gives an epoch.
    """

    run: Run
    batches: Callable[[], Iterable[TrainBatch]]

    def load(self) -> None:
        """Take an epoch's crops and labels, and do nothing with them."""
        for batch in self.batches():
            del batch
        if self.run.total.is_cuda:
            torch.cuda.synchronize()

    def epoch(self) -> None:
        """Train on an epoch, and wait for the GPU where there is one."""
        for batch in self.batches():
            step(self.run, batch)
            self.run.stop_conditions.between_steps()
        if self.run.total.is_cuda:
            torch.cuda.synchronize()


def contenders(run: Run, online: Loader, fresh: Loader, folder: Path, size: Size) -> dict[str, Way]:
    """Every way, after its first batch was compared with the store's."""
    run.network.train()
    held = list(run.replay)
    files = Files(run, folder / "fkd", batch=size.batch, side=size.side, workers=size.workers)
    ways = {
        "memory": Way(run, lambda: held),
        "store": Way(run, lambda: run.replay),
        "fresh crops": Way(
            run, lambda: (replace(batch, logits=of.logits) for batch, of in zip(fresh, held, strict=True))
        ),
        "FKD's files": Way(run, files.batches),
        "online teacher": Way(run, lambda: online),
    }
    require_alike("FKD's files", next(iter(files.batches())), held[0])
    for name in ("fresh crops", "online teacher"):
        first, *_ = ways[name].batches()  # the whole epoch: the next one begins with its first batch
        require_alike(name, first, held[0])
    return ways


def labelled(crops: Iterable[TrainBatch], labels: Iterable[TrainBatch]) -> Iterator[TrainBatch]:
    """Batches of crops with the logits of other batches of the same size."""
    for batch, other in zip(crops, labels, strict=True):
        yield replace(batch, logits=other.logits)


def require_alike(name: str, found: TrainBatch, wanted: TrainBatch) -> None:
    """Compare a batch with the one from the store."""
    for column, limit in (("images", 1e-3), ("logits", 1e-2), ("lam", 1e-5), ("targets", 0), ("targets2", 0)):
        apart = (getattr(found, column).float() - getattr(wanted, column).float()).abs().max()
        if apart > limit:
            raise RuntimeError(f"{name}: other {column} than the store's, {float(apart):.3g} apart")
