"""The interface of the training loop to what it trains: network, loss, evaluation, saving and reporting."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from labelstore.command.console import Console
from labelstore.durable.removing import Proof
from labelstore.spec import Json
from pipeline.networks.weights import save_weights
from pipeline.ranks import Ranks
from trainer.batch import TrainBatch
from trainer.ema import Average


class Score(Protocol):
    """The result of an evaluation; a dataclass of numbers, strings and tuples of them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def numbers(self) -> Mapping[str, float | None]:
        """The numbers for the log, by the names in `Objective.numbers`; None if not finite."""


class Objective(Protocol):
    """What a run trains. Subclasses inherit the default methods below.

    Attributes:
        name: name of the weights in a checkpoint, such as ``student``.
        network: contains the weights that are trained and saved.
        called: module that a step calls: the network, or a module that contains it. It is wrapped for several processes
            and for the compiler.
        made_of: everything that determines the result of a run, stored in its config.json and checkpoints: ``format``
            (`trainer.run_folder.FORMAT`), ``run`` with ``epochs``, ``schedule`` and ``eval_from``, and entries of the
            objective.
        numbers: names of the numbers that an evaluation returns; the first one is shown in the summary of a run. Empty
            if nothing is evaluated.
        some_unused: whether a step may leave parameters without a gradient.
        channels_last: memory layout of the crops.
        flags: dataclass of the command's flags, for config.toml; None for those of `train`.
    """

    name: str
    network: nn.Module
    called: nn.Module
    made_of: Mapping[str, Json]
    numbers: tuple[str, ...] = ()
    some_unused: bool = False
    channels_last: bool = False
    flags: object | None = None

    def loss(self, called: nn.Module, batch: TrainBatch) -> Tensor:
        """The mean loss of a batch, a scalar with a gradient; ``called`` is the attribute of that name, wrapped."""
        ...

    def begin_epoch(self, epoch: int) -> None:  # noqa: ARG002
        """Called before the first step in an epoch (from 0), also when a run continues within the epoch."""
        return

    def end_epoch(self, ranks: Ranks) -> Mapping[str, Json]:  # noqa: ARG002
        """Called after the last step of an epoch, on every process; returns numbers for the epoch's log entry."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """Further state of `loss`, besides the network and the epoch, for checkpoints: numbers, strings and tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Continue from a state."""
        return

    @property
    def evaluates(self) -> bool:
        """Whether there is something to evaluate on."""
        return False

    def average(self, decay: float) -> Average:
        """The running mean of the weights, in a copy that shares no tensors with the network."""
        return Average(copy.deepcopy(self.network), decay)

    def begin(self, console: Console) -> None:  # noqa: ARG002
        """Check the run, and print notes and warnings, before the first step."""
        return

    def files(self) -> Mapping[str, Proof]:
        """How to recognise the files that the objective writes into the run folder, by name."""
        return {}

    def evaluate(self, network: nn.Module) -> Score:
        """Evaluate a network that has these weights, or their running mean."""
        raise NotImplementedError

    def better(self, found: Score, best: Score) -> bool:
        """Whether one score is better than the best so far."""
        raise NotImplementedError

    def restored(self, fields: Mapping[str, Any]) -> Score:
        """Construct a score from the fields in a checkpoint."""
        raise NotImplementedError

    def record(self, folder: Path, score: Score) -> None:  # noqa: ARG002
        """Write files of an evaluation into the run folder."""
        return

    def save_weights(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write a state dict of the network as ``.safetensors``."""
        save_weights(state, path)

    def report(self) -> Mapping[str, Json]:
        """Entries for the summary of a run."""
        return {}

    def close(self) -> None:
        """Release the resources of evaluations."""
        return
