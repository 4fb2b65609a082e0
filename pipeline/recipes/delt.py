"""DELT (CVPR 2025; VILA-Lab/DELT, evaluation/): RDED's evaluation with crops of a quarter of the area and more.

Patches are not shuffled. The scripts that set the smallest crop are for ImageNet-1K; other sets are given the same.
"""

from __future__ import annotations

from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.recipes import rded
from pipeline.recipes.crops import cutmix_crops
from pipeline.recipes.setting import CIFAR100, IMAGENET, TINY, Flags, Setting

SMALLEST = 0.25
CIFAR_SIDE = 32
build_differs = (
    "RandAugment of timm (rand-m6-n2-mstd1.0) on the whole image before the crop, which no --augment is; a group of "
    "crops shares its CutMix weight and box, where the authors' code draws them for each batch"
)
train_differs = (
    "a second forward in training mode each step, which moves BatchNorm's statistics twice; only the best evaluation "
    "is reported there"
)


def build(setting: Setting) -> Flags:
    """Resized crop and CutMix; ImageNet's mean and deviation for every set."""
    return {**cutmix_crops(SMALLEST, batch(setting)), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


stored_in = rded.stored_in


def train(setting: Setting) -> Flags:
    """RDED's numbers, but for batches, and evaluations over the whole run."""
    size = batch(setting)
    imagenet = setting.classes == IMAGENET or (setting.classes == CIFAR100 and setting.size > CIFAR_SIDE)
    if setting.architecture == "resnet101" and imagenet:
        size = max(size // 2, 1)
    return {**rded.train(setting), "batch_size": size, "eval_from": 0.0}


def batch(setting: Setting) -> int:
    """Crops a batch, at most N.

    10, 50, 100 for up to 1, 20 and more images a class; twice that for 100 and 1000 classes; 100 for Tiny-ImageNet.
    """
    size = next((size for most, size in ((1, 10), (20, 50)) if setting.per_class <= most), 100)
    if setting.classes in (CIFAR100, IMAGENET):
        size *= 2
    if setting.classes == TINY:
        size = 100
    return min(rded.CONV3_BATCH if setting.conv3 else size, setting.images)
