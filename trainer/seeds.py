"""`train --seeds`: a run for each seed, one after the other, each in its own folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labelstore.command.console import Console, quantity
from labelstore.command.flags import changed
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.ranks import Ranks, join
from trainer.compare import Statistic
from trainer.config import TrainConfig
from trainer.file_names import CONFIG
from trainer.runs import read_run
from trainer.summary import summarise
from trainer.train import train_on


def train_seeds(config: TrainConfig, console: Console) -> Mapping[str, Json]:
    """Train a run for each of --seeds, in ``seed-S`` of the run folder; returns the summary of all, on the first rank.

    Each equals the run of ``--seed S``. A finished run is checked against the flags, and reported in a line.

    Raises:
        InputError: when the run folder is a run itself.
    """
    if (config.run / CONFIG).exists():
        raise InputError(
            f"{config.run}: expected a folder for the runs of --seeds, found a run; give another --run-folder"
        )
    with join("training") as ranks:
        found = [_train_seed(config, console, ranks, seed) for seed in config.seeds or ()]
    return summary(config, found) if all(found) else {}


def _train_seed(config: TrainConfig, console: Console, ranks: Ranks, seed: int) -> Mapping[str, Any]:
    """Train the run of one seed, or report it if it is finished."""
    own = changed(config, seed=seed, seeds=None, run_folder=config.run / f"seed-{seed}")
    if done := (own.run / CONFIG).exists() and read_run(own.run).finished:
        values = train_on(own, Console(silent=True), ranks)
    else:
        if ranks.first:
            console.line(f"seed {seed}: {own.run}")
        values = train_on(own, console, ranks)
    if values:
        console.line(f"seed {seed}: finished before; {summarise(values)}" if done else summarise(values))
    return values


def summary(config: TrainConfig, found: list[Mapping[str, Any]]) -> dict[str, Json]:
    """The summaries of all runs, and mean, standard deviation (n - 1) and count of their top-1."""
    runs: Any = [{"seed": seed, **values} for seed, values in zip(config.seeds or (), found, strict=True)]
    statistics: dict[str, Json] = {}
    for when in ("last", "best"):
        top1 = Statistic.of(values[when]["top1"] for values in found)
        statistics[when] = {"top1": {"mean": top1.mean, "std": top1.std, "count": top1.count}}
    return {"run": str(config.run), "runs": runs, **statistics}


def summarise_seeds(values: Mapping[str, Any]) -> str:
    """The summary for people."""
    last, best = (Statistic(**values[when]["top1"]) for when in ("last", "best"))
    text = f"runs {values['run']}: {quantity(len(values['runs']), 'seed')}"
    if not last.count:
        return f"{text}; no test images were given"
    return (
        f"{text}; test top-1, mean ± standard deviation: {last.text()} % at the last epoch, {best.text()} % at the best"
    )
