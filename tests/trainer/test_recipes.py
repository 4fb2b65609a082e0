"""Recipes: every value of the papers' own code, by set and student; flags that are given override them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from labelstore import Identity
from labelstore.errors import MismatchError
from pipeline import recipes as stores
from pipeline.networks import build_network
from pipeline.plan import PlanSpec
from pipeline.recipes import Setting, flags_of, require_store, words
from tests.labelstore.making import make_identity
from trainer.optimisers import OptimiserSpec
from trainer.recipes import RECIPES
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


def setting(
    classes: int, per_class: int, student: str = "resnet18-modified", teacher: str = "other", size: int = 32
) -> Setting:
    return Setting(images=classes * per_class, classes=classes, size=size, student=student, teacher=teacher)


@pytest.mark.parametrize(("recipe", "batches"), [("gift", GIFT_BATCHES), ("rded", RDED_BATCHES)])
def test_batches(recipe: str, batches: dict[tuple[int, int], int]) -> None:
    assert {of: RECIPES[recipe](setting(*of))["batch_size"] for of in batches} == batches


@pytest.mark.parametrize(
    ("recipe", "student", "rate"),
    [
        ("gift", "torchvision:resnet18", 1e-3), ("gift", "torchvision:swin_v2_t", 1e-4),
        ("gift", "torchvision:vit_b_16", 1e-4), ("gift", "torchvision:alexnet", 1e-3),
        ("rded", "torchvision:vgg11", 5e-4), ("rded", "torchvision:efficientnet_b0", 2e-3),
        ("rded", "torchvision:mobilenet_v2", 2.5e-3), ("rded", "torchvision:alexnet", 1e-4),
        ("rded", "torchvision:vit_b_16", 1e-4), ("rded", "torchvision:swin_v2_t", 1e-4),
        ("rded", "torchvision:resnet101", 1e-3), ("rded", "convnet-d4", 1e-3), ("sre2l", "torchvision:resnet18", 1e-3),
    ],
)  # fmt: skip
def test_rates(recipe: str, student: str, rate: float) -> None:
    assert RECIPES[recipe](setting(1000, 10, student))["lr"] == rate


def test_conv3_of_conv3_on_100_classes_is_rdeds_exception() -> None:
    ours = RECIPES["rded"](setting(100, 10, "convnet-d3", "convnet-d3"))
    assert (ours["batch_size"], ours["lr"]) == (25, 2e-3)
    other = RECIPES["rded"](setting(100, 10, "convnet-d3", "resnet18-modified"))
    assert (other["batch_size"], other["lr"]) == (100, 1e-3)


ADAMW = {"optimizer": "AdamW", "lr": 1e-3}
KL = {"loss": "kl", "temperature": 20.0, "t_squared": False, "epochs": 300}
COSINE = {"schedule": "cosine", "schedule_per": "epoch", "final": 0.0}
BY_WEIGHTS = {"weight_decay": 0.01, "decay": "weights"}
STEPS = {"schedule": "step", "schedule_per": "epoch", "milestones": (2 / 3, 5 / 6), "drop": 0.2}
GIFT = {"loss": "gift", "gift_form": "released", "gamma": 0.1, "smoothing": 0.1, "weight_decay": 1e-4, "decay": "all"}
BETAS = {"optimizer_args": '{"betas": [0.9, 0.999]}'}


@pytest.mark.parametrize(
    ("recipe", "classes", "values"),
    [
        ("gift", 1000, {**GIFT, **ADAMW, **STEPS, "epochs": 300, "batch_size": 100, "eval_every": 75, "eval_from": 0}),
        ("gift", 10, {**GIFT, **ADAMW, **STEPS, "epochs": 1000, "batch_size": 50, "eval_every": 250, "eval_from": 0}),
        ("rded", 10, {**KL, **ADAMW, **BETAS, **BY_WEIGHTS, **COSINE,
                      "horizon": 2, "batch_size": 50, "eval_every": 10, "eval_from": 0.8}),
        ("sre2l", 1000, {**KL, **ADAMW, **BY_WEIGHTS, **COSINE,
                         "horizon": 1, "batch_size": 1024, "eval_every": 10, "eval_from": 0}),
    ],
)  # fmt: skip
def test_every_value(recipe: str, classes: int, values: dict[str, object]) -> None:
    assert RECIPES[recipe](setting(classes, 10)) == values


@pytest.mark.parametrize("recipe", ["gift", "rded"])
def test_convnets_have_batch_norm(recipe: str) -> None:
    assert RECIPES[recipe](setting(10, 10, "convnet-d3"))["student_args"] == '{"norm": "batch"}'


@pytest.mark.parametrize(("epochs", "every"), [(40, 10), (2, 1)])
def test_gift_evaluates_four_times_whatever_the_epochs(epochs: int, every: int) -> None:
    flags = RECIPES["gift"](replace(setting(10, 10), epochs=epochs))
    assert (flags["epochs"], flags["eval_every"]) == (1000, every)


@pytest.mark.parametrize("epochs", [300, 1000])
def test_gifts_rate_drops_where_its_authors_drop_it(epochs: int) -> None:
    rate = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([rate], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * epochs // 3, 5 * epochs // 6], gamma=0.2)
    flags: Any = RECIPES["gift"](setting(10, 10))
    ours = ScheduleSpec(name="step", per="epoch", milestones=flags["milestones"], drop=flags["drop"])
    for epoch in range(epochs):
        assert ours.factor(epoch, epochs) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_rdeds_rate_ends_at_half() -> None:
    flags = RECIPES["rded"](setting(10, 10))
    schedule = ScheduleSpec(name="cosine", per="epoch", final=float(flags["final"]), horizon=float(flags["horizon"]))
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


def test_words_are_what_would_be_typed() -> None:
    flags = {"t_squared": False, "batch_size": 10, "milestones": (0.5, 0.75), "loss": "kl"}
    assert words(flags) == [
        "--no-t-squared", "--batch-size", "10", "--milestones", "0.5", "0.75", "--loss", "kl",
    ]  # fmt: skip


RESIZED = {
    "crop": "resized", "ratio": (3 / 4, 4 / 3), "flip": 0.5, "mix": "cutmix", "alpha": 1.0, "mix_per": "group",
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}  # fmt: skip


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
    ],
)  # fmt: skip
def test_what_a_store_contains(recipe: str, of: Setting, values: dict[str, object]) -> None:
    assert flags_of(stores.RECIPES, recipe, of) == values


@pytest.mark.parametrize("recipe", stores.RECIPES)
@pytest.mark.parametrize("size", [32, 224])
def test_a_store_of_the_recipe_is_taken_and_another_one_named(recipe: str, size: int) -> None:
    flags = flags_of(stores.RECIPES, recipe, setting(10, 10, "s", "other", size))
    numbers = {name: value for name, value in flags.items() if name not in stores.NORMALISATION}
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

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
    if recipe == "gift":  # whose teachers have a mean for each set
        require_store(recipe, moved, "s")
    else:
        with pytest.raises(MismatchError, match=r"with mean\[0\] 0\.485, this one has 0\.5"):
            require_store(recipe, moved, "s")
