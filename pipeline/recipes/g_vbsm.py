"""G-VBSM (CVPR 2024; shaoshitong/G_VBSM_Dataset_Condensation, relabel/ and train/ of each of its branches).

SRe2L's crops, labelled by the mean logits of several networks; squared error of the logits plus a weighted hard
cross-entropy. A branch a set: CIFAR-10 and CIFAR-100 at 32 px, Tiny-ImageNet, and ImageNet-1K, which other sets follow.
The released training code has no running mean of the weights.
"""

from __future__ import annotations

from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.recipes import sre2l
from pipeline.recipes.crops import cutmix_crops
from pipeline.recipes.setting import CIFAR100, TINY, Flags, Setting

CIFAR_SIDE = 32
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # of both, as in the authors' code
ADAMW: Flags = {"optimizer": "AdamW", "lr": 1e-3}
SGD: Flags = {"optimizer": "SGD", "lr": 0.1, "optimizer_args": '{"momentum": 0.9}', "weight_decay": 5e-4}
BRANCHES: dict[str, Flags] = {
    "imagenet": {**ADAMW, "weight_decay": 0.01, "epochs": 300, "batch_size": 1_024, "hard_weight": 0.1},
    "tiny": {**SGD, "epochs": 100, "batch_size": 100, "accumulate": 2, "hard_weight": 0.1},
    "cifar100": {**SGD, "epochs": 1_000, "batch_size": 64, "hard_weight": 0.15},
    "cifar10": {**ADAMW, "weight_decay": 0.0, "epochs": 1_000, "batch_size": 100, "hard_weight": 0.15},
}
build_differs = (
    "labels are the mean logits of four networks (five for the smaller sets): give them as --teacher; for ImageNet-1K "
    "the logits of each are first scaled to the mean norm of all, batch by batch"
)
train_differs = (
    "the hard cross-entropy takes only the class of the crop, even if CutMix has mixed in another; here it is that "
    "of both, by their weights; only the best evaluation is reported there"
)


def build(setting: Setting) -> Flags:
    """SRe2L's crops in the batches of the branch; Tiny-ImageNet is normalised as the teachers are."""
    normalisation: dict[str, Flags] = {
        "imagenet": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        "cifar100": {"mean": CIFAR_MEAN, "std": CIFAR_STD},
        "cifar10": {"mean": CIFAR_MEAN, "std": CIFAR_STD},
    }
    size = int(str(BRANCHES[branch(setting)]["batch_size"]))
    return {**cutmix_crops(0.08, min(size, setting.images)), **normalisation.get(branch(setting), {})}


def train(setting: Setting) -> Flags:
    """Squared error plus hard cross-entropy; decay on weights only, a whole cosine."""
    return {
        "loss": "mse+ce",
        **BRANCHES[branch(setting)],
        "decay": "weights",
        "schedule": "cosine",
        "schedule_per": "epoch",
        "final": 0.0,
        "horizon": 1.0,
        "eval_every": 10,
        "eval_from": 0.0,
        "test_resize": sre2l.resize(setting),
    }


def branch(setting: Setting) -> str:
    """The branch of the authors' code that is for a set."""
    if setting.classes == TINY:
        return "tiny"
    if setting.size > CIFAR_SIDE:
        return "imagenet"
    return {CIFAR100: "cifar100", 10: "cifar10"}.get(setting.classes, "imagenet")
