"""The parts of `benchmarks.gpu`: what each checks and measures, on a GPU, or small on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import loss, step
from benchmarks.drawn import Drawn
from benchmarks.gpu_augmenter import augmenter
from benchmarks.gpu_generate import generate
from benchmarks.gpu_inputs import SkippedError, ceiling, folder_of, images, rate, settings, timed
from benchmarks.gpu_whole import against_fkd, precompute
from benchmarks.harness import Report
from benchmarks.read import STEP, exhaust, requests
from benchmarks.sanitizer import sanitizer
from benchmarks.syncs import syncs
from labelstore import LabelStore
from labelstore.operations.convert import convert
from labelstore.spec import Json
from labelstore.writing.encoding import pairs_of
from pipeline.device.codes import DeviceCodes
from pipeline.images.manifest import Manifest
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import Renderer, dali, make_renderer
from pipeline.render.audit import MAX_DIFFERENCE, MAX_MEAN_DIFFERENCE
from pipeline.render.batched import kernels_work, resize_all, resize_plainly
from pipeline.render.device import DeviceRenderer
from pipeline.render.jobs import Boxes, prepare
from pipeline.render.normalise import normalise
from pipeline.teacher.teacher import Teacher, make_teacher

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENGINES: Mapping[str, Mapping[str, Any]] = {
    "eager": {},
    "graph": {"cuda_graph": True},
    "compiled": {"compile": "require"},
    "compiled graph": {"compile": "require", "cuda_graph": True},
}
FEW_ENGINES = ("graph", "compiled graph")  # of a network that takes long to compile


@dataclass(frozen=True, slots=True)
class Part:
    """A part.

    Attributes:
        seconds: it may take.
        run: takes the report, whose folder is there for its files, and the device; gives the summary, with ``kept``
            where something is promised.
    """

    seconds: float
    run: Callable[[Report, torch.device], dict[str, Json]]


def resize(report: Report, device: torch.device) -> dict[str, Json]:
    """Crops are Pillow's, bit for bit, by kernels and by plain torch, in any order; how fast they are made."""
    on_gpu = device.type == "cuda"
    count, size, side = (512, 224, 400) if on_gpu else (6, 24, 60)
    rng = np.random.default_rng(0)
    data = torch.from_numpy(rng.integers(0, 256, (16, side, side + 50, 3), np.uint8))
    lengths = rng.integers(side // 4, side, (count, 2))
    which = rng.integers(0, 16, count)
    boxes = Boxes(
        data.flatten().to(device),
        which * data[0].numel(),
        np.full((count, 2), [side, side + 50]),
        np.concatenate([rng.integers(0, side - lengths + 1), lengths], axis=1),
        rng.random(count) < 0.5,
    )
    equal: dict[str, Json] = {}
    for name in ("bilinear", "bicubic"):
        crops = resize_all(boxes, size, name)
        equal[f"{name}: plain torch"] = torch.equal(crops, resize_plainly(prepare(boxes, size, name)))
        equal[f"{name}: Pillow"] = all(
            np.array_equal(crops[at].cpu().numpy(), by_pillow(data[which[at]].numpy(), boxes, at, size, name))
            for at in range(min(count, 64))
        )
        order = rng.permutation(count)
        turned = Boxes(boxes.data, boxes.starts[order], boxes.sides[order], boxes.boxes[order], boxes.flips[order])
        equal[f"{name}: another order"] = torch.equal(resize_all(turned, size, name), crops[order])
    rate(report, "resize", lambda: resize_all(boxes, size, "bilinear"), count, device)
    rate(report, "resize in plain torch", lambda: resize_plainly(prepare(boxes, size, "bilinear")), count, device)
    kernels = on_gpu and kernels_work(device)
    return {"equal": equal, "kernels": kernels, "kept": all(equal.values()) and kernels == on_gpu}


def by_pillow(image: np.ndarray, boxes: Boxes, at: int, size: int, interpolation: str) -> np.ndarray:
    """One crop by Pillow."""
    top, left, height, width = boxes.boxes[at]
    cut = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
    done = np.asarray(cut.resize((size, size), Image.Resampling[interpolation.upper()]))
    return done[:, ::-1] if boxes.flips[at] else done


def decoder(report: Report, device: torch.device, *, name: str) -> dict[str, Json]:
    """Crops of a decoder: how far from the CPU's, the same in every run, order and company; how fast."""
    on_gpu = device.type == "cuda"
    if not on_gpu and name != "cpu":
        raise SkippedError(f"no GPU: decoder {name} decodes on one")
    if name != "cpu" and dali.load() is None:
        raise SkippedError(f"no DALI here: decoder {name} needs it")
    manifest = images(folder_of(report), device)
    spec = PlanSpec(size=224 if on_gpu else 24)
    plan = Plan(spec, manifest.heights, manifest.widths)
    rows = plan.rows(0, 0, len(manifest))
    few = rows.take(slice(0, max(len(rows) // 8, 1)))
    with closing(make_renderer(manifest, spec)) as reference:
        expected = reference.render(rows)
    make = partial(renderer_on, manifest, spec, device, name)
    sizes = 3 * manifest.heights.astype(np.int64) * manifest.widths
    with closing(make(2 << 30)) as kept, closing(make(0)) as passing:
        kept.render(few)
        once = timed(lambda: kept.render(rows), device)
        report.add(f"decoder {name}", "decode once", (len(rows) - len(few)) / once, "images/s")
        crops = kept.render(rows)
        passing.render(few)
        each = timed(lambda: passing.render(rows), device)
        report.add(f"decoder {name}", "decode for each crop", len(rows) / each, "crops/s")
        rate(report, f"decoder {name}, from memory", lambda: kept.render(rows), len(rows), device)
        order = np.random.default_rng(0).permutation(len(rows))
        equal: dict[str, Json] = {
            "run to run": torch.equal(crops, kept.render(rows)),
            "decoded again": torch.equal(crops, passing.render(rows)),
            "another order": torch.equal(crops[order], passing.render(rows.take(order))),
            "other neighbours": torch.equal(
                torch.cat([passing.render(few.take(np.array([at]))) for at in range(len(few))]), crops[: len(few)]
            ),
        }
    with closing(make(0)) as young, closing(make(int(sizes.sum()) // 2)) as half:
        young.render(few.take(np.array([0])))  # one image alone before many
        equal["another history"] = torch.equal(crops, young.render(rows))
        equal["half in memory"] = torch.equal(crops, half.render(rows)) and torch.equal(crops, half.render(rows))
    apart = (crops.cpu().short() - expected.short()).abs()
    mean, most = float(apart.float().mean()), int(apart.max())
    report.add(f"decoder {name}", "mean difference from the CPU", mean, "levels")
    report.add(f"decoder {name}", "largest difference from the CPU", most, "levels")
    band = most == 0 if name == "cpu" else mean <= MAX_MEAN_DIFFERENCE and most <= MAX_DIFFERENCE
    return {"equal": equal, "mean": mean, "most": most, "in band": band, "kept": all(equal.values()) and band}


def renderer_on(manifest: Manifest, spec: PlanSpec, device: torch.device, name: str, cache: int) -> Renderer:
    """The renderer of a GPU, which also works on a CPU's tensors."""
    if device.type == "cuda":
        return make_renderer(manifest, spec, device=str(device), decoder=name, cache_bytes=cache)
    return DeviceRenderer(manifest, spec, device, name, 2, cache)


def network_input(report: Report, device: torch.device) -> dict[str, Json]:
    """Bytes become a network's input in one pass, the CPU's but for rounding; how fast."""
    count, size = (256, 224) if device.type == "cuda" else (4, 16)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8))
    moved, near = pixels.to(device), True
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        make = partial(normalise, mean=MEAN, std=STD, dtype=dtype, channels_last=True)
        error = float((make(moved).cpu().float() - make(pixels).float()).abs().max())
        near &= error <= {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
        rate(report, f"input in {str(dtype).removeprefix('torch.')}", partial(make, moved), count, device)
    return {"kept": near}


def codes(report: Report, device: torch.device) -> dict[str, Json]:
    """Encode and decode labels as numpy does; measure the speed, in isolation and from a store's stream."""
    on_gpu = device.type == "cuda"
    images, columns, views = (8_192, 1_000, 4) if on_gpu else (512, 100, 4)
    drawn = Drawn(images, columns, views)
    stores = {name: drawn.store(folder_of(report) / name, {"name": name}) for name in ("float16", "int8")}
    stores["transform"] = convert(
        stores["float16"], folder_of(report) / "transform", {"name": "transform", "step": STEP}, views=4
    )
    label = stores["float16"].read(0, slice(None))
    logits = np.asarray(label.logits, np.float32)
    there = torch.from_numpy(logits).to(device)  # as a teacher leaves them
    pairs = pairs_of(stores["float16"].identity, label.rows.values[None]).flat()
    shares: dict[str, Json] = {}
    for name, store in stores.items():
        twin = DeviceCodes(store.encoding, device)
        ours, theirs = twin.encode(there, pairs), store.encoding.encode(logits, pairs)
        shares[name] = max(float(np.mean(ours[array] != theirs[array])) for array in theirs)
        rate(report, f"{name}, encode", partial(twin.encode, there, pairs), images, device)
        rate(report, f"{name}, decode", partial(twin.decode, theirs, pairs), images, device)
        stream = partial(streamed, store, twin)
        rate(report, f"{name}, stream of labels on the device", stream, images * store.state.views_sealed, device)
    kept = shares["float16"] == shares["int8"] == 0 and float(str(shares["transform"])) < 1e-5
    return {"share of codes that differ from numpy's": shares, "kept": kept}


def streamed(store: LabelStore, twin: DeviceCodes) -> None:
    """Every label of a store, decoded on the device."""
    exhaust(store.stream(requests(store), decode=twin.decode))


def claim(report: Report, device: torch.device, *, of: Callable[..., dict[str, Json]]) -> dict[str, Json]:
    """A separate claim, which promises nothing at toy size."""
    found = of(report, quick=device.type == "cpu")
    return found if device.type == "cuda" else {name: value for name, value in found.items() if name != "kept"}


def teacher(report: Report, device: torch.device, *, network: str) -> dict[str, Json]:
    """The speed of a teacher on crops in device memory, for every engine."""
    rates: dict[str, Json] = {}
    for engine, made in teachers(folder_of(report), device, network):
        rates[engine] = ceiling(report, f"{network} {engine}", made)
        del made
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {"crops_per_s": rates}


def teachers(folder: Path, device: torch.device, network: str) -> Iterator[tuple[str, Teacher]]:
    """A network of random weights in bfloat16, engine by engine; on a CPU a small one, eager."""
    wanted = ["eager"] if device.type == "cpu" else FEW_ENGINES if network == "resnet50" else [*ENGINES]
    for engine, options in ENGINES.items():
        if engine in wanted:
            config = settings(folder, device, network, **options)
            yield (
                engine,
                make_teacher(config.teacher_spec(), size=config.crops.size, classes=[str(n) for n in range(1000)]),
            )


def with_memory(
    part: Callable[[Report, torch.device], dict[str, Json]],
) -> Callable[[Report, torch.device], dict[str, Json]]:
    """A part that also reports how much of the GPU's memory it took."""

    def run(report: Report, device: torch.device) -> dict[str, Json]:
        found = part(report, device)
        if device.type == "cuda":
            stats = torch.cuda.memory_stats(device)
            free, total = torch.cuda.mem_get_info(device)
            report.add("memory", "tensors at most", stats["allocated_bytes.all.peak"] / 1e6, "MB")
            report.add("memory", "torch's pool at most", stats["reserved_bytes.all.peak"] / 1e6, "MB")
            report.add("memory", "all libraries at the end", (total - free) / 1e6, "MB")
        return found

    return run


# What most likely fails comes first: decoders and kernels that no CPU runs, and what is compiled. An H100 with empty
# caches of compiled code takes about half of each time.
PARTS: dict[str, Part] = {
    "decoder-gpu": Part(25, with_memory(partial(decoder, name="gpu"))),
    "decoder-gpu-hw": Part(25, with_memory(partial(decoder, name="gpu-hw"))),
    "augmenter-dali": Part(35, with_memory(augmenter)),
    "resize": Part(20, with_memory(resize)),
    "loss": Part(45, with_memory(partial(claim, of=loss.run))),
    "teacher-resnet18": Part(60, with_memory(partial(teacher, network="resnet18"))),
    "syncs": Part(40, with_memory(syncs)),
    "sanitizer": Part(105, sanitizer),
    "precompute": Part(70, with_memory(precompute)),
    "fkd": Part(60, with_memory(against_fkd)),
    "step": Part(90, with_memory(partial(claim, of=step.run))),
    "codes": Part(30, with_memory(codes)),
    "input": Part(15, with_memory(network_input)),
    "decoder-cpu": Part(15, with_memory(partial(decoder, name="cpu"))),
    "generate": Part(90, with_memory(generate)),
    "teacher-resnet50": Part(45, with_memory(partial(teacher, network="resnet50"))),
}
