"""Create, write, kill, damage, check, repair, extend and read in any order, against a model in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from labelstore import LabelStore, check
from labelstore.errors import GiftwrapError, NotStoredError
from labelstore.operations.repair import repair
from tests.labelstore.faults import killed_after
from tests.labelstore.making import Content, build, make_identity, tree

VIEWS = 6
ENCODINGS: dict[str, dict[str, Any]] = {
    "int8": {"name": "int8"},
    "int8 zstd": {"name": "int8", "codec": "zstd"},
    "float16": {"name": "float16"},
    "float16 zstd": {"name": "float16", "codec": "zstd"},
    "transform": {"name": "transform", "step": 0.5},
    "transform zstd": {"name": "transform", "step": 0.5, "codec": "zstd"},
    "transform top-1": {"name": "transform", "step": 1.0, "mean_steps": 8, "keep_top1": True},
}
_wholes: dict[tuple[str, int], tuple[dict[str, str], list[np.ndarray]]] = {}


@lru_cache
def content_of(name: str) -> Content:
    return Content(make_identity(10, 64, block=(2, 4), encoding=ENCODINGS[name]), VIEWS)


def undisturbed(name: str, views: int) -> tuple[dict[str, str], list[np.ndarray]]:
    """Files and labels of a store that nothing ever happened to."""
    if (name, views) not in _wholes:
        with tempfile.TemporaryDirectory() as folder:
            store = build(Path(folder) / "s", content_of(name), views)
            _wholes[name, views] = tree(store.path), [store.read(view, slice(None)).logits for view in range(views)]
    return _wholes[name, views]


class StoreMachine(RuleBasedStateMachine):
    """A store, and what is known of it: how many views were asked for, and whether anybody harmed a file."""

    encoding = "int8"
    files = Bundle("files")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "s"
        self.content = content_of(self.encoding)
        self.views = 2
        self.harmed: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def create(self) -> None:
        build(self.path, self.content, self.views, blocks=0)

    def forget_the_dead(self) -> None:
        (self.path / "lease.json").unlink(missing_ok=True)

    @precondition(lambda self: not self.harmed)
    @rule(blocks=st.integers(1, 4))
    def write_some(self, blocks: int) -> None:
        build(self.path, self.content, self.views, blocks=blocks)

    @precondition(lambda self: not self.harmed)
    @rule()
    def finish(self) -> None:
        build(self.path, self.content, self.views)
        self.everything_is_there()

    @precondition(lambda self: not self.harmed and self.views < VIEWS)
    @rule()
    def extend(self) -> None:
        self.views += 2
        build(self.path, self.content, self.views, blocks=1)

    @precondition(lambda self: not self.harmed)
    @rule(steps=st.integers(0, 120))
    def kill(self, steps: int) -> None:
        killed_after(steps, lambda: build(self.path, self.content, self.views))
        self.forget_the_dead()

    # Which files there are after a kill is not always the same: what is drawn must not depend on it.
    @rule(
        which=st.integers(0, 10**6),
        where=st.integers(0, 10**6),
        bit=st.integers(0, 7),
        how=st.sampled_from(["flip", "cut", "remove"]),
    )
    def harm(self, which: int, where: int, bit: int, how: str) -> None:
        files = [name for name, kind in tree(self.path).items() if kind != "folder" and name != "zarr.json"]
        files = [name for name in files if not name.startswith("images/")]
        if not files:
            return
        name = files[which % len(files)]
        path = self.path / name
        if how == "remove" or not path.stat().st_size:
            path.unlink()
        elif how == "cut":
            os.truncate(path, path.stat().st_size // 2)
        else:
            content = bytearray(path.read_bytes())
            content[where % len(content)] ^= 1 << bit
            path.write_bytes(content)
        self.harmed.add(name)

    @precondition(lambda self: self.harmed)
    @rule(steps=st.integers(0, 40))
    def killed_repair(self, steps: int) -> None:
        killed_after(steps, lambda: repair(self.path))
        self.forget_the_dead()

    @precondition(lambda self: self.harmed)
    @rule()
    def repaired(self) -> None:
        repair(self.path)
        assert check(self.path).ok
        for name in check(self.path).stray:  # what was harmed before it had a marker: only a user may remove it
            (self.path / name).unlink()
        self.harmed = set()

    @invariant()
    def what_reads_is_right(self) -> None:
        if not (self.path / "zarr.json").exists():
            return
        _, labels = undisturbed(self.encoding, VIEWS)
        for follow in (False, True):
            store = LabelStore.open(self.path, follow=follow)
            for view in range(store.state.views_target if follow else store.state.views_sealed):
                for positions in (slice(0, 4), slice(4, 10)):
                    try:
                        batch = store.read(view, positions)
                    except NotStoredError:
                        removed = {view for block in store.missing() for view in range(*store.block_views(block))}
                        assert follow or self.harmed or view in removed
                    except GiftwrapError:
                        assert self.harmed
                    else:
                        assert np.array_equal(batch.logits, labels[view][positions])
                        assert np.array_equal(batch.rows.values, self.content.rows[view][:, positions])

    @invariant()
    def nothing_else_is_called_damaged(self) -> None:
        if (self.path / "zarr.json").exists() and not self.harmed:
            assert check(self.path).ok

    def everything_is_there(self) -> None:
        """The same files; only the seals tell in how many steps it came to its size."""
        whole, _ = undisturbed(self.encoding, self.views)
        ours, theirs = ({n: h for n, h in files.items() if "seals" not in n} for files in (tree(self.path), whole))
        assert ours == theirs
        assert check(self.path).ok


@pytest.mark.parametrize("name", ["int8", "float16 zstd", "transform"])
def test_any_sequence(name: str) -> None:
    machine = type("Machine", (StoreMachine,), {"encoding": name})
    _run(machine, examples=15, steps=14)


@pytest.mark.long
@pytest.mark.parametrize("name", list(ENCODINGS))
def test_any_long_sequence(name: str) -> None:
    machine = type("Machine", (StoreMachine,), {"encoding": name})
    _run(machine, examples=60, steps=40)


def _run(machine: type[StoreMachine], *, examples: int, steps: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes; what failed is printed whole
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
