"""Every Triton kernel compiles for sm_80, 89, 90, 100 and 120, and none spills registers; no GPU is needed."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Report, machine
from labelstore.durable.newfile import write_new
from labelstore.errors import GiftwrapError, reason
from labelstore.spec import Json

ARCHITECTURES = (80, 89, 90, 100, 120)
ALIGNED = 16  # what pointers and strides are multiples of, where Triton compiles for that
LOGITS = (("fp32", "fp32"), ("fp32", "fp16"), ("bf16", "fp16"), ("bf16", "i8"))  # of students and labels
CLASSES = (10, 1000, 8192, 21_841)
SIDES = (32, 224)


@dataclass(frozen=True)
class Case:
    """A kernel launch.

    Attributes:
        kernel: the function.
        types: of its arguments, as Triton names them, up to the first constant.
        constants: its other arguments.
        options: of the launch.
        aligned: numbers of the arguments that are multiples of 16.
        text: what it is launched for.
    """

    kernel: Any
    types: tuple[str, ...]
    constants: Mapping[str, float]
    options: Mapping[str, Any]
    aligned: tuple[int, ...]
    text: str

    @property
    def name(self) -> str:
        """Of the kernel."""
        return str(self.kernel.fn.__name__)


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes.

    Attributes:
        registers: of a thread.
        spilled: bytes a thread of registers that do not fit, and lie in memory.
    """

    registers: int
    spilled: int


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Compile all kernels with their launch arguments, for every architecture; at toy size the last cases, for one."""
    every = list(cases())
    if quick:
        every = list({case.name: case for case in every}.values())
    spilled: list[Json] = []
    for architecture in ARCHITECTURES[2:3] if quick else ARCHITECTURES:
        found = [(case, compiled(case, architecture)) for case in every]
        for name in dict.fromkeys(case.name for case in every):
            own = [usage for case, usage in found if case.name == name]
            report.add(f"{name}, sm_{architecture}", "registers", [usage.registers for usage in own], "of a thread")
            report.add(f"{name}, sm_{architecture}", "spilled", [usage.spilled for usage in own], "bytes a thread")
        spilled += [f"sm_{architecture}: {case.name}, {case.text}" for case, usage in found if usage.spilled]
    return {
        "architectures": [*(ARCHITECTURES[2:3] if quick else ARCHITECTURES)],
        "kernels": list[Json](sorted({case.name for case in every})),
        "cases": len(every),
        "spilled": spilled,
        "kept": not spilled,
        "machine": machine(),
    }


def cases() -> Iterator[Case]:
    """Every kernel, in each way that it is launched.

    Raises:
        GiftwrapError: when there is no Triton.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise GiftwrapError(f"kernels: expected triton, found none ({reason(error)}); pip install triton") from error
    yield from resizes()
    yield from inputs()
    yield from losses()


def resizes() -> Iterator[Case]:
    """The passes of the resize."""
    from triton import next_power_of_2

    from pipeline.render import kernels

    inputs, options = ("*u8", "*i64", "*i32", "*i32"), {"enable_fp_fusion": False, "num_warps": kernels.WARPS}
    for size in SIDES:
        constants = {"SIZE": size, "ROWS": kernels.BLOCK_LINES, "BYTES": kernels.BLOCK_BYTES}
        for cubic in (False, True):
            types: tuple[str, ...] = ("*i64", "*i32", "*i32", "i32")
            numbers = {"RADIUS": 2.0 if cubic else 1.0, "CUBIC": cubic, "SIZE": size, "BLOCK": next_power_of_2(size)}
            text = f"{size} px, {'bicubic' if cubic else 'bilinear'}"
            yield Case(kernels.weigh_axes, types, numbers, {"enable_fp_fusion": False}, pointers(types), text)
        types = (*inputs, "*u8", "i32")
        yield Case(kernels.join_lines, types, constants, options, pointers(types), f"{size} px")
        for places in (False, True):  # of patches that change places; else the jobs stand for them
            types = (*inputs, *(["*i32"] * 2 if places else ["*i64"] * 2), "*u8", "i32")
            text = f"{size} px{', in other places' if places else ''}"
            yield Case(kernels.shorten_lines, types, {"PLACES": places, **constants}, options, pointers(types), text)


