"""Crops that several protocols share."""

from __future__ import annotations

from pipeline.recipes.setting import Flags


def cutmix_crops(smallest: float, group: int) -> Flags:
    """Resized crops of at least a share of the area, flipped, with one weight and box of CutMix a group."""
    return {
        "crop": "resized",
        "scale": (smallest, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "mix": "cutmix",
        "alpha": 1.0,
        "group": max(group, 2),
        "mix_per": "group",
    }
