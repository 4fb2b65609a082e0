"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import torch

from labelstore.command.console import Console, Progress, quantity
from labelstore.durable.removing import require
from labelstore.errors import GiftwrapError
from labelstore.spec import Json
from pipeline.device.current import make_current
from pipeline.device.faults import device_faults, is_fault
from pipeline.device.memory import keep_freed_memory
from pipeline.ranks import Ranks, join
from trainer import recipes
from trainer.batch import TrainBatch
from trainer.checkpoint import CHECKPOINT, load_checkpoint, remove_left
from trainer.config import TrainConfig
from trainer.file_names import CONFIG, LOG, STEPS
from trainer.loader import Loader
from trainer.objective import Score
from trainer.online import one_precision
from trainer.order import UNBOUNDED
from trainer.run import Run, make_run
from trainer.run_config import RunConfig
from trainer.run_folder import (
    RUN,
    accepted,
    describe,
    kept_weights,
    record_changes,
    with_its_interval,
)
from trainer.run_lock import hold
from trainer.run_log import append, lines_of, open_log
from trainer.step import step
from trainer.stop_conditions import DivergedError
from trainer.stopping import StopRequested, StopSignals

SAVING_SHARE = 0.05  # fraction of the time, if no flag sets how often a checkpoint is saved
MEMORY = "--accumulate, or a smaller --batch-size or --cache-gib"  # flags that reduce it
FREE = 0.1  # fraction of waiting that is not a bottleneck: queues fill, epochs start

T = TypeVar("T")
RunT = TypeVar("RunT", bound=RunConfig)


def train(
    config: TrainConfig, console: Console, make: Callable[[TrainConfig, Ranks, StopSignals], Run] = make_run
) -> Mapping[str, Json]:
    """Train, continue, or report a finished run; returns the summary.

    Under torchrun, each rank takes its slice of each batch; the first rank returns the summary, others return nothing.

    Args:
        config: configuration of the run.
        console: prints notes and progress.
        make: constructs the run; a student's when left out.
    """
    with join("training") as ranks:
        return train_on(config, console, ranks, make)


@device_faults("the student is trained", MEMORY)
def train_on(
    config: TrainConfig,
    console: Console,
    ranks: Ranks,
    make: Callable[[TrainConfig, Ranks, StopSignals], Run] = make_run,
) -> Mapping[str, Json]:
    """The same, within an initialised process group."""
    config, console = on_this_rank(with_its_interval(config) if ranks.first else config, console, ranks)
    with (
        hold(config.run) if ranks.first else nullcontext(),
        closing(make(config, ranks, StopSignals())) as run,
        one_precision(run.replay.labels),
    ):
        return complete(run, console)


def on_this_rank(config: RunT, console: Console, ranks: Ranks) -> tuple[RunT, Console]:
    """The flags and the console of this rank, whose memory, device and threads are made ready for a training."""
    keep_freed_memory()
    config = ranks.own_resources(config)
    make_current(config.render.device)
    ranks.require_shared(config.run, "--run-folder")
    if config.render.threads is not None:
        torch.set_num_threads(config.render.threads)
    return config, console if ranks.first else Console(silent=True)


def complete(run: Run, console: Console) -> Mapping[str, Json]:
    """Start or continue a run of any objective in its folder, and train it to the end; returns the summary.

    Raises:
        GiftwrapError: when a loss or a weight is not finite.
    """
    begin(run, console)
    stops = run.stop_conditions.stops
    try:
        with stops, run.ranks.together():
            return train_run(run, console)
    except StopRequested:
        console.line(f"\nsaved after {run.replay.epoch} of {quantity(run.config.epochs, 'epoch')}, step {run.step}")
        raise stops.error() from None
    except DivergedError as error:
        kept = f"the checkpoint of step {run.saved} is kept" if run.saved else "there is no checkpoint yet"
        raise GiftwrapError(
            f"{error}; {kept}; lower --lr, or clip the gradient with --clip-norm, in another --run-folder"
        ) from error
    except RuntimeError as error:
        if is_fault(error) and run.saved:
            error.add_note(f"the checkpoint of step {run.saved} is kept")
        raise


