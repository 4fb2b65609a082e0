"""Labels in, student out: the training loop, its checkpoints and its log."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.console import Console, Progress, duration
from labelstore.errors import GiftwrapError, InputError
from labelstore.spec import Json, require_same
from pipeline.config import json_object
from pipeline.manifest import Manifest
from pipeline.memory import keep_freed_memory
from pipeline.networks import build_network, save_weights
from pipeline.plan import PlanSpec
from pipeline.render import Renderer, decoder_of, make_renderer
from pipeline.source import scan_as
from trainer import recipes
from trainer.checkpoint import (
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from trainer.config import TrainConfig
from trainer.evaluate import EvalResult, evaluate, write_classes
from trainer.losses import Loss, make_loss
from trainer.replay import Replay, TrainBatch
from trainer.run_folder import begun_with, describe, hold, made_of, open_log
from trainer.schedules import lr_factor

NOT_EVALUATED: dict[str, float | None] = {"top1": None, "top5": None, "loss": None}


@dataclass(frozen=True)
class Test:
    """Test images, how they are cut, and what renders them."""

    images: Manifest
    spec: PlanSpec
    renderer: Renderer


@dataclass
class Run:
    """What a step changes, and what it is made with."""

    config: TrainConfig
    replay: Replay
    student: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    test: Test | None
    made_of: Mapping[str, Json]
    step: int = 0
    last: EvalResult | None = None
    best: EvalResult | None = None
    best_epoch: int | None = None
    evaluations: int = 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * len(self.replay)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.run

    @property
    def classes(self) -> list[str] | None:
        """Class names of the student's columns, where all have one."""
        identity = self.replay.store.identity
        names = [name for _, name in sorted(identity.column_names.items())]
        return names if len(names) == identity.columns else None

    def close(self) -> None:
        """Release the renderers."""
        self.replay.close()
        if self.test:
            self.test.renderer.close()

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs; tensors, numbers and strings only."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "random": random_state(torch.device(self.config.device)),
            "step": self.step,
            "last": asdict(self.last) if self.last else None,
            "best": asdict(self.best) if self.best else None,
            "best_epoch": self.best_epoch,
            "evaluations": self.evaluations,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        restore_random_state(state["random"], torch.device(self.config.device))
        self.step = state["step"]
        self.last = EvalResult(**state["last"]) if state["last"] else None
        self.best = EvalResult(**state["best"]) if state["best"] else None
        self.best_epoch = state["best_epoch"]
        self.evaluations = state["evaluations"]


def train(config: TrainConfig, console: Console) -> Mapping[str, Json]:
    """Train, or continue, or report a finished run; returns the summary."""
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with hold(config.run), closing(make_run(config)) as run:
        return train_run(run, console)


def train_run(run: Run, console: Console) -> Mapping[str, Json]:
    """Train the rest of a run."""
    config = run.config
    checkpoint = config.run / "checkpoint.pt"
    describe(config, run.made_of, run.student)
    if checkpoint.exists():
        run.load_state(load_checkpoint(checkpoint, run.made_of))
        console.line(f"resuming {config.run} at epoch {run.replay.epoch} of {config.epochs}")
    if config.recipe:
        console.line(recipes.said(config, recipes.Setting.of(run.replay.store.identity, config.student)))
    pixels = run.replay.pixels
    how = "bit for bit" if pixels.equal else f"within {pixels.max_difference} levels, on another renderer"
    console.line(f"replay: {pixels.crops} stored crops came out again, {how}")
    start = time.monotonic()
    with (
        open_log(config.run, run.replay.epoch, tensorboard=config.tensorboard) as log,
        console.progress("steps", run.total_steps, "steps") as progress,
    ):
        progress.resume_at(run.step)
        while run.replay.epoch < config.epochs:
            entry = one_epoch(run, progress)
            if run.test and config.evaluates(entry["epoch"]):
                entry |= assess(run, run.test, entry["epoch"])
            log(entry)
            if run.replay.epoch % config.checkpoint_every == 0 or run.replay.epoch == config.epochs:
                save_checkpoint(checkpoint, run.state(), run.made_of)
    save_weights(run.student.state_dict(), run.folder / "last.safetensors", classes=run.classes)
    return summary(run, time.monotonic() - start)


