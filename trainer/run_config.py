"""The flags of a run of any objective, which the training loop reads; commands that train add their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from labelstore.command.flags import Group, Named, flags_of
from labelstore.command.output import Output
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.launch.options import LaunchOptions
from pipeline.render.options import RenderOptions
from trainer.choices import OptimiserOptions
from trainer.schedules import ScheduleSpec

# The flag key of each number of a schedule, by field name.
SCHEDULE_NUMBERS = {
    flag.path[-1]: flag.key
    for flag in flags_of(ScheduleSpec).values()
    if flag.path[-1] not in ("name", "per", "warmup", "warmup_steps")  # fields that all schedules use
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, how fast and where something is trained."""

    epochs: int
    """Epochs; each trains on one view: one crop of every image."""
    run: Annotated[Path, Named("run-folder")]
    """Folder of the run: config.json, log.jsonl, checkpoint.pt, last.safetensors, best.safetensors. The same command
    continues the run in it."""
    optimiser: Annotated[OptimiserOptions, Group("optimiser")] = field(default_factory=OptimiserOptions)
    batch_size: Annotated[int, Group("optimiser")] = 128
    """Crops in a step, over all processes; the last batch of an epoch may be smaller."""
    accumulate: Annotated[int, Group("optimiser")] = 1
    """Split a batch into this many parts and accumulate their gradients; saves memory."""
    clip_norm: Annotated[float | None, Group("optimiser")] = None
    """Clip the norm of the gradient, over all parameters, to this; not clipped when left out."""
    ema: Annotated[float | None, Group("optimiser")] = None
    """Decay per step of a running mean of the weights, which is evaluated and saved instead; no mean when left out."""
    schedule: Annotated[ScheduleSpec, Group("schedule")] = field(default_factory=ScheduleSpec)
    seed: Annotated[int, Group("running")] = 0
    """Seed of the run: initial weights, dropout, and which view each epoch plays."""
    dtype: Annotated[Literal["float32", "bfloat16"], Group("running")] = "float32"
    """bfloat16 runs the network under autocast; the loss stays in float32."""
    compile: Annotated[bool, Group("running")] = False
    """torch.compile the network."""
    render: Annotated[RenderOptions, Group("running")] = field(default_factory=RenderOptions)
    checkpoint_every: Annotated[int | None, Group("running")] = None
    """Epochs between checkpoints; left out, chosen so that saving takes at most a twentieth of the time."""
    checkpoint_steps: Annotated[int | None, Group("running")] = None
    """Steps between additional checkpoints within epochs; none when left out."""
    keep_every: Annotated[int | None, Group("running")] = None
    """Keep the weights of every K-th epoch, as epoch-0001.safetensors and so on; none when left out."""
    keep: Annotated[str | None, Group("running")] = None
    """Also keep the weights of these epochs, comma-separated and counted from 1: 1,2,4,8."""
    log_every: Annotated[int | None, Group("running")] = None
    """Write loss, learning rate and gradient norm of every K-th step to steps.jsonl; not written when left out."""
    tensorboard: Annotated[bool, Group("running")] = False
    """Also write the numbers of each epoch as TensorBoard scalars, to tensorboard/ in the run folder."""
    anyway: Annotated[bool, Group("running")] = False
    """Continue a run even if code, test images, versions or the renderer have changed; config.json records it."""
    launch: Annotated[LaunchOptions, Group("running")] = field(default_factory=LaunchOptions)
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    @property
    def subject(self) -> str:
        """Name of what is trained, for messages."""
        return "network"

    @property
    def made_with(self) -> dict[str, Json]:
        """Information for readers of config.json, on which nothing depends."""
        return {}

    def require_numbers(self) -> None:
        """Refuse invalid numbers that do not depend on the length of the run.

        Raises:
            InputError: names the flag.
        """
        for name in ("batch_size", "accumulate", "checkpoint_every", "checkpoint_steps", "keep_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')}: expected at least 1, found {value}")
        for number, flag in SCHEDULE_NUMBERS.items():
            given = getattr(self.schedule, number) != getattr(ScheduleSpec(), number)
            if given and number not in self.schedule.kind.numbers:
                raise InputError(f"--schedule {self.schedule.name} does not use --{flag}; leave it out")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed: expected 0 <= seed < 2**63, found {self.seed}")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise InputError(f"--clip-norm: expected a number > 0, found {self.clip_norm}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"--ema: expected a decay between 0 and 1, found {self.ema}")

    def require_length(self) -> None:
        """Refuse flags that do not fit the number of epochs.

        Raises:
            InputError: names the flag.
        """
        if self.epochs < 1:
            raise InputError(f"--epochs: expected at least 1, found {self.epochs}")
        if not 0 <= self.schedule.warmup < self.epochs:
            raise InputError(
                f"--warmup-epochs: expected 0 to {self.epochs - 1}, fewer than --epochs, found {self.schedule.warmup}"
            )
        self.kept_epochs()

    def kept_epochs(self) -> frozenset[int]:
        """The epochs whose weights are kept, counted from 1.

        Raises:
            InputError: when --keep is not a list of epochs of this run.
        """
        listed = [text.strip() for text in self.keep.split(",")] if self.keep is not None else []
        for text in listed:
            if not (text.isdecimal() and 1 <= int(text) <= self.epochs):
                raise InputError(f"--keep: expected epochs 1 to {self.epochs}, comma-separated, found {text!r}")
        every = range(self.keep_every, self.epochs + 1, self.keep_every) if self.keep_every else ()
        return frozenset([*map(int, listed), *every])

    @property
    def evaluation_interval(self) -> int:
        """Epochs between evaluations."""
        return max(self.epochs // 10, 1)

    def evaluates(self, epoch: int) -> bool:
        """Whether there is an evaluation after ``epoch`` (counted from 0)."""
        return (epoch + 1) % self.evaluation_interval == 0 or epoch + 1 == self.epochs


def trained_by(made: Mapping[str, Any]) -> str:
    """What a run trains, as text, from its description."""
    if "objective" in made:
        return f"a {made['objective']}"
    return "a projector" if "projector" in made else "a student"
