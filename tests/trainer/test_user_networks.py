"""Networks as people write them are trained, alone and by two processes, or refused in a line before the first step."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import InputError
from pipeline.images.manifest import scan
from pipeline.networks import build_network, read_weights, save_weights
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.networks.outputs import logits_of
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import make_renderer
from pipeline.render.normalise import normalise
from tests.journeys.test_torchrun import torchrun
from tests.journeys.world import SIDE, World, draw_images
from tests.trainer.interrupting import interrupted_after
from tests.user_networks import FLATTENING, REFUSED, TRAINED
from trainer import Replay
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.evaluate import evaluate, evaluate_network
from trainer.evaluate_config import EvaluateConfig
from trainer.losses import LossSpec, make_loss
from trainer.trial import Counts, Fit, fit

HOME = "tests.user_networks"


@pytest.fixture(scope="module")
def test_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("test") / "test", per_class=4)


@pytest.fixture
def config(world: World, tmp_path: Path, test_images: Path) -> TrainConfig:
    return from_flags(
        TrainConfig,
        store=world.store, images=world.images, student=f"{HOME}:MLP", epochs=3, batch_size=7,
        run_folder=tmp_path / "run", optimizer="SGD", lr=0.05, weight_decay=0, test_images=test_images, eval_every=1,
        threads=1,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("name", TRAINED)
def test_each_is_trained_and_goes_on_bit_for_bit(
    name: str, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"accumulate": 2, "ema": 0.5, "clip_norm": 1.0, "dtype": "bfloat16"}
    config = changed(config, student=f"{HOME}:{name}", checkpoint_steps=1, **options)
    loop.train(config, Console(silent=True))
    run = changed(config, run_folder=tmp_path / "stopped")
    with interrupted_after(5):
        loop.train(run, Console(silent=True))
    loop.train(run, Console(silent=True))
    if name != "Drawing":  # the states of numpy and random are not this test's
        whole, found = (read_weights(each / "last.safetensors").tensors for each in (config.run, run.run))
        assert all(torch.equal(found[key], value) for key, value in whole.items())


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_before_anything_is_written(name: str, config: TrainConfig) -> None:
    with pytest.raises(InputError, match=f"{name}.*{REFUSED[name]}") as error:
        loop.train(changed(config, student=f"{HOME}:{name}"), Console(silent=True))
    assert "\n" not in str(error.value)
    assert not (config.run / "config.json").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["conv_net", "Auxiliary"])
def test_compiled_students_are_the_same(name: str, config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, student=f"{HOME}:{name}", epochs=1)
    loop.train(config, Console(silent=True))
    loop.train(changed(config, compile=True, run_folder=tmp_path / "compiled"), Console(silent=True))
    plain, fast = (read_weights(run / "last.safetensors").tensors for run in (config.run, tmp_path / "compiled"))
    if name == "conv_net":  # without dropout, which is drawn otherwise
        for key, value in plain.items():
            torch.testing.assert_close(fast[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [*FLATTENING, "Auxiliary", "WithFeatures", "Attributed", "lazy"])
def test_each_is_evaluated(name: str, test_images: Path, tmp_path: Path) -> None:
    """Against a loop over images of its own."""
    images = scan(test_images, digests=False)
    torch.manual_seed(0)
    network = build_network(f"{HOME}:{name}", {}, classes=3, size=SIDE).eval()
    save_weights(network.state_dict(), tmp_path / "weights.safetensors")
    spec = PlanSpec(size=SIDE, crop="center", flip=0)
    with closing(make_renderer(images, spec)) as renderer:
        found = evaluate(network, images, spec, renderer, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        rows = Plan(spec, images.heights, images.widths).rows(0, 0, len(images))
        crops = normalise(renderer.render(rows), IMAGENET_MEAN, IMAGENET_STD, torch.float32, channels_last=False)
    with torch.no_grad():
        logits = logits_of(network(crops))
    wanted = 100 * float((logits.argmax(1).numpy() == images.targets[rows.image]).mean())
    assert found.top1 == pytest.approx(wanted)
    config = from_flags(
        EvaluateConfig,
        student=f"{HOME}:{name}",
        weights=(str(tmp_path / "weights.safetensors"),),
        images=test_images,
        size=SIDE,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    told = evaluate_network(config, Console(silent=True))
    assert told.top1 == pytest.approx(found.top1)
    assert told.loss == pytest.approx(found.loss, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("WhollyDouble", "float32"), ("WhollyBfloat16", "float32"), ("OfTheBatch", "float32"), ("Small", "bfloat16")],
)
def test_what_a_run_tests_is_evaluated_alike(name: str, dtype: Any, config: TrainConfig) -> None:
    """By one rule: weights of any type, statistics of the batch, and the precision of the run."""
    run = changed(config, student=f"{HOME}:{name}", dtype=dtype, epochs=1, ema=0.5)
    summary: Any = loop.train(run, Console(silent=True))
    found = evaluate_network(from_flags(EvaluateConfig, run_folder=run.run, threads=1), Console(silent=True))
    assert found.top1 == summary["last"]["top1"]
    assert found.loss == pytest.approx(summary["last"]["loss"], rel=1e-6)
    other = evaluate_network(
        from_flags(EvaluateConfig, run_folder=run.run, threads=1, dtype="bfloat16"), Console(silent=True)
    )
    assert (other.loss == found.loss) == (dtype == "bfloat16" or name.startswith("Wholly"))


def test_statistics_of_the_batch_are_warned_of(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    loop.train(changed(config, student=f"{HOME}:OfTheBatch", epochs=1), Console(silent=True))
    evaluate_network(from_flags(EvaluateConfig, run_folder=config.run, threads=1), Console())
    said = capsys.readouterr()
    assert "batch norms without running statistics (norm)" in said.out + said.err
    assert "depend on --batch" in said.out + said.err


def test_evaluation_leaves_each_layer_in_its_mode(test_images: Path) -> None:
    images, spec = scan(test_images, digests=False), PlanSpec(size=SIDE, crop="center", flip=0)
    network = build_network(f"{HOME}:Small", {}, classes=3, size=SIDE).train()
    network.get_submodule("norm").eval()
    with closing(make_renderer(images, spec)) as renderer:
        evaluate(network, images, spec, renderer, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert [module.training for module in network.children()] == [True, False, True, True]


@pytest.mark.parametrize("name", FLATTENING)
def test_each_takes_the_batches_of_a_loop_of_ones_own(name: str, world: World) -> None:
    with closing(Replay(world.store, world.images, batch_size=10, threads=1)) as replay:
        student = build_network(f"{HOME}:{name}", {}, classes=3, size=SIDE)
        loss = make_loss(LossSpec())
        for batch in replay.play(2):
            assert batch.images.is_contiguous()
            loss(student(batch.images), batch.logits, batch.targets, batch.targets2, batch.lam).backward()


def test_a_student_is_tried_without_a_trace(config: TrainConfig) -> None:
    """Batch norm, dropout, what a first forward makes, gradients, and every generator."""
    torch.manual_seed(3)
    config = changed(config, student=f"{HOME}:Caching")
    student = build_network(config.student, {}, classes=3, size=SIDE).train()
    state, drawn = {name: value.clone() for name, value in student.state_dict().items()}, torch.get_rng_state()
    others = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    found = fit(student, config, 3, SIDE, Counts((3, 7)))
    assert found == Fit(channels_last=True, some_unused=False)
    assert torch.equal(drawn, torch.get_rng_state())
    assert others == (random.getstate(), np.random.get_state()[1].tobytes())  # noqa: NPY002
    assert all(torch.equal(state[name], value) for name, value in student.state_dict().items())
    assert all(weight.grad is None for weight in student.parameters())
    assert student.grid is None
    assert all(module.training for module in student.modules())


def words(world: World, run: Path, name: str, *more: object) -> list[object]:
    return [
        "trainer", "train", "--store", world.store, "--images", world.images, "--student", f"{HOME}:{name}",
        "--epochs", 2, "--batch-size", 7, "--threads", 1, "--run", run, "--json", *more,
    ]  # fmt: skip


BY_TWO = ("conv_net", "Auxiliary", "Skipping", "Replacing")


@pytest.mark.parametrize(
    "name",
    [name if name in BY_TWO else pytest.param(name, marks=pytest.mark.long) for name in TRAINED if name != "Thawing"],
)
def test_two_processes_train_each(name: str, world: World, test_images: Path, tmp_path: Path) -> None:
    first, second = torchrun(
        2, words(world, tmp_path / "run", name, "--accumulate", 2, "--test-images", test_images), tmp_path / "said"
    )
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.summary["steps"] == 8


def test_two_processes_refuse_a_student_that_thaws(world: World, tmp_path: Path) -> None:
    first, second = torchrun(2, words(world, tmp_path / "run", "Thawing"), tmp_path / "said")
    assert first.code == 2
    assert "its forward changed which parameters are trained" in first.err
    assert "Traceback" not in first.err + second.err


def test_two_processes_refuse_what_one_refuses(world: World, tmp_path: Path) -> None:
    first, second = torchrun(2, words(world, tmp_path / "run", "Carrying"), tmp_path / "said")
    assert first.code == 2
    assert "a step of 2 crops fails: Trying to backward" in first.err
    assert "Traceback" not in first.err + second.err
    assert not (tmp_path / "run" / "config.json").exists()


def test_one_crop_left_over_is_found_before_the_first_step(config: TrainConfig) -> None:
    """Of 24 images, one is left over by batches of 23; of two processes, by halves of a batch of 3."""
    for name, said in (
        ("Whole", "more than 1 value per channel.*choose another --batch-size"),
        ("Squeezing", r"\[3\]"),
    ):
        own = changed(config, student=f"{HOME}:{name}", run_folder=config.run / name, test_images=None)
        with pytest.raises(InputError, match=f"{name}.*{said}"):
            loop.train(changed(own, batch_size=23), Console(silent=True))
        assert loop.train(changed(own, batch_size=22), Console(silent=True))["steps"] == 6
    counts = Counts.of(changed(config, batch_size=3), 24, 2, [])
    assert counts.training == (1, 2)
