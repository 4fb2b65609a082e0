"""Every code block of the README and the documents, typed as it is, in the order of the pages.

A block that cannot run is followed by a line ``<!-- not run: why -->``. Sets are drawn small and numbers of views and
epochs are cut, so that all blocks take seconds; names, flags and the form of what is printed are the documents'.
"""

from __future__ import annotations

import gc
import gzip
import os
import re
import runpy
import shlex
import signal
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from giftwrap.__main__ import commands
from labelstore.command.command_line import EVERYWHERE
from labelstore.command.flags import choices_of, flags_of, is_positional
from labelstore.encoding_table import ENCODINGS
from labelstore.tables import Table
from pipeline.images.source_table import SOURCES
from pipeline.networks import build_network, save_weights
from pipeline.networks.backbones import BACKBONES
from pipeline.networks.families import network_names
from pipeline.plan.augment import INPUTS, MIXES, PIXELS, REARRANGEMENTS
from pipeline.recipes import RECIPES
from pipeline.synthesis import METHODS
from tests.journeys.world import SERVER, Ended, Running, draw_images, giftwrap, run_as_command
from tests.pipeline.packing import (
    Files,
    add,
    as_parquet,
    as_shards,
    as_zip,
    files_in,
    idx,
    python2_names,
    python2_pickle,
)
from trainer import processes
from trainer.loss_table import LOSSES
from trainer.relabel import OPERATORS
from trainer.schedules import SCHEDULES

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/GUIDE.md", "docs/SETS.md", "docs/IMAGES.md", "docs/STORE.md", "docs/LABELS.md",
         "docs/BUCKETS.md", "docs/ENCODINGS.md", "docs/RECIPES.md", "docs/CLUSTERS.md",
         "docs/PERFORMANCE.md", "docs/DESIGN.md", "docs/FORMAT.md", "CONTRIBUTING.md")  # fmt: skip
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n(<!-- not run: [^\n]+ -->\n)?", re.DOTALL | re.MULTILINE)
SMALLER = (
    (r"--views 100\b", "--views 4"),
    (r"--epochs \d{2,}\b", "--epochs 2"),
    (r"\bepochs=3\b", "epochs=1"),
    (r"--backbone uvit-xs\b", '--backbone uvit-xs --backbone-args \'{"dim": 32, "depth": 2, "heads": 2}\''),
)
NEEDED = {"docs/STORE.md": ("pandas",), "docs/LABELS.md": ("pyarrow",)}
NUMBER = r"\d[\d,.]*(?:e[-+]\d+)?"
TIME = r"(?:\d+ min )?\d+ s"
COMMANDS = (
    "build",
    "adopt",
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
    "report",
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
    pack_sets(files_in(folder / "runs/demo/small"), folder / "sets")
    run_page("README.md", folder)
    return folder


class Forked:
    """In the place of the `Popen` of a sweep: its command as a fork, which has imported everything."""

    def __init__(self, words: list[str], *, stdout: IO[bytes], preexec_fn: Callable[[], None], **_others: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        try:
            preexec_fn()
            for number in (1, 2):
                os.dup2(stdout.fileno(), number)
            for stop in (signal.SIGINT, signal.SIGTERM):
                signal.signal(stop, signal.SIG_DFL)
            sys.argv = words[2:]
            sys.modules.pop("giftwrap.__main__", None)
            runpy.run_module("giftwrap", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            self.returncode = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1 if self.returncode is None else self.returncode)

    def poll(self, how: int = os.WNOHANG) -> int | None:
        if self.returncode is None and any(found := os.waitpid(self.pid, how)):
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def wait(self) -> int | None:
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def sweep_of_forks(words: list[str], out: Path, err: Path, cwd: Path) -> None:
    """A sweep as `run_as_command` runs it; test_several.py has one of programs."""
    vars(processes)["subprocess"] = SimpleNamespace(Popen=Forked, DEVNULL=None, STDOUT=None)
    run_as_command(words, out, err, cwd)


def run_sweep(words: list[str], cwd: Path) -> Ended:
    """Run a sweep and wait for it."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = SERVER.Process(target=sweep_of_forks, args=(words, out, err, cwd), daemon=True)
        process.start()
        return Running(process, out, err).end()


def pack_sets(files: Files, sets: Path) -> None:
    """The containers of IMAGES.md: of the files of a class folder, and of a few arrays."""
    (sets / "data").mkdir(parents=True)
    as_zip(files, sets / "small.zip")
    for number, shard in enumerate(sorted(as_shards(files, sets / "shards").iterdir())):
        shard.rename(sets / f"small-{number:02d}.tar")
    as_parquet(files, sets / "data/train-00000-of-00001.parquet", sorted({name.split("/")[0] for name in files}))
    pixels, labels = np.zeros((6, 32, 32, 3), np.uint8), np.arange(6) % 3
    np.savez(sets / "arrays.npz", images=pixels, labels=labels)
    (sets / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[..., 0])))
    (sets / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels.astype(np.uint8))))
    with tarfile.open(sets / "cifar-10-python.tar.gz", "w:gz") as tar:
        batch = python2_pickle(pixels.transpose(0, 3, 1, 2).reshape(6, 3072), labels.tolist())
        names = python2_names([f"class {number}" for number in range(3)])
        for name, data in (("data_batch_1", batch), ("test_batch", batch), ("batches.meta", names)):
            add(tar, f"cifar-10-batches-py/{name}", data)


def run_shell(code: str, folder: Path) -> str:
    """What the commands of a block print; those of this project run, and all others must be marked."""
    printed = ""
    for line in code.strip().splitlines():
        words = shlex.split(line)
        if words[:3] == ["python", "-m", "examples.digits"]:
            continue  # test_examples.py runs it
        module = words[2:] if words[:2] == ["python", "-m"] else words
        assert module[0] == "giftwrap" or module[0].startswith("examples."), f"not a command of ours: {line}"
        ended = run_sweep(module, folder) if module[1:2] == ["sweep"] else giftwrap(*module, cwd=folder)
        assert ended.code == 0, (line, ended)
        printed += ended.out + ended.err
    return printed


def require_form(shown: str, printed: str) -> None:
    """Each line that a page shows was printed, numbers and the slowest stage aside; ``...`` stands for anything."""
    for line in shown.strip().splitlines():
        form = re.escape(line).replace(r"\.\.\.", ".*").replace("\\ ", " ").replace(r"\-", "-")
        form = re.sub(r"(\d+ min )?\d+ s\b", "TIME", form)
        form = re.sub(r"\w+ is the bottleneck", r"\\w+ is the bottleneck", form)  # another on a busy machine
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
    for package in NEEDED.get(page, ()):
        pytest.importorskip(package)
    names = run_page(page, folder)
    if page == "docs/STORE.md":
        require_right_labels(names, np.load(folder / "labels.npy").astype(np.float32))


def require_right_labels(names: dict[str, Any], exported: npt.NDArray[np.float32]) -> None:
    """What STORE.md's examples computed, against the exported file."""
    np.testing.assert_allclose(names["labels"].logits, exported[:, names["i"]], atol=2e-3)
    np.testing.assert_allclose(names["total"], exported.sum((0, 1)), rtol=1e-2, atol=0.1)
    assert names["top"].columns.shape == (20, 3)
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
    documents, every = "".join(map(text_of, PAGES)), commands()
    assert {*COMMANDS} == {*every}
    for command in COMMANDS:
        assert f"`giftwrap {command}`" in text_of("README.md")
        known = [*flags_of(every[command].config).values(), *EVERYWHERE]
        flags = {f"--{flag.name}" for flag in known if not is_positional(flag)}
        named = {flag for flag in flags if re.search(rf"{flag}(?![a-z-])", documents)}
        assert flags == named, f"`giftwrap {command}` takes flags that no document names"


def names_in(text: str) -> set[str]:
    """The words in backticks, without what follows ``=`` or a blank; ``x1` to `x3`` and ``y1/2`` are several."""
    for stem, first, last in re.findall(r"`([\w-]+?)(\d+)` to `\D?(\d+)`", text):
        text += " ".join(f"`{stem}{number}`" for number in range(int(first), int(last) + 1))
    for stem, numbers in re.findall(r"`([\w-]+?)(\d+(?:/\d+)+)`", text):
        text += " ".join(f"`{stem}{number}`" for number in numbers.split("/"))
    return set(re.findall(r"`([a-z][\w+-]*)(?:[= ][^`]*)?`", text))


def rows_of(page: str, begin: str, cell: int) -> list[str]:
    """A cell of the rows of a page's tables that begin so, and of those below a header that begins so."""
    lines = text_of(page).splitlines()
    found = [line for line in lines if line.startswith(begin)]
    for number, line in enumerate(lines):
        if line.startswith(begin) and lines[number + 1].startswith("|---"):
            end = next(end for end in range(number, len(lines)) if not lines[end].startswith("|"))
            found = [row for row in found if row != line] + lines[number + 2 : end]
    return [line.split(" | ")[cell].strip("| ") for line in found]


# By page: how the rows begin, the cell that lists names, the names, and other words in backticks there.
LISTS: dict[str, tuple[str, str, int, Iterable[str], set[str]]] = {
    "sources": ("docs/IMAGES.md", "| container | `--images`", 2, SOURCES, set()),
    "methods": ("docs/SETS.md", "| method |", 0, METHODS, set()),
    "augmentations": ("docs/GUIDE.md", "| `--augment` |", 1, (*REARRANGEMENTS, *PIXELS, *INPUTS), set()),
    "mixes": ("docs/GUIDE.md", "| `--mix` |", 1, ("none", *MIXES), {"group", "pair"}),
    "networks": ("docs/GUIDE.md", "| `--teacher T` |", 1, network_names(), {"d6"}),
    "operators": ("docs/GUIDE.md", "| operator |", 0, OPERATORS, set()),
    "losses": ("docs/GUIDE.md", "| `--loss` |", 1, LOSSES, set()),
    "schedules": ("docs/GUIDE.md", "| `--schedule --schedule-per` |", 1, SCHEDULES, {"epoch"}),
    "recipes": ("docs/GUIDE.md", "| `--recipe NAME` |", 1, RECIPES, set()),
    "recipes in full": ("docs/RECIPES.md", "| recipe | store |", 0, RECIPES, set()),
    "backbones": ("docs/SETS.md", "| `--backbone` `--patch P`", 1, BACKBONES, {"dim", "depth", "heads", "conv"}),
    "encodings": ("docs/ENCODINGS.md", "| `--encoding` |", 0, ENCODINGS, set()),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_names_are_those_of_the_tables(name: str) -> None:
    page, begin, cell, table, others = LISTS[name]
    known = {word.partition("=")[0] for word in table} - {"toy"}  # of a test
    rows = rows_of(page, begin, cell)
    assert rows, f"{page} has no row {begin}"
    listed = [names_in(row) for row in rows]
    for found in listed if begin.startswith("| `") and name != "encodings" else [set().union(*listed)]:
        assert found - others == known, f"{page}: {begin}"


def test_every_choice_of_a_flag_is_in_the_documents() -> None:
    """But what a flag is when it is left out."""
    quoted = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", "".join(map(text_of, PAGES)), flags=re.M | re.S))
    words = {word for text in quoted for word in re.split(r"[\s=:,]+", text)} | {"toy"}  # of a test
    for command in commands().values():
        for flag in flags_of(command.config).values():
            absent = {choice for choice in choices_of(flag.kind) if choice not in words and choice != flag.default}
            assert not absent, f"no document names {absent} of --{flag.name}"


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
