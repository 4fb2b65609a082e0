"""The part `generate` of `benchmarks.gpu`: a generator is trained and draws images, on a GPU or small on a CPU."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.generate import PROMISED, drawn_again, share_of_backbone, ways
from benchmarks.gpu_inputs import folder_of
from benchmarks.harness import Report, interleave, wait_for
from benchmarks.step import draw_set
from benchmarks.syncs import Waits
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.operations.generator import GENERATOR_WEIGHTS
from labelstore.spec import Json
from pipeline.ranks import Ranks
from pipeline.synthesis.config import SynthesizeConfig
from pipeline.synthesis.generator import Generation, Generator, load_generator
from pipeline.synthesis.synthesize import synthesize
from trainer.generator_config import GeneratorConfig
from trainer.generator_run import make_generator_run
from trainer.run import Run
from trainer.step import step as take_step
from trainer.stopping import StopSignals

FALLEN = 0.8  # of the first loss, that the last one may be at most
DATA = "GIFTWRAP_DATA"  # its cifar10/train is learned where it is there


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done.

    Attributes:
        images: that are drawn to be learned, where there are no others.
        backbone: its name.
        args: other numbers of it, as JSON.
        dtype: its precision.
        lr: learning rate.
        batch: images a step; divides their number, since a short batch would be compiled again.
        warm: steps that are not timed; the first ones compile.
        timed: steps after them.
        counted: steps after those, whose waits for the GPU are counted.
        drawn: images that are sampled at a time.
        steps: calls of the backbone for each of them.
        rounds: of the timing.
    """

    images: int
    backbone: str
    args: str
    dtype: str
    lr: float
    batch: int
    warm: int
    timed: int
    counted: int
    drawn: int
    steps: int
    rounds: int


REAL = Size(
    images=10_000, backbone="uvit-s", args="{}", dtype="bfloat16", lr=5e-4, batch=125, warm=20, timed=50, counted=40,
    drawn=256, steps=25, rounds=3,
)  # fmt: skip
TOY = Size(
    images=40, backbone="uvit-xs", args='{"dim": 16, "depth": 2, "heads": 2}', dtype="bfloat16", lr=1e-2, batch=20,
    warm=2, timed=16, counted=8, drawn=10, steps=2, rounds=1,
)  # fmt: skip


def generate(report: Report, device: torch.device, *, size: Size | None = None) -> dict[str, Json]:
    """Steps a second of a U-ViT-S at 32 px, eager and compiled, and images a second with their share of the ceiling.

    The loss of either training must fall, no step may wait for the GPU unasked, and samples must be finite, the same
    when they are drawn again, and at least at 0.9 of the rate of the backbone's calls.
    """
    on_gpu = device.type == "cuda"
    size = size or (REAL if on_gpu else TOY)
    images = learned(folder_of(report), size)
    found: dict[str, Any] = {"eager": trained(report, device, images, size, compiled=False)}
    if on_gpu:
        found["compiled"] = trained(report, device, images, size, compiled=True)
    run = folder_of(report) / "eager"
    model = load_generator(run)
    model.backbone.to(device)
    model.vae.to(device)
    start = time.perf_counter()
    sampled = samples(report, device, model, size)
    sampled["files"] = files(report, device, run, size)
    found["sampled"] = {**sampled, "seconds": round(time.perf_counter() - start, 1)}
    trainings = [found[name] for name in ("eager", "compiled") if name in found]
    kept = all(each["loss"]["last"] <= FALLEN * each["loss"]["first"] and not each["hidden"] for each in trainings)
    kept &= bool(sampled["finite"]) and bool(sampled["same"])
    return {**found, "kept": kept and (not on_gpu or sampled["share_of_backbone"] >= PROMISED)}


def learned(folder: Path, size: Size) -> Path:
    """CIFAR-10's images where the data bundle is there, or drawn ones of its size."""
    bundled = Path(os.environ.get(DATA, "")) / "cifar10" / "train"
    return bundled if size is REAL and bundled.is_dir() else draw_set(folder / "pictures", size.images, (32, 32))


