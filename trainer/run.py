"""A run: what a step changes, what it is made with, and how it is saved."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.errors import InputError
from labelstore.spec import Json, require_same
from labelstore.store import LabelStore
from pipeline.config import json_object
from pipeline.images.manifest import Manifest
from pipeline.networks import build_network
from pipeline.networks.layout import memory_format
from pipeline.networks.outputs import Logits
from pipeline.networks.state import load_unsaved_buffers, unsaved_buffers
from pipeline.networks.trained import Trained
from pipeline.plan.plan import PlanSpec
from pipeline.ranks import Ranks
from pipeline.render import Renderer, decoder_of, make_renderer
from pipeline.replay.source import scan_as
from trainer import distributed
from trainer.beginning import begin_with
from trainer.checkpoint import (
    packed,
    random_state,
    restore_random_state,
    save_checkpoint,
    seed_all,
    unpacked,
)
from trainer.config import TrainConfig
from trainer.ema import Average
from trainer.evaluate import BATCH, EvalResult
from trainer.guard import Guard
from trainer.losses import Loss, make_loss
from trainer.replay import Replay
from trainer.run_folder import TEST_CACHE, begun_with, made_of, trained_as
from trainer.stopping import Stops
from trainer.trial import Counts, Fit, fit


@dataclass(frozen=True)
class Test:
    """Test images, how they are cut, and what renders them."""

    images: Manifest
    spec: PlanSpec
    renderer: Renderer


@dataclass
class Run:
    """What a step changes, and what it is made with.

    Attributes:
        student: has the weights that steps change.
        network: the student as a step calls it: on several processes, compiled.
        spread: the part of ``network`` that averages gradients over processes; None when there is one.
        average: the running mean of the student's weights, where it is wanted, on the first process.
        best_weights: those of the best evaluation, in memory, on the first process; files are written of what a
            checkpoint holds alone.
        total: sum of the losses of the current epoch, each times its batch's share.
        gradient: norm of the last step's gradient, where it is logged.
        entry: what the log will say of an epoch that is trained and not evaluated yet.
        saved: the step of the last checkpoint; None before the first.
        saved_at: when it was saved, by the monotonic clock.
        save_seconds: how long that took.
    """

    config: TrainConfig
    ranks: Ranks
    replay: Replay
    student: nn.Module
    network: nn.Module
    spread: Any
    average: Average | None
    optimizer: torch.optim.Optimizer
    loss: Loss
    guard: Guard
    test: Test | None
    made_of: Mapping[str, Json]
    total: Tensor
    step: int = 0
    gradient: float | None = None
    entry: dict[str, Any] = field(default_factory=dict)
    last: EvalResult | None = None
    best: EvalResult | None = None
    best_weights: dict[str, Tensor] | None = None
    best_epoch: int | None = None
    best_written: bool = False
    evaluations: int = 0
    saved: int | None = None
    saved_at: float = -math.inf
    save_seconds: float = 0.0

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * len(self.replay)

    @property
    def logs_step(self) -> bool:
        """Whether the step in hand is one of those of --log-every; of a run's steps, each K-th."""
        return self.config.log_every is not None and (self.step + 1) % self.config.log_every == 0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.run

    @property
    def checkpoint(self) -> Path:
        """The file of the last checkpoint."""
        return self.folder / "checkpoint.pt"

    @property
    def result(self) -> nn.Module:
        """What is evaluated and kept: the running mean of the student's weights, or the student."""
        return self.average.network if self.average else self.student

    @property
    def trained(self) -> Trained:
        """What the student is trained with."""
        return trained_as(self.made_of, str(self.folder))

    def close(self) -> None:
        """Release the renderers."""
        self.replay.close()
        if self.test:
            self.test.renderer.close()

    def save(self) -> None:
        """Save all that resuming needs, of all processes, in place of what was saved before.

        Raises:
            DivergedError: when the student is not worth it.
        """
        start = time.monotonic()
        self.guard.require_finite(self.student.parameters(), self.step)
        device = torch.device(self.config.render.device)
        own: Json = {"total": float(self.total), "random": {**packed(random_state(device))}}
        ranks = self.ranks.gather(own)
        if self.ranks.first:
            save_checkpoint(self.checkpoint, {**self.state(), "ranks": ranks}, self.made_of)
        self.saved, self.saved_at = self.step, time.monotonic()
        self.save_seconds = self.saved_at - start

    def keep_best(self, result: EvalResult, epoch: int) -> None:
        """Remember these weights as the best so far; the next checkpoint holds them, and then their file."""
        self.best, self.best_epoch = result, epoch
        self.best_weights = {
            name: value.detach().cpu().clone() if isinstance(value, Tensor) else value
            for name, value in self.result.state_dict().items()
        }
        self.best_written = False

    def state(self) -> dict[str, Any]:
        """What all processes share; tensors, numbers and strings only."""
        return {
            "student": self.student.state_dict(),
            "buffers": unsaved_buffers(self.student),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "step": self.step,
            "entry": self.entry,
            "last": asdict(self.last) if self.last else None,
            "best": asdict(self.best) if self.best else None,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "evaluations": self.evaluations,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`save` saved, on as many processes as there are now."""
        self.student.load_state_dict(state["student"])
        load_unsaved_buffers(self.student, state.get("buffers", {}))
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.step = self.saved = state["step"]
        self.entry = state["entry"]
        self.last = EvalResult(**state["last"]) if state["last"] else None
        self.best = EvalResult(**state["best"]) if state["best"] else None
        self.best_epoch = state["best_epoch"]
        self.best_weights = state["best_weights"] if self.ranks.first else None
        self.evaluations = state["evaluations"]
        rank, world, saved = self.ranks.rank, self.ranks.world, state["ranks"]
        if len(saved) == world:
            self.total.fill_(saved[rank]["total"])
            restore_random_state(unpacked(saved[rank]["random"]), torch.device(self.config.render.device))
        else:
            mean = sum(each["total"] for each in saved) / len(saved)
            self.total.fill_(world * mean if self.ranks.first else 0)
            distributed.seed_rank(self.config.seed, rank, self.step)


def make_run(config: TrainConfig, ranks: Ranks, stops: Stops) -> Run:
    """Open the store and the images, make student, optimiser and loss; refuses what does not fit together."""
    if ranks.first:  # and the others find what it has found out of the images
        replay = open_replay(config, ranks, config.views or begun_with(config.run))
        test = open_test(config, replay) if config.test_images else None
        ranks.tell(replay.order.views)
    else:
        views: Any = ranks.tell()
        replay = open_replay(config, ranks, views)
        test = open_test(config, replay) if config.test_images else None
    ranks.wait()  # a process that is refused removes the cache of test images, which another one would write again
    loss, optimiser = make_loss(config.loss), config.optimiser.spec()
    student, found = make_student(config, ranks, replay, test)
    replay.channels_last = found.channels_last
    made = made_of(config, replay, student, test.images if test else None, ranks.world)
    require_same(
        f"rank {ranks.rank}",
        ranks.tell(dict(made)),
        dict(made),
        "start all ranks with the same command",
        holder="the first rank",
    )
    optimizer = optimiser.make(student.named_parameters())
    average = Average(student, config.ema) if config.ema and ranks.first else None
    called = Logits(student)
    spread = distributed.spread(called, config, ranks, some_unused=found.some_unused)
    device = torch.device(config.render.device)
    return Run(
        config=config,
        ranks=ranks,
        replay=replay,
        student=student,
        network=distributed.compiled(spread or called, config),
        spread=spread,
        average=average,
        optimizer=optimizer,
        loss=loss,
        guard=Guard(ranks, device, stops),
        test=test,
        made_of=made,
        total=torch.zeros((), dtype=torch.float64, device=device),
    )


def open_replay(config: TrainConfig, ranks: Ranks, views: int | None) -> Replay:
    """This process's part of what the run plays."""
    config.loss.require_content(LabelStore.open(config.store).identity.content)
    return Replay(
        config.store,
        config.images,
        batch_size=config.batch_size,
        seed=config.seed,
        view_order=config.play_order,
        views=views,
        rank=ranks.rank,
        world=ranks.world,
        size=config.size,
        follow=config.follow,
        device=config.render.device,
        decoder=config.render.decoder,
        any_scale=config.loss.any_scale,
        threads=config.render.threads,
        cache_bytes=config.render.cache_bytes,
    )


def make_student(config: TrainConfig, ranks: Ranks, replay: Replay, test: Test | None = None) -> tuple[nn.Module, Fit]:
    """The student with its first weights, the same on every process, and how it is run.

    Raises:
        InputError: when it does not fit the labels, or could not be trained, evaluated, saved and continued.
    """
    columns = replay.store.identity.columns
    seed_all(config.seed)
    args = json_object("--student-args", config.student_args)
    made = build_network(config.student, args, columns, size=replay.size)
    student = distributed.prepare(begin_with(made, config, columns, replay.size), config, ranks)
    images = len(test.images) if test else 0
    evaluating = {min(images, BATCH), images % BATCH} - {0}
    counts = Counts.of(config, replay.store.identity.images, ranks.world, [*evaluating])
    found = fit(student, config, columns, replay.size, counts)
    student = student.to(device=config.render.device, memory_format=memory_format(found.channels_last))  # type: ignore[call-overload]
    if ranks.rank:
        distributed.seed_rank(config.seed, ranks.rank, 0)
    return student, found


def open_test(config: TrainConfig, replay: Replay) -> Test:
    """The test images; refused when their classes are not those of the store, or one of them does not decode."""
    classes = list(replay.store.identity.classes)
    images = scan_as(
        config.test_images or Path(),
        classes,
        cache=config.run / TEST_CACHE,
        skip_broken=config.skip_broken,
    )
    if not len(images):
        raise InputError(f"--test-images {config.test_images}: expected images that decode, found none")
    require_same(
        "list of test classes",
        list[Json](classes),
        list[Json](images.classes),
        "give --test-images with the store's classes",
    )
    spec = PlanSpec(
        size=replay.size,
        crop="center",
        resize=config.test_resize,
        flip=0,
        interpolation=replay.source.spec.interpolation,
    )
    renderer = make_renderer(
        images,
        spec,
        device=config.render.device,
        decoder=decoder_of(replay.source.renderer.id),
        threads=config.render.threads,
        cache_bytes=config.render.cache_bytes,
    )
    return Test(images, spec, renderer)
