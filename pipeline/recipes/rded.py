"""RDED (CVPR 2024; LINs-lab/RDED, validation/main.py and argument.py).

Patch shuffle of the collages of 128 px and more, resized crop, flip, CutMix with one weight and box a training batch;
ImageNet's mean and deviation for every set. The authors' loop also runs a second forward in training mode a step, which
moves BatchNorm's statistics twice; that is not copied.
"""

from __future__ import annotations

from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.recipes.setting import CIFAR100, IMAGENET, TINY, Flags, Setting, batch_norm

COLLAGE_SIDE = 128  # from here on RDED's images are collages of 2 x 2
CONV3_BATCH = 25
RATES = {
    "vgg11": 5e-4,
    "efficientnet_b0": 2e-3,
    "mobilenet_v2": 2.5e-3,
    "alexnet": 1e-4,
    "vit_b_16": 1e-4,
    "swin_v2_t": 1e-4,
}
build_differs = "a group of crops shares its CutMix weight and box, where RDED's code draws them for each batch"
train_differs = (
    "a second forward in training mode each step, which moves BatchNorm's statistics twice; only the best evaluation "
    "is reported there"
)


def build(setting: Setting) -> Flags:
    """Patch shuffle, resized crop and CutMix."""
    factor = 2 if setting.size >= COLLAGE_SIDE else 1
    shuffle: Flags = {"augment": (f"patch-shuffle={factor}",)} if factor > 1 else {}
    return {
        **shuffle,
        "crop": "resized",
        "scale": (1 / factor, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "mix": "cutmix",
        "alpha": 1.0,
        "group": max(batch(setting), 2),
        "mix_per": "group",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }


def stored_in(classes: int, plan: Flags) -> Flags:
    """The flags of `build` that a store of so many classes may have instead.

    A ConvNet-D3 that labels CIFAR-100 gives groups of 25, the batches of the same network; other students are trained
    on them too.
    """
    return {"group": CONV3_BATCH} if classes == CIFAR100 and plan.get("group") == CONV3_BATCH else {}


def train(setting: Setting) -> Flags:
    """AdamW with decay on weights only, half of a cosine's half wave, KL at T = 20 without T squared."""
    return {
        **batch_norm(setting),
        "loss": "kl",
        "temperature": 20.0,
        "t_squared": False,
        "epochs": 300,
        "batch_size": batch(setting),
        "optimizer": "AdamW",
        "lr": 2e-3 if setting.conv3 else RATES.get(setting.architecture, 1e-3),
        "weight_decay": 0.01,
        "decay": "weights",
        "optimizer_args": '{"betas": [0.9, 0.999]}',
        "schedule": "cosine",
        "schedule_per": "epoch",
        "final": 0.0,
        "horizon": 2.0,
        "eval_every": 10,
        "eval_from": 0.8,
        "test_resize": resize(setting),
    }


def batch(setting: Setting) -> int:
    """Crops a batch, at most N.

    10, 50, 100 for up to 1, 10 and more images a class; twice that for 100 and 1000 classes; 100 for Tiny-ImageNet.
    """
    size = next((size for most, size in ((1, 10), (10, 50)) if setting.per_class <= most), 100)
    if setting.classes in (CIFAR100, IMAGENET):
        size *= 2
    if setting.classes == TINY:
        size = 100
    return min(CONV3_BATCH if setting.conv3 else size, setting.images)


def resize(setting: Setting) -> int:
    """RDED's short side of a test image, for every set: 8 for each 7 whole pixels of the crop, 256 for 224."""
    side = setting.crop_side
    return max(side // 7 * 8, side)
