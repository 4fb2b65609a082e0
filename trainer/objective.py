"""What a run trains, as the loop sees it: a network, the loss of a batch, and what is evaluated, saved and reported."""

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
    """What an evaluation found; a dataclass of numbers, strings and tuples of them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def numbers(self) -> Mapping[str, float | None]:
        """Those of the log, by the names in `Objective.numbers`; None for what is no number."""


class Objective(Protocol):
    """What a run trains; what a class that names this one as its base leaves out, it gets from here.

    Attributes:
        name: what the weights are called in a checkpoint, such as ``student``.
        network: has the weights that steps change and that are saved.
        called: what a step calls, which may be the network or hold it; several processes and the compiler wrap it.
        made_of: everything that decides what a run comes to, kept in its config.json and its checkpoints: ``format``
            (`trainer.run_folder.FORMAT`), ``run`` with ``epochs``, ``schedule`` and ``eval_from``, and its own.
        numbers: names of the numbers that an evaluation gives, first the one that the summary of a run states; none
            where nothing is evaluated.
        some_unused: whether steps leave some parameters without a gradient.
        channels_last: memory layout of the crops.
        flags: dataclass of the command's flags, for config.toml; None: those of `train`.
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
        """The mean loss of a batch, a scalar with a gradient; ``called`` is `called`, wrapped."""
        ...

    def begin_epoch(self, epoch: int) -> None:  # noqa: ARG002
        """Called before the first step of an epoch (from 0) that this call of the run takes."""
        return

    def end_epoch(self, ranks: Ranks) -> Mapping[str, Json]:  # noqa: ARG002
        """Called after the last step of an epoch, on every process; numbers for the epoch's log entry."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """What `loss` depends on besides the network and the epoch: for checkpoints; numbers, strings and tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Continue from a state."""
        return

    @property
    def evaluates(self) -> bool:
        """Whether there is something to evaluate on."""
        return False

    def average(self, decay: float) -> Average:
        """The running mean of the weights, in a copy that shares nothing with the network."""
        return Average(copy.deepcopy(self.network), decay)

    def begin(self, console: Console) -> None:  # noqa: ARG002
        """Check and print what the user should know before the first step."""
        return

    def files(self) -> Mapping[str, Proof]:
        """What shows that a file in a run's folder is the run's own, by the names of the files that it writes."""
        return {}

    def evaluate(self, network: nn.Module) -> Score:
        """How a network with the weights of this one, or their running mean, does."""
        raise NotImplementedError

    def better(self, found: Score, best: Score) -> bool:
        """Whether one score is better than the best so far."""
        raise NotImplementedError

    def restored(self, fields: Mapping[str, Any]) -> Score:
        """The score whose fields a checkpoint holds."""
        raise NotImplementedError

    def record(self, folder: Path, score: Score) -> None:  # noqa: ARG002
        """Write files of an evaluation beside the log."""
        return

    def save_weights(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write a state dict of the network as ``.safetensors``."""
        save_weights(state, path)

    def report(self) -> Mapping[str, Json]:
        """What the summary of a run says of it."""
        return {}

    def close(self) -> None:
        """Release what evaluations need."""
        return
