"""A student trains from a store at the pace of labels in memory: at most 10 % slower on a CPU, 3 % on a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from benchmarks.harness import Report, interleave, machine
from labelstore.columns import CropRows
from labelstore.console import Console
from labelstore.spec import Json
from pipeline.build import build
from pipeline.config import BuildConfig
from pipeline.memory import keep_freed_memory
from pipeline.networks import build_network, load_network, save_weights
from pipeline.ranks import Ranks
from trainer.batch import TrainBatch
from trainer.config import TrainConfig
from trainer.run import Run, make_run
from trainer.step import step
from trainer.stopping import Stops

COST = {"cpu": 0.10, "cuda": 0.03}
VIEWS = 16
CLASSES = 10


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        network: student and teacher.
        side: of images and crops in pixels.
        images: of a view, and of a round.
        batch: crops a step.
        rounds: that count.
        workers: processes of FKD's loader.
    """

    network: str
    side: int
    images: int
    batch: int
    rounds: int
    workers: int


QUICK = Size("convnet-d2", 16, 40, 8, 1, 0)
SIZES = {
    "cpu": Size("resnet18-modified", 32, 128, 32, 7, 2),
    "cuda": Size("resnet18-modified", 32, 8_192, 256, 5, 8),
}


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Train epochs of one student in turns: labels in memory, from the store, as FKD keeps them, by a teacher."""
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = QUICK if quick else SIZES[device]
    with tempfile.TemporaryDirectory(dir=report.folder, prefix="step-") as folder, torch.random.fork_rng():
        config = prepare(Path(folder), size, device)
        with closing(make_run(config, Ranks(), Stops())) as student:
            ways = contenders(student, Path(folder), size)
            timing = interleave({name: way.epoch for name, way in ways.items()}, size.rounds)
    steps = -(-size.images // size.batch)
    for name, seconds in timing.wall.items():
        report.add(name, "step", [1e3 * second / steps for second in seconds], "ms")
    pairs = zip(timing.wall["store"], timing.wall["memory"], strict=True)
    cost = median(ours / memory for ours, memory in pairs) - 1
    return {
        "streaming_cost": cost,
        "over_fkd_loader": timing.speedup("store", "FKD's files"),
        "over_online_teacher": timing.speedup("store", "online teacher"),
        "steps_per_second": steps / median(timing.wall["store"]),
        "student": size.network,
        "batch": size.batch,
        "side": size.side,
        "promised": {"streaming_cost": COST[device]},
        **({} if quick else {"kept": cost <= COST[device]}),
        "machine": machine(),
    }


def prepare(folder: Path, size: Size, device: str) -> TrainConfig:
    """Drawn images, a random teacher and its store of CutMix crops; the run that trains from it."""
    torch.manual_seed(0)
    images, weights = draw_set(folder / "images", size.images, size.side), folder / "teacher.safetensors"
    teacher = build_network(size.network, {}, CLASSES, size=size.side)
    save_weights(teacher.state_dict(), weights)
    store = BuildConfig(
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
    return TrainConfig(
        store=store.store,
        images=images,
        student=size.network,
        epochs=1_000,
        batch_size=size.batch,
        run=folder / "run",
        view_order="cycle",
        device=device,
    )


def draw_set(folder: Path, count: int, side: int) -> Path:
    """A class folder of ``count`` small smooth pictures without loss."""
    generator = np.random.default_rng(0)
    for target in range(CLASSES):
        (folder / f"class {target}").mkdir(parents=True)
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        picture = coarse.resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"class {index % CLASSES}" / f"{index:06d}.png", compress_level=1)
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

    def epoch(self) -> None:
        """Train on an epoch, and wait for the GPU where there is one."""
        for batch in self.batches():
            step(self.run, batch)
            self.run.guard.between_steps()
        if self.run.total.is_cuda:
            torch.cuda.synchronize()


def contenders(run: Run, folder: Path, size: Size) -> dict[str, Way]:
    """Every way, after its first batch was compared with the store's."""
    run.network.train()
    held = list(run.replay)
    teacher, _ = load_network(size.network, {}, str(folder / "teacher.safetensors"), classes=CLASSES, size=size.side)
    online = Online(run, teacher.to(run.config.device, memory_format=torch.channels_last).eval())  # type: ignore[call-overload]
    files = Files(run, folder / "fkd", size)
    ways = {
        "memory": Way(run, lambda: held),
        "store": Way(run, lambda: run.replay),
        "FKD's files": Way(run, files.batches),
        "online teacher": Way(run, online.batches),
    }
    require_alike("FKD's files", next(iter(files.batches())), held[0])
    require_alike("online teacher", online.label(held[0]), held[0])
    return ways


