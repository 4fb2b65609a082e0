"""The same crops as torchvision renders from Pillow images, bit for bit, several times as fast on the same cores."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional

from benchmarks.harness import Report, interleave, machine
from labelstore.columns import CropRows
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.manifest import Manifest, scan
from pipeline.plan import Plan, PlanSpec
from pipeline.render import make_renderer

SIZE = 224
PROMISED = 2.0  # times torchvision in as many threads, images decoded in memory


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Time the crops of one view of real photographs: from decoded images, by region, and by torchvision.

    The photographs are those of GIFTWRAP_DATA, drawn ones where it is not set.
    """
    crops, threads, rounds = (8, 1, 1) if quick else (512, 2, 5)
    with tempfile.TemporaryDirectory() as folder:
        manifest = scan(photographs() or draw(Path(folder), crops), digests=False)
        spec = PlanSpec(size=SIZE, flip=0)
        rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, min(crops, len(manifest)))
        memory = make_renderer(manifest, spec, threads=threads)
        region = make_renderer(manifest, spec, threads=threads, cache_bytes=0)
        with closing(memory), closing(region), ThreadPoolExecutor(threads) as pool:
            if not torch.equal(memory.render(rows), torchvision_crops(manifest, rows, pool)):
                raise RuntimeError("other crops than torchvision's")
            timing = interleave(
                {
                    "memory": lambda: memory.render(rows),
                    "region": lambda: region.render(rows),
                    "torchvision": lambda: torchvision_crops(manifest, rows, pool),
                },
                rounds,
            )
    for name, seconds in timing.wall.items():
        report.add(name, "rate", [len(rows) / second for second in seconds], "crops/s")
    times = {name: timing.speedup(name, "torchvision") for name in ("memory", "region")}
    return {
        "unit": "crops/s",
        "crops": len(rows),
        "threads": threads,
        **{name: {**timing.rate(name, len(rows))} for name in ("memory", "region", "torchvision")},
        "memory times torchvision": times["memory"],
        "region times torchvision": times["region"],
        "promised": PROMISED,
        "kept": times["memory"] >= PROMISED,
        "machine": machine(),
    }


def torchvision_crops(manifest: Manifest, rows: CropRows, pool: ThreadPoolExecutor) -> torch.Tensor:
    """What a loader of a training loop does for each crop: open, decode, crop and resize; uint8 ``[n, S, S, 3]``."""

    def one(image: int, box: list[int]) -> torch.Tensor:
        with Image.open(manifest.file(image)) as picture:
            crop = functional.resized_crop(picture.convert("RGB"), *box, [SIZE, SIZE])
        return torch.from_numpy(np.array(crop))

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