def trained(report: Report, device: torch.device, images: Path, size: Size, *, compiled: bool) -> dict[str, Any]:
    """Some steps of a training, timed, and its weights in a folder."""
    name = "compiled" if compiled else "eager"
    wanted = size.warm + size.timed + size.counted
    config = from_flags(
        GeneratorConfig, images=images, size=32, backbone=size.backbone, backbone_args=size.args,
        steps=wanted, batch_size=size.batch, dtype=size.dtype, lr=size.lr, run_folder=folder_of(report) / name,
        compile=compiled, device=str(device), decoder="cpu",
    )  # fmt: skip
    start = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with closing(make_generator_run(config, Ranks(), StopSignals(), Console(silent=True))) as run:
        run.folder.mkdir(exist_ok=True)
        losses, seconds, waits = steps_of(run, size, device)
        found: dict[str, Any] = {
            "steps_per_s": size.timed / seconds,
            "images_per_s": size.timed * size.batch / seconds,
            "loss": {"first": fmean(losses[:5]), "last": fmean(losses[-5:])},
            **waits.found(report, f"training, {name}"),
        }
        run.objective.save_weights(run.result.state_dict(), run.folder / GENERATOR_WEIGHTS)
    report.add(f"training, {name}", "rate", found["steps_per_s"], "steps/s")
    report.add(f"training, {name}", "loss", losses[-1], "")
    if device.type == "cuda":
        found["memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        report.add(f"training, {name}", "memory", found["memory_mb"], "MB")
        torch.cuda.empty_cache()
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def steps_of(run: Run, size: Size, device: torch.device) -> tuple[list[float], float, Waits]:
    """Take the steps: all losses, the seconds of the timed ones, and the waits of those that are counted."""
    losses: list[torch.Tensor] = []
    timed = size.warm + size.timed
    waits, start, seconds = Waits(device, timed + 2, timed + size.counted), 0.0, 0.0
    run.network.train()
    with closing(waits), closing(run.replay.play(run.config.epochs)) as batches:
        for number, batch in enumerate(batches, 1):
            losses.append(take_step(run, batch))
            run.stop_conditions.between_steps()
            waits.batch()
            if number in (size.warm, timed):
                wait_for(device)
                start, seconds = time.perf_counter(), time.perf_counter() - start
            if waits.ended:
                break
    return [float(loss) for loss in losses], seconds, waits


def samples(report: Report, device: torch.device, model: Generator, size: Size) -> dict[str, Any]:
    """Images a second in memory, compared with the backbone's calls; and whether images are reproduced."""
    how = Generation(steps=size.steps, dtype=size.dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    targets = np.arange(size.drawn) % len(model.classes)
    noise = model.noise(0, targets, np.arange(size.drawn) // len(model.classes)).to(device)
    latents = model.latents(noise, torch.from_numpy(targets).to(device), how)
    found = share_of_backbone(report, interleave(ways(model, how, device, size.drawn), size.rounds), size.drawn)
    found["finite"] = bool(latents.isfinite().all())
    found["same"] = drawn_again(model, how, device, size.drawn)
    if device.type == "cuda":
        found["memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        report.add("sampling", "memory", found["memory_mb"], "MB")
    return found


def files(report: Report, device: torch.device, run: Path, size: Size) -> dict[str, Any]:
    """Images a second of `synthesize diffusion`, from its start to the finished set on disk."""
    per_class = 3 * size.drawn // 10
    config = from_flags(
        SynthesizeConfig, method="diffusion", model=str(run), ipc=per_class, steps=size.steps, image_batch=size.drawn,
        model_dtype=size.dtype, out=folder_of(report) / "set", device=str(device),
    )  # fmt: skip
    made: Any = synthesize(config, Console(silent=True))
    rate = made["made"] / max(made["seconds"], 0.1)
    report.add("synthesize", "rate", rate, "images/s")
    return {"images": made["made"], "seconds": made["seconds"], "images_per_s": rate}
