"""torch.compile for a batch of one shape: its compiler, its cache, and its failures as one-line errors."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.errors import InputError, reason
from labelstore.spec import Json
from pipeline.device.faults import is_fault

CACHE = "TORCHINDUCTOR_CACHE_DIR"
CXX = "CXX"
# Kernels chosen by timing them would give other bits from run to run; weights are constants that can be laid out once.
OPTIONS: dict[str, Any] = {"freezing": True, "deterministic": True}


class CompileError(InputError):
    """Compiling failed; the text gives the reason."""


def compilers(device: torch.device) -> dict[str, Json]:
    """Name and version of what torch.compile makes machine code with on a device.

    Raises:
        CompileError: when it is not there.
    """
    if device.type == "cuda":
        try:
            import triton
        except ImportError as error:
            raise CompileError(f"torch.compile needs triton on a GPU: {reason(error)}; pip install triton") from error
        return {"triton": str(triton.__version__)}
    command = os.environ.get(CXX, "g++")
    path = shutil.which(command)
    if path is None:
        raise CompileError(
            f"torch.compile needs a C++ compiler on a CPU: found no {command!r}; "
            f"install g++, or name another compiler in {CXX}"
        )
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    return {"c++": output.partition("\n")[0].strip() or path}


def compile_function(function: Callable[[Tensor], Tensor], example: Tensor, *, name: str) -> Callable[[Tensor], Tensor]:
    """Compile a function for inputs like the example, and no others.

    Args:
        function: what to compile; a graph break is an error, because the rest would silently run uncompiled.
        example: an input; the function is compiled for its shape and layout.
        name: of the function, for messages.

    Raises:
        CompileError: when it does not compile.
    """
    _keep_cache()
    fast: Callable[[Tensor], Tensor] = torch.compile(function, fullgraph=True, dynamic=False, options=OPTIONS)
    try:
        with torch.inference_mode(), _quiet():
            fast(example)
    except Exception as error:  # the compilers below it raise anything
        if is_fault(error):
            raise
        raise CompileError(f"{name} does not compile: {_first_line(error)}") from error
    return fast


def compiled_with_gradients(
    network: nn.Module, example: Tensor, *, name: str
) -> Callable[[Tensor], tuple[Tensor, Sequence[tuple[Tensor, Tensor]]]]:
    """Compile a network with the backward pass to its input.

    Args:
        network: gives logits, and pairs of tensors beside them, with gradients.
        example: an input, in its layout; another shape, or one that is not computed from others, compiles again.
        name: of the network, for messages.

    Raises:
        CompileError: when it does not compile.
    """
    _keep_cache()
    fast: Any = torch.compile(network, fullgraph=True, dynamic=False, options={"deterministic": True})
    try:
        with _quiet():
            images = example.detach().clone().requires_grad_() * 1  # not a leaf, which would be another graph
            logits, pairs = fast(images)
            total = logits.float().sum() + sum(first.sum() + second.sum() for first, second in pairs)
            total.backward()
    except Exception as error:  # the compilers below it raise anything
        if is_fault(error):
            raise
        raise CompileError(f"{name} does not compile with gradients: {_first_line(error)}") from error
    run: Callable[[Tensor], tuple[Tensor, Sequence[tuple[Tensor, Tensor]]]] = fast
    return run


def _keep_cache() -> None:
    """Set torch's cache of compiled code to a folder that outlives a restart, unless the environment names one.

    Only the user may write to the folder, since code that is read from it is executed.
    """
    if CACHE not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "giftwrap" / "inductor"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CompileError(
                f"{folder}: no place to keep compiled code ({error.strerror}); name a folder in {CACHE}"
            ) from error
        os.environ[CACHE] = str(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log records and warnings of torch's compilers: the error that is raised holds what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    """The error in one line; for an error that torch wrapped, the original one."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[0] if lines else 'no reason given'}"
