"""Fresh crops: those of a store of the same plan, in its order, resumed to the same bits; teachers are trained so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import InputError, MismatchError
from pipeline.build.build import build
from pipeline.config import BuildConfig
from pipeline.images.manifest import UnusableFilesError
from pipeline.ranks import Ranks
from tests.journeys.world import SIDE, draw_images, random_teacher
from tests.trainer.test_train import log_of
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.material import open_material
from trainer.step import step

ARGS = '{"width": 16, "norm": "batch"}'
PLANS = [
    {"crop": "resized", "scale": (0.3, 1.0)},
    {"crop": "factor", "factor": 2, "augment": ("dsa",), "flip": 0.5},
    {"mix": "cutmix", "group": 5},
    {"mix": "mixup", "group": 8, "mix_per": "pair"},
]
NAMES = ["resized", "dsa", "cutmix", "mixup"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fresh")
    return {
        "images": draw_images(folder / "images"),
        "teacher": ("convnet-d2",),
        "teacher_args": (ARGS,),
        "weights": (str(random_teacher(folder / "teacher.safetensors")),),
        "size": SIDE,
        "threads": 1,
    }


@pytest.fixture(params=PLANS, ids=NAMES)
def plan(request: pytest.FixtureRequest) -> dict[str, Any]:
    numbers: dict[str, Any] = request.param
    return numbers


def store_of(places: dict[str, Any], plan: dict[str, Any], path: Path, views: int = 3) -> Path:
    """A float16 store of a plan."""
    config = from_flags(BuildConfig, **places, **plan, store=path, views=views, batch=12, seed=7, encoding="float16")
    build(config, Console(as_json=True))
    return path


def run_of(places: dict[str, Any], folder: Path, **flags: Any) -> TrainConfig:
    """A run of three epochs; a value of None leaves a flag out."""
    values = {
        "images": places["images"], "size": SIDE, "threads": 1, "student": "convnet-d2",
        "student_args": '{"width": 8}', "epochs": 3, "batch_size": 7, "run_folder": folder, "seed": 5, **flags,
    }  # fmt: skip
    return from_flags(TrainConfig, **{name: value for name, value in values.items() if value is not None})


def hard(places: dict[str, Any], folder: Path, **flags: Any) -> TrainConfig:
    """A run on hard targets of fresh crops."""
    return run_of(places, folder, **{"labels": "none", "loss": "ce", **flags})


def online(places: dict[str, Any], folder: Path, **flags: Any) -> TrainConfig:
    """A run on labels that are made on the way."""
    teacher = {name: places[name] for name in ("teacher", "teacher_args", "weights")}
    return run_of(places, folder, **{"labels": "online", **teacher, "teacher_batch": 12, **flags})


def weights(config: TrainConfig, name: str = "last") -> bytes:
    return (config.run / f"{name}.safetensors").read_bytes()


def state_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(config.run / "checkpoint.pt", weights_only=True)["state"]["student"]
    return state


def test_fresh_crops_are_those_of_a_store_of_the_same_plan(
    places: dict[str, Any], plan: dict[str, Any], tmp_path: Path
) -> None:
    """Rows, pixels, targets and weights, for more epochs than there are views, in the order of a replay."""
    store = store_of(places, plan, tmp_path / "store")
    views = LabelStore.open(store).state.views_sealed
    for order in ("cycle", "shuffle"):
        both = []
        for flags in (
            {"store": store, "labels": "stored", "view_order": order, "views": 2},
            {**plan, "labels": "none", "loss": "ce", "plan_seed": 7, "view_order": order, "views": 2},
        ):
            material = open_material(run_of(places, tmp_path / "run", **flags), Ranks(), 2)
            with closing(material.loader) as loader:
                both.append(list(loader.play(4)))
        for ours, theirs in zip(*both, strict=True):
            for column in ("images", "targets", "targets2", "lam", "index", "view", "position"):
                assert torch.equal(getattr(ours, column), getattr(theirs, column)), column
    assert views >= 2


def test_without_a_bound_every_epoch_plays_a_view_of_its_own(places: dict[str, Any], tmp_path: Path) -> None:
    material = open_material(hard(places, tmp_path / "run"), Ranks(), None)
    with closing(material.loader) as loader:
        views = [int(batch.view[0]) for batch in loader.play(5)]
    assert views == [epoch for epoch in range(5) for _ in range(4)]


def test_the_seed_of_the_run_is_that_of_the_plan(places: dict[str, Any], tmp_path: Path) -> None:
    def first(**flags: Any) -> torch.Tensor:
        with closing(open_material(hard(places, tmp_path / "run", **flags), Ranks(), None).loader) as loader:
            return next(iter(loader)).images

    assert torch.equal(first(seed=5), first(seed=6, plan_seed=5))
    assert not torch.equal(first(seed=5), first(seed=6))


def interrupted(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Train, killed at each ``every``-th step of those that a call takes."""
    original = step

    def dying() -> Iterator[None]:
        while True:
            calls = 0

            def once(*args: Any) -> torch.Tensor:
                nonlocal calls
                calls += 1
                if calls > every:
                    raise KeyboardInterrupt
                return original(*args)

            monkeypatch.setattr(loop, "step", once)
            yield

    for _ in islice(dying(), 100):
        try:
            loop.train(config, Console(as_json=True))
        except KeyboardInterrupt:
            continue
        break
    else:
        raise AssertionError("the run never ended")
    monkeypatch.setattr(loop, "step", original)


