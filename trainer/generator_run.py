"""`train-generator`: determine the length of a run, and train."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from labelstore.command.console import Console, duration, quantity
from labelstore.command.flags import changed
from labelstore.errors import MismatchError
from labelstore.spec import Json
from pipeline.device.faults import device_faults
from pipeline.networks.autoencoders import latent_side
from pipeline.networks.uvit import UViT
from pipeline.ranks import Ranks, join
from trainer.checkpoint import seed_all
from trainer.distributed import compile_network, seed_rank
from trainer.ema import Average
from trainer.file_names import CONFIG
from trainer.generator import GENERATOR, GeneratorObjective
from trainer.generator_config import GeneratorConfig
from trainer.generator_subject import Denoising, Subject, open_subject
from trainer.optimisers import optimiser_of
from trainer.order import UNBOUNDED
from trainer.run import Run, start_run
from trainer.run_folder import described_in
from trainer.run_lock import hold
from trainer.stopping import StopSignals
from trainer.train import MEMORY, complete, on_this_rank
from trainer.trial import undrawn

WARMUP_STEPS, WARMUP_SHARE = 5_000, 0.05
PROBED_STEPS, PROBED_SECONDS, UNTIMED_STEPS = 5, 5.0, 2


@dataclass(frozen=True, slots=True)
class Pace:
    """Measured training speed of a generator.

    Attributes:
        step: seconds of a step.
        sheet: seconds of an evaluation: a sheet of samples and the loss.
    """

    step: float
    sheet: float

    def epochs(self, config: GeneratorConfig, steps: int) -> int:
        """The most epochs of ``steps`` steps, with evaluations, that fit into --minutes; at least 1."""
        assert config.minutes is not None  # noqa: S101  it is what asks for a pace
        seconds, epoch = 60 * config.minutes, steps * self.step
        epochs = max(int(seconds / epoch), 1)
        while epochs > 1 and epochs * epoch + -(-epochs // config.interval(epochs)) * self.sheet > seconds:
            epochs -= 1
        return epochs


def epochs_of(
    config: GeneratorConfig, subject: Subject, backbone: UViT, denoising: Denoising, ranks: Ranks, console: Console
) -> int:
    """The epochs of a run, from --epochs, --steps, --minutes or the run that is continued.

    Raises:
        MismatchError: when the run in the folder has another length.
    """
    steps = len(subject.loader)
    begun: Any = described_in(config.run / CONFIG) if ranks.first else None
    kept = begun["run"]["epochs"] if begun and begun.get("objective") == GENERATOR else None
    found: Any = None
    if ranks.first and config.minutes:
        found = kept or pace_of(config, subject, backbone, denoising).epochs(config, steps)
        console.line(
            f"--minutes {config.minutes:g}: the run keeps the {quantity(kept, 'epoch')} that it started with; a "
            f"longer one "
            f"needs another --run-folder"
            if kept
            else f"--minutes {config.minutes:g}: {quantity(found, 'epoch')}, recorded in config.json"
        )
    elif ranks.first:
        found = config.epochs or -(-(config.steps or 0) // steps)
        if kept not in (None, found) and begun["run"]["batch_size"] == config.batch_size:
            name = "epochs" if config.epochs else "steps"
            raise MismatchError(
                f"--{name} {getattr(config, name)}: {config.run} was begun with {quantity(kept, 'epoch')} of "
                f"{quantity(steps, 'step')}; "
                f"continue it with --epochs {kept}, or begin another --run-folder"
            )
    epochs: Any = ranks.broadcast(found)
    return int(epochs)


def pace_of(config: GeneratorConfig, subject: Subject, backbone: UViT, denoising: Denoising) -> Pace:
    """Measure the speed on copies of the backbone; random numbers drawn here do not change the run."""
    device = torch.device(config.render.device)
    with undrawn(device):
        step = seconds_of_a_step(config, subject, backbone, denoising)
        objective = GeneratorObjective(config, subject, copy.deepcopy(backbone), denoising, 1)
        for _ in range(2 if device.type == "cuda" else 1):  # the first call on a GPU includes setup
            start = _now(device)
            objective.evaluate(objective.network)
            sheet = _now(device) - start
    return Pace(step, sheet)


def seconds_of_a_step(config: GeneratorConfig, subject: Subject, backbone: UViT, denoising: Denoising) -> float:
    """Time training steps on a copy of the backbone, with full batches; the loader is reset afterwards."""
    device, loader = torch.device(config.render.device), subject.loader
    state, taken, first, whole = loader.state_dict(), 0, 0.0, min(config.batch_size, loader.crops.images)
    with closing(loader.play(UNBOUNDED)) as batches:
        network = copy.deepcopy(backbone)
        called, optimizer = (
            compile_network(network, config),
            optimiser_of(config.optimiser).make(network.named_parameters()),
        )
        average = Average(copy.deepcopy(network), config.ema) if config.ema else None
        of_a_run = (batch for batch in batches if batch.total == whole)  # a short batch would be compiled again
        for number, batch in enumerate(islice(of_a_run, UNTIMED_STEPS + 1000 * PROBED_STEPS)):
            if number == UNTIMED_STEPS:
                first = _now(device)
            optimizer.zero_grad(set_to_none=True)
            for piece in batch.pieces(config.accumulate):
                loss = denoising.loss(called, piece)
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if average:
                average.update(network)
            taken = number + 1 - UNTIMED_STEPS
            if taken >= PROBED_STEPS and time.monotonic() - first > PROBED_SECONDS:
                break
        seconds = (_now(device) - first) / taken
    loader.load_state_dict(state)
    return seconds


def _now(device: torch.device) -> float:
    """The time after a device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def settled(config: GeneratorConfig, epochs: int, steps_per_epoch: int) -> GeneratorConfig:
    """The configuration with its length in epochs, and the steps of its warm-up."""
    schedule = config.schedule
    rise = schedule.warmup_steps
    if rise is None and not schedule.warmup and schedule.per == "step":
        rise = min(WARMUP_STEPS, int(WARMUP_SHARE * epochs * steps_per_epoch))
    return changed(config, epochs=epochs, steps=None, minutes=None, warmup_steps=rise)


