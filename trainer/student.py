"""The student objective: trained to predict the labels of crops, evaluated by its accuracy on test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.command.console import Console
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from labelstore.spec import Json, require_same
from pipeline.config import json_object
from pipeline.images.class_folder import named
from pipeline.images.manifest import Manifest
from pipeline.images.remarks import report_left_out
from pipeline.networks import build_network
from pipeline.networks.layout import memory_format
from pipeline.networks.outputs import Logits
from pipeline.networks.trained import Trained
from pipeline.networks.weights import packed, save_weights, weights_like
from pipeline.plan.plan import PlanSpec
from pipeline.ranks import Ranks
from pipeline.recipes.stores import require_store
from pipeline.render import Renderer, make_renderer
from pipeline.replay.source import scan_as
from trainer import distributed, recipes
from trainer.batch import TrainBatch
from trainer.beginning import begin_with
from trainer.checkpoint import seed_all
from trainer.config import TrainConfig
from trainer.distributed import autocast
from trainer.ema import Average
from trainer.evaluate import BATCH, EvalResult, evaluate, table_of, write_classes
from trainer.file_names import TEST_CACHE
from trainer.loss_plan import LossPlan
from trainer.material import Material
from trainer.objective import Objective, Score
from trainer.optimisers import optimiser_of
from trainer.relabel import LabelColumns, describe
from trainer.run_folder import kept_weights, made_of, trained_as
from trainer.trial import Counts, Fit, fit, made_anew, undrawn


@dataclass(frozen=True)
class Test:
    """Test images, their plan, and their renderer."""

    images: Manifest
    spec: PlanSpec
    renderer: Renderer


class Student(Objective):
    """A student whose loss compares its logits with the labels.

    Args:
        config: configuration of the run.
        material: the training data.
        student: the network.
        found: how it is called.
        losses: the loss of each epoch.
        test: the test images, if any.
        processes: number of training processes.
    """

    name = "student"
    numbers = ("top1", "top5", "loss")

    def __init__(
        self,
        config: TrainConfig,
        material: Material,
        student: nn.Module,
        found: Fit,
        losses: LossPlan,
        test: Test | None,
        processes: int,
    ) -> None:
        self._config, self._material, self._losses, self._test = config, material, losses, test
        self.network: nn.Module = student
        self.called: nn.Module = Logits(student)
        self.some_unused, self.channels_last = found.some_unused, found.channels_last
        self.made_of = made_of(config, material, student, test.images if test else None, processes)

    @property
    def trained(self) -> Trained:
        """The record that is saved with the weights."""
        return trained_as(self.made_of, str(self._config.run))

    @property
    def evaluates(self) -> bool:
        """Whether there are test images."""
        return self._test is not None

    def loss(self, called: nn.Module, batch: TrainBatch) -> Tensor:
        """The loss of the student's logits."""
        with autocast(self._config), distributed.explain_missing_gradients(self._config):
            logits = called(batch.images)
        return self._losses(logits, batch)

    def begin_epoch(self, epoch: int) -> None:
        """Set the loss of the epoch."""
        self._losses.begin_epoch(epoch)

    def end_epoch(self, ranks: Ranks) -> Mapping[str, Json]:
        """Calibrate temperatures; returns phase and temperatures of the epoch, if they change."""
        return self._losses.end_epoch(ranks)

    def state(self) -> Mapping[str, Any]:
        """The temperature of a calibrated student."""
        return self._losses.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self._losses.load_state(state)

    def average(self, decay: float) -> Average:
        """The running mean of the weights, in a newly constructed student; does not affect the run's random numbers."""
        columns, size = self._material.columns, self._material.loader.size
        with undrawn(torch.device(self._config.render.device)):
            mean = made_anew(self.network, self._config, columns, size, channels_last=self.channels_last)
        return Average(mean, decay)

    def begin(self, console: Console) -> None:
        """Print the recipe, images that are left out, and the labels; refuse a store of another recipe."""
        config, material = self._config, self._material
        if config.recipe:
            console.line(recipes.describe_recipe(config, material.setting, material.loader.order.views))
            if material.store:
                require_store(config.recipe, material.store, config.student)
        material.begin(console)
        if config.relabel:
            console.line(describe(config.relabel))
        if self._test:
            report_skipped(self._test, console)
            report_left_out(self._test.images, console)

    def files(self) -> Mapping[str, Proof]:
        """The weights of this network, and the table of its classes."""
        weights = weights_like(packed(self.network.state_dict(), None, self.trained))
        kept = map(kept_weights, self._config.kept_epochs())
        found = dict.fromkeys(("last.safetensors", "best.safetensors", *kept), weights)
        return found | ({"classes.csv": table_of(self._test.images.classes)} if self._test else {})

    def evaluate(self, network: nn.Module) -> EvalResult:
        """Accuracy on the test images, normalised like the crops of the training."""
        assert self._test is not None  # noqa: S101  the loop asks `evaluates` first
        crops, config = self._material.loader.crops, self._config
        return evaluate(
            network,
            self._test.images,
            self._test.spec,
            self._test.renderer,
            mean=crops.mean,
            std=crops.std,
            dtype=config.dtype,
            device=config.render.device,
            columns=self._material.label_columns,
            channels_last=self.channels_last,
        )

    def better(self, found: Score, best: Score) -> bool:
        """A higher top-1 is better."""
        assert isinstance(found, EvalResult)  # noqa: S101  what `evaluate` gives
        assert isinstance(best, EvalResult)  # noqa: S101
        return found.top1 > best.top1

    def restored(self, fields: Mapping[str, Any]) -> EvalResult:
        """Top-1, top-5, loss, and hits by class."""
        return EvalResult(**fields)

    def record(self, folder: Path, score: Score) -> None:
        """Write the accuracy of each class."""
        assert self._test is not None  # noqa: S101
        assert isinstance(score, EvalResult)  # noqa: S101
        write_classes(folder / "classes.csv", self._test.images.classes, score)

    def save_weights(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write the weights, with the record of their training."""
        save_weights(state, path, trained=self.trained)

    def report(self) -> Mapping[str, Json]:
        """The sizes of the crops, and the number of test images."""
        test, crops = self._test, self._material.loader.crops
        teacher = self._material.online.teacher if self._material.online else None
        return {
            "size": {"teacher": teacher.size if teacher else crops.drawn_size, "student": crops.size},
            "test_images": {"used": len(test.images), "skipped": len(test.images.skipped)} if test else None,
        }

    def close(self) -> None:
        """Release the renderers of the test images and of the teacher's crops."""
        self._material.close()
        if self._test:
            self._test.renderer.close()


def report_skipped(test: Test, console: Console) -> None:
    """Warn about test images that are left out."""
    if skipped := test.images.skipped:
        console.warn(
            f"{len(skipped)} test images cannot be decoded and are left out: {named(skipped)}; accuracy is for the "
            f"other {len(test.images):,}"
        )


def make_objective(config: TrainConfig, ranks: Ranks, material: Material, test: Test | None) -> Student:
    """Construct the student objective; refuses incompatible flags and data."""
    losses = losses_of(config, material)
    optimiser_of(config.optimiser)  # checked before the student is constructed, which is slower
    student, found = make_student(config, ranks, material, test)
    return Student(config, material, student, found, losses, test, ranks.world)


def losses_of(config: TrainConfig, material: Material) -> LossPlan:
    """The losses of a run, for the columns of its labels."""
    columns = LabelColumns(material.columns, material.classes, material.label_columns)
    return LossPlan(config.phases, config.relabel, config.temperatures, columns)


def make_student(
    config: TrainConfig, ranks: Ranks, material: Material, test: Test | None = None
) -> tuple[nn.Module, Fit]:
    """Construct the student with its initial weights, equal on every process, and find how it can be called.

    Raises:
        InputError: when it does not fit the labels, or cannot be trained, evaluated, saved and continued.
    """
    columns, size = material.columns, material.loader.size
    seed_all(config.seed)
    args = json_object("--student-args", config.student_args)
    made = build_network(config.student, args, columns, size=size)
    student = distributed.prepare(begin_with(made, config, columns, size), config, ranks)
    images = len(test.images) if test else 0
    evaluating = {min(images, BATCH), images % BATCH} - {0}
    counts = Counts.of(config, material.loader.crops.images, ranks.world, [*evaluating])
    found = fit(student, config, columns, size, counts)
    student = student.to(device=config.render.device, memory_format=memory_format(found.channels_last))  # type: ignore[call-overload]
    if ranks.rank:
        distributed.seed_rank(config.seed, ranks.rank, 0)
    return student, found


def open_test(config: TrainConfig, material: Material) -> Test:
    """Open the test images; refuses other classes than those of the crops, and images that cannot be decoded."""
    classes = list(material.classes)
    images = scan_as(
        config.test_images or Path(),
        classes,
        options=config.test_source,
        cache=config.run / TEST_CACHE,
        skip_broken=config.skip_broken,
    )
    if not len(images):
        raise InputError(f"--test-images {config.test_images}: expected images that can be decoded, found none")
    require_same(
        "test classes",
        list[Json](classes),
        list[Json](images.classes),
        "give --test-images with the store's classes",
    )
    spec = PlanSpec(
        size=material.loader.size,
        crop="center",
        resize=config.test_resize,
        flip=0,
        interpolation=material.interpolation,
    )
    renderer = make_renderer(images, spec, **config.render.like(material.renderer))
    return Test(images, spec, renderer)