@pytest.mark.parametrize("kind", ["fresh", "online"])
@pytest.mark.parametrize("every", [1, 5])
def test_a_run_that_is_killed_at_every_kth_step_is_the_uninterrupted_one(
    kind: str, every: int, places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = hard if kind == "fresh" else online
    flags: dict[str, Any] = {"checkpoint_steps": 1, "keep_every": 1, "mix": "cutmix", "group": 5}
    whole, stopped = (make(places, tmp_path / name, **flags) for name in ("whole", "stopped"))
    loop.train(whole, Console(as_json=True))
    interrupted(stopped, monkeypatch, every)
    for name in ("last", "epoch-0001", "epoch-0002", "epoch-0003"):
        assert weights(stopped, name) == weights(whole, name)
    assert weights(whole, "epoch-0003") == weights(whole)
    assert log_of(stopped.run) == log_of(whole.run)
    assert not list(stopped.run.glob(".*.partial"))


def test_online_equals_stored_bit_for_bit(
    places: dict[str, Any], plan: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The proof of the idea: the same plan, engine and order give the same student, with a store and without one."""
    store = store_of(places, plan, tmp_path / "store")
    loss = "kl" if plan.get("mix") == "cutmix" or "augment" in plan else "gift"
    flags: dict[str, Any] = {"loss": loss, "view_order": "cycle", "views": 3, "epochs": 4}
    stored = run_of(places, tmp_path / "stored", store=store, **flags)
    made = online(places, tmp_path / "online", plan_seed=7, **plan, **flags)
    replayed = online(places, tmp_path / "replayed", store=store, **flags)
    for config in (stored, made, replayed):
        loop.train(config, Console())
    assert "in every slot of the teacher's batch, bit for bit" in capsys.readouterr().out
    for config in (made, replayed):
        assert all(torch.equal(value, state_of(stored)[name]) for name, value in state_of(config).items())
    exact = online(places, tmp_path / "exact", plan_seed=7, exact=True, **plan, **flags)
    loop.train(exact, Console(as_json=True))
    assert not all(torch.equal(value, state_of(stored)[name]) for name, value in state_of(exact).items())


def test_operators_change_online_labels_as_they_change_stored_ones(places: dict[str, Any], tmp_path: Path) -> None:
    store = store_of(places, {"mix": "cutmix", "group": 5}, tmp_path / "store")
    flags: dict[str, Any] = {"loss": "soft_ce", "view_order": "cycle", "store": store}
    plain = run_of(places, tmp_path / "plain", **flags)
    flags["relabel"] = ("temperature=2", "topk=2")
    stored, made = run_of(places, tmp_path / "stored", **flags), online(places, tmp_path / "online", **flags)
    for config in (plain, stored, made):
        loop.train(config, Console(as_json=True))
    assert weights(made) == weights(stored) != weights(plain)


def test_a_teacher_trained_here_labels_and_is_evaluated(places: dict[str, Any], tmp_path: Path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)
    run = hard(places, tmp_path / "run", keep="1,3", mean=mean, std=std, test_images=places["images"])
    loop.train(run, Console(as_json=True))
    kept = sorted(path.name for path in run.run.glob("epoch-*"))
    assert kept == ["epoch-0001.safetensors", "epoch-0003.safetensors"]
    flags = {**places, "teacher_args": (), "weights": (str(run.run / kept[0]),)}
    build(from_flags(BuildConfig, **flags, store=tmp_path / "store", views=1, batch=12), Console(as_json=True))
    teacher: Any = LabelStore.open(tmp_path / "store").identity.teacher
    assert (teacher["mean"], teacher["std"], teacher["args"]) == ([*mean], [*std], {"width": 8})


def test_a_run_says_what_it_was_made_of(places: dict[str, Any], tmp_path: Path) -> None:
    run = online(places, tmp_path / "run", epochs=1)
    loop.train(run, Console(as_json=True))
    made = json.loads((run.run / "config.json").read_text())["made_of"]
    assert made["crops"]["plan"]["seed"] == 5
    assert made["crops"]["images"] == 24
    assert made["labels"]["source"] == "online"
    assert made["labels"]["teacher"]["name"] == "convnet-d2"
    assert made["engine"]["batch"] == 12
    with pytest.raises(MismatchError, match=r"--flip"):
        loop.train(changed(run, flip=0.25), Console(as_json=True))
    with pytest.raises(MismatchError, match=r"--plan-seed"):
        loop.train(changed(run, plan_seed=8), Console(as_json=True))


def test_broken_images_are_refused_or_left_out(places: dict[str, Any], tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images")
    (images / "bee" / "00.jpg").write_bytes(b"no picture")
    run = hard(places, tmp_path / "run", images=images, epochs=1)
    with pytest.raises(UnusableFilesError, match="--skip-broken"):
        loop.train(run, Console(as_json=True))
    assert not run.run.exists()
    loop.train(changed(run, skip_broken=True), Console(as_json=True))
    made = json.loads((run.run / "config.json").read_text())["made_of"]
    assert made["crops"]["skipped"] == ["bee/00.jpg"]
    assert (run.run / "train.images.npz").exists()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"labels": "stored"}, "--labels stored: needs --store"),
    ({"labels": "image"}, "--labels image: needs --store"),
    ({"labels": "online"}, "--labels online: needs a teacher; give --teacher and --weights"),
    ({"labels": "online", "teacher": ("convnet-d2",)}, "give --weights"),
    ({"labels": "none"}, "--loss gift: needs labels, and --labels none has none"),
    ({"labels": "none", "loss": "ce", "teacher": ("convnet-d2",)}, "--teacher: has no effect with --labels none"),
    ({"labels": "none", "loss": "ce", "relabel": ("topk=2",)}, "--loss ce: reads no labels, so that --relabel topk=2"),
    ({"labels": "none", "loss": "own:loss", "relabel": ("hard",)}, "--relabel hard: has no effect with --labels none"),
    ({"labels": "none", "loss": "ce", "exact": True}, "--exact: has no effect with --labels none"),
    ({"labels": "none", "loss": "ce", "size": None}, "--size: fresh crops need a side"),
    ({"labels": "none", "loss": "ce", "view_order": "shuffle"}, "--view-order shuffle: every epoch"),
    ({"labels": "none", "loss": "ce", "alpha": 0.5}, "alpha 0.5: has an effect only with mix"),
    ({"labels": "none", "loss": "ce", "keep": "1,9"}, "--keep: expected epochs 1 to 3"),
    ({"store": Path("store"), "crop": "center"}, "--crop: has no effect with --labels stored"),
    ({"store": Path("store"), "plan_seed": 3}, "--plan-seed: has no effect with --labels stored"),
    ({"store": Path("store"), "labels": "image", "mix": "cutmix"}, "--loss gift: needs raw logits"),
    ({"labels": "none", "loss": "ce", "follow": True}, "--follow: plays the crops of a store"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_flags_that_do_not_go_together_are_refused(
    flags: dict[str, Any], words: str, places: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        run_of(places, tmp_path / "run", **flags)
    assert words in str(caught.value)


def test_a_teacher_of_other_classes_is_refused(places: dict[str, Any], tmp_path: Path) -> None:
    other = str(random_teacher(tmp_path / "other.safetensors", columns=5))
    run = online(places, tmp_path / "run", weights=(other,))
    with pytest.raises(InputError, match="5"):
        loop.train(run, Console(as_json=True))
    assert not run.run.exists()
