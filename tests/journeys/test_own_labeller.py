"""Labels by a labeller of the user's own, through whole commands: built, resumed, extended, verified, trained with."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelstore import LabelStore, check
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from labelstore.format.columns import CROP_COLUMNS
from pipeline.build.labelling import REQUESTED
from pipeline.config import BuildConfig
from pipeline.teacher.labeller import BrokenLogitsError, Pending, load_labeller
from tests.journeys.world import draw_images, giftwrap
from tests.pipeline.test_labeller import MeanColours

COLOURS = f"{__name__}:colours"
SIDE = 12


def colours(size: int, classes: tuple[str, ...], gain: float = 1.0) -> MeanColours:
    """The labeller of these tests, as --labeller names it."""
    assert len(classes) == 3
    return MeanColours(size=size, gain=gain)


def test_commands_take_it_instead_of_a_teacher(tmp_path: Path) -> None:
    draw_images(tmp_path / "images")
    store = tmp_path / "store"
    own = ("--labeller", COLOURS, "--labeller-args", '{"gain": 0.5}')
    where = ("--store", store, "--images", tmp_path / "images")
    build = ("pipeline", "build", *where, *own, "--size", SIDE, "--encoding", "float16", "--threads", 1)

    tried = giftwrap(*build, "--views", 20, "--dry-run")
    assert (tried.code, store.exists()) == (0, False), tried.err
    flags = tmp_path / "flags.toml"
    printed = giftwrap(*build, "--views", 20, "--print-config")
    flags.write_text(printed.out)
    assert f'labeller = "{COLOURS}"' in printed.out
    for words in (("--config", flags), ("--config", flags, "--views", 40)):
        ended = giftwrap("pipeline", "build", *words)
        assert ended.code == 0, ended.err
    opened = LabelStore.open(store)
    assert (check(store).ok, opened.complete) == (True, True)
    assert opened.state.views_sealed >= 40
    assert opened.identity.require("teacher")["gain"] == 0.5
    other = giftwrap(*build[:6], "--labeller", COLOURS, "--size", SIDE, "--threads", 1, "--views", 99)
    assert other.code == 2
    assert "different teacher (teacher.gain): the store has 0.5, this run has 1.0" in other.err
    assert "--labeller" in other.err

    plain = giftwrap("pipeline", "verify", *where, "--threads", 1)
    assert plain.code == 0
    assert plain.out.endswith("pixels verified; labels were not compared, which needs --labeller of 'mean colours'\n")
    whole = giftwrap("pipeline", "verify", *where, *own, "--threads", 1, "--json")
    assert (whole.code, whole.summary["labels_compared"], whole.summary["equal_codes"]) == (0, True, 1)
    wrong = giftwrap("pipeline", "verify", *where, "--weights", "w")
    assert "--weights: expected a store that networks labelled, found one labelled by 'mean colours'" in wrong.err
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)

    train = ("trainer", "train", *where[2:], *own, "--labels", "online", "--size", SIDE, "--student", "convnet-d1")
    for epochs in (2, 2):
        ended = giftwrap(*train, "--epochs", epochs, "--run-folder", tmp_path / "run", "--threads", 1)
        assert ended.code == 0, ended.err
    made = json.loads((tmp_path / "run" / "config.json").read_text())["made_of"]
    assert made["labels"]["teacher"]["gain"] == 0.5
    replayed = giftwrap(
        *train[:2], *where, *own, "--labels", "online", "--student", "convnet-d1", "--epochs", 1,
        "--run-folder", tmp_path / "other", "--threads", 1,
    )  # fmt: skip
    assert replayed.code == 0, replayed.err


def test_one_of_both_is_given() -> None:
    values: dict[str, Any] = {"images": Path("i"), "store": Path("s"), "size": SIDE, "views": 1, "labeller": COLOURS}
    for more, message in (
        ({"names": ("convnet-d1",)}, "--teacher"),
        ({"weights": ("w",)}, f"--labeller {COLOURS} and --weights: expected one of them, found both"),
        ({"dtype": "bfloat16"}, f"--labeller {COLOURS} and --dtype: expected one of them, found both"),
        ({"labeller": None, "labeller_args": "{}"}, "--labeller-args: belongs to --labeller"),
        ({"labeller_args": "3"}, "--labeller-args: expected a JSON object"),
    ):
        flags = {**values, **{"teacher" if key == "names" else key: value for key, value in more.items()}}
        with pytest.raises(InputError, match=message):
            from_flags(BuildConfig, **flags)
    neither = giftwrap("pipeline", "build", "--images", "i", "--store", "s", "--size", SIDE, "--views", 1)
    assert (neither.code, neither.err) == (
        2,
        "error: --teacher and --weights: missing; give --teacher and --weights, or --labeller\n",
    )


def no_labeller(size: int, classes: tuple[str, ...]) -> object:
    return (size, classes)


def raising(**_: object) -> MeanColours:
    raise ZeroDivisionError("no model\nat all")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere:x", "--labeller nowhere:x: cannot be imported"),
        (f"{__name__}:no_labeller", "expected a labeller .*, found tuple without size, mean, std"),
        (f"{__name__}:raising", r"cannot be made with size=12, 3 classes .* \(ZeroDivisionError: no model\)$"),
        (f"{__name__}:SIDE", r"TypeError: 'int' object is not callable"),
        (COLOURS, "unexpected keyword argument 'other'"),
    ],
)
def test_what_is_no_labeller_is_one_line(place: str, message: str) -> None:
    args = {"other": 1} if place == COLOURS else {}
    with pytest.raises(InputError, match=message):
        load_labeller(place, args, SIDE, ("a", "b", "c"), CROP_COLUMNS)


def returning_logits(size: int, classes: tuple[str, ...]) -> MeanColours:
    class Bare(MeanColours):
        def start(self, pixels: torch.Tensor, _rows: object, /) -> Any:
            return torch.zeros(len(pixels), 3)

    return Bare(size=size)


def without_dtype(size: int, classes: tuple[str, ...]) -> MeanColours:
    class Unnamed(MeanColours):
        engine: dict[str, Any] = {}  # noqa: RUF012

    return Unnamed(size=size)


@pytest.mark.parametrize(
    ("made", "flags", "message"),
    [
        ("colours", ("--augment", "dsa"), "applies the plan's augmentations of normalised images"),
        ("returning_logits", (), "expected a Pending from start(), found Tensor; return Pending(name, logits)"),
        ("without_dtype", (), "expected dtype in its engine, found none; add it"),
    ],
)
def test_what_a_labeller_leaves_out_is_one_line(
    made: str, flags: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    draw_images(tmp_path / "images")
    where = ("--images", tmp_path / "images", "--store", tmp_path / "store", "--size", SIDE, "--views", 2)
    ended = giftwrap("pipeline", "build", *where, *flags, "--threads", 1, "--labeller", f"{__name__}:{made}")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert message in ended.err


def test_a_recipe_leaves_its_normalisation_to_the_labeller(tmp_path: Path) -> None:
    draw_images(tmp_path / "images")
    where = ("--images", tmp_path / "images", "--store", tmp_path / "store", "--size", SIDE, "--views", 2)
    ended = giftwrap(
        "pipeline", "build", "--recipe", "rded", *where, "--threads", 1, "--dry-run", "--labeller", COLOURS
    )
    assert ended.code == 0, ended.err


class Overlapping(MeanColours):
    """Answers no batch before several are asked for, but for the last ones of a build."""

    most, under_way = 0, 0
    lock = threading.Lock()

    def start(self, pixels: torch.Tensor, rows: Any, /) -> Pending:
        with self.lock:
            Overlapping.under_way += 1
            Overlapping.most = max(Overlapping.most, Overlapping.under_way)
        finished = super().start(pixels, rows)

        def wait() -> torch.Tensor:
            with self.lock:
                Overlapping.under_way -= 1
            return finished.result()

        return Pending("overlapping", wait)


def test_requests_overlap_and_labels_are_those_of_one_after_the_other(tmp_path: Path) -> None:
    from pipeline.build.build import build

    draw_images(tmp_path / "images")
    labels = []
    for name, labeller in (("a", MeanColours()), ("b", Overlapping())):
        config = from_flags(
            BuildConfig, images=tmp_path / "images", store=tmp_path / name, size=SIDE, views=20, encoding="float16",
            threads=1,
        )  # fmt: skip
        build(config, Console(silent=True), labeller)
        labels.append(LabelStore.open(tmp_path / name).read(3, slice(None)).logits)
    assert np.array_equal(labels[0], labels[1])
    assert (Overlapping.most, Overlapping.under_way) == (REQUESTED + 1, 0)


def test_logits_that_are_waited_for_are_checked_too() -> None:
    broken = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    pending = Pending("late", lambda: broken)
    assert pending.waits
    with pytest.raises(BrokenLogitsError) as caught:
        pending.result()
    assert (caught.value.row, caught.value.column) == (1, 1)
    whole = Pending("late", lambda: broken[:1])
    assert whole.result() is whole.result()
    assert not Pending("ready", broken[:1]).waits


def test_the_example(tmp_path: Path) -> None:
    import shlex

    import examples.own_labeller as example

    draw_images(tmp_path / "runs/demo/small", classes=tuple("0123456789"), per_class=2)
    assert example.__doc__
    page = example.__doc__.replace("\\\n", " ")
    commands = [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("    python -m ")]
    assert [words[1] for words in commands] == ["build", "verify", "train"]
    for words in commands:
        ended = giftwrap(*words, cwd=tmp_path)
        assert ended.code == 0, (words, ended)
    store = LabelStore.open(tmp_path / "runs/web")
    assert store.complete
    assert store.identity.require("teacher")["name"] == example.NAME
    assert "examples.own_labeller" in sys.modules
