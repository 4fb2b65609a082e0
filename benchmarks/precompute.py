"""A build is as fast as its teacher and renderer allow, and several times as fast as a script written by hand."""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.fkd import WORKERS, Fkd, apart, rows_of
from benchmarks.harness import Report, machine
from benchmarks.render import draw, photographs
from benchmarks.teacher import draw_weights
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.command.stopping import StopSignals
from labelstore.spec import BlockShape, Json
from labelstore.store import LabelStore
from pipeline.build.build import prepare
from pipeline.build.filling import Filling, Work
from pipeline.build.labelling import UNDER_WAY
from pipeline.build.watching import Watch
from pipeline.config import BuildConfig
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.ranks import Ranks
from pipeline.render import dali, make_renderer
from pipeline.render.batches import render_batches
from pipeline.render.normalise import normalise
from pipeline.teacher.engine.spec import MAX_RELATIVE_ERROR
from pipeline.teacher.labeller import Pending, label_crops
from pipeline.teacher.teacher import Teacher, make_teacher

PROMISED = {"share_of_bound": 0.95, "over_fkd_eager": 2.5, "over_fkd_compiled": 3.3}
BLOCKS = 2  # a build, of so many batches each
BATCHES = 3


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        side: S of the crops in pixels.
        batch: crops of a teacher's batch.
        views: of a block.
        rounds: that count.
        fkd_batches: batches that FKD's way labels in a round.
        workers: processes of its loader.
        compiled: whether anything is compiled.
    """

    side: int
    batch: int
    views: int
    rounds: int
    fkd_batches: int
    workers: int
    compiled: bool


CPU = Size(side=224, batch=128, views=1, rounds=4, fkd_batches=3, workers=WORKERS, compiled=True)
GPU = Size(side=224, batch=128, views=64, rounds=4, fkd_batches=20, workers=os.cpu_count() or 1, compiled=True)
QUICK = Size(side=64, batch=2, views=1, rounds=1, fkd_batches=2, workers=0, compiled=False)


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Time builds by a ResNet-18 in bfloat16, only its teacher, only its renderer, and FKD's way, interleaved.

    The photographs are those of GIFTWRAP_DATA, drawn ones where it is not set; at toy size nothing is compiled. FKD's
    teacher is in float32, eager; ours eager, and folded and compiled.
    """
    on_gpu = torch.cuda.is_available() and not quick
    size = QUICK if quick else GPU if on_gpu else CPU
    with tempfile.TemporaryDirectory(prefix="precompute-", dir=report.folder) as temporary:
        folder = Path(temporary)
        (folder / "drawn").mkdir()
        images = photographs() or draw(folder / "drawn", BLOCKS * BATCHES * size.batch)
        config = from_flags(
            BuildConfig,
            images=images,
            teacher=("torchvision:resnet18",),
            weights=(str(draw_weights(folder, "torchvision:resnet18", size.side)),),
            class_columns=None if len(list(images.iterdir())) == 1000 else "0",
            size=size.side,
            views=size.views,
            store=folder / "store",
            encoding="int8",
            dtype="bfloat16",
            batch=size.batch,
            device="cuda" if on_gpu else "cpu",
        )
        eager = prepare(config, Console(silent=True), Ranks())
        with closing(eager.renderer):
            works = {"eager": in_batches(eager, size)}
            fast = changed(config, fold=True, compile="on" if size.compiled else "off")
            teacher = make_teacher(fast.teacher_spec(), size=size.side, classes=eager.manifest.classes)
            works["compiled"] = with_teacher(works["eager"], teacher)
            return measure(report, folder, works, size)


def in_batches(work: Work, size: Size) -> Work:
    """The work in blocks of whole batches."""
    return replace(
        work, identity=replace(work.identity, block=BlockShape(views=size.views, positions=BATCHES * size.batch))
    )


def with_teacher(work: Work, teacher: Teacher) -> Work:
    """The same work by another engine."""
    return replace(work, labeller=teacher, identity=replace(work.identity, engine=teacher.engine))


def measure(report: Report, folder: Path, works: dict[str, Work], size: Size) -> dict[str, Json]:
    """Time the contenders, after FKD's way was found to give what ours gives."""
    eager = works["eager"]
    with apart(peer(eager, size)) as fkd:
        compare(eager, fkd("compare"))
        found = take_turns(works, fkd, folder / "built", size)
    for name, rounds in found.items():
        for metric in rounds[0]:
            unit = "crops/s" if metric == "rate" else "share of the time"
            report.add(name, metric, [values[metric] for values in rounds], unit)
    return summary(works, size, found)


def take_turns(
    works: dict[str, Work], fkd: Callable[[str], Any], path: Path, size: Size
) -> dict[str, list[dict[str, float]]]:
    """Each contender once a round, after one round that does not count."""
    contenders: dict[str, Callable[[], dict[str, float]]] = {"renderer": lambda: render(works["eager"])}
    streaming = by_dali(works["eager"])
    if streaming:
        contenders["renderer, augmenter dali"] = lambda: render(streaming)
    for name, work in works.items():
        contenders[f"teacher {name}"] = partial(label, work)
        contenders[f"build {name}"] = partial(build, work, path)
    for name in ("eager", "compiled") if size.compiled else ("eager",):
        contenders[f"fkd {name}"] = partial(fkd, name)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(size.rounds + 1):
        for name, contender in contenders.items():
            values = contender()
            if number:
                found[name].append(values)
    if streaming:
        streaming.renderer.close()
    return found


def by_dali(work: Work) -> Work | None:
    """The same work with crops by ``--augmenter dali``; None if DALI is not installed."""
    if dali.load() is None:
        return None
    device, threads = str(work.labeller.device), torch.get_num_threads()
    renderer = make_renderer(work.manifest, work.plan.spec, augmenter="dali", device=device, threads=threads)
    return replace(work, renderer=renderer)