def begin(run: Run, console: Console) -> None:
    """Write the description of a new run, or load the last checkpoint; print a description of the run."""
    config, ranks = run.config, run.ranks
    run.objective.begin(console)
    changes: Any = []
    if ranks.first:
        changes = describe(config, run.made_of, run.objective.network, run.objective.flags)
        own = run.objective.files()
        for name, proof in own.items():
            require(config.run / name, proof)
        remove_left(config.run, {run.checkpoint.name: CHECKPOINT, CONFIG: RUN, **own})
    changes = ranks.broadcast(changes)
    if ranks.broadcast(run.checkpoint.exists()):
        run.load_state(load_checkpoint(run.checkpoint, run.made_of, partial(accepted, anyway=config.anyway)))
        if ranks.first:
            write_weights(run)  # a kill may have happened between saving a checkpoint and writing these
        if any(change["at"].startswith("test") for change in changes):
            if run.best:
                console.warn("the best result so far was measured on other test images, and is discarded")
            run.forget_scores()
        if changes:
            save(run)
        console.line(
            f"resuming {config.run} after {run.replay.epoch} of {quantity(config.epochs, 'epoch')}, step {run.step}"
        )
    elif ranks.first and lines_of(config.run / LOG):
        console.warn(f"{run.checkpoint}: there is no checkpoint; the run and its log start again")
    for change in changes:
        console.warn(f"{change['at']} has changed since the run started; {config.run / CONFIG} records it")
    if changes and ranks.first:
        record_changes(config, run.made_of, changes, run.step)
    played = views_played(run.replay, config.epochs)
    numbers = in_words(run.made_of)
    console.line(f"trains by {numbers}; plays {played}" if numbers else f"plays {played}")
    if config.ema and run.average and not run.average.rising and (1 - config.ema) * run.total_steps < 1:
        console.warn(
            f"--ema {config.ema}: a mean over some {1 / (1 - config.ema):,.0f} steps, of a run of {run.total_steps:,}"
        )
    if run.replay.remark:
        console.line(run.replay.remark)
    if ranks.world > 1:
        console.line(f"processes: {ranks.world}, each with its slice of every batch of {config.batch_size}")


def views_played(replay: Loader, epochs: int) -> str:
    """How often each view is played, and the number of epochs of fresh crops, as text."""
    views, stored = replay.order.views, replay.of_store(epochs)
    played = quantity(stored, "view") if views == UNBOUNDED else recipes.plays(stored, views)
    fresh = epochs - stored
    more = f"; {quantity(fresh, 'epoch')} of fresh crops with hard labels"
    return f"{played}{more if fresh else ''}"


def in_words(made: Mapping[str, Json]) -> str:
    """The loss, the optimiser and the schedule of a run with their numbers, as text."""
    parts = []
    for what in (each for each in ("loss", "optimizer", "schedule") if each in made):
        values: Any = dict(cast("Mapping[str, Any]", made[what]))
        numbers = ", ".join(f"{name} {value}" for name, value in values.items() if name != "name")
        parts.append(f"{'schedule ' if what == 'schedule' else ''}{values['name']}{f' ({numbers})' if numbers else ''}")
    return "; ".join(parts)


