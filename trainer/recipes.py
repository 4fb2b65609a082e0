"""Published protocols in full, as flags of `train`: what is typed behind `--recipe` overrides them.

gift: GIFT (arXiv 2405.14736, LINs-lab/GIFT, validate/evaluator_benchmark.py).
rded: RDED (CVPR 2024, LINs-lab/RDED, validation/main.py and argument.py). Its loop also runs a second forward in
training mode a step, which moves BatchNorm's statistics twice; that is not copied.
sre2l: SRe2L (NeurIPS 2023, VILA-Lab/SRe2L, validate/train_FKD.py with the flags of its script).

What a store must contain for them is in `pipeline.recipes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from labelstore import LabelStore
from labelstore.spec import Identity
from pipeline.recipes import IMAGENET, Flags, Setting, describe, flags_of, given, rded_batch, words
from trainer.config import TrainConfig

GIFT_SLOW = ("swin_v2_t", "vit_b_16")
RDED_RATES = {
    "vgg11": 5e-4,
    "efficientnet_b0": 2e-3,
    "mobilenet_v2": 2.5e-3,
    "alexnet": 1e-4,
    "vit_b_16": 1e-4,
    "swin_v2_t": 1e-4,
}


def batch_norm(setting: Setting) -> Flags:
    """ConvNets have batch norm in the papers that train them."""
    return {"student_args": '{"norm": "batch"}'} if setting.architecture.startswith("convnet-d") else {}


def gift(setting: Setting) -> Flags:
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
        "lr": 1e-4 if setting.architecture in GIFT_SLOW else 1e-3,
        "weight_decay": 1e-4,
        "decay": "all",
        "schedule": "step",
        "schedule_per": "epoch",
        "milestones": (2 / 3, 5 / 6),
        "drop": 0.2,
        "eval_every": max((setting.epochs or epochs) // 4, 1),
        "eval_from": 0.0,
    }


def rded(setting: Setting) -> Flags:
    """AdamW with decay on weights alone, half of a cosine's half wave, KL at T = 20 without T squared."""
    return {
        **batch_norm(setting),
        "loss": "kl",
        "temperature": 20.0,
        "t_squared": False,
        "epochs": 300,
        "batch_size": rded_batch(setting),
        "optimizer": "AdamW",
        "lr": 2e-3 if setting.conv3 else RDED_RATES.get(setting.architecture, 1e-3),
        "weight_decay": 0.01,
        "decay": "weights",
        "optimizer_args": '{"betas": [0.9, 0.999]}',
        "schedule": "cosine",
        "schedule_per": "epoch",
        "final": 0.0,
        "horizon": 2.0,
        "eval_every": 10,
        "eval_from": 0.8,
    }


def sre2l(_setting: Setting) -> Flags:
    """AdamW with decay on weights alone, a whole cosine, batches of 1024, KL at T = 20 without T squared."""
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
    }


RECIPES: dict[str, Callable[[Setting], Flags]] = {"gift": gift, "rded": rded, "sre2l": sre2l}


def typed(arguments: Sequence[str]) -> list[str]:
    """The arguments of `train` with the flags of their recipe put first, so that those that are given count.

    Raises:
        GiftwrapError: when there is no such recipe, or the store does not open.
    """
    known = given(arguments, "train", "--recipe", "--store", "--student", also="--epochs")
    if known is None:
        return list(arguments)
    identity, epochs = LabelStore.open(known["--store"], follow=True).identity, known["--epochs"] or ""
    setting = Setting.of(identity, known["--student"], int(epochs) if epochs.isdecimal() else None)
    return ["train", *words(flags_of(RECIPES, known["--recipe"], setting)), *arguments[1:]]


def said(config: TrainConfig, identity: Identity) -> str:
    """Every value of a run's recipe, and what was given instead."""
    name = config.recipe or ""
    return describe(name, flags_of(RECIPES, name, Setting.of(identity, config.student, config.epochs)), config)
