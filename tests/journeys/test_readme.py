"""Every code block of the README and the documents, typed as it is, in the order of the pages.

A block that cannot run is followed by a line ``<!-- not run: why -->``. Sets are drawn small and numbers of views and
epochs are cut, so that all blocks take seconds; names, flags and the form of what is printed are the documents'.
"""

from __future__ import annotations

import gc
import re
import shlex
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from labelstore.tables import Table
from pipeline.networks import build_network, save_weights
from tests.journeys.world import draw_images, giftwrap

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/GUIDE.md", "docs/STORE.md", "docs/BUCKETS.md", "docs/ENCODINGS.md", "docs/RECIPES.md",
         "docs/PERFORMANCE.md", "docs/DESIGN.md", "docs/FORMAT.md", "CONTRIBUTING.md")  # fmt: skip
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n(<!-- not run: [^\n]+ -->\n)?", re.DOTALL | re.MULTILINE)
SMALLER = ((r"--views 100\b", "--views 4"), (r"--epochs \d+\b", "--epochs 2"), (r"\bepochs=3\b", "epochs=1"))
NUMBER = r"\d[\d,.]*(?:e[-+]\d+)?"
TIME = r"(?:\d+ min )?\d+ s"
COMMANDS = (
    "build",
    "verify",
    "show",
    "import",
    "synthesize",
    "train-generator",
    "train",
    "train-projector",
    "text-embeddings",
    "evaluate",
    "compare",
    "plot",
    "sweep",
    "info",
    "check",
    "convert",
    "export",
    "push",
    "pull",
)


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        language: ``sh``, ``python``, ``text`` for what a command prints, and for pictures, or ``toml`` for a file that
            its first line names.
        code: with continued lines joined.
        runs: whether it is not marked as one that cannot run.
    """

    language: str
    code: str
    runs: bool


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> list[Block]:
    found = BLOCK.findall(text_of(page))
    return [Block(language, code.replace("\\\n", " "), not marker) for language, code, marker in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m examples.digits` makes, smaller, and what the README's blocks make of it; a file of tensors."""
    folder = tmp_path_factory.mktemp("documents")
    classes = tuple("0123456789")
    draw_images(folder / "runs/demo/small", per_class=2, classes=classes)
    draw_images(folder / "runs/demo/test", per_class=1, classes=classes)
    torch.manual_seed(0)
    network = build_network("convnet-d3", {"norm": "batch"}, classes=10, size=16)
    save_weights(network.state_dict(), folder / "runs/demo/teacher.safetensors", classes=classes)
    torch.save({"images": torch.zeros(4, 3, 8, 8), "labels": torch.arange(4) % 2}, folder / "data.pt")
    run_page("README.md", folder)
    return folder


def run_shell(code: str, folder: Path) -> str:
    """What the commands of a block print; those of this project run, and all others must be marked."""
    printed = ""
    for line in code.strip().splitlines():
        words = shlex.split(line)
        if words[:3] == ["python", "-m", "examples.digits"]:
            continue  # test_examples.py runs it
        module = words[2:] if words[:2] == ["python", "-m"] else words
        assert module[0] == "giftwrap" or module[0].startswith("examples."), f"not a command of ours: {line}"
        ended = giftwrap(*module, cwd=folder)
        assert ended.code == 0, (line, ended)
        printed += ended.out + ended.err
    return printed


def require_form(shown: str, printed: str) -> None:
    """Each line that a page shows was printed, other numbers aside; ``...`` stands for anything."""
    for line in shown.strip().splitlines():
        form = re.escape(line).replace(r"\.\.\.", ".*").replace("\\ ", " ").replace(r"\-", "-")
        form = re.sub(r"(\d+ min )?\d+ s\b", "TIME", form)
        form = re.sub(r"\d[\d,]*(\\\.\d+)?(e[-+]\d+)?", lambda _: NUMBER, form).replace("TIME", TIME)
        assert re.search(rf"^{form}$", printed, re.MULTILINE), f"{line!r} is not what is printed:\n{printed}"