def make_generator_run(config: GeneratorConfig, ranks: Ranks, stops: StopSignals, console: Console) -> Run:
    """The run of a generator, before its first step."""
    subject = open_subject(config, ranks, console)
    try:
        seed_all(config.seed)
        backbone = UViT(
            config.shape(),
            channels=subject.vae.channels,
            size=latent_side(subject.vae, config.size),
            classes=len(subject.manifest.classes),
        ).to(config.render.device)
        if ranks.rank:
            seed_rank(config.seed, ranks.rank, 0)
        denoising = Denoising(config, subject)
        epochs = epochs_of(config, subject, backbone, denoising, ranks, console)
        config = settled(config, epochs, len(subject.loader))
        objective = GeneratorObjective(config, subject, backbone, denoising, ranks.world)
        return start_run(config, ranks, stops, subject.loader, objective)
    except BaseException:
        subject.loader.close()
        raise


def train_generator(config: GeneratorConfig, console: Console) -> Mapping[str, Json]:
    """Train, continue, or report a finished run; returns the summary, on the first rank only."""
    with join("training") as ranks:
        return _train_on(config, console, ranks)


@device_faults("the generator is trained", MEMORY)
def _train_on(config: GeneratorConfig, console: Console, ranks: Ranks) -> Mapping[str, Json]:
    config, console = on_this_rank(config, console, ranks)
    with (
        hold(config.run) if ranks.first else nullcontext(),
        closing(make_generator_run(config, ranks, StopSignals(), console)) as run,
    ):
        return complete(run, console)


def summarise(values: Mapping[str, Any]) -> str:
    """The summary for people."""
    last, best = values["last"]["loss"], values["best"]
    now = "" if values["steps_now"] == values["steps"] else f", {values['steps_now']:,} of them now,"
    return (
        f"generator {values['run']}: {quantity(values['steps'], 'step')}{now} in "
        f"{duration(values['seconds'])}; loss {last:.4f} at the last epoch, {best['loss']:.4f} at the best (epoch "
        f"{best['epoch'] + 1}); giftwrap synthesize diffusion --model {values['run']} makes images"
    )
