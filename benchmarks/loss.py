"""The fused GIFT step: 2.2 times the released code on a CPU, 3 times compiled; on a GPU within 1.2 copies."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import Report, Timing, interleave, machine
from labelstore.spec import Json
from pipeline.device.memory import keep_freed_memory
from pipeline.teacher.engine.compiling import CompileError, compilers
from trainer.losses import LossSpec, gift_loss, make_loss
from trainer.losses.closed import gift_rows
from trainer.losses.fused import Fused, KnownGradient, Rows, backward

# What is promised at 1024 x 1000 on a CPU, and at 8192 x 1000 on a GPU: the other's time over ours.
CPU = {"closed_over_released": 2.2, "compiled_over_released": 3.0, "compiled_over_released_compiled": 1 / 1.1}
GPU = {"triton_over_compiled_definition": 2.0, "triton_over_copy": 1 / 1.2}
ON_GPU = ("released compiled", "definition compiled, float16", "closed", "triton", "triton, float16", "triton, int8")
WIDE = 21_841  # classes, of which a row does not fit a program
EXTRA = 1.05  # of a gradient: peak memory of a step beside its inputs
AHEAD = 4_000_000  # cycles that a GPU is kept busy while what is timed is queued: about 2 ms
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """Forward and backward of a loss on one batch."""

    loss: Loss
    x: Tensor
    label: Tensor
    y: Tensor

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Value and gradient."""
        leaf = self.x.detach().requires_grad_()
        value = self.loss(leaf, self.label, self.y)
        backward(value)
        assert leaf.grad is not None  # noqa: S101  it has just been made
        return value.detach(), leaf.grad


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Every way to the same loss, in turns, after values and gradients were compared with the definition in float64."""
    keep_freed_memory()  # as training does
    on_gpu = torch.cuda.is_available()
    rows, columns, rounds = (64, 100, 3) if quick else (8192 if on_gpu else 1024, 1000, 200)
    device = torch.device("cuda" if on_gpu else "cpu")
    drawn = torch.Generator().manual_seed(0)
    x, t = (torch.randn(rows, columns, generator=drawn).to(device) for _ in range(2))
    y = torch.randint(columns, (rows,), generator=drawn).to(device)
    steps = contenders(x, 4 * t, y)
    if on_gpu:  # compiling takes longer than measuring
        steps = {name: each for name, each in steps.items() if name in ON_GPU}
    require_alike(steps)
    timing = gpu_times(steps, rounds) if on_gpu else interleave(steps, rounds)
    for name, seconds in timing.wall.items():
        report.add(name, "forward and backward", [1e3 * second for second in seconds], "ms")
    pairs = [("closed", "released"), ("compiled", "released"), ("compiled", "released compiled")]
    found = {
        f"{ours}_over_{theirs.replace(' ', '_')}": timing.speedup(ours, theirs)
        for ours, theirs in pairs
        if {ours, theirs} <= set(steps)
    }
    promised, kept = CPU, True
    if on_gpu:
        promised, step = GPU, steps["triton, float16"]
        found["triton_over_compiled_definition"] = timing.speedup("triton, float16", "definition compiled, float16")
        found["triton_over_copy"] = timing.speedup("triton, float16", "copy")
        found["triton_times_its_bytes"] = 1 / found["triton_over_copy"]
        found["gradients_of_memory"] = peak_bytes(step) / (4 * x.numel())
        found[f"triton_times_its_bytes_{WIDE}"] = wide(report, rows // 8, device, rounds)
        kept = found["gradients_of_memory"] <= EXTRA
    kept = kept and all(found.get(name, 0) >= least for name, least in promised.items())
    return {
        **found,
        "rows": rows,
        "columns": columns,
        "promised": {**promised},
        **({} if quick else {"kept": kept}),
        "machine": machine(),
    }


def released(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """GIFT's released code (validate/losses_benchmark.py)."""
    smoothed = torch.zeros_like(x).fill_(0.1 / (x.shape[1] - 1)).scatter_(1, y[:, None], 0.9)
    refined = functional.normalize(t, dim=1) + 0.1 * functional.normalize(smoothed, dim=1)
    return 1 - functional.cosine_similarity(x, refined, dim=1).mean()


