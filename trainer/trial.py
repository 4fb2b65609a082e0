"""Try steps and evaluations on a copy of a student before the first step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from labelstore.errors import InputError, reason
from pipeline.config import json_object
from pipeline.device.faults import is_fault, lacks_memory
from pipeline.networks import build_network
from pipeline.networks.layout import memory_format, takes_channels_last
from pipeline.networks.outputs import Logits
from pipeline.networks.state import require_savable, take_state
from trainer.batch import slices
from trainer.config import TrainConfig
from trainer.distributed import autocast, compile_network
from trainer.ema import Average
from trainer.optimisers import optimiser_of

FEW = 2
DRAWS = 12
# number of crops that are drawn; drawing a whole batch of large ones takes as long as a step of a small student
DRAWN = 16
# torch's error if a batch norm has one value per channel
BATCH_NORM_SAYS = "more than 1 value per channel"
# Largest relative difference between logits of two identical calls: GPU kernels sum in varying order.
SAME = {"cpu": 1e-6, "cuda": 1e-2}


@dataclass(frozen=True, slots=True)
class Fit:
    """How a student is called.

    Attributes:
        channels_last: memory layout of its weights and images; contiguous if it does not support channels-last.
        some_unused: whether a step may leave some of its parameters without a gradient.
    """

    channels_last: bool
    some_unused: bool


def fit(student: nn.Module, config: TrainConfig, columns: int, size: int, counts: Counts) -> Fit:
    """Try a step of each kind, and evaluations, on copies of a student; the student and random states do not change.

    Args:
        student: on any device.
        config: of the run.
        columns: C of its logits.
        size: side S of its crops in pixels.
        counts: batch sizes.

    Raises:
        InputError: when it cannot be trained or evaluated with these flags.
    """
    unused: dict[bool, bool] = {}

    def trial(channels_last: bool) -> None:
        copy = made_anew(student, config, columns, size, channels_last=channels_last)
        unused[channels_last] = Trial(copy, config, columns, size, channels_last).run(counts)

    for name, value in student.named_parameters():
        if value.requires_grad and 0 in value.stride():
            raise InputError(
                f"student {config.student}: expected parameters whose numbers have separate memory, which a step "
                f"can change, found {name}, which is expanded; make a parameter of what is expanded"
            )
    try:
        with undrawn(torch.device(config.render.device)):
            channels_last = takes_channels_last(trial)
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        raise InputError(
            f"student {config.student}: a step of {counts.training[-1]} crops takes more memory than "
            f"{config.render.device} has free; give --accumulate, or a smaller --batch-size"
        ) from error
    return Fit(channels_last, unused[channels_last])


@dataclass(frozen=True, slots=True)
class Counts:
    """Batch sizes, ascending: of steps, on ``world`` processes, and of evaluations."""

    training: tuple[int, ...]
    evaluating: tuple[int, ...] = (FEW,)
    world: int = 1

    @classmethod
    def of(cls, config: TrainConfig, images: int, world: int, evaluating: Sequence[int]) -> Counts:
        """The smallest and the largest batch size, over all processes."""
        training = {
            rows.stop - rows.start
            for total in (min(config.batch_size, images), images % config.batch_size or config.batch_size)
            for own in slices(min(total, images), world)
            for rows in slices(max(own.stop - own.start, 1), min(config.accumulate, max(own.stop - own.start, 1)))
        }
        return cls(tuple(sorted({min(training), max(training)})), tuple(sorted({FEW, *evaluating})), world)


@dataclass(frozen=True, slots=True)
class Trial:
    """A copy of a student, tried in one memory layout."""

    student: nn.Module
    config: TrainConfig
    columns: int
    size: int
    channels_last: bool

    def run(self, counts: Counts) -> bool:
        """Evaluate, take steps, and evaluate again; returns whether some parameter got no gradient.

        Raises:
            InputError: names what does not work.
        """
        name, before = self.config.student, shapes(self.student)
        with one_line_errors(f"student {name}"):
            require_savable(self.student)
        self.evaluate(counts.evaluating)
        if not any(parameter.requires_grad for parameter in self.student.parameters()):
            raise InputError(f"student {name}: expected weights to train, found none; give another --student")
        self.student.train()
        self.require_repeatable()
        optimizer = optimiser_of(self.config.optimiser).make(self.student.named_parameters())
        unused = [self.backward(Logits(self.student), count) for count in counts.training]
        # parameters without a gradient may be random, and processes need to know whether to search for them
        if counts.world > 1:
            unused += [self.backward(Logits(self.student), FEW) for _ in range(DRAWS)]
        with one_line_errors(f"student {name}: a step of --optimizer {self.config.optimiser.name} fails"):
            if self.config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_norm)
            optimizer.step()
        if self.config.ema:
            with one_line_errors(f"student {name}: --ema fails"):
                mean = made_anew(self.student, self.config, self.columns, self.size, channels_last=self.channels_last)
                average = Average(mean, self.config.ema)
                average.update(self.student)
            if not self.alike(self.seeded(self.student), self.seeded(average.network)):
                raise InputError(
                    f"student {name}: with the running mean of its weights after one step, which is those weights, it "
                    f"gives other logits; leave --ema out"
                )
        if self.config.compile:
            with one_line_errors(f"student {name}: does not compile; leave --compile out"):
                self.backward(compile_network(Logits(self.student), self.config), counts.training[-1])
        self.evaluate(counts.evaluating)
        if shapes(self.student) != before:
            raise InputError(
                f"student {name}: its forward makes or changes parameters or buffers, and a run could not be "
                f"continued; make them in its constructor"
            )
        self.require_whole()
        return any(unused)

    def evaluate(self, counts: Sequence[int]) -> None:
        """Call it in eval mode."""
        network = Logits(self.student).eval()
        for count in counts:
            with (
                one_line_errors(f"student {self.config.student}: does not take crops of {self.size} px"),
                torch.no_grad(),
            ):
                logits = self.logits(network, count)
            self.require_fit(logits, count)

    def backward(self, network: nn.Module, count: int) -> bool:
        """Compute gradients for a few crops; returns whether some parameter got none."""
        self.student.zero_grad(set_to_none=True)
        with one_line_errors(f"student {self.config.student}: a step of {count} crops fails"):
            logits = self.logits(network, count)
            self.require_fit(logits, count)
            logits.float().square().mean().backward()  # type: ignore[no-untyped-call]
        return any(weight.grad is None for weight in self.student.parameters() if weight.requires_grad)

    def require_repeatable(self) -> None:
        """Refuse a student with state that checkpoints do not contain."""
        before = {name: buffer.clone() for name, buffer in self.student.named_buffers()}
        network = Logits(self.student)
        found: list[Tensor] = []
        network.register_forward_hook(lambda _network, _inputs, logits: found.append(logits.detach().float()))
        for _ in range(2):
            seed(0)
            self.backward(network, FEW)
            with torch.no_grad():
                for name, buffer in self.student.named_buffers():  # a forward may replace buffers
                    if name in before and before[name].shape == buffer.shape:
                        buffer.copy_(before[name])
        if not self.alike(*found) or not self.alike(self.seeded(self.student), self.seeded(self.student)):
            raise InputError(
                f"student {self.config.student}: gives other logits when it is called again: it keeps state "
                f"outside of its parameters and buffers, or draws random numbers by itself, and a run could not "
                f"be continued; keep state in buffers (register_buffer), and draw from torch, numpy or random"
            )
        self.student.train()

    def require_whole(self) -> None:
        """Refuse a student that its saved weights do not reproduce, since these are evaluated and used as teachers.

        Raises:
            InputError: when a student constructed again with its saved weights gives other logits.
        """
        seed((self.config.seed + 1) % 2**32)  # so that random state that is not saved differs
        with one_line_errors(f"student {self.config.student}: cannot be made again from its state dict"):
            again = constructed(self.config, self.columns, self.size)
            again.load_state_dict(self.student.state_dict())
            again.to(device=self.config.render.device, memory_format=memory_format(self.channels_last))  # type: ignore[call-overload]
        if not self.alike(self.seeded(self.student), self.seeded(again)):
            raise InputError(
                f"student {self.config.student}: constructed again with its saved weights it gives other logits: it "
                f"keeps "
                f"numbers outside of its state dict, which last.safetensors would not have; keep them in parameters, "
                f"or in buffers that are saved (register_buffer)"
            )

    def seeded(self, network: nn.Module) -> Tensor:
        """Logits of a few crops in eval mode, from a fixed random state."""
        seed(0)
        with one_line_errors(f"student {self.config.student}: does not take crops of {self.size} px"), torch.no_grad():
            return self.logits(Logits(network).eval(), FEW).float()

    def alike(self, first: Tensor, again: Tensor) -> bool:
        """Whether two calls gave the same logits, up to the order of summation in kernels."""
        largest = float(first.nan_to_num(posinf=0, neginf=0).abs().max())
        band = SAME[torch.device(self.config.render.device).type] * largest
        return torch.allclose(first, again, rtol=0, atol=band, equal_nan=True)

    def logits(self, network: nn.Module, count: int) -> Tensor:
        """Logits of random crops, in the layout and precision of a step; a large batch repeats the same crops."""
        shape = (min(count, DRAWN), 3, self.size, self.size)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        images = drawn.repeat(-(-count // DRAWN), 1, 1, 1)[:count]
        images = images.to(device=self.config.render.device, memory_format=memory_format(self.channels_last))
        with autocast(self.config):
            logits: Tensor = network(images)
        return logits

    def require_fit(self, logits: Tensor, count: int) -> None:
        """Refuse logits whose shape or type does not match the labels."""
        if list(logits.shape) != [count, self.columns] or not logits.is_floating_point():
            place = self.config.store or self.config.images
            kind = "" if logits.is_floating_point() else f" of {logits.dtype}"
            raise InputError(
                f"student {self.config.student}: expected logits [{count}, {self.columns}] for {count} crops, a column "
                f"for each of the labels in {place}, found {list(logits.shape)}{kind}; leave its number of "
                f"classes to the {'store, or give another store' if self.config.store else 'images'}"
            )


def constructed(config: TrainConfig, columns: int, size: int) -> nn.Module:
    """Construct the network of --student and --student-args on the CPU, with its initial weights."""
    return build_network(config.student, json_object("--student-args", config.student_args), columns, size=size)


def made_anew(student: nn.Module, config: TrainConfig, columns: int, size: int, *, channels_last: bool) -> nn.Module:
    """Construct a copy of a student with its constructor and weights, on the device of the run.

    After ``deepcopy``, hooks and functions would still use the layers and lists of the student.

    Args:
        student: of the run.
        config: of the run.
        columns: C of its logits.
        size: side S of its crops in pixels.
        channels_last: memory layout of its weights.

    Raises:
        InputError: when it cannot be constructed again.
    """
    with one_line_errors(f"student {config.student}: cannot be made again"):
        again = constructed(config, columns, size)
        for norm in [module for module in student.modules() if isinstance(module, nn.SyncBatchNorm)][:1]:
            again = nn.SyncBatchNorm.convert_sync_batchnorm(again, norm.process_group)  # type: ignore[no-untyped-call]
        take_state(again, student)
        again.to(device=config.render.device, memory_format=memory_format(channels_last))  # type: ignore[call-overload]
    return again


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """The shapes of parameters and buffers."""
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    return {name: value.shape for name, value in named}


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turn any exception of a network into an InputError of one line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if is_fault(error):
            raise
        cause = getattr(error, "inner_exception", None) or error
        if isinstance(error, torch.jit.Error):  # its message starts with the traceback of the script
            cause = RuntimeError(str(error).strip().splitlines()[-1])
        why = reason(cause)
        named = isinstance(error, (RuntimeError, InputError)) or why == type(error).__name__
        advice = "; choose another --batch-size" if BATCH_NORM_SAYS in why else ""
        raise InputError(f"{what}: {'' if named else f'{type(error).__name__}: '}{why}{advice}") from error


@contextmanager
def undrawn(device: torch.device) -> Iterator[None]:
    """Restore the random states on exit."""
    drawn: Callable[[], object] = random.getstate
    before, numpy_before = drawn(), np.random.get_state()  # noqa: NPY002  students draw from it
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(before)  # type: ignore[arg-type]
            np.random.set_state(numpy_before)  # noqa: NPY002


def seed(number: int) -> None:
    """Seed all random number generators that a student may use."""
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    torch.manual_seed(number)