def summary(works: dict[str, Work], size: Size, found: dict[str, list[dict[str, float]]]) -> dict[str, Json]:
    """The result of the rounds: each ratio is the median of the rounds' own."""
    rates = {name: [values["rate"] for values in rounds] for name, rounds in found.items()}

    def over(name: str, other: str) -> float:
        return median(ours / theirs for ours, theirs in zip(rates[name], rates[other], strict=True))

    device = works["eager"].labeller.device
    for engine in works:
        rates[f"bound {engine}"] = [
            teacher if device.type == "cuda" else 1 / (1 / teacher + 1 / renderer)
            for teacher, renderer in zip(rates[f"teacher {engine}"], rates["renderer"], strict=True)
        ]
    values: dict[str, Json] = {
        "share_of_teacher": over("build eager", "teacher eager"),
        "share_of_bound": over("build eager", "bound eager"),
        "over_fkd_eager": over("build eager", "fkd eager"),
        "over_fkd_compiled": over("build compiled", "fkd eager"),
        "binding_stage": binding(found["build eager"]),
        "share_of_teacher_compiled": over("build compiled", "teacher compiled"),
        "share_of_bound_compiled": over("build compiled", "bound compiled"),
        "unit": "crops/s",
        **{name: median(values) for name, values in rates.items()},
        "size": size.side,
        "batch": size.batch,
        "threads": torch.get_num_threads(),
        "engines": {name: dict(work.labeller.engine) for name, work in works.items()},
        "promised": dict(PROMISED),
        "machine": machine(),
    }
    if "fkd compiled" in rates:
        values["compiled_over_fkd_compiled"] = over("build compiled", "fkd compiled")
    halves = device.type == "cuda" or "bf16" in str(works["eager"].labeller.engine["device"])
    if halves and size.compiled:
        values["kept"] = all(float(str(values[name])) >= least for name, least in PROMISED.items())
    return values


def binding(rounds: list[dict[str, float]]) -> str:
    """The stage that is at work longest."""
    stages = [name for name in rounds[0] if name != "rate"]
    return max(stages, key=lambda stage: median(values[stage] for values in rounds))


def render(work: Work) -> dict[str, float]:
    """Only the renderer, on the crops of a build."""
    block = work.identity.block
    rows = [work.plan.rows(view, 0, BLOCKS * block.positions) for view in range(block.views)]
    start = time.perf_counter()
    count = sum(len(crops) for crops, _ in render_batches(work.renderer, rows, work.labeller.batch, 1))
    settle(work)
    return {"rate": count / (time.perf_counter() - start)}


def label(work: Work) -> dict[str, float]:
    """Only the teacher, on crops in device memory."""
    block = work.identity.block
    batches = list(render_batches(work.renderer, [work.plan.rows(0, 0, block.positions)], work.labeller.batch, 1))
    settle(work)
    start = time.perf_counter()
    under_way: deque[Pending] = deque()
    for _ in range(BLOCKS * block.views):
        for batch in batches:
            under_way.append(work.labeller.start(*batch))
            if len(under_way) > UNDER_WAY:
                under_way.popleft().result()
    while under_way:
        under_way.popleft().result()
    return {"rate": BLOCKS * block.views * block.positions / (time.perf_counter() - start)}


def build(work: Work, path: Path) -> dict[str, float]:
    """The blocks of a new store, from image files that were decoded before to published shards."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        return build_in(work, Path(folder) / path.name)


def build_in(work: Work, path: Path) -> dict[str, float]:
    """Time it, where nothing is yet."""
    store = LabelStore.create(
        path, work.identity, image_digests=work.manifest.digests, targets=work.manifest.targets, views=1
    )
    watch = Watch()
    with store.lease() as writer:
        filling = Filling(store, work, store.missing()[:BLOCKS], Ranks(), Console(silent=True), watch, StopSignals())
        start = time.perf_counter()
        filling.fill(writer)
        seconds = time.perf_counter() - start
    done = watch.so_far()
    return {"rate": done.crops / seconds, **done.busy}


def settle(work: Work) -> None:
    """Wait for a GPU."""
    if work.labeller.device.type == "cuda":
        torch.cuda.synchronize(work.labeller.device)


def peer(work: Work, size: Size) -> Fkd:
    """FKD's way with the same network."""
    assert isinstance(work.labeller, Teacher)  # noqa: S101  made by `prepare`, of flags
    (member,) = work.labeller.spec.members
    return Fkd(
        files=[Path(work.manifest.place(image)) for image in range(len(work.manifest))],
        network=member.name,
        weights=member.weights,
        classes=work.labeller.columns,
        size=size.side,
        batch=size.batch,
        batches=size.fkd_batches,
        workers=size.workers,
        device=str(work.labeller.device),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def compare(work: Work, answer: Sequence[npt.NDArray[Any]]) -> None:
    """Refuse to time FKD's way when its crops or its labels are others than ours.

    Raises:
        RuntimeError: names which.
    """
    images, boxes, pixels, expected = answer
    rows = rows_of(images, boxes)
    crops = work.renderer.render(rows)
    ours = normalise(crops, IMAGENET_MEAN, IMAGENET_STD, torch.float32, channels_last=False).cpu().numpy()
    if not np.allclose(ours, pixels, rtol=0, atol=1e-5):
        raise RuntimeError(f"other crops than Pillow's: they differ by {np.abs(ours - pixels).max():.2e}")
    found = label_crops(work.labeller, crops, rows)
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if difference > MAX_RELATIVE_ERROR["bfloat16"]:
        raise RuntimeError(f"other labels than FKD's: they differ by {difference:.1e} of the largest")
