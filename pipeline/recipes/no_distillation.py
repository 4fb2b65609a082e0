"""A Label is Worth a Thousand Images (arXiv 2406.10485; sunnytqin/no-distillation, softlabel/utils.py).

The label of an image is made once, from the whole image. The student sees fresh crops with one kind of DSA each.
"""

from __future__ import annotations

from pipeline.recipes import sre2l
from pipeline.recipes.setting import Flags, Setting

build_differs = (
    "one random crop of each ImageNet image in its place (`giftwrap synthesize random --take crop` makes such images); "
    "ZCA whitening of CIFAR-10"
)
train_differs = (
    "DSA draws its kind for each crop, where the paper's code draws it once a batch; one epoch more than --epochs; "
    "AdamW with a cosine, and rates other than 0.01, which the paper takes for some sets; the sample command for "
    "Tiny-ImageNet has 1,000 epochs; the mean over five seeds of only the best evaluation is reported there"
)


def build(_setting: Setting) -> Flags:
    """Whole images: one view of them holds the label of each."""
    return {"crop": "center", "flip": 0.0, "mix": "none"}


def fresh(setting: Setting) -> Flags:
    """Whole images, then one of DSA's six kinds, of which the flip is one."""
    return {**build(setting), "augment": ("dsa=one",)}


def train(setting: Setting) -> Flags:
    """SGD with a rate that drops at each quarter of the run, on one label an image."""
    return {
        "labels": "image",
        "loss": "soft_ce",
        "epochs": 3_000,
        "batch_size": 256,
        "optimizer": "SGD",
        "lr": 0.01,
        "weight_decay": 5e-4,
        "optimizer_args": '{"momentum": 0.9}',
        "decay": "all",
        "schedule": "step",
        "schedule_per": "epoch",
        "milestones": (0.25, 0.5, 0.75),
        "drop": 0.3,
        "eval_every": 200,
        "eval_from": 0.0,
        "test_resize": sre2l.resize(setting),
    }
