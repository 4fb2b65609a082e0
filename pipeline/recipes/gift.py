"""GIFT (arXiv 2405.14736; LINs-lab/GIFT, validate/evaluator_benchmark.py and utils/transforms.py).

Factor crop, of two cells a side only for RDED's ImageNet-1K set and its ResNet-18, then DSA on the normalised image.
The flip of DSA is the plan's.
"""

from __future__ import annotations

from pipeline.recipes.setting import IMAGENET, TINY, Flags, Setting, batch_norm

SLOW = ("swin_v2_t", "vit_b_16")
LOSS = ("loss", "gift_form", "gamma", "smoothing")  # what belongs to the loss
build_differs = (
    "DSA draws one of crop, scale and rotation for each crop, where GIFT's code draws it once a batch; that code "
    "normalises each set by its own mean and deviation, here they are the teacher's: see --mean and --std"
)
train_differs = "only the best of four evaluations is reported there, as mean and population deviation of three runs"


def build(_setting: Setting) -> Flags:
    """Factor crop and DSA."""
    return {"crop": "factor", "factor": 1, "augment": ("dsa",), "flip": 0.5, "mix": "none"}


def stored_in(classes: int, plan: Flags) -> Flags:
    """The flags of `build` that a store of so many classes may have instead: the factor 2 of RDED's ImageNet-1K set."""
    return {"factor": 2} if classes == IMAGENET and plan.get("factor") == 2 else {}


def train(setting: Setting) -> Flags:
    """AdamW with decay on all parameters, rate x 0.2 at two thirds and five sixths, batches by the number of images."""
    epochs = 300 if setting.classes == IMAGENET else 1_000
    batches = ((10, 10), (500, 50), (20_000, 100))
    return {
        **batch_norm(setting),
        "loss": "gift",
        "gift_form": "released",
        "gamma": 0.1,
        "smoothing": 0.1,
        "epochs": epochs,
        "batch_size": next((batch for most, batch in batches if setting.images <= most), 200),
        "optimizer": "AdamW",
        "lr": 1e-4 if setting.architecture in SLOW else 1e-3,
        "weight_decay": 1e-4,
        "decay": "all",
        "schedule": "step",
        "schedule_per": "epoch",
        "milestones": (2 / 3, 5 / 6),
        "drop": 0.2,
        "eval_every": max((setting.epochs or epochs) // 4, 1),
        "eval_from": 0.0,
        "test_resize": resize(setting),
    }


def resize(setting: Setting) -> int:
    """GIFT's short side of a test image: 256 for 224 px; ConvNets of ImageNet-1K 73 for 64, of its subsets 146 for 128.

    The other sets, Tiny-ImageNet included, are tested on whole images.
    """
    side, convnet = setting.crop_side, setting.convnet
    if setting.classes != TINY and side == 224:
        return 256
    if convnet and setting.classes == IMAGENET and side == 64:
        return 73
    return 146 if convnet and setting.classes not in (TINY, IMAGENET) and side == 128 else side
