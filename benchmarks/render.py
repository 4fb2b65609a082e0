"""The same crops as torchvision renders from Pillow images, bit for bit, several times as fast on the same cores."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional
from torchvision.transforms.v2 import functional as v2

from benchmarks.dali_alone import alone, stored
from benchmarks.harness import Report, interleave, machine
from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.images.manifest import Manifest, scan
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import dali, make_renderer

SIZE = 224
MAX_LEVELS = 2  # that torch's integer resize of tensors is off, which rounds its weights to 16 bits
PROMISED = 2.0  # times torchvision in as many threads, images decoded in memory


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Time the crops of one view of real photographs: from decoded images, by region, and by torchvision.

    The photographs are those of GIFTWRAP_DATA, drawn ones where it is not set. With DALI also by ``--augmenter dali``,
    beside decoding by DALI only.
    """
    crops, threads, rounds = (8, 1, 1) if quick else (512, 2, 5)
    with tempfile.TemporaryDirectory() as folder:
        manifest = scan(photographs() or draw(Path(folder), crops), digests=False)
        spec = PlanSpec(size=SIZE, flip=0)
        rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, min(crops, len(manifest)))
        memory = make_renderer(manifest, spec, threads=threads)
        region = make_renderer(manifest, spec, threads=threads, cache_bytes=0)
        with (
            closing(memory),
            closing(region),
            by_dali(manifest, spec, rows, threads) as by,
            ThreadPoolExecutor(threads) as pool,
        ):
            decoded = dict(
                zip(rows.image.tolist(), pool.map(partial(decode, manifest), rows.image.tolist()), strict=True)
            )
            apart = require_alike(
                memory.render(rows), torchvision_crops(manifest, rows, pool), tensor_crops(decoded, rows, pool)
            )
            timing = interleave(
                {
                    "memory": lambda: memory.render(rows),
                    "region": lambda: region.render(rows),
                    "torchvision": lambda: torchvision_crops(manifest, rows, pool),
                    "torchvision v2 on tensors": lambda: tensor_crops(decoded, rows, pool),
                    **by,
                },
                rounds,
            )
    for name, seconds in timing.wall.items():
        report.add(name, "rate", [len(rows) / second for second in seconds], "crops/s")
    report.add("torchvision v2 on tensors", "largest difference", apart, "levels")
    times = {name: timing.speedup(name, "torchvision") for name in ("memory", "region")}
    rates = {name: timing.rate(name, len(rows)) for name in timing.wall}
    streamed: dict[str, Json] = {
        f"augmenter dali times {name}": timing.speedup("augmenter dali", name)
        for name in by
        if name != "augmenter dali"
    }
    return {
        "unit": "crops/s",
        "crops": len(rows),
        "threads": threads,
        "crops_per_s": rates["memory"]["wall"],
        "over_torchvision": times["memory"],
        "over_torchvision_v2": timing.speedup("memory", "torchvision v2 on tensors"),
        **{name: {**rate} for name, rate in rates.items()},
        "memory times torchvision": times["memory"],
        "region times torchvision": times["region"],
        **streamed,
        "promised": PROMISED,
        "kept": times["memory"] >= PROMISED,
        "machine": machine(),
    }


def require_alike(ours: Tensor, by_pillow: Tensor, by_tensors: Tensor) -> int:
    """Compare our crops with torchvision's, of Pillow images and of tensors; levels that the latter are apart.

    Raises:
        RuntimeError: other crops.
    """
    if not torch.equal(ours, by_pillow):
        raise RuntimeError("other crops than torchvision's")
    apart = int((ours.int() - by_tensors.int()).abs().max())
    if apart > MAX_LEVELS:
        raise RuntimeError(f"other crops than torchvision v2's: {apart} levels apart")
    return apart


@contextmanager
def by_dali(
    manifest: Manifest, spec: PlanSpec, rows: CropRows, threads: int
) -> Iterator[dict[str, Callable[[], object]]]:
    """The renderer of ``--augmenter dali``, and decoding by DALI only; empty if DALI is not installed."""
    if dali.load() is None:
        yield {}
        return
    files, boxes = stored(manifest, rows)
    with closing(make_renderer(manifest, spec, augmenter="dali", threads=threads)) as renderer:
        yield {
            "augmenter dali": lambda: renderer.render(rows),
            "DALI alone, whole images": alone(files, None, torch.device("cpu"), threads),
            "DALI alone, boxes": alone(files, boxes, torch.device("cpu"), threads),
            "DALI alone, boxes resized": alone(files, boxes, torch.device("cpu"), threads, size=SIZE),
        }


def torchvision_crops(manifest: Manifest, rows: CropRows, pool: ThreadPoolExecutor) -> torch.Tensor:
    """What a loader of a training loop does for each crop: open, decode, crop and resize; uint8 ``[n, S, S, 3]``."""

    def one(image: int, box: list[int]) -> torch.Tensor:
        with Image.open(manifest.place(image)) as picture:
            crop = functional.resized_crop(picture.convert("RGB"), *box, [SIZE, SIZE])
        return torch.from_numpy(np.array(crop))

    return torch.stack(list(pool.map(one, rows.image.tolist(), rows.boxes().tolist())))


def decode(manifest: Manifest, image: int) -> torch.Tensor:
    """An image as torchvision v2 takes it: uint8 ``[3, H, W]``."""
    with Image.open(manifest.place(image)) as picture:
        pixels: torch.Tensor = functional.pil_to_tensor(picture.convert("RGB"))
    return pixels


def tensor_crops(decoded: Mapping[int, torch.Tensor], rows: CropRows, pool: ThreadPoolExecutor) -> torch.Tensor:
    """Crops of images that lie decoded in memory, by torchvision v2 on tensors; uint8 ``[n, S, S, 3]``."""

    def one(image: int, box: list[int]) -> torch.Tensor:
        crop: torch.Tensor = v2.resized_crop(decoded[image], *box, [SIZE, SIZE], antialias=True)
        return crop.permute(1, 2, 0)

    return torch.stack(list(pool.map(one, rows.image.tolist(), rows.boxes().tolist())))


def photographs() -> Path | None:
    """The ImageNet photographs of GIFTWRAP_DATA, where it is set."""
    data = os.environ.get("GIFTWRAP_DATA")
    if not data:
        return None
    folder = Path(data) / "imagenet-samples"
    if not folder.is_dir():
        raise InputError(f"GIFTWRAP_DATA: expected a folder with imagenet-samples/, found {data}")
    return folder


def draw(folder: Path, count: int) -> Path:
    """A class folder of ``count`` smooth pictures of 256 x 341 pixels, JPEG."""
    generator = np.random.default_rng(0)
    (folder / "drawn").mkdir()
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 21, 3)).astype(np.uint8))
        coarse.resize((341, 256), Image.Resampling.BICUBIC).save(folder / "drawn" / f"{index:05d}.jpg", quality=88)
    return folder
