"""Parts of `benchmarks.gpu` that build whole stores, from image files to sealed blocks."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.fkd import Fkd
from benchmarks.fkd import apart as begun
from benchmarks.gpu_inputs import ceiling, folder_of, images, settings
from benchmarks.harness import Report
from benchmarks.precompute import compare
from labelstore.command.console import Console
from labelstore.command.flags import changed
from labelstore.spec import BlockShape, Json
from labelstore.store import LabelStore
from pipeline.build import build as builds
from pipeline.config import BuildConfig
from pipeline.images.manifest import Manifest
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.ranks import Ranks
from pipeline.teacher.engine.batches import even_batch
from pipeline.teacher.engine.spec import MAX_RELATIVE_ERROR
from pipeline.teacher.labeller import label_crops
from pipeline.teacher.teacher import make_teacher

# Crops of a build on a GPU, for some 7 seconds, and the engine: compiling a ResNet-50 takes longer than building by it.
BUILDS: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (400_000, {"compile": "on", "cuda_graph": True}),
    "resnet50": (90_000, {"cuda_graph": True}),
}
FKD_CROPS_BUILT = 120_000  # by the build beside FKD's script
FKD_BATCHES, FKD_ROUNDS = 12, 2  # of 128 crops
FKD_CROPS = 128
WORKERS = 16
OVER_FKD = 8.0  # promised
TOY_VIEWS = 2


def precompute(report: Report, device: torch.device) -> dict[str, Json]:
    """Whole builds, compared with the speed of their teachers."""
    manifest = images(folder_of(report), device)
    shares: dict[str, Json] = {}
    apart: dict[str, float] = {}
    for network, (crops, engine) in BUILDS.items():
        if device.type == "cuda" or network == "resnet18":
            options = {**engine, "store": folder_of(report) / f"store-{network}"} if device.type == "cuda" else {}
            config = build_of(folder_of(report), device, network, manifest, **options)
            views = max(round(crops / len(manifest)), 1) if device.type == "cuda" else TOY_VIEWS
            alone, built = beside_teacher(report, network, in_even_batches(config, len(manifest), views), manifest)
            report.add(f"build by {network}", "share of the teacher alone", float(str(built["rate"])) / alone, "")
            apart[network] = last_labels_apart(config)
            shares[network] = {"share_of_teacher": float(str(built["rate"])) / alone, **built}
    return {"builds": shares, "apart": {**apart}, "kept": max(apart.values()) <= MAX_RELATIVE_ERROR["bfloat16"]}


def last_labels_apart(config: BuildConfig) -> float:
    """How far the last labels of a store are from an eager teacher's, as a share of the largest logit.

    The last ones: weights that a graph or compiled code lost would show when their memory has been used again.
    """
    work = builds.prepare(changed(config, compile="off", cuda_graph=False), Console(silent=True), Ranks())
    store = LabelStore.open(config.store)
    stored = store.read(store.state.views_sealed - 1, slice(0, work.labeller.batch))
    with closing(work.renderer) as renderer:
        expected = label_crops(work.labeller, renderer.render(stored.rows), stored.rows)
    return float(np.abs(expected - stored.logits).max() / np.abs(expected).max())


def build_of(folder: Path, device: torch.device, network: str, manifest: Manifest, **options: Any) -> BuildConfig:
    """A build of a set with any number of classes by the network, whose columns are ImageNet's."""
    columns = ",".join(map(str, range(len(manifest.classes)))) if len(manifest.classes) < 1000 else None
    return settings(folder, device, network, images=Path(manifest.location), class_columns=columns, **options)


def in_even_batches(config: BuildConfig, images: int, views: int) -> BuildConfig:
    """A build of so many views in batches that leave little of the last one of a block to padding, as by default."""
    shape, most = BlockShape.choose(images, 1000, 1, views), config.engine.batch
    assert most is not None  # noqa: S101  the settings have one
    return changed(config, views=views, batch=even_batch(most, shape.views * min(shape.positions, images)))


def beside_teacher(report: Report, name: str, config: BuildConfig, manifest: Manifest) -> tuple[float, dict[str, Json]]:
    """Crops a second of the teacher, and the measurements of a build."""
    teacher = make_teacher(config.teacher_spec(), size=config.crops.size, classes=manifest.classes)
    alone = ceiling(report, name, teacher)
    del teacher
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return alone, built_by(report, name, config)


def built_by(report: Report, name: str, config: BuildConfig) -> dict[str, Json]:
    """What was found of a build."""
    summary = builds.build(config, Console(as_json=True))
    rate = float(str(summary["crops_per_second"]))
    report.add(f"build by {name}", "rate", rate, "crops/s")
    return {**summary, "rate": rate, "store": None}


def against_fkd(report: Report, device: torch.device) -> dict[str, Json]:
    """A whole build by a ResNet-18 against FKD's script, whose teacher is in float32, and in bfloat16.

    Both decode on the CPU: crops and labels are compared first.
    """
    on_gpu, folder = device.type == "cuda", folder_of(report)
    manifest = images(folder, device)
    engine = {"compile": "on", "cuda_graph": True, "decoder": "cpu"} if on_gpu else {}
    config = build_of(folder, device, "resnet18", manifest, **engine)
    peer = peer_of(config, manifest, on_gpu=on_gpu)
    rates: dict[str, float] = {}
    with begun(peer) as fkd:
        require_alike(config, fkd("compare"))
        for name in ("eager", "bfloat16"):
            rounds = [fkd(name) for _ in range(1 + FKD_ROUNDS)][1:]
            for metric in rounds[0]:
                unit = "crops/s" if metric == "rate" else "share of the time"
                report.add(f"FKD's script, {name}", metric, [values[metric] for values in rounds], unit)
            rates[name] = median(values["rate"] for values in rounds)
    views = -(-FKD_CROPS_BUILT // len(manifest)) if on_gpu else TOY_VIEWS
    built = built_by(report, "resnet18", changed(config, views=views))
    over: dict[str, Json] = {f"over_fkd_{name}": float(str(built["rate"])) / rate for name, rate in rates.items()}
    promised: dict[str, Json] = {"promised": OVER_FKD, "kept": float(str(over["over_fkd_bfloat16"])) >= OVER_FKD}
    return {**over, "workers": peer.workers, "rate": built["rate"], **(promised if on_gpu else {})}


def require_alike(config: BuildConfig, answer: Any) -> None:
    """Refuse to time FKD's script when its crops or its labels are others than the build's."""
    work = builds.prepare(changed(config, compile="off", cuda_graph=False), Console(silent=True), Ranks())
    with closing(work.renderer):
        compare(work, answer)


def peer_of(config: BuildConfig, manifest: Manifest, *, on_gpu: bool) -> Fkd:
    """FKD's script with the same network."""
    (member,) = config.teacher_spec().members
    return Fkd(
        files=[Path(manifest.place(image)) for image in range(len(manifest))],
        network=member.name,
        weights=member.weights,
        classes=1000,
        size=config.crops.size,
        batch=FKD_CROPS if on_gpu else 2,
        batches=FKD_BATCHES if on_gpu else 1,
        workers=min(WORKERS, os.cpu_count() or 1) if on_gpu else 0,
        device=config.render.device,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