def train_run(run: Run, console: Console) -> Mapping[str, Json]:
    """Train the rest of a run.

    Raises:
        StopRequested: after a signal; the run is saved.
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
            ended = not run.entry and run.replay.epoch == config.epochs
            if run.objective.evaluates and run.last is None and ended:
                assess(run, config.epochs - 1)  # a finished run, on other test images
                save(run)
            while run.entry or run.replay.epoch < config.epochs:
                one_view(run, console, progress, log, iter(run.replay) if run.replay.crops.growing else batches)
        except StopRequested:
            save(run)
            raise
        finally:
            batches.close()
    if not first:
        return {}
    return summary(run, before, time.monotonic() - start)


def save(run: Run) -> None:
    """Save a checkpoint, and then write the weights that it contains as files."""
    run.save()
    if run.ranks.first:
        write_weights(run)
        run.save_seconds += time.monotonic() - run.saved_at


def write_weights(run: Run) -> None:
    """Write the weights of the last checkpoint as files; called after it is saved or loaded."""
    run.objective.save_weights(run.result.state_dict(), run.folder / "last.safetensors")
    if run.best_weights is not None and not run.best_written:
        run.objective.save_weights(run.best_weights, run.folder / "best.safetensors")
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
        run.stop_conditions.settle()
        await_view(run, console)
        run.entry = one_epoch(run, progress, batches)
        run.total.zero_()
    epoch = run.entry["epoch"]
    run.stop_conditions.settle()
    scores = assess(run, epoch) if run.objective.evaluates and config.evaluates(epoch) else {}
    # before the checkpoint, since a run continued from it would not write this file
    if run.ranks.first and epoch + 1 in config.kept_epochs():
        run.objective.save_weights(run.result.state_dict(), run.folder / kept_weights(epoch + 1))
    log({**run.entry, **scores})
    run.entry = {}
    if run.replay.epoch == config.epochs or is_due(run):
        save(run)


def is_due(run: Run) -> bool:
    """Whether a checkpoint is due after an epoch: the best weights so far are saved at once."""
    config = run.config
    if run.ranks.broadcast(run.best_weights is not None and not run.best_written):
        return True
    if config.checkpoint_steps is not None and run.step % config.checkpoint_steps == 0:
        return True
    if config.checkpoint_every is not None:
        return run.replay.epoch % config.checkpoint_every == 0
    passed = time.monotonic() - run.saved_at
    return bool(run.ranks.broadcast(run.ranks.first and passed * SAVING_SHARE >= run.save_seconds))


def await_view(run: Run, console: Console) -> None:
    """If the store is still being built, wait for the view of the epoch; the run is saved before it waits."""
    crops, view = run.replay.crops, run.replay.view
    if not crops.growing or run.ranks.broadcast(run.ranks.first and crops.has(view)):
        return
    if run.step:
        save(run)
    console.line(f"waiting for view {view}")
    on_first(run, lambda: crops.wait_for(view))


def on_first(run: Run, act: Callable[[], T]) -> T | None:
    """Run ``act`` on the first process while the others wait. It does not change the run, so a signal stops it at once.

    Raises:
        StopRequested: on all processes, if one of them received a signal.
    """
    found: T | None = None
    if run.ranks.first:
        try:
            with run.stop_conditions.stops.at_once():
                found = act()
        except StopRequested:
            pass
    run.ranks.barrier()
    run.stop_conditions.settle()
    return found


def one_epoch(run: Run, progress: Progress, batches: Iterator[TrainBatch]) -> dict[str, Any]:
    """Train on the rest of the current epoch; returns its log entry."""
    epoch, view, start = run.replay.epoch, run.replay.view, time.monotonic()
    every = run.config.checkpoint_steps
    run.network.train()
    run.objective.begin_epoch(epoch)
    crops, waited = 0, 0.0
    for batch, wait in timed(batches):
        logged = run.logs_step
        loss = step(run, batch)
        run.total += loss
        if logged:
            shares: list[Any] = run.ranks.all_gather(float(loss))
            log_step(run, epoch, sum(shares) / len(shares))
        crops, waited = crops + batch.total, waited + wait
        progress.advance(note=f"epoch {epoch + 1}, {binding(waited, time.monotonic() - start)}")
        if run.replay.epoch != epoch:
            break
        run.stop_conditions.between_steps()
        if every is not None and run.step % every == 0:
            save(run)
    seconds = time.monotonic() - start
    totals: list[Any] = run.ranks.all_gather(float(run.total))
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
        **run.objective.end_epoch(run.ranks),
    }


def log_step(run: Run, epoch: int, loss: float) -> None:
    """Write a line of steps.jsonl for the last step, on the first process."""
    if run.ranks.first:
        values = {"step": run.step, "epoch": epoch, "loss": loss, "lr": run.optimizer.param_groups[0]["lr"]}
        append(run.folder / STEPS, {**values, "gradient_norm": run.gradient})


def binding(waited: float, seconds: float) -> str:
    """The fraction of time spent waiting for crops, and the bottleneck that follows from it, as text."""
    share = waited / max(seconds, 1e-9)
    return f"waiting for crops {100 * share:.0f} %; {'the network' if share < FREE else 'rendering'} is the bottleneck"


def timed(batches: Iterator[TrainBatch]) -> Iterator[tuple[TrainBatch, float]]:
    """Each batch with the seconds spent waiting for it."""
    while True:
        start = time.monotonic()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, time.monotonic() - start


def assess(run: Run, epoch: int) -> dict[str, float | None]:
    """Evaluate the weights, and keep them if they are the best so far; returns the numbers, on the first process."""
    result = on_first(run, lambda: evaluated(run))
    if result is None:  # not the first process
        return {}
    run.last, run.evaluations = result, run.evaluations + 1
    run.objective.record(run.folder, result)
    if run.best is None or run.objective.better(result, run.best):
        run.keep_best(result, epoch)
    return {f"test_{name}": value for name, value in result.numbers.items()}


def evaluated(run: Run) -> Score:
    """Evaluate the network that is saved: `Run.result`."""
    return run.objective.evaluate(run.result)


def summary(run: Run, before: int, seconds: float) -> dict[str, Json]:
    """The summary of a run that had done ``before`` steps when this call started."""
    last, best = run.last, run.best
    not_evaluated: dict[str, float | None] = dict.fromkeys(run.objective.numbers)
    return {
        "run": str(run.folder),
        "steps": run.step,
        "steps_now": run.step - before,
        "epochs": run.replay.epoch,
        "seconds": round(seconds, 1),
        "processes": run.ranks.world,
        "last": dict(last.numbers if last else not_evaluated),
        "best": {**(best.numbers if best else not_evaluated), "epoch": run.best_epoch},
        "evaluations": run.evaluations,
        **run.objective.report(),
    }
