"""Published protocols in full, as flags of `train`: what is typed behind `--recipe` overrides them.

gift: GIFT (arXiv 2405.14736, LINs-lab/GIFT, validate/evaluator_benchmark.py).
rded: RDED (CVPR 2024, LINs-lab/RDED, validation/main.py and argument.py). Its loop also runs a second forward in
training mode a step, which moves BatchNorm's statistics twice; that is not copied.
sre2l: SRe2L (NeurIPS 2023, VILA-Lab/SRe2L, validate/train_FKD.py with the flags of its script).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from labelstore import LabelStore
from labelstore.errors import InputError
from labelstore.spec import Identity, Json
from trainer.config import TrainConfig

Value: TypeAlias = "Json | tuple[float, ...]"
Flags = dict[str, Value]

# ImageNet-1K and Tiny-ImageNet are known by their number of classes, as the papers' own code knows them by name.
IMAGENET, TINY, CIFAR100 = 1_000, 200, 100
GIFT_SLOW = ("swin_v2_t", "vit_b_16")
RDED_RATES = {
    "vgg11": 5e-4,
    "efficientnet_b0": 2e-3,
    "mobilenet_v2": 2.5e-3,
    "alexnet": 1e-4,
    "vit_b_16": 1e-4,
    "swin_v2_t": 1e-4,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What the numbers of a recipe depend on.

    Attributes:
        images: number of images N.
        classes: number of class folders C.
        student: the network that is trained.
        teacher: the network that made the labels.
    """

    images: int
    classes: int
    student: str
    teacher: str

    @classmethod
    def of(cls, identity: Identity, student: str) -> Setting:
        """Of a store and a student."""
        teacher = str(identity.teacher.get("name"))
        return cls(images=identity.images, classes=len(identity.classes), student=student, teacher=teacher)

    @property
    def per_class(self) -> int:
        """Images a class, rounded up."""
        return -(-self.images // self.classes)

    @property
    def architecture(self) -> str:
        """The student's name without its library."""
        return self.student.rpartition(":")[2]


def gift(setting: Setting) -> Flags:
    """AdamW with decay on all parameters, rate x 0.2 at two thirds and five sixths, batches by the number of images."""
    epochs = 300 if setting.classes == IMAGENET else 1_000
    batches = ((10, 10), (500, 50), (20_000, 100))
    return {
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
        "eval_every": epochs // 4,
        "eval_from": 0.0,
    }


def rded(setting: Setting) -> Flags:
    """AdamW with decay on weights alone, half of a cosine's half wave, KL at T = 20 without T squared."""
    batch = _rded_batch(setting)
    rate = RDED_RATES.get(setting.architecture, 1e-3)
    if setting.classes == CIFAR100 and setting.student == setting.teacher == "convnet-d3":
        batch, rate = 25, 2e-3
    return {
        "loss": "kl",
        "temperature": 20.0,
        "t_squared": False,
        "epochs": 300,
        "batch_size": min(batch, setting.images),
        "optimizer": "AdamW",
        "lr": rate,
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
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--recipe", "--store", "--student"):
        parser.add_argument(flag)
    known, _ = parser.parse_known_args(arguments[1:])
    if arguments[:1] != ["train"] or not (known.recipe and known.store and known.student):
        return list(arguments)  # what is missing is said by the command's own parser
    setting = Setting.of(LabelStore.open(known.store).identity, known.student)
    return ["train", *words(of(known.recipe, setting)), *arguments[1:]]


def of(name: str, setting: Setting) -> Flags:
    """The flags of a recipe in a setting."""
    if name not in RECIPES:
        raise InputError(f"--recipe: expected one of {', '.join(RECIPES)}, found {name!r}")
    return RECIPES[name](setting)


def said(config: TrainConfig, setting: Setting) -> str:
    """Every value of the run's recipe, and what was given instead."""
    parts = []
    for name, value in of(config.recipe or "", setting).items():
        used = getattr(config, name)
        instead = "" if used == value else f" (the recipe has {value})"
        parts.append(f"{name.replace('_', '-')} {used}{instead}")
    return f"recipe {config.recipe}: {', '.join(parts)}"


def words(flags: Mapping[str, Value]) -> list[str]:
    """Flags as they are typed."""
    typed: list[str] = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            typed.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            typed += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return typed


def _rded_batch(setting: Setting) -> int:
    """10, 50, 100 for up to 1, 10 and more images a class; twice that for 100 and 1000 classes, Tiny always 100."""
    if setting.classes == TINY:
        return 100
    batch = next((batch for most, batch in ((1, 10), (10, 50)) if setting.per_class <= most), 100)
    return 2 * batch if setting.classes in (CIFAR100, IMAGENET) else batch
