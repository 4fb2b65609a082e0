"""Kernels compiled where there is no GPU: none is forgotten, and one that spills is found."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import kernels
from benchmarks.harness import Report

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="needs triton"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def jitted(path: Path) -> dict[str, set[str]]:
    """The names of a file's functions for Triton, each with the names that it calls."""
    tree = ast.parse(path.read_text())
    return {
        function.name: {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any(ast.unparse(each).startswith("triton.jit") for each in function.decorator_list)
    }


def test_every_kernel_of_the_packages_is_compiled() -> None:
    files = [path for package in ("pipeline", "trainer") for path in (ROOT / package).rglob("*.py")]
    found = {path: jitted(path) for path in files if "triton.jit" in path.read_text()}
    called = {name for functions in found.values() for names in functions.values() for name in names}
    launched = {name for functions in found.values() for name in functions} - called
    assert {case.name for case in kernels.cases()} == launched


def test_no_kernel_spills() -> None:
    found = kernels.run(Report("kernels"), quick=True)
    assert found["kept"], found["spilled"]
    assert found["architectures"] == [90]


def test_a_kernel_that_spills_is_found() -> None:
    wide = next(case for case in kernels.cases() if case.name == "kl_kernel")
    case = kernels.Case(
        wide.kernel, wide.types, {"UNIT": 1, "BLOCK": 32_768}, {"num_warps": 32}, wide.aligned, "too long"
    )
    assert kernels.compiled(case, 90).spilled > 0
