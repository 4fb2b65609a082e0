"""Recipes: every value of the papers' own code, by set and student; flags that are given override them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from labelstore.errors import MismatchError
from pipeline import recipes as stores
from pipeline.networks import build_network
from pipeline.plan import PlanSpec
from pipeline.recipes import Setting, flags_of, require_store, words
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


@pytest.mark.parametrize(
    ("recipe", "classes", "values"),
    [
        ("gift", 1000, {"epochs": 300, "eval_every": 75, "loss": "gift", "gamma": 0.1, "smoothing": 0.1}),
        ("gift", 10, {"epochs": 1000, "eval_every": 250, "weight_decay": 1e-4, "decay": "all", "drop": 0.2}),
        ("gift", 200, {"optimizer": "AdamW", "gift_form": "released", "schedule": "step", "schedule_per": "epoch"}),
        ("rded", 10, {"epochs": 300, "loss": "kl", "temperature": 20.0, "t_squared": False, "eval_every": 10}),
        ("rded", 10, {"weight_decay": 0.01, "decay": "weights", "horizon": 2.0, "final": 0.0, "eval_from": 0.8}),
        ("sre2l", 1000, {"epochs": 300, "batch_size": 1024, "loss": "kl", "temperature": 20.0, "t_squared": False}),
        ("sre2l", 1000, {"weight_decay": 0.01, "decay": "weights", "schedule": "cosine", "horizon": 1.0, "final": 0.0}),
    ],
)  # fmt: skip
def test_values(recipe: str, classes: int, values: dict[str, object]) -> None:
    found = RECIPES[recipe](setting(classes, 10))
    assert {name: found[name] for name in values} == values


def test_rdeds_rate_ends_at_half() -> None:
    flags = RECIPES["rded"](setting(10, 10))
    schedule = ScheduleSpec(name="cosine", per="epoch", final=float(flags["final"]), horizon=float(flags["horizon"]))  # type: ignore[arg-type]
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


RESIZED = {"crop": "resized", "ratio": (3 / 4, 4 / 3), "flip": 0.5, "mix": "cutmix", "alpha": 1.0, "mix_per": "group"}


@pytest.mark.parametrize(
    ("recipe", "of", "values"),
    [
        ("gift", setting(1000, 10, size=224), {"crop": "factor", "factor": 1, "augment": ("dsa",), "mix": "none"}),
        ("rded", setting(10, 10), {**RESIZED, "scale": (1.0, 1.0), "group": 50}),
        ("rded", setting(200, 50, size=64), {**RESIZED, "scale": (1.0, 1.0), "group": 100}),
        ("rded", setting(1000, 10, size=224), {**RESIZED, "scale": (0.5, 1.0), "augment": ("patch-shuffle=2",)}),
        ("rded", setting(100, 10, "convnet-d3", "convnet-d3"), {**RESIZED, "group": 25}),
        ("sre2l", setting(1000, 50, size=224), {**RESIZED, "scale": (0.08, 1.0), "group": 1024}),
        ("sre2l", setting(10, 10), {**RESIZED, "group": 100}),
    ],
)
def test_what_a_store_contains(recipe: str, of: Setting, values: dict[str, object]) -> None:
    flags = flags_of(stores.RECIPES, recipe, of)
    assert {name: flags[name] for name in values} == values
    assert ("augment" in flags) == ("augment" in values)
    if recipe != "gift":
        assert (flags["mean"], flags["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("recipe", stores.RECIPES)
@pytest.mark.parametrize("size", [32, 224])
def test_a_store_of_the_recipe_is_taken_and_another_one_named(recipe: str, size: int) -> None:
    flags = flags_of(stores.RECIPES, recipe, setting(10, 10, "s", "other", size))
    numbers = {name: value for name, value in flags.items() if name not in stores.NOT_THE_PLAN}

    def store(**changes: Any) -> Any:
        spec = PlanSpec(size=size, seed=5, **{**numbers, **changes})
        return SimpleNamespace(
            images=100, classes=tuple("abcdefghij"), size=size, teacher={"name": "other"}, plan=spec.to_json()
        )

    require_store(recipe, store(), "s")
    for changes in ({"flip": 0.25}, {"augment": ("dsa", "patch-shuffle=3")}):
        name = next(iter(changes))
        with pytest.raises(MismatchError, match=rf"--recipe {recipe} trains on a store with {name}.*this one has"):
            require_store(recipe, store(**changes), "s")
    plain = SimpleNamespace(**{**vars(store()), "plan": PlanSpec(size=size).to_json()})
    with pytest.raises(MismatchError, match=f"pipeline build --recipe {recipe}"):
        require_store(recipe, plain, "s")  # type: ignore[arg-type]
