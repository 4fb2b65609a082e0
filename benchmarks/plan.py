"""Orders and crop rows of ImageNet, at least 2 M crops/s on one core, beside torchvision's own draws."""

from __future__ import annotations

from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms import RandomResizedCrop

from benchmarks.harness import Report, interleave, machine
from labelstore.spec import MAX_POSITIONS, Json
from pipeline.plan.plan import Plan, PlanSpec

PROMISED = 2e6
SIDES = 375, 500  # the most common image of ImageNet


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Time whole views of crops of 224 pixels, order included, block by block."""
    images, theirs, rounds = (3_000, 200, 1) if quick else (1_281_167, 20_000, 5)
    heights, widths = (np.full(images, side, np.int32) for side in SIDES)
    plans = {
        "resized": Plan(PlanSpec(size=224), heights, widths),
        "cutmix": Plan(PlanSpec(size=224, mix="cutmix", group=128), heights, widths),
    }
    views = count()  # never the same view, so that its order is always drawn

    def draw(plan: Plan) -> None:
        view = next(views)
        for start in range(0, images, MAX_POSITIONS):
            plan.rows(view, start, min(start + MAX_POSITIONS, images))

    require_alike(plans["resized"], torchvision_boxes(theirs))
    timing = interleave(
        {
            "resized": lambda: draw(plans["resized"]),
            "cutmix": lambda: draw(plans["cutmix"]),
            "torchvision": lambda: torchvision_boxes(theirs),
        },
        rounds,
    )
    rates = {name: timing.rate(name, images) for name in plans}
    for name, seconds in timing.wall.items():
        crops = images if name in plans else theirs
        report.add(name, "rate", [crops / second for second in seconds], "crops/s")
    return {
        "unit": "crops/s",
        "images": images,
        **{name: {**rate} for name, rate in rates.items()},
        "torchvision": {**timing.rate("torchvision", theirs)},
        "times torchvision": timing.speedup("resized", "torchvision") * images / theirs,
        "promised": PROMISED,
        "kept": all(rate["wall"] >= PROMISED for rate in rates.values()),
        "machine": machine(),
    }


def torchvision_boxes(crops: int) -> npt.NDArray[np.int64]:
    """What a training loop draws for each crop: box and flip; int64 ``[crops, 5]``."""
    image = torch.empty(3, *SIDES, device="meta")
    scale, ratio = [0.08, 1.0], [3 / 4, 4 / 3]
    return np.array(
        [(*RandomResizedCrop.get_params(image, scale, ratio), int(torch.rand(1) < 0.5)) for _ in range(crops)]
    )


def require_alike(plan: Plan, theirs: npt.NDArray[np.int64]) -> None:
    """Compare the mean of every column with torchvision's before any time is taken."""
    ours = plan.rows(0, 0, plan.images).values[2:].T.astype(np.float64)
    spread = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
    if (np.abs(ours.mean(0) - theirs.mean(0)) > 6 * spread + 1e-9).any():
        raise RuntimeError(f"other crops than torchvision's: means {ours.mean(0)} and {theirs.mean(0)}")