def make_run(config: TrainConfig) -> Run:
    """Open the store and the images, make student, optimiser and loss; refuses what does not fit together."""
    replay = Replay(
        config.store,
        config.images,
        batch_size=config.batch_size,
        seed=config.seed,
        view_order=config.view_order,
        views=begun_with(config.run),
        device=config.device,
        decoder=config.decoder,
        threads=config.threads,
        cache_bytes=config.cache_bytes,
    )
    identity = replay.store.identity
    test = open_test(config, replay) if config.test_images else None
    torch.manual_seed(config.seed)
    args = json_object("--student-args", config.student_args)
    student = build_network(config.student, args, classes=identity.columns, size=identity.size)
    student = student.to(device=config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = config.optimiser_spec().make(student.named_parameters())
    return Run(
        config,
        replay,
        student,
        optimizer,
        make_loss(config.loss_spec()),
        test,
        made_of(config, replay, test.images if test else None),
    )


def open_test(config: TrainConfig, replay: Replay) -> Test:
    """The test images; refused when their classes are not those of the store."""
    classes = list(replay.store.identity.classes)
    images = scan_as(config.test_images or Path(), classes, digests=False)
    require_same(
        "list of test classes",
        list[Json](classes),
        list[Json](images.classes),
        "give --test-images with the store's classes",
    )
    spec = PlanSpec(
        size=replay.store.identity.size,
        crop="center",
        resize=config.test_resize,
        flip=0,
        interpolation=replay.source.spec.interpolation,
    )
    renderer = make_renderer(
        images,
        spec,
        device=config.device,
        decoder=decoder_of(replay.source.renderer.id),
        threads=config.threads,
        cache_bytes=config.cache_bytes,
    )
    return Test(images, spec, renderer)


def one_epoch(run: Run, progress: Progress) -> dict[str, Any]:
    """Train on the rest of the current epoch; returns its log entry."""
    epoch, view, start = run.replay.epoch, run.replay.view, time.monotonic()
    run.student.train()
    total = torch.zeros((), device=run.config.device)
    crops, waited, steps = 0, 0.0, run.step
    for batch, wait in timed(iter(run.replay)):
        total += step(run, batch)
        crops, waited = crops + len(batch), waited + wait
        progress.advance(note=f"epoch {epoch}")
    mean = float(total) / (run.step - steps)
    if not math.isfinite(mean):
        raise GiftwrapError(
            f"epoch {epoch}: expected a finite loss, found {mean}; lower --lr (the last checkpoint is kept)"
        )
    seconds = time.monotonic() - start
    return {
        "epoch": epoch,
        "view": view,
        "step": run.step,
        "loss": mean,
        "lr": run.optimizer.param_groups[0]["lr"],
        "seconds": round(seconds, 3),
        "crops_per_second": round(crops / seconds, 1),
        "waiting_share": round(waited / seconds, 3),
    }


def timed(batches: Iterator[TrainBatch]) -> Iterator[tuple[TrainBatch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        start = time.monotonic()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, time.monotonic() - start


def step(run: Run, batch: TrainBatch) -> Tensor:
    """One optimiser step; returns the loss, detached."""
    config = run.config
    schedule = config.schedule_spec()
    factor = lr_factor(schedule, run.step, run.total_steps, steps_per_epoch=len(run.replay))
    for group in run.optimizer.param_groups:
        group["lr"] = config.lr * factor
    try:
        with autocast(config):
            logits = run.student(batch.images)
    except ValueError as error:  # of BatchNorm, where nothing but one crop's channels is left to norm over
        raise InputError(f"a batch of {len(batch)} crops: {error}; choose another --batch-size") from error
    loss = run.loss(logits, batch.logits, batch.targets, batch.targets2, batch.lam)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    run.step += 1
    return loss.detach()


def autocast(config: TrainConfig) -> AbstractContextManager[Any]:
    """The student's precision."""
    if config.dtype == "bfloat16":
        return torch.autocast(torch.device(config.device).type, torch.bfloat16)
    return nullcontext()


def assess(run: Run, test: Test, epoch: int) -> dict[str, float | None]:
    """Evaluate the student on the test images, and keep its weights when they are the best so far."""
    identity = run.replay.store.identity
    teacher: Any = identity.teacher
    result = evaluate(
        run.student,
        test.images,
        test.spec,
        test.renderer,
        mean=tuple(teacher["mean"]),
        std=tuple(teacher["std"]),
        dtype=run.config.dtype,
        device=run.config.device,
        columns=identity.label_columns,
    )
    run.last, run.evaluations = result, run.evaluations + 1
    write_classes(run.folder / "classes.csv", test.images.classes, result)
    if run.best is None or result.top1 > run.best.top1:
        run.best, run.best_epoch = result, epoch
        save_weights(run.student.state_dict(), run.folder / "best.safetensors", classes=run.classes)
    return {f"test_{name}": value for name, value in result.numbers.items()}


def summary(run: Run, seconds: float) -> dict[str, Json]:
    """The last word of a run."""
    last, best = run.last, run.best
    return {
        "run": str(run.folder),
        "steps": run.step,
        "epochs": run.replay.epoch,
        "seconds": round(seconds, 1),
        "last": dict(last.numbers if last else NOT_EVALUATED),
        "best": {**(best.numbers if best else NOT_EVALUATED), "epoch": run.best_epoch},
        "evaluations": run.evaluations,
    }


def say(values: Mapping[str, Any]) -> str:
    """The summary for people."""
    text = f"run {values['run']}: {values['steps']:,} steps in {duration(values['seconds'])}"
    if values["last"]["top1"] is None:
        return f"{text}; no test images were given"
    return (
        f"{text}; test top-1 {values['last']['top1']:.2f} % at the last epoch, "
        f"{values['best']['top1']:.2f} % at the best ({values['best']['epoch']}) of {values['evaluations']} evaluated"
    )