def inputs() -> Iterator[Case]:
    """What makes a network's input from bytes."""
    from pipeline.render import kernels

    for dtype in ("fp32", "bf16", "fp16"):
        types = ("*u8", f"*{dtype}", "i32", *["fp32"] * 6)
        yield Case(
            kernels.input_of, types, {"BLOCK": kernels.INPUT_BYTES}, {"enable_fp_fusion": False}, (0, 1, 2), dtype
        )


def losses() -> Iterator[Case]:
    """The losses, of short rows and long ones, and what scales their gradients."""
    from trainer.losses import kernels

    for classes in CLASSES:
        how = kernels.sizes(classes)
        unit, _ = kernels.in_units(*[torch.empty(1, classes, device="meta")] * 2)
        block, options = {"BLOCK": how["BLOCK"]}, {"num_warps": how["num_warps"]}
        long = classes > kernels.WIDEST
        for x, t in LOGITS:
            text, ends = f"{classes} classes, {x} and {t}", ("*fp32", f"*{x}", "i32", "i32", "i32", "i32")
            logits = (f"*{x}", f"*{t}")
            targets = ("*i64", "*i64", "*fp32")
            for hard, mixed in ((False, False), (True, False), (True, True)):
                types = (*logits, *targets, *ends, *["fp32"] * 4)
                strides = (7, 8, 9) if classes // unit % ALIGNED == 0 else ()
                yield Case(
                    kernels.gift_tiles_kernel if long else kernels.gift_kernel,
                    types,
                    {"HARD": hard, "MIXED": mixed, "UNIT": unit, **block},
                    options,
                    (*pointers(types), *strides),
                    f"{text}{', hard labels' if hard else ''}{', mixed' if mixed else ''}",
                )
            types = (*logits, *ends, "fp32", "fp32")
            strides = (4, 5, 6) if classes // unit % ALIGNED == 0 else ()
            kernel = kernels.kl_tiles_kernel if long else kernels.kl_kernel
            yield Case(kernel, types, {"UNIT": unit, **block}, options, (*pointers(types), *strides), text)
    for x in ("fp32", "bf16"):
        types = (f"*{x}", "*fp32", "i32")
        yield Case(kernels.scale_kernel, types, {"BLOCK": kernels.SCALED}, {}, (0, 1, 2), x)
    types = ("*fp32", "*fp32", "i32")
    yield Case(kernels.mean_kernel, types, {"BLOCK": kernels.SCALED}, {"num_warps": 16}, (0, 1, 2), "the mean")


def pointers(types: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of the arguments that are tensors: torch begins them at a multiple of 16."""
    return tuple(number for number, kind in enumerate(types) if kind.startswith("*"))


def compiled(case: Case, architecture: int) -> Usage:
    """Compile a kernel for ``sm_architecture``, and look up what it takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    source = ASTSource(
        fn=case.kernel,
        signature=dict(zip(names, [*case.types, *["constexpr"] * len(case.constants)], strict=True)),
        constexprs={(names.index(name),): value for name, value in case.constants.items()},
        attrs={(number,): [["tt.divisibility", ALIGNED]] for number in case.aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(case.options))
    return usage_of(made.asm["cubin"], case.name)


def usage_of(cubin: bytes, kernel: str) -> Usage:
    """What CUDA's ``cuobjdump``, which Triton brings, prints of a compiled kernel: ``REG:48 STACK:0 ...``."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        write_new(path, cubin)
        words = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout  # noqa: S603  Triton's own
    lines = text.splitlines()
    line = next(lines[at + 1] for at, line in enumerate(lines) if f"Function {kernel}" in line)
    numbers = dict(part.split(":") for part in line.split() if ":" in part)
    # The stack frame of a thread: these kernels have no local arrays, so it consists of spilled registers.
    return Usage(registers=int(numbers["REG"]), spilled=int(numbers["STACK"]))
