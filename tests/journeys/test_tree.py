"""The tree: no circle among modules, and the documents name files and folders that are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("labelstore", "pipeline", "trainer", "benchmarks", "giftwrap")
TREES = ("docs/DESIGN.md", "CONTRIBUTING.md", "README.md", "docs/GUIDE.md", "docs/STORE.md", "docs/FORMAT.md")
# Of a file that is to be written, as in a walk, the sentence begins with the word.
FILE = re.compile(
    r"(?<!Write )`((?:labelstore|pipeline|trainer|benchmarks|giftwrap|tests|examples|docs)/[\w./-]*\w/?)`"
)


def modules() -> dict[str, Path]:
    """The modules of all packages, by name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that a file imports: at once, when a function runs, and for the types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in known:
                    yield name
                elif node.module in known:
                    yield node.module


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, and the last the first; empty where there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_the_graph_of_modules_has_no_circle() -> None:
    known = modules()
    graph = {name: set(imports(path, known)) - {name} for name, path in known.items()}
    assert sum(map(len, graph.values())) > len(graph)
    assert circle(graph) == []
    graph["labelstore.errors"].add("labelstore.store")
    assert "labelstore.errors" in circle(graph)


@pytest.mark.parametrize("page", TREES)
def test_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for place in FILE.findall(text):
        assert (ROOT / place).exists(), f"{page} names {place}"


def test_files_of_the_trees_are_there() -> None:
    """In the pictures of folders, what follows is named from the line of its package on."""
    for page in ("docs/DESIGN.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text()
        (tree,) = re.findall(r"^```text\n(giftwrap/.*?)^```", text, re.DOTALL | re.MULTILINE)
        package = ROOT
        for line in tree.splitlines():
            name = line.split()[0]
            if not line.startswith(" "):
                package = ROOT / name
                assert package.is_dir(), f"{page}: {name}"
            else:
                assert (package / name).exists(), f"{page}: {package.name}/{name}"


def test_protocols_and_tables_of_the_design_are_where_it_names_them() -> None:
    design = (ROOT / "docs/DESIGN.md").read_text()
    protocols = re.findall(r"^\| `(\w+)`, `([\w/.]+)` \|", design, re.MULTILINE)
    assert len(protocols) >= 6
    for name, place in protocols:
        assert re.search(rf"^class {name}\b", (ROOT / place).read_text(), re.MULTILINE), f"{name} is not in {place}"
    tables = re.findall(r"((?:`[A-Z]{4,}`(?:, | or )?)+) in `([\w/.]+)`", design)
    assert len(tables) >= 6
    for names, place in tables:
        for name in re.findall(r"\w{4,}", names):
            assert re.search(rf"^{name}\b.*=", (ROOT / place).read_text(), re.MULTILINE), f"{name} is not in {place}"