@contextmanager
def tables_kept() -> Iterator[None]:
    """What the body adds to a table is gone at its end, so that no later test of this process finds it there."""
    tables = [(table, dict(table._entries)) for table in gc.get_objects() if type(table) is Table]
    try:
        yield
    finally:
        for table, entries in tables:
            table._entries = entries


@tables_kept()
def run_page(page: str, folder: Path) -> dict[str, Any]:
    """Run the blocks of a page in a folder; the names that its Python has defined."""
    names: dict[str, Any] = {}
    printed: str | None = None
    for block in blocks(page):
        code = block.code
        for long, short in SMALLER:
            code = re.sub(long, short, code)
        if block.language == "text":
            if block.runs and printed is not None:
                require_form(code, printed)
            printed = None
        elif not block.runs:
            printed = None
        elif block.language == "toml":
            (folder / code.splitlines()[0].removeprefix("# ")).write_text(code)
        elif block.language == "sh":
            printed = run_shell(code, folder)
        else:
            assert block.language == "python", f"{page}: a block of {block.language!r} neither runs nor says why"
            with chdir(folder):
                exec(compile(code, page, "exec"), names)  # noqa: S102  the point
    return names


@pytest.mark.parametrize("page", PAGES[1:])
def test_every_block_runs(page: str, folder: Path) -> None:
    """On top of what the README's blocks have made, which ran first."""
    names = run_page(page, folder)
    if page == "docs/STORE.md":
        require_right_labels(names, np.load(folder / "labels.npy").astype(np.float32))


def require_right_labels(names: dict[str, Any], exported: npt.NDArray[np.float32]) -> None:
    """What STORE.md's examples computed, against the exported file."""
    np.testing.assert_allclose(names["labels"], exported[:, names["i"]], atol=2e-3)
    np.testing.assert_allclose(names["total"], exported.sum((0, 1)), rtol=1e-2, atol=0.1)
    assert names["top"].shape == (20, 3)
    np.testing.assert_allclose(names["probability"].sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            known = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, f"{page}: {target}"


def test_the_readme_is_short_and_has_nothing_left_to_fill_in() -> None:
    assert len(text_of("README.md").splitlines()) < 160
    for page in PAGES:
        assert not re.search(r"@[A-Z_]+@", text_of(page)), page


def test_every_command_and_flag_is_in_the_documents() -> None:
    documents = "".join(map(text_of, PAGES))
    for command in COMMANDS:
        assert f"`giftwrap {command}`" in text_of("README.md")
        flags = set(re.findall(r"--[a-z][a-z-]*", giftwrap("giftwrap", command, "--help").out)) - {"--help"}
        named = {flag for flag in flags if re.search(rf"{flag}(?![a-z-])", documents) or flag.startswith("--no-")}
        assert flags == named, f"`giftwrap {command}` takes flags that no document names"


def test_promises_that_the_code_cites_are_in_the_design() -> None:
    kept = set(re.findall(r"^\*\*(P\d+)\.", text_of("docs/DESIGN.md"), re.MULTILINE))
    packages = ("labelstore", "pipeline", "trainer", "benchmarks", "giftwrap")
    cited = {
        promise
        for package in packages
        for file in (ROOT / package).rglob("*.py")
        for promise in re.findall(r"\bP\d{1,2}\b", file.read_text())
    }
    assert cited <= kept


def test_every_folder_is_in_the_design() -> None:
    tree = text_of("docs/DESIGN.md")
    for package in ("giftwrap", "labelstore", "pipeline", "trainer", "benchmarks"):
        assert f"\n{package}/ " in tree
        for folder in (ROOT / package).iterdir():
            if (folder / "__init__.py").exists():
                assert re.search(rf"(^|\s){folder.name}/ ", tree), f"{package}/{folder.name} is not in docs/DESIGN.md"
