"""Damaged files through scan and renderer, beside Pillow; a process of its own, for a decoder may crash.

Called with an empty folder, and for each run a kind, the first seed and the one behind the last. Prints counts and the
seeds that failed as JSON.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from labelstore.errors import InputError
from labelstore.format.columns import CROP_COLUMNS, CropRows
from pipeline.images.headers import UnsupportedImageError, read_header
from pipeline.images.manifest import Manifest, scan
from pipeline.plan.plan import PlanSpec
from pipeline.render import make_renderer
from tests.pipeline.damaged import damaged

SIZE, BOXES = 4, 10
SUFFIXES = {"JPEG": "jpg", "SCANS": "jpg", "PNG": "png", "WEBP": "webp"}


def seen(data: bytes) -> npt.NDArray[np.uint8] | None:
    """What Pillow makes of a file, by a full decode; None when it refuses."""
    try:
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    except Exception:
        return None


def supported(data: bytes) -> bool:
    """Whether a file declares no more than is decoded here at all."""
    try:
        read_header(io.BytesIO(data))
    except UnsupportedImageError:
        return False
    except InputError:
        pass
    return True


def rows_of(images: list[npt.NDArray[np.uint8]], seed: int) -> tuple[CropRows, list[npt.NDArray[np.uint8]]]:
    """Rows of boxes of the crop's own size all over the images, and what is in them."""
    rng, rows, inside = np.random.default_rng(seed), [], []
    for image, pixels in enumerate(images):
        most = np.array(pixels.shape[:2]) - SIZE
        corners: list[Any] = [(0, 0), most, (0, most[1]), (most[0], 0)]
        for top, left in [*corners, *(rng.integers(0, most + 1) for _ in range(BOXES - 4))]:
            rows.append((image, int(top), int(left)))
            inside.append(pixels[top : top + SIZE, left : left + SIZE])
    values = np.zeros((len(CROP_COLUMNS), len(rows)), np.uint16)
    values[[0, 2, 3]], values[4:6] = np.array(rows).T, SIZE
    return CropRows(CROP_COLUMNS, values), inside


def scanned(root: Path) -> tuple[Manifest, set[int]]:
    """The manifest of the files that decode, and the seeds that are in it."""
    manifest = scan(root, digests=False, skip_broken=True)
    return manifest, {int(Path(path).stem) for path in manifest.names}


def run(kind: str, first: int, behind: int, root: Path) -> dict[str, Any]:
    """Counts, and the seeds that failed."""
    failed: dict[str, list[int]] = {"verdict": [], "whole": [], "region": [], "sides": []}
    counts: Counter[str] = Counter()
    expected: dict[int, npt.NDArray[np.uint8]] = {}
    (root / "a").mkdir(parents=True)
    for seed in range(first, behind):
        data = damaged(kind, seed)
        if not supported(data):
            counts["unsupported"] += 1
            continue
        pixels = seen(data)
        if pixels is not None:
            expected[seed] = pixels
        (root / "a" / f"{seed:08d}.{SUFFIXES[kind]}").write_bytes(data)
    manifest, accepted = scanned(root)
    counts.update(files=behind - first, accepted=len(accepted))
    failed["verdict"] = sorted(accepted ^ expected.keys())
    keep = []
    for image, path in enumerate(manifest.names):
        seed = int(Path(path).stem)
        if seed in expected and min(expected[seed].shape[:2]) >= SIZE:
            sides = int(manifest.heights[image]), int(manifest.widths[image])
            if sides == expected[seed].shape[:2]:
                keep.append(image)
            else:
                failed["sides"].append(seed)
    part = manifest.subset(np.array(keep))
    seeds = [int(Path(path).stem) for path in part.names]
    rows, inside = rows_of([expected[seed] for seed in seeds], first)
    for name, cache in (("whole", 1 << 30), ("region", 0)):
        renderer = make_renderer(part, PlanSpec(size=SIZE), threads=2, cache_bytes=cache)
        found = renderer.render(rows).numpy()
        differ = [not np.array_equal(crop, box) for crop, box in zip(found, inside, strict=True)]
        failed[name] = sorted({seeds[int(rows.image[row])] for row in np.flatnonzero(differ)})
        counts[name] = len(differ)
        renderer.close()
    return {"counts": dict(counts), "failed": {name: found for name, found in failed.items() if found}}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    root, words = Path(sys.argv[1]), sys.argv[2:]
    runs = zip(words[::3], words[1::3], words[2::3], strict=True)
    try:
        print(json.dumps([run(kind, int(first), int(behind), root / kind) for kind, first, behind in runs]))
    except InputError as error:
        print(json.dumps({"error": str(error)}))
