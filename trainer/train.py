"""Labels in, student out: the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import torch

from labelstore.command.console import Console, Progress, duration
from labelstore.durable.removing import require
from labelstore.errors import GiftwrapError
from labelstore.spec import Json
from pipeline.device.memory import keep_freed_memory
from pipeline.images.class_folder import named
from pipeline.images.remarks import say_left_out
from pipeline.networks.weights import require_weights, save_weights
from pipeline.ranks import join
from pipeline.recipes import require_store
from trainer import recipes
from trainer.batch import TrainBatch
from trainer.checkpoint import load_checkpoint
from trainer.config import TrainConfig
from trainer.evaluate import EvalResult, evaluate, table_of, write_classes
from trainer.following import view_is_there, wait_for_view
from trainer.guard import DivergedError
from trainer.replay import normalisation_of
from trainer.run import Run, Test, make_run
from trainer.run_folder import (
    CONFIG,
    LOG,
    STEPS,
    accepted,
    append,
    describe,
    hold,
    lines_of,
    open_log,
    record_changes,
    with_its_interval,
)
from trainer.step import step
from trainer.stopping import Asked, Stops

NOT_EVALUATED: dict[str, float | None] = {"top1": None, "top5": None, "loss": None}

SAVING_SHARE = 0.05  # of the time, where no flag says how often a checkpoint is saved
FREE = 0.1  # waiting that says nothing: queues fill, epochs begin

T = TypeVar("T")


def train(config: TrainConfig, console: Console) -> Mapping[str, Json]:
    """Train, or continue, or report a finished run; returns the summary.

    Under torchrun, ranks take their slices of each batch; the summary is the first one's, others return nothing.
    """
    keep_freed_memory()
    with join("training") as ranks:
        config = with_its_interval(config) if ranks.first else config
        config, console = ranks.share(config), console if ranks.first else Console(silent=True)
        if config.render.threads is not None:
            torch.set_num_threads(config.render.threads)
        stops = Stops()
        with hold(config.run) if ranks.first else nullcontext(), closing(make_run(config, ranks, stops)) as run:
            begin(run, console)
            try:
                with stops, ranks.together():
                    return train_run(run, console)
            except Asked:
                console.line(f"\nsaved at epoch {run.replay.epoch} of {config.epochs}, step {run.step}")
                raise stops.error() from None
            except DivergedError as error:
                kept = f"the checkpoint of step {run.saved} is kept" if run.saved else "there is no checkpoint yet"
                raise GiftwrapError(
                    f"{error}; {kept}; lower --lr, or bound the gradient by --clip-norm, in a --run of its own"
                ) from error


def begin(run: Run, console: Console) -> None:
    """Describe a new run, or load an old one's last checkpoint; say what it is made of."""
    config, ranks = run.config, run.ranks
    views = run.replay.order.views
    if config.recipe:
        console.line(recipes.said(config, run.replay.store.identity, views))
        require_store(config.recipe, run.replay.store.identity, config.student)
    if run.test:
        say_skipped(run.test, console)
    changes: Any = []
    if ranks.first:
        changes = describe(config, run.made_of, run.student)
        require_own(run)
    changes = ranks.tell(changes)
    if ranks.tell(run.checkpoint.exists()):
        run.load_state(load_checkpoint(run.checkpoint, run.made_of, partial(accepted, anyway=config.anyway)))
        if ranks.first:
            write_weights(run)  # a kill may have come between a checkpoint and these
        if changes:
            save(run)
        console.line(f"resuming {config.run} at epoch {run.replay.epoch} of {config.epochs}, step {run.step}")
    elif ranks.first and lines_of(config.run / LOG):
        console.warn(f"{run.checkpoint}: there is no checkpoint; the run begins again, and its log")
    for change in changes:
        console.warn(f"{change['at']} has changed since the run began; {config.run / CONFIG} records it")
    if changes and ranks.first:
        record_changes(config, run.made_of, changes, run.step)
    console.line(f"trains by {in_words(run.made_of)}; plays {recipes.plays(config.epochs, views)}")
    if config.ema and (1 - config.ema) * run.total_steps < 1:
        console.warn(
            f"--ema {config.ema}: a mean over some {1 / (1 - config.ema):,.0f} steps, of a run of {run.total_steps:,}"
        )
    pixels, size = run.replay.pixels, run.replay.store.identity.size
    how = "bit for bit" if pixels.equal else f"within {pixels.max_difference} levels, on another renderer"
    other = "" if size == run.replay.size else f"; the student gets the same boxes at {run.replay.size} px"
    console.line(f"replay: {pixels.crops} stored crops came out again at {size} px, {how}{other}")
    if run.test:
        say_left_out(run.test.images, console)
    if ranks.world > 1:
        console.line(f"processes: {ranks.world}, each with its slice of every batch of {config.batch_size}")


