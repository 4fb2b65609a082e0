"""EDC (NeurIPS 2024; shaoshitong/EDC, relabel/ and train/ of each of its branches).

Labels of the mean logits of several networks, squared error plus a weighted hard cross-entropy, a rate that ends at
half, and a running mean of the weights, which is what is tested. Batches are small. Branches are those of G-VBSM.
"""

from __future__ import annotations

from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.recipes import sre2l
from pipeline.recipes.crops import cutmix_crops
from pipeline.recipes.g_vbsm import CIFAR_MEAN, CIFAR_STD, branch
from pipeline.recipes.setting import Flags, Setting

ADAMW: Flags = {"optimizer": "AdamW", "lr": 1e-3, "weight_decay": 0.01}
SGD: Flags = {"optimizer": "SGD", "lr": 0.1, "optimizer_args": '{"momentum": 0.875}', "weight_decay": 5e-4}
COSINE: Flags = {"schedule": "cosine", "final": 0.0, "horizon": 2.0}
STEPS: Flags = {"schedule": "step", "milestones": (0.8, 0.9, 0.95), "drop": 0.5}
BRANCHES: dict[str, Flags] = {
    "imagenet": {**ADAMW, **COSINE, "epochs": 300, "eval_every": 30, "eval_from": 0.0},
    "tiny": {**SGD, **COSINE, "epochs": 300, "eval_every": 30, "eval_from": 0.0},
    "cifar100": {**SGD, **COSINE, "epochs": 1_000, "eval_every": 100, "eval_from": 0.0},
    "cifar10": {**ADAMW, **STEPS, "epochs": 1_000, "eval_every": 10, "eval_from": 0.8},
}
build_differs = (
    "labels are the mean logits of several networks (four for ImageNet-1K, five for Tiny-ImageNet and CIFAR-100, "
    "eight for CIFAR-10): give them as --teacher; images of all sets but ImageNet-1K are labelled during training, "
    "and go through torchvision's RandAugment before the crop, where --augment rand-augment changes the crop"
)
train_differs = (
    "the hard cross-entropy takes only the class of the crop, even if CutMix has mixed in another; the running "
    "mean begins with the first weights, and is tested with BatchNorm's statistics of the student, which are "
    "averaged too here; CIFAR-100's rate falls in a straight line over the last sixth; batches of CIFAR-10 for more "
    "than one image a class are not published, and ours are CIFAR-100's; only the best evaluation is reported there"
)


def build(setting: Setting) -> Flags:
    """Crops of half of the area and more (CIFAR-10: of 0.08 and more), flip, CutMix."""
    found = branch(setting)
    normalisation: Flags = {}
    if found == "imagenet":
        normalisation = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    elif found != "tiny":
        normalisation = {"mean": CIFAR_MEAN, "std": CIFAR_STD}
    return {**cutmix_crops(0.08 if found == "cifar10" else 0.5, min(batch(setting), setting.images)), **normalisation}


def train(setting: Setting) -> Flags:
    """Squared error plus 0.025 times hard cross-entropy, and a running mean of the weights."""
    return {
        "loss": "mse+ce",
        "hard_weight": 0.025,
        "ema": 0.99,
        **BRANCHES[branch(setting)],
        "batch_size": batch(setting),
        "decay": "weights",
        "schedule_per": "epoch",
        "test_resize": sre2l.resize(setting),
    }


def batch(setting: Setting) -> int:
    """Crops a batch: 100; 50 for both CIFAR sets, 10 for one image a class of CIFAR-10."""
    found = branch(setting)
    if found == "cifar10" and setting.per_class <= 1:
        return 10
    return 50 if found.startswith("cifar") else 100
