"""Published protocols in full, as flags of `train`: what is typed behind `--recipe` overrides them.

gift: GIFT (arXiv 2405.14736, LINs-lab/GIFT, validate/evaluator_benchmark.py).
rded: RDED (CVPR 2024, LINs-lab/RDED, validation/main.py and argument.py). Its loop also runs a second forward in
training mode a step, which moves BatchNorm's statistics twice; that is not copied.
sre2l: SRe2L (NeurIPS 2023, VILA-Lab/SRe2L, validate/train_FKD.py with the flags of its script).

What a store must contain for them is in `pipeline.recipes`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from labelstore import LabelStore
from labelstore.spec import Identity
from pipeline.recipes import (
    IMAGENET,
    TINY,
    Flags,
    Setting,
    Value,
    describe,
    flags_of,
    given,
    rded_batch,
    spelled,
    without_replaced,
    words,
)
from trainer.config import LOSS_NUMBERS, SCHEDULE_NUMBERS, TrainConfig

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


def side_of(setting: Setting) -> int:
    """Side of the student's crops."""
    return setting.side or setting.size


def gift_resize(setting: Setting) -> int:
    """GIFT's short side of a test image: 256 for 224 px; ConvNets of ImageNet-1K 73 for 64, of its subsets 146 for 128.

    The other sets, Tiny-ImageNet included, are tested on whole images.
    """
    side, convnet = side_of(setting), setting.architecture.startswith("convnet-d")
    if setting.classes != TINY and side == 224:
        return 256
    if convnet and setting.classes == IMAGENET and side == 64:
        return 73
    return 146 if convnet and setting.classes not in (TINY, IMAGENET) and side == 128 else side


def rded_resize(setting: Setting) -> int:
    """RDED's short side of a test image, for every set: 8 for each 7 whole pixels of the crop, 256 for 224."""
    side = side_of(setting)
    return max(side // 7 * 8, side)


def sre2l_resize(setting: Setting) -> int:
    """SRe2L's short side of a test image: 256 for ImageNet's 224 px; smaller images whole."""
    side = side_of(setting)
    return 256 if side == 224 else side


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
        "test_resize": gift_resize(setting),
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
        "test_resize": rded_resize(setting),
    }


def sre2l(setting: Setting) -> Flags:
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
        "test_resize": sre2l_resize(setting),
    }


RECIPES: dict[str, Callable[[Setting], Flags]] = {"gift": gift, "rded": rded, "sre2l": sre2l}
# What belongs to the choice of a flag: another choice has values of its own.
OWNED = {
    "loss": tuple(LOSS_NUMBERS.values()),
    "optimizer": ("lr", "weight_decay", "optimizer_args"),
    "schedule": tuple(SCHEDULE_NUMBERS),
}
MERGED = ("student_args", "optimizer_args")
UNSAID = (
    "recipe", "store", "images", "run", "json", "anyway", "test_images", "checkpoint_every", "checkpoint_steps",
    "log_every", "tensorboard",
)  # fmt: skip
NOT_REPRODUCED = {
    "gift": "images and order of the paper's batches; the best of four evaluations alone is reported there",
    "rded": "a second forward in training mode each step, which moves BatchNorm's statistics twice",
    "sre2l": "a batch taken in two pieces (--accumulate 2 does), of images in the order of the relabelling",
}


def typed(arguments: Sequence[str]) -> list[str]:
    """The arguments of `train` with the flags of their recipe put first, so that those that are given count.

    What belongs to a loss, optimiser or schedule in whose place another one is given is left out; JSON arguments are
    merged.

    Raises:
        GiftwrapError: when there is no such recipe, or the store does not open.
    """
    also = ("--epochs", "--size", *(f"--{choice}" for choice in OWNED), *(spelled_out(name) for name in MERGED))
    known = given(arguments, "train", "--recipe", "--store", "--student", also=also)
    if known is None:
        return list(arguments)
    identity = LabelStore.open(known["--store"], follow=True).identity
    epochs, side = (int(text) if (text := known[flag] or "").isdecimal() else None for flag in ("--epochs", "--size"))
    setting = Setting.of(identity, known["--student"], epochs, side)
    flags = without_replaced(flags_of(RECIPES, known["--recipe"], setting), known, OWNED)
    merged = {name: merge(flags[name], known[spelled_out(name)]) for name in MERGED if name in flags}
    last = words({name: value for name, value in merged.items() if known[spelled_out(name)]})
    return ["train", *words(flags), *arguments[1:], *last]


def spelled_out(name: str) -> str:
    """A field's flag."""
    return f"--{spelled(name)}"


def merge(ours: Value, theirs: str | None) -> Value:
    """The JSON object of a recipe with what is given in its place; what is no object is left to the command."""
    try:
        values = json.loads(theirs or "{}")
    except ValueError:
        return theirs
    return json.dumps({**json.loads(str(ours)), **values}) if isinstance(values, dict) else theirs


def describe_recipe(config: TrainConfig, identity: Identity, views: int) -> str:
    """Every value of a run's recipe, what was given instead, all else in effect, and what is not reproduced."""
    name = config.recipe or ""
    side = config.size or identity.size
    flags = flags_of(RECIPES, name, Setting.of(identity, config.student, config.epochs, config.size))
    used = {**config.in_effect(), "size": side, "test_resize": config.test_resize or side, "views": views}
    text = describe(name, flags, used, UNSAID)
    more = (
        f"; the paper draws fresh crops for each epoch: `pipeline build --views {config.epochs}` makes as many"
        if config.epochs > views
        else ""
    )
    return f"{text}; {NOT_REPRODUCED[name]}{more}"


def plays(epochs: int, views: int) -> str:
    """How often each view of a store is played."""
    times, more = divmod(epochs, views)
    counts = [(views - more, times), (more, times + 1)]
    parts = [f"{count:,} {often(number)}" for count, number in counts if count and (number or not times)]
    return f"{epochs:,} epochs over {views:,} views: {', '.join(parts)}"


def often(number: int) -> str:
    """How often, in words."""
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number:,} times")
