"""The state of a run, how it is constructed, and how it is saved and loaded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.spec import Json, require_same
from pipeline.networks.state import load_unsaved_buffers, set_trained, trained_parameters, unsaved_buffers
from pipeline.ranks import Ranks
from trainer import distributed
from trainer.checkpoint import packed, random_state, restore_random_state, save_checkpoint, unpacked
from trainer.config import TrainConfig
from trainer.ema import Average
from trainer.joint import open_any
from trainer.loader import Loader
from trainer.material import Material, Normal
from trainer.objective import Objective, Score
from trainer.optimisers import optimiser_of
from trainer.phased import with_phases
from trainer.run_config import RunConfig
from trainer.run_folder import begun_with
from trainer.stop_conditions import StopConditions
from trainer.stopping import StopSignals
from trainer.student import Test, make_objective, open_test


@dataclass
class Run:
    """The state of a run, and the objects that a step uses.

    Attributes:
        objective: what is trained.
        network: module that a step calls: the objective's, wrapped for several processes and compiled.
        spread: the part of ``network`` that averages gradients over processes; None when there is one.
        average: the running mean of the weights, with --ema, on the first process.
        best_weights: weights of the best evaluation, in memory, on the first process. Their file is written only once a
            checkpoint contains them.
        total: sum of the losses of the current epoch, each times its batch's share.
        gradient: norm of the last step's gradient, if it is logged.
        entry: the log entry of an epoch that is trained but not yet evaluated.
        saved: the step of the last checkpoint; None before the first.
        saved_at: time of the last checkpoint, by the monotonic clock.
        save_seconds: duration of saving it.
    """

    config: RunConfig
    ranks: Ranks
    replay: Loader
    objective: Objective
    network: nn.Module
    spread: Any
    average: Average | None
    optimizer: torch.optim.Optimizer
    stop_conditions: StopConditions
    total: Tensor
    step: int = 0
    gradient: float | None = None
    entry: dict[str, Any] = field(default_factory=dict)
    last: Score | None = None
    best: Score | None = None
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
        """Whether the next step is logged: every K-th step of the run, by --log-every."""
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
        """The network that is evaluated and saved: with the running mean of the weights, or with the weights."""
        return self.average.network if self.average else self.objective.network

    @property
    def made_of(self) -> Mapping[str, Json]:
        """Everything that determines the result of the run."""
        return self.objective.made_of

    def close(self) -> None:
        """Release the renderers."""
        self.replay.close()
        self.objective.close()

    def save(self) -> None:
        """Replace the checkpoint by the current state of all processes.

        Raises:
            DivergedError: when a loss or a weight is not finite.
        """
        start = time.monotonic()
        self.stop_conditions.require_finite(self.objective.network.parameters(), self.step)
        device = torch.device(self.config.render.device)
        own: Json = {"total": float(self.total), "random": {**packed(random_state(device))}}
        ranks = self.ranks.all_gather(own)
        if self.ranks.first:
            save_checkpoint(self.checkpoint, {**self.state(), "ranks": ranks}, self.made_of)
        self.saved, self.saved_at = self.step, time.monotonic()
        self.save_seconds = self.saved_at - start

    def keep_best(self, result: Score, epoch: int) -> None:
        """Keep these weights in memory as the best so far; they are written with the next checkpoint."""
        self.best, self.best_epoch = result, epoch
        self.best_weights = {
            name: value.detach().cpu().clone() if isinstance(value, Tensor) else value
            for name, value in self.result.state_dict().items()
        }
        self.best_written = False

    def forget_scores(self) -> None:
        """Forget the best score, since scores on other test images cannot be compared with it."""
        self.last, self.best, self.best_epoch, self.best_weights, self.evaluations = None, None, None, None, 0

    def state(self) -> dict[str, Any]:
        """The state that is the same on all processes; tensors, numbers and strings only."""
        return {
            self.objective.name: self.objective.network.state_dict(),
            "buffers": unsaved_buffers(self.objective.network),
            "trained": trained_parameters(self.objective.network),
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
            **({"objective": own} if (own := dict(self.objective.state())) else {}),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of :meth:`save`, on any number of processes."""
        self.objective.network.load_state_dict(state[self.objective.name])
        load_unsaved_buffers(self.objective.network, state.get("buffers", {}))
        if "trained" in state:  # a forward may change requires_grad
            set_trained(self.objective.network, state["trained"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.step = self.saved = state["step"]
        self.entry = state["entry"]
        self.last = self.objective.restored(state["last"]) if state["last"] else None
        self.best = self.objective.restored(state["best"]) if state["best"] else None
        self.best_epoch = state["best_epoch"]
        self.best_weights = state["best_weights"] if self.ranks.first else None
        self.evaluations = state["evaluations"]
        self.objective.load_state(state.get("objective", {}))
        rank, world, saved = self.ranks.rank, self.ranks.world, state["ranks"]
        if len(saved) == world:
            self.total.fill_(saved[rank]["total"])
            restore_random_state(unpacked(saved[rank]["random"]), torch.device(self.config.render.device))
        else:
            mean = sum(each["total"] for each in saved) / len(saved)
            self.total.fill_(world * mean if self.ranks.first else 0)
            distributed.seed_rank(self.config.seed, rank, self.step)


def make_run(
    config: TrainConfig,
    ranks: Ranks,
    stops: StopSignals,
    make: Callable[[TrainConfig, Ranks, Material, Test | None], Objective] = make_objective,
    normal: Normal | None = None,
) -> Run:
    """Construct a run from its flags: open crops, labels and test images, and make the objective and the optimiser.

    Args:
        config: of the run.
        ranks: the processes.
        stops: records signals.
        make: constructs the objective; a student when left out.
        normal: normalisation of fresh crops, if it is not the teacher's.
    """
    if ranks.first:  # the other processes then read its manifest caches
        begun = begun_with(config.run)
        views = config.views if config.fresh else config.views or begun.views
        material = with_phases(open_any(config, ranks, views, begun.engine, normal), config, ranks)
        test = open_test(config, material) if config.test_images else None
        order, engine = material.loader.order, material.engine
        ranks.broadcast({"views": views if config.fresh else order.views, "engine": dict(engine) if engine else None})
    else:
        found: Any = ranks.broadcast()
        material = with_phases(open_any(config, ranks, found["views"], found["engine"], normal), config, ranks)
        test = open_test(config, material) if config.test_images else None
    ranks.barrier()  # a refused process removes the manifest caches, which another process would otherwise write again
    return start_run(config, ranks, stops, material.loader, make(config, ranks, material, test))


def start_run(config: RunConfig, ranks: Ranks, stops: StopSignals, replay: Loader, objective: Objective) -> Run:
    """Construct a run of any objective on any crops and labels.

    Args:
        config: folder, epochs, optimiser, schedule, precision and saving intervals of the run.
        ranks: the processes.
        stops: records signals.
        replay: yields the batches of this process.
        objective: the objective, the same on every process.
    """
    replay.channels_last = objective.channels_last
    require_same(
        f"command of rank {ranks.rank}",
        ranks.broadcast(dict(objective.made_of)),
        dict(objective.made_of),
        "start all ranks with the same command",
        holder="the first rank",
    )
    optimizer = optimiser_of(config.optimiser).make(objective.network.named_parameters())
    average = objective.average(config.ema) if config.ema and ranks.first else None
    spread = distributed.spread(objective.called, config, ranks, some_unused=objective.some_unused)
    device = torch.device(config.render.device)
    return Run(
        config=config,
        ranks=ranks,
        replay=replay,
        objective=objective,
        network=distributed.compile_network(spread or objective.called, config),
        spread=spread,
        average=average,
        optimizer=optimizer,
        stop_conditions=StopConditions(ranks, device, stops),
        total=torch.zeros((), dtype=torch.float64, device=device),
    )
