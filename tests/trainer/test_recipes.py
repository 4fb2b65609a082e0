"""Recipes: every value of the papers' own code, by set and student; flags that are given override them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from labelstore import Identity, LabelStore
from labelstore.command.command_line import read_command
from labelstore.command.flags import flags_of
from labelstore.errors import InputError, MismatchError
from pipeline.__main__ import COMMANDS as PIPELINE
from pipeline.build import recipe as stores
from pipeline.config import BuildConfig, json_object
from pipeline.images.class_folder import list_images
from pipeline.images.manifest import scan
from pipeline.networks import build_network
from pipeline.plan.plan import PlanSpec
from pipeline.recipes import RECIPES, recipe_of
from pipeline.recipes.flags import shown, words
from pipeline.recipes.setting import Setting
from pipeline.recipes.stores import NORMALISATION, require_store
from tests.journeys.world import draw_images
from tests.labelstore.making import make_identity
from trainer import recipes as trained
from trainer.__main__ import COMMANDS as TRAINER
from trainer.config import TrainConfig
from trainer.optimisers import OptimiserSpec, optimiser_of
from trainer.order import Order
from trainer.schedules import ScheduleSpec

# (classes, images a class): CIFAR-10, CIFAR-100, Tiny-ImageNet, ImageNet-1K
GIFT_BATCHES = {
    (10, 1): 10, (10, 10): 50, (10, 50): 50,
    (100, 1): 50, (100, 10): 100, (100, 50): 100,
    (200, 1): 50, (200, 10): 100, (200, 50): 100,
    (1000, 1): 100, (1000, 10): 100, (1000, 50): 200,
}  # fmt: skip
RDED_BATCHES = {
    (10, 1): 10, (10, 10): 50, (10, 50): 100,
    (100, 1): 20, (100, 10): 100, (100, 50): 200,
    (200, 1): 100, (200, 10): 100, (200, 50): 100,
    (1000, 1): 20, (1000, 10): 100, (1000, 50): 200,
    (2, 1): 2,  # capped at the number of images
}  # fmt: skip


def setting_of(config: TrainConfig, identity: Identity) -> Setting:
    return Setting.of(identity, config.student, config.epochs, config.size)


def setting(
    classes: int, per_class: int, student: str = "resnet18-modified", teacher: str = "other", size: int = 32
) -> Setting:
    return Setting(images=classes * per_class, classes=classes, size=size, student=student, teacher=teacher)


# argument.py of DELT: by images a class, twice for 100 and 1000 classes, 100 for Tiny-ImageNet
DELT_BATCHES = {
    (10, 1): 10, (10, 10): 50, (10, 20): 50, (10, 30): 100, (10, 50): 100, (100, 10): 100, (100, 50): 200,
    (200, 1): 100, (200, 50): 100, (1000, 1): 20, (1000, 20): 100, (1000, 50): 200, (1000, 100): 200, (2, 1): 2,
}  # fmt: skip
EDC_BATCHES = {(10, 1): 10, (10, 10): 50, (100, 10): 50, (200, 10): 100, (1000, 10): 100}


@pytest.mark.parametrize(
    ("recipe", "batches"),
    [
        ("gift", GIFT_BATCHES), ("rded", RDED_BATCHES), ("cim", GIFT_BATCHES), ("delt", DELT_BATCHES),
        ("edc", EDC_BATCHES),
    ],
)  # fmt: skip
def test_batches(recipe: str, batches: dict[tuple[int, int], int]) -> None:
    assert {of: RECIPES[recipe].train(setting(*of))["batch_size"] for of in batches} == batches


@pytest.mark.parametrize(
    ("recipe", "student", "rate"),
    [
        ("gift", "torchvision:resnet18", 1e-3), ("gift", "torchvision:swin_v2_t", 1e-4),
        ("gift", "torchvision:vit_b_16", 1e-4), ("gift", "torchvision:alexnet", 1e-3),
        ("rded", "torchvision:vgg11", 5e-4), ("rded", "torchvision:efficientnet_b0", 2e-3),
        ("rded", "torchvision:mobilenet_v2", 2.5e-3), ("rded", "torchvision:alexnet", 1e-4),
        ("rded", "torchvision:vit_b_16", 1e-4), ("rded", "torchvision:swin_v2_t", 1e-4),
        ("rded", "torchvision:resnet101", 1e-3), ("rded", "convnet-d4", 1e-3), ("sre2l", "torchvision:resnet18", 1e-3),
        ("cim", "torchvision:swin_v2_t", 1e-4), ("cim", "timm:vit_tiny_patch16_224", 1e-4),
        ("cim", "torchvision:efficientnet_b0", 2e-3), ("cim", "torchvision:vit_b_16", 1e-3),
        ("delt", "torchvision:vgg11", 5e-4), ("delt", "torchvision:mobilenet_v2", 2.5e-3),
        ("hald", "torchvision:resnet101", 1e-3), ("hald", "torchvision:vgg11", 1e-3),
    ],
)  # fmt: skip
def test_rates(recipe: str, student: str, rate: float) -> None:
    assert RECIPES[recipe].train(setting(1000, 10, student))["lr"] == rate


@pytest.mark.parametrize("recipe", ["rded", "delt"])
def test_conv3_of_conv3_on_100_classes_is_rdeds_exception(recipe: str) -> None:
    ours = RECIPES[recipe].train(setting(100, 10, "convnet-d3", "convnet-d3"))
    assert (ours["batch_size"], ours["lr"]) == (25, 2e-3)
    other = RECIPES[recipe].train(setting(100, 10, "convnet-d3", "resnet18-modified"))
    assert (other["batch_size"], other["lr"]) == (100, 1e-3)


@pytest.mark.parametrize("recipe", ["rded", "delt"])
@pytest.mark.parametrize("student", ["convnet-d3", "resnet18-modified"])
def test_any_student_takes_the_labels_of_conv3_on_100_classes(recipe: str, student: str) -> None:
    flags = RECIPES[recipe].build(setting(100, 10, "convnet-d3", "convnet-d3"))
    assert flags["group"] == 25
    numbers: dict[str, Any] = {name: value for name, value in flags.items() if name not in NORMALISATION}
    teacher = {"name": "convnet-d3", **{name: [*flags[name]] for name in NORMALISATION}}  # type: ignore[misc]
    plan = PlanSpec(size=32, **numbers)
    identity = make_identity(
        1000, 100, classes=tuple(f"{k:03}" for k in range(100)), size=32, teacher=teacher, plan=plan.to_json(),
        block=(1, 1000),
    )  # fmt: skip
    require_store(recipe, identity, student)
    other = replace(identity, plan=replace(plan, group=50).to_json())
    with pytest.raises(MismatchError, match="trains on a store with group"):
        require_store(recipe, other, student)


def test_delt_halves_the_batches_of_resnet101_on_imagenet() -> None:
    sizes = {of: RECIPES["delt"].train(setting(*of, "torchvision:resnet101", size=of[0]))["batch_size"]
             for of in ((1000, 10), (1000, 1), (100, 50))}  # fmt: skip
    assert sizes == {(1000, 10): 50, (1000, 1): 10, (100, 50): 100}
    assert RECIPES["delt"].train(setting(100, 50, "resnet101", size=32))["batch_size"] == 200  # CIFAR-100


# hyper.yaml of HALD: (classes, network, images a class) -> first rate, horizon of the cosine
HALD_RATES = {
    (100, "resnet18-modified", 1): (5e-4, 2), (100, "resnet18-modified", 10): (1e-3, 2),
    (100, "resnet18-modified", 50): (1e-3, 1), (100, "timm:resnet50", 1): (1e-3, 1),
    (200, "timm:resnet101", 10): (5e-4, 2), (200, "timm:resnet50", 50): (5e-4, 1),
    (200, "resnet18-modified", 1): (1e-3, 2),
    (1000, "torchvision:resnet18", 1): (1e-3, 2), (1000, "torchvision:resnet18", 40): (1e-3, 2),
    (1000, "torchvision:resnet18", 50): (1e-3, 1), (1000, "torchvision:resnet50", 1): (5e-4, 2),
    (1000, "torchvision:resnet101", 1): (3.5e-3, 2), (1000, "torchvision:resnet101", 50): (5e-4, 1),
    (1000, "torchvision:mobilenet_v2", 50): (1e-3, 2), (1000, "torchvision:densenet121", 50): (1e-3, 2),
}  # fmt: skip


def test_halds_rates() -> None:
    found = {of: RECIPES["hald"].train(setting(of[0], of[2], of[1])) for of in HALD_RATES}
    assert {of: (flags["lr"], flags["horizon"]) for of, flags in found.items()} == HALD_RATES


@pytest.mark.parametrize(
    ("epochs", "phases"),
    [(300, "kl:75,ce:150,kl:75"), (30, "kl:7,ce:15,kl:8"), (4, "kl:1,ce:2,kl:1"), (2, "ce:1,kl:1"), (1, None)],
)
def test_halds_phases_follow_the_epochs(epochs: int, phases: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = RECIPES["hald"].train(replace(setting(10, 10), epochs=epochs))
    assert (flags.get("phase"), flags["epochs"]) == (phases, 300)
    config = typed_config(identity_of(100), monkeypatch, "hald", "--epochs", epochs)
    assert (config.phase, config.epochs, sum(phase.epochs for phase in config.phases)) == (phases, epochs, epochs)
    drawn = {name: value for name, value in RECIPES["hald"].build(setting(10, 10)).items() if name not in NORMALISATION}
    if phases:  # hard epochs have the store's crops, drawn anew
        assert config.plan(32).to_json() == PlanSpec(size=32, **drawn).to_json()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("recipe", "words", "phase", "loss", "mix"),
    [
        ("hald", ("--loss", "gift"), None, "gift", "none"),
        ("hald", ("--phase", "kl:10,mse:290"), "kl:10,mse:290", "gift", "none"),
        ("hald", ("--mix", "none"), "kl:75,ce:150,kl:75", "gift", "none"),
        ("rded", ("--phase", "kl:10,ce:290"), "kl:10,ce:290", "gift", "cutmix"),
        ("lpqld", ("--loss", "gift"), None, "gift", "none"),
    ],
)
def test_another_loss_or_other_phases_replace_those_of_the_recipe(
    recipe: str, words: tuple[str, ...], phase: str | None, loss: str, mix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = identity_of(100)
    config = typed_config(identity, monkeypatch, recipe, *words)
    assert (config.phase, config.loss.name, config.crops.mix) == (phase, loss, mix)
    text = trained.describe_recipe(config, setting_of(config, identity), 300)
    assert "(the recipe has" in text


# utils.py:377-431 of no-distillation: its defaults, and StepLR(E // 4, .3)
ONE_LABEL = {
    "labels": "image", "loss": "soft_ce", "epochs": 3000, "batch_size": 256, "optimizer": "SGD", "lr": 0.01,
    "optimizer_args": '{"momentum": 0.9}', "weight_decay": 5e-4, "decay": "all", "schedule": "step",
    "schedule_per": "epoch", "milestones": (0.25, 0.5, 0.75), "drop": 0.3, "eval_every": 200, "eval_from": 0,
    "test_resize": 32,
}  # fmt: skip
# evaluate.py of the ECCV 2024 challenge; its optimiser is made anew after epoch 501 of 1001, counted from 0
CHALLENGE = {
    "labels": "none", "loss": "ce", "epochs": 1001, "batch_size": 256, "optimizer": "SGD", "lr": 0.01,
    "optimizer_args": '{"momentum": 0.9}', "weight_decay": 5e-4, "decay": "all", "schedule": "step",
    "schedule_per": "epoch", "milestones": (502 / 1001,), "drop": 0.1, "eval_every": 1001, "eval_from": 0,
    "test_resize": 32,
}  # fmt: skip
ADAMW = {"optimizer": "AdamW", "lr": 1e-3}
KL = {"loss": "kl", "temperature": 20.0, "t_squared": False, "epochs": 300}
COSINE = {"schedule": "cosine", "schedule_per": "epoch", "final": 0.0}
BY_WEIGHTS = {"weight_decay": 0.01, "decay": "weights"}
STEPS = {"schedule": "step", "schedule_per": "epoch", "milestones": (2 / 3, 5 / 6), "drop": 0.2}
GIFT = {"loss": "gift", "gift_form": "released", "gamma": 0.1, "smoothing": 0.1, "weight_decay": 1e-4, "decay": "all"}
BETAS = {"optimizer_args": '{"betas": [0.9, 0.999]}'}
WHOLE = {**COSINE, "horizon": 1}
HALF = {**COSINE, "horizon": 2}
SGD = {"optimizer": "SGD", "lr": 0.1, "weight_decay": 5e-4, "decay": "weights"}
# train_FKD_LPQLD.py of LPQLD with the arguments of lpqld_in1k.sh; lines 515-518 (steps), 813-825 (grid)
LPQLD = {
    **KL, "temperature_every": 30, "temperature_drop": 0.7, "temperature_floor": 2.0, "calibrate_student": True,
    **ADAMW, **BY_WEIGHTS, **WHOLE, "batch_size": 128, "eval_every": 50, "eval_from": 0, "test_resize": 32,
}  # fmt: skip
# train_fkd.py of HALD: setting S6 of 150 soft and 150 hard epochs, label smoothing 0.8, and hyper.yaml
HALD = {
    "phase": "kl:75,ce:150,kl:75", "temperature": 20.0, "t_squared": False, "hard_smoothing": 0.8, "epochs": 300,
    **ADAMW, **BY_WEIGHTS, **HALF, "batch_size": 16, "eval_every": 10, "eval_from": 0, "test_resize": 32,
}  # fmt: skip
# evaluator.py of CIM: GIFT's evaluator, MSELoss on logits
CIM = {**ADAMW, **STEPS, "loss": "mse", "weight_decay": 1e-4, "decay": "all", "eval_from": 0, "test_resize": 32}
# train.sh of G_VBSM's branches, and the defaults of their train_FKD*.py
VBSM = {"loss": "mse+ce", **WHOLE, "eval_every": 10, "eval_from": 0, "test_resize": 32}
VBSM_SGD = {**SGD, "optimizer_args": '{"momentum": 0.9}'}
# train.sh of EDC's branches, and the defaults of their direct_train.py and train_FKD_parallel.py
EDC = {"loss": "mse+ce", "hard_weight": 0.025, "ema": 0.99, "schedule_per": "epoch", "test_resize": 32}
EDC_SGD = {**SGD, "optimizer_args": '{"momentum": 0.875}'}
EDC_STEPS = {"schedule": "step", "milestones": (0.8, 0.9, 0.95), "drop": 0.5}


@pytest.mark.parametrize(
    ("recipe", "classes", "values"),
    [
        ("gift", 1000, {**GIFT, **ADAMW, **STEPS, "epochs": 300, "batch_size": 100, "eval_every": 75, "eval_from": 0,
                       "test_resize": 32}),
        ("gift", 10, {**GIFT, **ADAMW, **STEPS, "epochs": 1000, "batch_size": 50, "eval_every": 250, "eval_from": 0,
                     "test_resize": 32}),
        ("rded", 10, {**KL, **ADAMW, **BETAS, **BY_WEIGHTS, **COSINE,
                      "horizon": 2, "batch_size": 50, "eval_every": 10, "eval_from": 0.8, "test_resize": 32}),
        ("sre2l", 1000, {**KL, **ADAMW, **BY_WEIGHTS, **COSINE,
                         "horizon": 1, "batch_size": 1024, "eval_every": 10, "eval_from": 0, "test_resize": 32}),
        ("no-distillation", 10, ONE_LABEL), ("no-distillation", 1000, ONE_LABEL),
        ("eccv24", 100, CHALLENGE), ("eccv24", 10, CHALLENGE),
        ("lpqld", 1000, LPQLD), ("lpqld", 200, {**LPQLD, "t_squared": True}),
        ("hald", 1000, HALD), ("hald", 10, HALD),
        ("cim", 1000, {**CIM, "epochs": 300, "batch_size": 100, "eval_every": 75}),
        ("cim", 10, {**CIM, "epochs": 1000, "batch_size": 50, "eval_every": 250}),
        ("g-vbsm", 1000, {**VBSM, **ADAMW, **BY_WEIGHTS, "epochs": 300, "batch_size": 1024, "hard_weight": 0.1}),
        ("g-vbsm", 200, {**VBSM, **VBSM_SGD, "epochs": 100, "batch_size": 100, "accumulate": 2, "hard_weight": 0.1}),
        ("g-vbsm", 100, {**VBSM, **VBSM_SGD, "epochs": 1000, "batch_size": 64, "hard_weight": 0.15}),
        ("g-vbsm", 10, {**VBSM, **ADAMW, "weight_decay": 0, "decay": "weights", "epochs": 1000, "batch_size": 100,
                        "hard_weight": 0.15}),
        ("edc", 1000, {**EDC, **ADAMW, **BY_WEIGHTS, **HALF, "epochs": 300, "batch_size": 100, "eval_every": 30,
                       "eval_from": 0}),
        ("edc", 200, {**EDC, **EDC_SGD, **HALF, "epochs": 300, "batch_size": 100, "eval_every": 30, "eval_from": 0}),
        ("edc", 100, {**EDC, **EDC_SGD, **HALF, "epochs": 1000, "batch_size": 50, "eval_every": 100, "eval_from": 0}),
        ("edc", 10, {**EDC, **ADAMW, **BY_WEIGHTS, **EDC_STEPS, "epochs": 1000, "batch_size": 50, "eval_every": 10,
                     "eval_from": 0.8}),
        ("delt", 10, {**KL, **ADAMW, **BETAS, **BY_WEIGHTS, **HALF, "batch_size": 50, "eval_every": 10, "eval_from": 0,
                      "test_resize": 32}),
    ],
)  # fmt: skip
def test_every_value(recipe: str, classes: int, values: dict[str, Any]) -> None:
    assert RECIPES[recipe].train(setting(classes, 10)) == values


# (recipe, classes, student, side of the crops): short side of a test image, as the evaluators have it
TESTED = {
    ("gift", 1000, "torchvision:resnet18", 224): 256,  # GIFT evaluator 153-172
    ("gift", 10, "torchvision:resnet18", 224): 256,  # a subset of ImageNet
    ("gift", 1000, "convnet-d4", 64): 73,
    ("gift", 10, "convnet-d5", 128): 146,
    ("gift", 10, "convnet-d3", 32): 32, ("gift", 100, "resnet18-modified", 32): 32,
    ("gift", 200, "convnet-d4", 64): 64, ("gift", 200, "resnet18-modified", 64): 64,
    ("rded", 10, "convnet-d3", 32): 32, ("rded", 200, "resnet18-modified", 64): 72,  # size // 7 * 8
    ("rded", 10, "convnet-d5", 128): 144, ("rded", 1000, "torchvision:resnet18", 224): 256,
    ("rded", 1000, "convnet-d4", 64): 72,
    ("rded", 10, "s", 5): 5, ("rded", 10, "s", 20): 20,  # never less than the crop
    ("sre2l", 1000, "torchvision:resnet18", 224): 256, ("sre2l", 200, "resnet18-modified", 64): 64,
    ("sre2l", 10, "resnet18-modified", 32): 32,
    ("no-distillation", 1000, "torchvision:resnet18", 224): 256,  # softlabel/utils.py, ClassificationPresetEval
    ("no-distillation", 200, "convnet-d4", 64): 64,
}  # fmt: skip


def test_what_is_tested() -> None:
    found = {key: RECIPES[key[0]].train(setting(key[1], 10, key[2], size=key[3]))["test_resize"] for key in TESTED}
    assert found == TESTED
    smaller = replace(setting(1000, 10, "convnet-d4", size=224), side=64)  # a student of another size than the store's
    assert RECIPES["gift"].train(smaller)["test_resize"] == 73


def typed_config(identity: Identity, monkeypatch: pytest.MonkeyPatch, recipe: str, *words: object) -> TrainConfig:
    """The run of a command line on a store of ``identity``."""
    monkeypatch.setattr(LabelStore, "open", lambda *_args, **_named: SimpleNamespace(identity=identity))
    line = ["train", "--store", "s", "--images", "i", "--run-folder", "r", "--student", "convnet-d3"]
    arguments = trained.typed([*line, "--recipe", recipe, *map(str, words)])
    return read_command(TRAINER["train"], "train", arguments).config


def identity_of(images: int, classes: int = 10, skipped: tuple[str, ...] = ()) -> Identity:
    made = make_identity(
        images, classes, classes=tuple(f"{k:03}" for k in range(classes)), size=32, teacher={"name": "other"},
        plan=PlanSpec(size=32).to_json(), block=(1, images),
    )  # fmt: skip
    return replace(made, skipped=skipped)


def test_another_optimiser_goes_without_the_values_of_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = identity_of(100)
    config = typed_config(identity, monkeypatch, "rded", "--optimizer", "SGD")
    spec = optimiser_of(config.optimiser)
    assert (spec.lr, spec.weight_decay, spec.args, spec.decay) == (0.01, 5e-4, {"momentum": 0.9}, "weights")
    text = trained.describe_recipe(config, setting_of(config, identity), 300)
    assert "optimizer SGD (the recipe has AdamW)" in text
    assert "lr 0.01 (the recipe has 0.001)" in text
    assert "weight-decay 0.0005 (the recipe has 0.01)" in text
    given = typed_config(identity, monkeypatch, "rded", "--optimizer", "SGD", "--lr", 0.3, "--optimizer-args", "{}")
    assert optimiser_of(given.optimiser).lr == 0.3


@pytest.mark.parametrize(
    ("recipe", "words", "beside", "not_used"),
    [
        ("rded", ("--loss", "gift"), "gamma 0.1", "temperature not used (the recipe has 20.0)"),
        ("gift", ("--loss", "kl"), "temperature 20.0", "gamma not used (the recipe has 0.1)"),
        ("gift", ("--gift-form", "convex"), "w 0.1", "gamma not used (the recipe has 0.1)"),
        ("gift", ("--schedule", "cosine"), "final 0.0", "milestones not used"),
        ("rded", ("--schedule", "constant", "--warmup-epochs", 3), "warmup-epochs 3", "horizon not used"),
    ],
)
def test_another_loss_or_schedule_has_its_own_numbers(
    recipe: str, words: tuple[object, ...], beside: str, not_used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = identity_of(100)
    config = typed_config(identity, monkeypatch, recipe, *words)
    text = trained.describe_recipe(config, setting_of(config, identity), 300)
    assert beside in text.partition("beside the recipe: ")[2]
    assert not_used in text


def test_student_args_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    def args(*words: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(typed_config(identity_of(100), monkeypatch, "gift", *words).student_args)
        return found

    assert args() == {"norm": "batch"}
    assert args("--student-args", '{"width": 8}') == {"norm": "batch", "width": 8}
    assert args('--student_args={"norm": "instance"}') == {"norm": "instance"}
    betas = optimiser_of(
        typed_config(identity_of(100), monkeypatch, "rded", "--optimizer-args", '{"eps": 1e-7}').optimiser
    )
    assert betas.args == {"betas": [0.9, 0.999], "eps": 1e-7}
    with pytest.raises(InputError, match="--student-args: expected a JSON object"):
        json_object(
            "--student-args", typed_config(identity_of(100), monkeypatch, "gift", "--student-args", "{").student_args
        )


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_value_is_said(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = identity_of(100)
    config = typed_config(identity, monkeypatch, recipe, "--clip-norm", 1.5, "--seed", 9, "--epochs", 60)
    text = trained.describe_recipe(config, setting_of(config, identity), 41)
    flags = RECIPES[recipe].train(Setting.of(identity, "convnet-d3", 60))
    first, beside, rest = text.split("\n")
    assert all(f"{name.replace('_', '-')} " in first for name in flags)
    assert "clip-norm 1.5" in beside
    assert "seed 9" in beside
    numbers = {name: value for loss in config.losses for name, value in loss.numbers.items()}
    assert all(f"{name.replace('_', '-')} {value}" in text for name, value in numbers.items() if name != "form")
    assert "not reproduced" in rest
    few = getattr(RECIPES[recipe], "few_views", False)
    assert ("--views 60" in rest) != (config.fresh or few)  # a store for fresh crops in each epoch
    named = {word.rstrip(",") for word in text.replace("\n", " ").split()}
    effective = set(config.in_effect()) - set(trained.NO_PROTOCOL)
    if config.draws_crops:
        effective -= set(trained.IDLE) - set(config.plan(32).to_json())
    assert {name.replace("_", "-") for name in effective} <= named


@pytest.mark.parametrize(
    ("epochs", "views", "text"),
    [(60, 41, "22 once, 19 twice"), (41, 41, "each once"), (10, 41, "31 never, 10 once"), (300, 100, "each 3 times")],
)
def test_how_often_each_view_is_played(epochs: int, views: int, text: str) -> None:
    order = Order(views=views, images=4, group=1, seed=0, mode="shuffle")
    played = Counter(Counter(order.view(epoch) for epoch in range(epochs)).values())
    said = trained.plays(epochs, views)
    assert said.endswith(text)
    for times, count in played.items():
        which = "each" if count == views else str(count)
        assert f"{which} {({1: 'once', 2: 'twice'}).get(times, f'{times} times')}" in said


class Halves:
    """A recipe as a user would write it."""

    build_differs = train_differs = "it is no paper's"

    def build(self, of: Setting, /) -> dict[str, Any]:
        return {"crop": "padded", "pad": of.size // 8}

    def train(self, of: Setting, /) -> dict[str, Any]:
        return {"loss": "mse", "epochs": of.per_class, "batch_size": of.classes}


def test_a_recipe_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--images", str(draw_images(tmp_path / "images", per_class=7)), "--size", "16")
    line = ("build", "--recipe", "own", *words, "--teacher", "t", "--weights", "w", "--views", "3", "--store", "s")
    with pytest.raises(InputError, match=r"--recipe: expected one of gift, .*, found 'own'"):
        recipe_of("own")
    monkeypatch.setitem(RECIPES, "own", Halves())
    built = read_command(PIPELINE["build"], "build", stores.typed(line)).config
    assert (built.crops.crop, built.crops.pad) == ("padded", 2)
    run = typed_config(identity_of(20), monkeypatch, "own")
    assert (run.loss.name, run.epochs, run.batch_size) == ("mse", 2, 10)
    assert "recipe own: loss mse" in trained.describe_recipe(run, setting_of(run, identity_of(20)), 2)
    with pytest.raises(MismatchError, match="--recipe own trains on a store with crop 'padded'"):
        require_store("own", replace(identity_of(20), teacher={"name": "t", "mean": [0], "std": [1]}), "convnet-d3")


@pytest.mark.parametrize("recipe", RECIPES)
def test_images_that_are_left_out_count_in_both_halves(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw_images(tmp_path / "images", per_class=7)  # 21: RDED's batch, and its group, is all of them
    listing = list_images(root)
    flags = stores.typed(
        [
            "build",
            "--recipe",
            recipe,
            "--images",
            str(root),
            "--size",
            "32",
            "--teacher",
            "t",
            "--store",
            str(tmp_path / "s"),
        ]
    )
    group = int(flags[flags.index("--group") + 1]) if "--group" in flags else 1
    assert group == RECIPES[recipe].build(setting(3, 7, "t", "t")).get("group", 1)  # rded, sre2l: 21
    kept = replace(identity_of(20, 3, (listing.names[5],)), classes=listing.classes)
    config = typed_config(kept, monkeypatch, recipe, "--student", "s")
    assert config.batch_size == RECIPES[recipe].train(setting(3, 7, "s", "t"))["batch_size"]  # rded: 21
    monkeypatch.setattr(LabelStore, "open", lambda *_args, **_named: SimpleNamespace(identity=kept))
    (root / listing.names[5]).unlink()  # the broken file was removed meanwhile: the store is still continued
    again = stores.typed(
        ["build", "--recipe", recipe, "--images", str(root), "--size", "32", "--teacher", "t", "--store", "s"]
    )
    assert [*again[:-1], str(tmp_path / "s")] == flags


@pytest.mark.parametrize("words", [("--mix", "none"), ("--crop", "center")])
def test_another_crop_or_mix_goes_without_the_values_of_the_recipes(words: tuple[str, ...], tmp_path: Path) -> None:
    root = draw_images(tmp_path / "images", per_class=7)
    line = [
        "build",
        "--recipe",
        "rded",
        "--images",
        root,
        "--size",
        "16",
        "--teacher",
        "t",
        "--weights",
        "w",
        "--views",
        3,
    ]
    arguments = stores.typed([*map(str, line), "--store", str(tmp_path / "s"), *words])
    config = read_command(PIPELINE["build"], "build", arguments).config
    text = stores.describe_recipe(config, scan(root, digests=False))
    assert "not used (the recipe has" in text


@pytest.mark.parametrize("recipe", ["gift", "rded", "cim", "delt"])
def test_convnets_have_batch_norm(recipe: str) -> None:
    assert RECIPES[recipe].train(setting(10, 10, "convnet-d3"))["student_args"] == '{"norm": "batch"}'


@pytest.mark.parametrize(("epochs", "every"), [(40, 10), (2, 1)])
def test_gift_evaluates_four_times_whatever_the_epochs(epochs: int, every: int) -> None:
    flags = RECIPES["gift"].train(replace(setting(10, 10), epochs=epochs))
    assert (flags["epochs"], flags["eval_every"]) == (1000, every)


@pytest.mark.parametrize("epochs", [300, 1000])
def test_gifts_rate_drops_where_its_authors_drop_it(epochs: int) -> None:
    rate = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([rate], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * epochs // 3, 5 * epochs // 6], gamma=0.2)
    flags: Any = RECIPES["gift"].train(setting(10, 10))
    ours = ScheduleSpec(name="step", per="epoch", milestones=flags["milestones"], drop=flags["drop"])
    for epoch in range(epochs):
        assert ours.factor(epoch, epochs) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_the_rate_of_no_distillation_is_that_of_its_authors() -> None:
    rate = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([rate], lr=1.0)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, 3000 // 4, gamma=0.3)
    flags: Any = RECIPES["no-distillation"].train(setting(10, 10))
    ours = ScheduleSpec(name="step", per="epoch", milestones=flags["milestones"], drop=flags["drop"])
    for epoch in range(3000):
        assert ours.factor(epoch, 3000) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def fresh_config(images: Path, recipe: str, *words: object) -> TrainConfig:
    """The run of a command line without a store."""
    line = ["train", "--images", images, "--run-folder", "r", "--student", "convnet-d3", "--recipe", recipe, *words]
    return read_command(TRAINER["train"], "train", trained.typed([*map(str, line)])).config


@pytest.mark.parametrize("recipe", ["gift", "rded", "sre2l", "cim", "g-vbsm", "edc", "delt", "lpqld", "hald"])
def test_online_labels_take_the_crops_of_the_recipe(recipe: str, tmp_path: Path) -> None:
    words = ("--labels", "online", "--teacher", "t", "--weights", "w", "--size", 32)
    root = draw_images(tmp_path / "images", per_class=7)
    config = fresh_config(root, recipe, *words)
    built = RECIPES[recipe].build(setting(3, 7, "convnet-d3", "t"))
    plan = {name: value for name, value in built.items() if name not in NORMALISATION}
    assert config.plan(32).to_json() == PlanSpec(size=32, **plan).to_json()  # type: ignore[arg-type]
    assert (config.teacher.mean, config.teacher.std) == (built.get("mean"), built.get("std"))
    assert config.loss.name == RECIPES[recipe].train(setting(3, 7)).get("loss", "gift")
    assert fresh_config(root, recipe, *words, "--crop", "center").crops.crop == "center"


def test_hello_has_the_crops_of_rdeds_images_and_the_loss_of_the_paper(tmp_path: Path) -> None:
    words = ("--labels", "online", "--teacher", "projector", "--weights", "w", "--size", 128, "--hard-weight", 0.3)
    config = fresh_config(draw_images(tmp_path / "images", per_class=7), "hello", *words)
    rded = RECIPES["rded"].build(setting(3, 7, "convnet-d3", size=128))
    plan = {name: value for name, value in rded.items() if name not in NORMALISATION}
    assert config.plan(128).to_json() == PlanSpec(size=128, **plan).to_json()  # type: ignore[arg-type]
    assert (config.teacher.mean, config.teacher.std) == (None, None)  # the projector's own
    assert config.loss.to_json() == {"name": "mse+ce", "hard_weight": 0.3}
    assert "ours" in RECIPES["hello"].train_differs


def test_no_distillation_has_one_label_an_image_and_fresh_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    config = typed_config(identity_of(100), monkeypatch, "no-distillation")
    assert config.labels.source == "image"
    plan = PlanSpec(size=32, crop="center", flip=0, augment=("dsa=one",), mix="none")
    assert config.plan(32) == plan
    assert [epoch + 1 for epoch in range(3000) if config.evaluates(epoch)] == [*range(200, 3001, 200)]


def test_the_rate_of_the_challenge_is_that_of_its_code() -> None:
    for epochs in (1000, 10, 3):  # their Epoch
        flags: Any = RECIPES["eccv24"].train(replace(setting(100, 10), epochs=epochs + 1))
        ours = ScheduleSpec(name="step", per="epoch", milestones=flags["milestones"], drop=flags["drop"])
        rate = 1.0
        for epoch in range(epochs + 1):
            assert ours.factor(epoch, epochs + 1) == pytest.approx(rate), epoch
            rate *= 0.1 if epoch == epochs // 2 + 1 else 1


def test_the_challenge_is_trained_on_fresh_crops_with_hard_labels(tmp_path: Path) -> None:
    classes = tuple(f"c{number:03d}" for number in range(100))
    root = draw_images(tmp_path / "images", per_class=1, classes=classes)
    config = fresh_config(root, "eccv24", "--labels", "none", "--size", 32)
    assert config.plan(32) == PlanSpec(size=32, crop="center", flip=0, augment=("dsa=one",), mix="none")
    assert (config.labels.source, config.loss.name, config.epochs) == ("none", "ce", 1001)
    assert (config.teacher.mean, config.teacher.std) == ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
    assert [epoch for epoch in range(1001) if config.evaluates(epoch)] == [1000]
    other = fresh_config(draw_images(tmp_path / "three"), "eccv24", "--labels", "none", "--size", 32, "--epochs", 5)
    assert (other.teacher.mean, other.epochs) == (None, 5)


def test_rdeds_rate_ends_at_half() -> None:
    flags: Any = RECIPES["rded"].train(setting(10, 10))
    schedule = ScheduleSpec(name="cosine", per="epoch", final=flags["final"], horizon=flags["horizon"])
    for epoch in (0, 1, 150, 299):
        assert schedule.factor(epoch, 300) == pytest.approx(0.5 * (1 + math.cos(math.pi * epoch / 600)), abs=1e-12)
    assert schedule.factor(300, 300) == pytest.approx(0.5)


def test_decay_of_weights_leaves_biases_norms_and_tokens_alone() -> None:
    network = build_network("convnet-d2", {"width": 4, "norm": "batch"}, classes=3, size=8)
    optimizer = OptimiserSpec(weight_decay=0.01, decay="weights").make(network.named_parameters())
    decaying, others = optimizer.param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    shapes = dict(network.named_parameters())
    names = {id(parameter): name for name, parameter in shapes.items()}
    assert all(shapes[names[id(p)]].ndim > 1 and names[id(p)].endswith("weight") for p in decaying["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(shapes)
    token = [("pos_embedding", torch.nn.Parameter(torch.zeros(1, 2, 3)))]
    assert not OptimiserSpec(decay="weights").make(token).param_groups[0]["params"]


def test_help_and_choices_need_no_torch() -> None:
    code = "import sys, trainer.config, pipeline.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for config in (BuildConfig, TrainConfig):
        assert get_args(get_args(flags_of(config)["recipe"].kind)[0]) == tuple(RECIPES)


def test_values_are_printed_as_they_are_typed() -> None:
    assert [shown(value) for value in ((0.08, 1.0), ["a", "b"], (), None, False)] == [
        "0.08 1.0", "a b", "none", "none", "False",
    ]  # fmt: skip


def test_words_are_what_would_be_typed() -> None:
    flags: dict[str, Any] = {"t_squared": False, "batch_size": 10, "milestones": (0.5, 0.75), "loss": "kl"}
    assert words(flags) == [
        "--no-t-squared", "--batch-size", "10", "--milestones", "0.5", "0.75", "--loss", "kl",
    ]  # fmt: skip


RESIZED = {
    "crop": "resized", "ratio": (3 / 4, 4 / 3), "flip": 0.5, "mix": "cutmix", "alpha": 1.0, "mix_per": "group",
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}  # fmt: skip


CIFAR = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
TINY = {"mean": (0.4802, 0.4481, 0.3975), "std": (0.2302, 0.2265, 0.2262)}
OWN_NORMAL = {name: value for name, value in RESIZED.items() if name not in NORMALISATION}
FACTOR = {"crop": "factor", "augment": ("dsa",), "flip": 0.5, "mix": "none"}


@pytest.mark.parametrize(
    ("recipe", "of", "values"),
    [
        ("gift", setting(1000, 10, size=224), {**FACTOR, "factor": 1}),
        ("rded", setting(10, 10), {**RESIZED, "scale": (1.0, 1.0), "group": 50}),
        ("rded", setting(200, 50, size=64), {**RESIZED, "scale": (1.0, 1.0), "group": 100}),
        ("rded", setting(1000, 10, size=224),
         {**RESIZED, "scale": (0.5, 1.0), "augment": ("patch-shuffle=2",), "group": 100}),
        ("rded", setting(100, 10, "convnet-d3", "convnet-d3"), {**RESIZED, "scale": (1.0, 1.0), "group": 25}),
        ("sre2l", setting(1000, 50, size=224), {**RESIZED, "scale": (0.08, 1.0), "group": 1024}),
        ("sre2l", setting(10, 10), {**RESIZED, "scale": (0.08, 1.0), "group": 100}),
        ("no-distillation", setting(10, 10), {"crop": "center", "flip": 0, "mix": "none"}),
        ("eccv24", setting(100, 10), {"crop": "center", "flip": 0, "mix": "none", "augment": ("dsa=one",)}),
        ("lpqld", setting(1000, 10, size=224), {**RESIZED, "scale": (0.08, 1.0), "group": 128}),
        ("lpqld", setting(200, 50, size=64), {**RESIZED, "scale": (0.08, 1.0), "group": 128, **TINY}),
        ("hald", setting(1000, 10, size=224), {**RESIZED, "scale": (0.08, 1.0), "group": 16}),
        ("hald", setting(100, 10), {**RESIZED, "scale": (0.08, 1.0), "group": 16, **CIFAR}),
        ("cim", setting(1000, 10, size=224), {**FACTOR, "factor": 2}),
        ("cim", setting(10, 10), {**FACTOR, "factor": 2}),
        ("g-vbsm", setting(1000, 10, size=224), {**RESIZED, "scale": (0.08, 1.0), "group": 1024}),
        ("g-vbsm", setting(10, 50), {**RESIZED, "scale": (0.08, 1.0), "group": 100, **CIFAR}),
        ("g-vbsm", setting(100, 10), {**RESIZED, "scale": (0.08, 1.0), "group": 64, **CIFAR}),
        ("g-vbsm", setting(200, 10, size=64), {**OWN_NORMAL, "scale": (0.08, 1.0), "group": 100}),
        ("edc", setting(1000, 10, size=224), {**RESIZED, "scale": (0.5, 1.0), "group": 100}),
        ("edc", setting(10, 1), {**RESIZED, "scale": (0.08, 1.0), "group": 10, **CIFAR}),
        ("edc", setting(100, 10), {**RESIZED, "scale": (0.5, 1.0), "group": 50, **CIFAR}),
        ("edc", setting(200, 10, size=64), {**OWN_NORMAL, "scale": (0.5, 1.0), "group": 100}),
        ("delt", setting(1000, 50, size=224), {**RESIZED, "scale": (0.25, 1.0), "group": 200}),
        ("delt", setting(10, 10), {**RESIZED, "scale": (0.25, 1.0), "group": 50}),
    ],
)  # fmt: skip
def test_what_a_store_contains(recipe: str, of: Setting, values: dict[str, Any]) -> None:
    assert RECIPES[recipe].build(of) == values


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", [32, 224])
def test_a_store_of_the_recipe_is_taken_and_another_one_named(recipe: str, size: int) -> None:
    flags = RECIPES[recipe].build(setting(10, 10, "s", "other", size))
    numbers = {name: value for name, value in flags.items() if name not in NORMALISATION}
    imagenet: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    imagenet |= {name: [*flags[name]] for name in NORMALISATION if name in flags}  # type: ignore[misc]

    def store(**changes: Any) -> Identity:
        spec = PlanSpec(size=size, seed=5, **{**numbers, **changes})
        teacher = {"name": "other", **imagenet}
        return make_identity(
            100, 10, classes=tuple("abcdefghij"), size=size, teacher=teacher, plan=spec.to_json(), block=(1, 100)
        )

    require_store(recipe, store(), "s")
    for changes in ({"flip": 0.25}, {"augment": ("dsa", "patch-shuffle=3")}):
        name = next(iter(changes))
        with pytest.raises(MismatchError, match=rf"--recipe {recipe} trains on a store with {name}.*this one has"):
            require_store(recipe, store(**changes), "s")
    plain = replace(store(), plan=PlanSpec(size=size).to_json())
    with pytest.raises(MismatchError, match=f"pipeline build --recipe {recipe}"):
        require_store(recipe, plain, "s")
    moved = replace(store(), teacher={"name": "other", **imagenet, "mean": [0.5, 0.5, 0.5]})
    if "mean" not in flags:  # gift, cim, no-distillation: their teachers have a mean for each set
        require_store(recipe, moved, "s")
    else:
        with pytest.raises(MismatchError, match=rf"with mean\[0\] {imagenet['mean'][0]}, this one has 0\.5"):
            require_store(recipe, moved, "s")