def contenders(x: Tensor, t: Tensor, y: Tensor) -> dict[str, Step]:
    """Every implementation of value and gradient, on float32 labels; the fused ones also on stored labels."""
    fused = make_loss(LossSpec())
    assert isinstance(fused, Fused)  # noqa: S101  gift has twins
    stored = {"float16": t.half(), "int8": (t * (127 / t.abs().amax(1, keepdim=True))).round().to(torch.int8)}
    losses: dict[str, Loss] = {"released": released, "definition": gift_loss, "closed": twin(gift_rows, fused)}
    try:
        compilers(x.device)
    except CompileError as error:
        warnings.warn(f"nothing is compiled: {error}", stacklevel=2)
    else:
        losses |= {f"{name} compiled": torch.compile(losses[name]) for name in ("released", "definition")}
        losses["compiled"] = twin(fused.compiled, fused)
    if x.is_cuda:
        from trainer.losses import kernels

        losses["triton"] = twin(kernels.gift, fused)
    steps = {name: Step(loss, x, t, y) for name, loss in losses.items()}
    for name in {"compiled", "triton", "definition compiled"} & set(losses):
        steps |= {f"{name}, {kind}": Step(losses[name], x, label, y) for kind, label in stored.items()}
    return steps


def twin(rows: Rows, fused: Fused) -> Loss:
    """A twin of the loss, whichever it would take for the tensors."""

    def loss(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            made = rows(x.detach(), t, y, **fused.numbers)
        value: Tensor = KnownGradient.apply(x, *made)
        return value

    return loss


def require_alike(steps: Mapping[str, Step]) -> None:
    """Compare value and gradient of every implementation with the definition in float64, on the same label."""
    for name, step in steps.items():
        expected, slope = Step(gift_loss, step.x.double(), step.label.double(), step.y)()
        value, gradient = step()
        apart = (gradient - slope).norm() / slope.norm()
        if (value - expected).abs() > 1e-6 or apart > 1e-5:
            raise RuntimeError(f"{name}: value {value:.7f} instead of {expected:.7f}, gradient {apart:.1e} away")


def gpu_times(steps: Mapping[str, Step], rounds: int) -> Timing:
    """Times between CUDA events, in turns; beside them a copy that moves as many bytes as the step on float16 labels.

    The GPU is kept busy while a step is queued: it is timed as in a loop whose GPU has more to do than its CPU.
    """
    x = next(iter(steps.values())).x
    moved = torch.empty(x.numel() * (4 + 2 + 4) // 2, dtype=torch.uint8, device=x.device)
    copied = torch.empty_like(moved)
    everything: dict[str, Callable[[], object]] = {**steps, "copy": lambda: copied.copy_(moved)}
    wall: dict[str, list[float]] = {name: [] for name in everything}
    for number in range(rounds + 1):  # the first one is for what is done once
        for name, act in everything.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(AHEAD)
            start.record()
            act()
            end.record()
            torch.cuda.synchronize()
            if number:
                wall[name].append(start.elapsed_time(end) / 1e3)
    return Timing(wall, wall)


def wide(report: Report, rows: int, device: torch.device, rounds: int) -> float:
    """Time of the kernels at `WIDE` classes on float16 labels over that of a copy of as many bytes."""
    from trainer.losses import kernels

    x, t = (torch.randn(rows, WIDE, device=device) for _ in range(2))
    y = torch.randint(WIDE, (rows,), device=device)
    fused = make_loss(LossSpec())
    assert isinstance(fused, Fused)  # noqa: S101  gift has twins
    steps = {"triton, float16": Step(twin(kernels.gift, fused), x, t.half(), y)}
    require_alike(steps)
    timing = gpu_times(steps, rounds)
    for name, seconds in timing.wall.items():
        report.add(f"{name}, {WIDE} classes", "forward and backward", [1e3 * second for second in seconds], "ms")
    return 1 / timing.speedup("triton, float16", "copy")


def peak_bytes(step: Step) -> int:
    """Device memory that a step takes beside its inputs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
