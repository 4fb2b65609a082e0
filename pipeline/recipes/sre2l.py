"""SRe2L (NeurIPS 2023; VILA-Lab/SRe2L, validate/train_FKD.py with the flags of its script).

Resized crop, flip, CutMix with one weight and box a batch of 1024.
"""

from __future__ import annotations

from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.recipes.setting import Flags, Setting

build_differs = (
    "CutMix mixes within a batch of 1,024, and here within all images of a smaller set; the authors' code for CIFAR "
    "and Tiny-ImageNet makes labels during training, by other protocols"
)
train_differs = (
    "a batch taken in two halves, each with its own BatchNorm statistics (--accumulate 2 does); only the best "
    "evaluation is reported there"
)


def build(setting: Setting) -> Flags:
    """Resized crop and CutMix."""
    return {
        "crop": "resized",
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "mix": "cutmix",
        "alpha": 1.0,
        "group": max(min(1_024, setting.images), 2),
        "mix_per": "group",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }


def train(setting: Setting) -> Flags:
    """AdamW with decay on weights only, a whole cosine, batches of 1024, KL at T = 20 without T squared."""
    return {
        "loss": "kl",
        "temperature": 20.0,
        "t_squared": False,
        "epochs": 300,
        "batch_size": 1_024,
        "optimizer": "AdamW",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "decay": "weights",
        "schedule": "cosine",
        "schedule_per": "epoch",
        "final": 0.0,
        "horizon": 1.0,
        "eval_every": 10,
        "eval_from": 0.0,
        "test_resize": resize(setting),
    }


def resize(setting: Setting) -> int:
    """SRe2L's short side of a test image: 256 for ImageNet's 224 px; smaller images whole."""
    side = setting.crop_side
    return 256 if side == 224 else side