def in_words(made: Mapping[str, Json]) -> str:
    """The loss, the optimiser and the schedule of a run with every number that they have."""
    parts = []
    for what in ("loss", "optimizer", "schedule"):
        values: Any = dict(cast("Mapping[str, Any]", made[what]))
        numbers = ", ".join(f"{name} {value}" for name, value in values.items() if name != "name")
        parts.append(f"{'schedule ' if what == 'schedule' else ''}{values['name']}{f' ({numbers})' if numbers else ''}")
    return "; ".join(parts)


def say_skipped(test: Test, console: Console) -> None:
    """Name the test images that are left out."""
    if skipped := test.images.skipped:
        console.warn(
            f"{len(skipped)} test images do not decode and are left out: {named(skipped)}; accuracy is of the other "
            f"{len(test.images):,}"
        )


def require_own(run: Run) -> None:
    """Refuse, before the first step, files in the run's folder that are not its own and have names that it needs."""
    for name in ("last.safetensors", "best.safetensors"):
        require_weights(run.result.state_dict(), run.folder / name, run.trained)
    if run.test:
        require(run.folder / "classes.csv", table_of(run.test.images.classes))


def train_run(run: Run, console: Console) -> Mapping[str, Json]:
    """Train the rest of a run.

    Raises:
        Asked: a signal was heard; the run is saved.
    """
    config, first, start, before = run.config, run.ranks.first, time.monotonic(), run.step
    with (
        open_log(
            config.run,
            run.entry.get("epoch", run.replay.epoch),
            console.warn,
            tensorboard=config.tensorboard,
            step=run.step,
        )
        if first
        else nullcontext(lambda _: None) as log,
        console.progress("steps", run.total_steps, "steps") as progress,
    ):
        progress.resume_at(run.step)
        batches = run.replay.play(config.epochs)
        try:
            while run.entry or run.replay.epoch < config.epochs:
                one_view(run, console, progress, log, iter(run.replay) if config.follow else batches)
        except Asked:
            save(run)
            raise
        finally:
            batches.close()
    if not first:
        return {}
    return summary(run, before, time.monotonic() - start)


def save(run: Run) -> None:
    """Save a checkpoint, and then the files of weights as it has them."""
    run.save()
    if run.ranks.first:
        write_weights(run)
        run.save_seconds += time.monotonic() - run.saved_at


def write_weights(run: Run) -> None:
    """Write the files of weights as the last checkpoint has them; called when one was saved or loaded."""
    save_weights(run.result.state_dict(), run.folder / "last.safetensors", trained=run.trained)
    if run.best_weights is not None and not run.best_written:
        save_weights(run.best_weights, run.folder / "best.safetensors", trained=run.trained)
        run.best_written = True


def one_view(
    run: Run,
    console: Console,
    progress: Progress,
    log: Callable[[Mapping[str, Any]], None],
    batches: Iterator[TrainBatch],
) -> None:
    """Train on the rest of the current epoch, evaluate, log and save."""
    config = run.config
    if not run.entry:
        run.guard.settle()
        await_view(run, console)
        run.entry = one_epoch(run, progress, batches)
        run.total.zero_()
    epoch = run.entry["epoch"]
    run.guard.settle()
    scores = assess(run, run.test, epoch) if run.test and config.evaluates(epoch) else {}
    log({**run.entry, **scores})
    run.entry = {}
    if run.replay.epoch == config.epochs or is_due(run):
        save(run)


def is_due(run: Run) -> bool:
    """Whether a checkpoint is wanted behind an epoch: the best weights so far are kept at once."""
    config = run.config
    if run.ranks.tell(run.best_weights is not None and not run.best_written):
        return True
    if config.checkpoint_steps is not None and run.step % config.checkpoint_steps == 0:
        return True
    if config.checkpoint_every is not None:
        return run.replay.epoch % config.checkpoint_every == 0
    passed = time.monotonic() - run.saved_at
    return bool(run.ranks.tell(run.ranks.first and passed * SAVING_SHARE >= run.save_seconds))


def await_view(run: Run, console: Console) -> None:
    """Wait for the view of the epoch, where the store is still being built; the run is saved before it waits."""
    store, view = run.replay.store, run.replay.view
    if not store.follow or run.ranks.tell(run.ranks.first and view_is_there(store, view)):
        return
    if run.step:
        save(run)
    console.line(f"waiting for view {view} of {store.path}")
    on_first(run, lambda: wait_for_view(store, view))


def on_first(run: Run, act: Callable[[], T]) -> T | None:
    """What the first process finds while the others wait; it changes nothing, and so a signal stops it at once.

    Raises:
        Asked: on all processes, when one has heard a signal.
    """
    found: T | None = None
    if run.ranks.first:
        try:
            with run.guard.stops.at_once():
                found = act()
        except Asked:
            pass
    run.ranks.wait()
    run.guard.settle()
    return found


