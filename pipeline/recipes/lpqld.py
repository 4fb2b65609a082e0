"""LPQLD (arXiv 2604.18135; he-y/soft-label-pruning-quantization-for-dataset-distillation, train_FKD_LPQLD.py).

SRe2L's crops in batches of 128. The temperature of both sides falls in steps; the student's is found after each epoch.
Numbers are those of scripts/reproduce/lpqld_in1k.sh, and for Tiny-ImageNet those of the code.
"""

from __future__ import annotations

from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.recipes import sre2l
from pipeline.recipes.crops import cutmix_crops
from pipeline.recipes.setting import TINY, Flags, Setting

TINY_MEAN, TINY_STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
BATCH = 128
build_differs = (
    "labels of only the largest 10 to 250 logits, and a tenth of all batches kept: give --views 30 in place of 300 "
    "epochs; all logits are kept here"
)
train_differs = (
    "an epoch put together of stored batches that are drawn one by one (views come whole here), and the evaluations "
    "after epochs 1, 51, ... of which only the best is reported there"
)
few_views = True


def build(setting: Setting) -> Flags:
    """Resized crop and CutMix; Tiny-ImageNet has its own mean and deviation."""
    tiny = setting.classes == TINY
    return {
        **cutmix_crops(0.08, min(BATCH, setting.images)),
        "mean": TINY_MEAN if tiny else IMAGENET_MEAN,
        "std": TINY_STD if tiny else IMAGENET_STD,
    }


def train(setting: Setting) -> Flags:
    """KL at temperatures that fall from 20 to 2, with T squared for Tiny-ImageNet; AdamW, a whole cosine."""
    return {
        "loss": "kl",
        "temperature": 20.0,
        "t_squared": setting.classes == TINY,
        "temperature_every": 30,
        "temperature_drop": 0.7,
        "temperature_floor": 2.0,
        "calibrate_student": True,
        "epochs": 300,
        "batch_size": BATCH,
        "optimizer": "AdamW",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "decay": "weights",
        "schedule": "cosine",
        "schedule_per": "epoch",
        "final": 0.0,
        "horizon": 1.0,
        "eval_every": 50,
        "eval_from": 0.0,
        "test_resize": sre2l.resize(setting),
    }
