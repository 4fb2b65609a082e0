"""The evaluation of the ECCV 2024 dataset distillation challenge (DataDistillation/ECCV2024-..., evaluate.py).

Hard labels by the order of the images, here by their folders; DSA of one kind; the accuracy after the last epoch. The
score is the mean of three runs on CIFAR-100 and of three on Tiny-ImageNet, both with 10 images a class.
"""

from __future__ import annotations

from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.recipes.setting import CIFAR100, TINY, Flags, Setting

EPOCHS = 1_001  # range(Epoch + 1) with Epoch = 1000
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
NORMALISATION = {CIFAR100: (CIFAR100_MEAN, CIFAR100_STD), TINY: (IMAGENET_MEAN, IMAGENET_STD)}
build_differs = "the challenge has no stored labels"
train_differs = (
    "DSA draws its kind for each crop, where the challenge's code draws it once a batch; the momentum that their new "
    "optimiser forgets when the rate drops is kept"
)


def build(_setting: Setting) -> Flags:
    """Whole images, then one of DSA's six kinds, of which the flip is one."""
    return {"crop": "center", "flip": 0.0, "mix": "none", "augment": ("dsa=one",)}


def fresh(setting: Setting) -> Flags:
    """The same, normalised as the challenge normalises CIFAR-100 and Tiny-ImageNet."""
    mean, std = NORMALISATION.get(setting.classes, (None, None))
    return {**build(setting), **({"mean": mean, "std": std} if mean and std else {})}


def train(setting: Setting) -> Flags:
    """SGD on hard labels; the rate drops to a tenth after half of the epochs and two more."""
    epochs = setting.epochs or EPOCHS
    before = max(min((epochs - 1) // 2 + 2, epochs - 1), 1)  # epochs at the first rate
    return {
        "labels": "none",
        "loss": "ce",
        "epochs": EPOCHS,
        "batch_size": 256,
        "optimizer": "SGD",
        "lr": 0.01,
        "weight_decay": 5e-4,
        "optimizer_args": '{"momentum": 0.9}',
        "decay": "all",
        "schedule": "step",
        "schedule_per": "epoch",
        "milestones": (before / epochs if epochs > 1 else 0.5,),
        "drop": 0.1,
        "eval_every": epochs,
        "eval_from": 0.0,
        "test_resize": setting.crop_side,
    }