def one_epoch(run: Run, progress: Progress, batches: Iterator[TrainBatch]) -> dict[str, Any]:
    """Train on the rest of the current epoch; returns its log entry."""
    epoch, view, start = run.replay.epoch, run.replay.view, time.monotonic()
    every = run.config.checkpoint_steps
    run.network.train()
    crops, waited = 0, 0.0
    for batch, wait in timed(batches):
        logged = run.logs_step
        loss = step(run, batch)
        run.total += loss
        if logged:
            shares: list[Any] = run.ranks.gather(float(loss))
            log_step(run, epoch, sum(shares) / len(shares))
        crops, waited = crops + batch.total, waited + wait
        progress.advance(note=f"epoch {epoch}, {binding(waited, time.monotonic() - start)}")
        if run.replay.epoch != epoch:
            break
        run.guard.between_steps()
        if every is not None and run.step % every == 0:
            save(run)
    seconds = time.monotonic() - start
    totals: list[Any] = run.ranks.gather(float(run.total))
    return {
        "epoch": epoch,
        "view": view,
        "step": run.step,
        "processes": run.ranks.world,
        "loss": sum(totals) / len(totals) / len(run.replay),
        "lr": run.optimizer.param_groups[0]["lr"],
        "seconds": round(seconds, 3),
        "crops_per_second": round(crops / seconds, 1),
        "waiting_share": round(waited / seconds, 3),
    }


def log_step(run: Run, epoch: int, loss: float) -> None:
    """A line of steps.jsonl for the step that was just taken; the first process writes."""
    if run.ranks.first:
        values = {"step": run.step, "epoch": epoch, "loss": loss, "lr": run.optimizer.param_groups[0]["lr"]}
        append(run.folder / STEPS, {**values, "gradient_norm": run.gradient})


def binding(waited: float, seconds: float) -> str:
    """How much of the time steps waited for crops, and so which of the two binds."""
    share = waited / max(seconds, 1e-9)
    return f"waiting for crops {100 * share:.0f} %; {'the student' if share < FREE else 'rendering'} binds"


def timed(batches: Iterator[TrainBatch]) -> Iterator[tuple[TrainBatch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        start = time.monotonic()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, time.monotonic() - start


def assess(run: Run, test: Test, epoch: int) -> dict[str, float | None]:
    """Evaluate the student on the test images, and keep its weights when they are the best so far."""
    result = on_first(run, lambda: evaluated(run, test))
    if result is None:  # of another process
        return {}
    run.last, run.evaluations = result, run.evaluations + 1
    write_classes(run.folder / "classes.csv", test.images.classes, result)
    if run.best is None or result.top1 > run.best.top1:
        run.keep_best(result, epoch)
    return {f"test_{name}": value for name, value in result.numbers.items()}


def evaluated(run: Run, test: Test) -> EvalResult:
    """How the student does on the test images."""
    identity = run.replay.store.identity
    mean, std = normalisation_of(run.replay.store, None, None)
    return evaluate(
        run.result,
        test.images,
        test.spec,
        test.renderer,
        mean=mean,
        std=std,
        dtype=run.config.dtype,
        device=run.config.render.device,
        columns=identity.label_columns,
        channels_last=run.replay.channels_last,
    )


def summary(run: Run, before: int, seconds: float) -> dict[str, Json]:
    """The summary of a run that had taken ``before`` steps when this call began."""
    last, best = run.last, run.best
    return {
        "run": str(run.folder),
        "steps": run.step,
        "steps_now": run.step - before,
        "epochs": run.replay.epoch,
        "seconds": round(seconds, 1),
        "processes": run.ranks.world,
        "size": {"teacher": run.replay.store.identity.size, "student": run.replay.size},
        "last": dict(last.numbers if last else NOT_EVALUATED),
        "best": {**(best.numbers if best else NOT_EVALUATED), "epoch": run.best_epoch},
        "evaluations": run.evaluations,
        "test_images": {"used": len(run.test.images), "skipped": len(run.test.images.skipped)} if run.test else None,
    }


def say(values: Mapping[str, Any]) -> str:
    """The summary for people."""
    steps, now = values["steps"], values["steps_now"]
    text = f"run {values['run']}: {steps:,} steps{'' if now == steps else f', {now:,} of them now,'} in "
    text += duration(values["seconds"])
    if values["last"]["top1"] is None:
        return f"{text}; no test images were given"
    return (
        f"{text}; test top-1 {values['last']['top1']:.2f} % at the last epoch, "
        f"{values['best']['top1']:.2f} % at the best ({values['best']['epoch']}) of {values['evaluations']} evaluated"
    )