def require_alike(name: str, found: TrainBatch, wanted: TrainBatch) -> None:
    """Compare a batch with the one from the store."""
    for column, limit in (("images", 1e-3), ("logits", 1e-2), ("lam", 1e-5), ("targets", 0), ("targets2", 0)):
        apart = (getattr(found, column).float() - getattr(wanted, column).float()).abs().max()
        if apart > limit:
            raise RuntimeError(f"{name}: other {column} than the store's, {float(apart):.3g} apart")


@dataclass(frozen=True)
class Online:
    """The store's crops, labelled again by the teacher in every step."""

    run: Run
    teacher: nn.Module

    def label(self, batch: TrainBatch) -> TrainBatch:
        """The batch with the teacher's labels."""
        with torch.inference_mode():
            logits: Tensor = self.teacher(batch.images)
        return replace(batch, logits=logits.clone())

    def batches(self) -> Iterator[TrainBatch]:
        """An epoch."""
        return map(self.label, self.run.replay)


class Files:
    """The first view as FKD of SRe2L has it: a pickle a batch, crops by Pillow in workers, mixed in the loop."""

    def __init__(self, run: Run, folder: Path, size: Size) -> None:
        folder.mkdir()
        self._run, replay = run, run.replay
        source, identity = replay.source, replay.store.identity
        spans = [slice(start, start + size.batch) for start in range(0, identity.images, size.batch)]
        batches = [replay.store.read(0, span) for span in spans]
        for number, batch in enumerate(batches):
            torch.save(record(batch.rows, batch.logits, size.side), folder / f"batch_{number}.tar")
        teacher: Any = identity.require("teacher")
        crops = Crops(
            [[source.manifest.file(image) for image in batch.rows.image.tolist()] for batch in batches],
            folder,
            size.side,
            (list(teacher["mean"]), list(teacher["std"])),
        )
        self._targets = [torch.from_numpy(batch.targets) for batch in batches]
        self._loader: DataLoader[Any] = DataLoader(
            crops,
            batch_size=None,
            num_workers=size.workers,
            persistent_workers=bool(size.workers),
            multiprocessing_context="forkserver" if size.workers else None,
        )

    def batches(self) -> Iterator[TrainBatch]:
        """An epoch."""
        device = torch.device(self._run.config.device)
        for targets, (images, (_, _, partners, lam, (top, left, height, width), logits)) in zip(
            self._targets, self._loader, strict=True
        ):
            pixels = images.to(device, memory_format=torch.channels_last)
            rows, columns = slice(top, top + height), slice(left, left + width)
            mixed = pixels.clone()
            mixed[:, :, rows, columns] = pixels[partners.to(device)][:, :, rows, columns]
            own = targets.to(device)
            yield TrainBatch(
                images=mixed,
                logits=logits.to(device),
                targets=own,
                targets2=own[partners.to(device)],
                lam=torch.full((len(own),), lam, device=device),
                index=own,
                view=own,
                position=own,
                total=len(own),
            )


def record(rows: CropRows, logits: Any, size: int) -> list[Any]:
    """What FKD saves of a batch: boxes, flips, partners, weight, CutMix box, float16 logits."""
    own = float(rows.weights(size)[0])
    boxes = torch.from_numpy(rows.boxes())
    mix_box = [int(edge) for edge in rows.mix_boxes()[0]]
    partners = torch.from_numpy(rows.partners(len(rows)))
    return [boxes, torch.from_numpy(rows.flip), partners, own, mix_box, torch.from_numpy(logits).half()]


class Crops(Dataset[tuple[Tensor, list[Any]]]):
    """Batches of crops from image files, by their records."""

    def __init__(
        self, files: list[list[Path]], folder: Path, side: int, normalisation: tuple[list[float], list[float]]
    ) -> None:
        self._files, self._folder, self._side, self._normalisation = files, folder, side, normalisation

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[Tensor, list[Any]]:
        """Crops before mixing, float32 ``[n, 3, S, S]``, and the record."""
        saved = torch.load(self._folder / f"batch_{number}.tar")
        crops = []
        for file, box, flip in zip(self._files[number], saved[0].tolist(), saved[1].tolist(), strict=True):
            with Image.open(file) as picture:
                crop = functional.resized_crop(picture.convert("RGB"), *box, [self._side, self._side])
            pixels = functional.to_tensor(functional.hflip(crop) if flip else crop)
            crops.append(functional.normalize(pixels, *self._normalisation))
        return torch.stack(crops), saved
