"""Digests of the code of a user's network, and of the layout of its state dict."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import FunctionType, ModuleType

from torch import Tensor, nn

from labelstore.spec import Json

# Not hashed, since the recorded versions identify them: the standard library, installed packages, and this package.
INSTALLED = {Path(path).resolve() for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))}
INSTALLED_FOLDERS = ("site-packages", "dist-packages")
OURS = ("labelstore", "pipeline", "trainer", "benchmarks", "giftwrap")


def code_of(student: nn.Module, *names: str) -> dict[str, Json]:
    """SHA-256 (hex) of the source of each of the user's modules that a run uses, by module name.

    These are the modules of the classes in ``student``, those of ``names`` that are ``module:attribute``, and,
    recursively, the user's modules that they import.
    """
    given = [name.partition(":")[0] for name in names if ":" in name]
    todo = [*given, *(type(layer).__module__ for layer in student.modules())]
    found: dict[str, Json] = {}
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        module = sys.modules.get(name)
        path = source_of(module) if module else None
        if module and path:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            todo += imported_by(module)
    return dict(sorted(found.items()))


def imported_by(module: ModuleType) -> Iterable[str]:
    """Names of the modules from which a module imports names."""
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, type | FunctionType):
            yield value.__module__


def source_of(module: ModuleType) -> Path | None:
    """The source file of one of the user's modules; None for installed ones and this package."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py") or module.__name__.partition(".")[0] in OURS:
        return None
    path = Path(file).resolve()
    installed = any(name in path.parts for name in INSTALLED_FOLDERS) or any(path.is_relative_to(f) for f in INSTALLED)
    return path if path.is_file() and not installed else None


def layout_of(student: nn.Module) -> str:
    """SHA-256 (hex) over name, type and shape of every entry of a network's state dict."""
    lines = []
    for name, value in student.state_dict().items():
        kind = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        lines.append(f"{name} {kind}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
