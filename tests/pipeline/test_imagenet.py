"""ImageNet's public list against torchvision's and timm's own, and the columns that it finds for folders."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models._meta import _IMAGENET_CATEGORIES as TORCHVISION

from labelstore.errors import InputError
from pipeline.networks.weights import save_weights
from pipeline.teacher.class_order import agreement, check_classes, choose, require_known_columns, select_columns
from pipeline.teacher.imagenet import is_public, plain, public_classes, public_mapping
from pipeline.teacher.teacher import Member, Teacher, TeacherSpec, make_teacher

IDS = tuple(entry.wordnet_id for entry in public_classes())
FLAGS = ("--teacher-classes", "--class-columns")
TEN = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # Imagenette's


def test_the_list_is_that_of_torchvision_and_timm() -> None:
    assert len(IDS) == len({*IDS}) == 1000
    assert list(IDS) == sorted(IDS)
    for entry, name in zip(public_classes(), TORCHVISION, strict=True):
        assert plain(name) in {plain(n) for n in (*entry.names, "".join(entry.names))}
    info = pytest.importorskip("timm.data").ImageNetInfo()
    assert list(IDS) == [info.index_to_label_name(column) for column in range(1000)]
    for column, entry in enumerate(public_classes()):
        if column != 134:
            assert ", ".join(entry.names) == info.index_to_description(column)


@settings(deadline=None)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=30, unique=True), st.integers(0, 2))
def test_folders_find_their_columns(columns: list[int], spelling: int) -> None:
    clear = [c for c in columns if plain(TORCHVISION[c]) not in {"crane", "cardigan", "maillot"}] or [0]
    write = (str, str.upper, lambda name: name.replace(" ", "_").replace("-", "_").lower())[spelling]
    names = [write(TORCHVISION[column]) for column in clear]
    for folders, expected in (([IDS[c] for c in columns], columns), (names, clear)):
        assert is_public(folders)
        mapping = public_mapping(folders, None, 1000)
        assert mapping.columns == mapping.entries == tuple(expected)
        assert f"{folders[0]} -> column {expected[0]} (" in mapping.text
        assert mapping.text.count("->") == min(len(folders), 10)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 999), min_size=1, max_size=10, unique=True))
def test_the_networks_own_names_decide_where_a_class_is(seed: int, columns: list[int]) -> None:
    """The oracle: the column whose own name is that of the class."""
    order = np.random.default_rng(seed).permutation(1000)
    names = [TORCHVISION[place] for place in order]
    clear = [c for c in columns if plain(TORCHVISION[c]) not in {"crane", "cardigan", "maillot"}] or [0]
    mapping = public_mapping([IDS[c] for c in clear], names, 1000)
    assert [names[column] for column in mapping.columns] == [TORCHVISION[c] for c in clear]
    assert public_mapping([IDS[c] for c in columns], TORCHVISION, 1000).columns == tuple(columns)
    own = [name if place % 3 else f"words of its own {place}" for place, name in enumerate(TORCHVISION)]
    assert public_mapping([IDS[c] for c in columns], own, 1000).columns == tuple(columns)


def test_the_list_is_in_the_package() -> None:
    """Whatever lies beside the modules and is no module is named as data of its package."""
    root = Path(__file__).parents[2]
    named = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("labelstore", "pipeline", "trainer", "giftwrap"):  # the benchmarks stay in the source tree
        found = {path.name for path in (root / package).iterdir() if path.is_file() and path.suffix != ".py"}
        assert found == {*named[package]}


@pytest.mark.parametrize("name", ["crane", "Crane", "maillot", "Cardigan"])
def test_names_of_several_classes_are_refused_by_name(name: str) -> None:
    folders = ["tench", name]
    with pytest.raises(
        InputError, match=rf"--class-columns imagenet: '{name}' is the name of the columns \d+ \(n\d+\)"
    ):
        choose("imagenet", None, 1000, folders, flag="--class-columns")
    with pytest.raises(
        InputError, match=rf"found 1000 columns; .*named as classes of ImageNet, but '{name}' is the name"
    ):
        check_classes(range(1000), None, folders)


@pytest.mark.parametrize(
    ("folders", "names", "total", "message"),
    [
        (("tench", "zebu"), None, 1000, "'zebu' is no WordNet id or class name"),
        (("n01440764", "tench"), None, 1000, "'n01440764' and 'tench' are one class, column 0"),
        (("n01440764", "n99999999"), None, 1000, "'n99999999' is no WordNet id or class name"),
        (("n014407641", "tench"), None, 1000, "'n014407641' is no WordNet id or class name"),
        (("tench", "Tinca_tinca"), None, 1000, "'tench' and 'Tinca_tinca' are one class, column 0"),
        (("tench",), None, 1001, "expected a network of 1,000 columns, found 1,001"),
        (("tench", "goldfish"), ("goldfish", "cat"), 2, r"n01440764 \(tench\), found none by its own class names"),
        (("tench",), ("tench", "Tinca tinca"), 2, r"found the columns \[0, 1\]"),
    ],
)
def test_what_the_list_does_not_say_is_refused(
    folders: tuple[str, ...], names: tuple[str, ...] | None, total: int, message: str
) -> None:
    with pytest.raises(InputError, match=f"--teacher-classes imagenet: .*{message}"):
        choose("imagenet", names, total, folders, flag="--teacher-classes")


@given(st.lists(st.integers(0, 999), min_size=1, max_size=20, unique=True), st.data())
def test_ids_with_words_behind_them_and_names_may_stand_side_by_side(columns: list[int], data: st.DataObject) -> None:
    def folder(column: int) -> str:
        entry = public_classes()[column]
        return data.draw(
            st.sampled_from([entry.wordnet_id, *(f"{entry.wordnet_id}{c}{entry.names[0]}" for c in "-_ ")])
        )

    folders = [folder(column) for column in columns] + ["snow_leopard"] * (289 not in columns)
    assert is_public(folders)
    assert public_mapping(folders, None, 1000).columns[: len(columns)] == tuple(columns)


def test_nothing_is_guessed() -> None:
    ten = [IDS[c] for c in TEN]
    ask = (
        r"--teacher-classes imagenet \(or --class-columns imagenet\) if the network's columns are in ImageNet's order: "
        r".*n01440764 -> column 0 \(tench\), n02102040 -> column 217"
    )
    with pytest.raises(InputError, match=ask):
        check_classes(range(1000), None, ten)
    with pytest.raises(InputError, match=r"--classes imagenet if the"):
        check_classes(range(1000), None, ten, flags=("--classes",))
    for folders, total in ((ten, 999), (["ant", "bee", "zzz"], 1000)):
        with pytest.raises(InputError) as caught:
            check_classes(range(total), None, folders)
        assert "imagenet" not in str(caught.value)
    with pytest.raises(InputError) as caught:  # its own names are others
        check_classes(range(1000), [f"c{i}" for i in range(1000)], ten)
    assert "--teacher-classes imagenet" not in str(caught.value)
    with pytest.raises(InputError, match=r"give --teacher-classes 1,0 to keep"):  # its own names decide
        check_classes(range(3), ("n01443537", "n01440764", "x"), ["n01440764", "n01443537"])


def test_all_classes_by_name_ask_which_order_the_columns_have() -> None:
    require_known_columns(IDS, None, 1000, FLAGS)
    require_known_columns([f"c{i}" for i in range(1000)], None, 1000, FLAGS)
    names = sorted(f"{entry.names[0]}, {', '.join(entry.names[1:])}" for entry in public_classes())
    require_known_columns(names, sorted(names, reverse=True), 1000, FLAGS)
    usual = sorted({*TORCHVISION} - {"crane", "cardigan", "maillot"})
    with pytest.raises(InputError, match="not known: the folders are named as classes of ImageNet, but 'Cardigan'"):
        require_known_columns(sorted(TORCHVISION), None, 1000, FLAGS)
    folders = sorted({*usual, "n02012849", "wading crane", "x"})
    require_known_columns(folders, None, 1000, FLAGS)  # not all of the list


def linear(path: Path, columns: int, classes: list[str] | None = None) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, columns))
    save_weights({f"{name}": value for name, value in network[1].state_dict().items()}, path, classes=classes)
    return path


class Wide(nn.Module):
    """1,000 columns of the pixels of a crop of 2 px."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1000, 12))
        self.bias = nn.Parameter(torch.zeros(1000))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(images.flatten(1), self.weight, self.bias)


def wide(path: Path, folders: list[str] | tuple[str, ...], names: list[str] | None = None, **how: Any) -> Teacher:
    member = Member(name=f"{__name__}:Wide", weights=str(linear(path / "w.safetensors", 1000, names)))
    return make_teacher(TeacherSpec(members=(member,), batch=4, **how), size=2, classes=folders)


def test_the_list_and_the_indexes_make_one_identity(tmp_path: Path) -> None:
    ten = [IDS[c] for c in TEN]
    indexes = ",".join(map(str, TEN))
    with pytest.raises(InputError, match="imagenet"):
        wide(tmp_path, ten)
    by_list, by_index = wide(tmp_path, ten, classes="imagenet"), wide(tmp_path, ten, classes=indexes)
    assert dict(by_list.identity) == dict(by_index.identity)
    assert (by_list.columns, by_list.class_columns) == (10, ())
    (note,) = by_list.notes
    assert note.count("->") == 10
    assert by_index.notes == ()
    kept = wide(tmp_path, ten, class_columns="imagenet")
    assert (kept.columns, kept.class_columns, kept.warnings) == (1000, TEN, ())
    assert kept.class_columns == wide(tmp_path, ten, class_columns=indexes).class_columns
    named = wide(tmp_path, ten, names=list(TORCHVISION), classes="imagenet")
    assert dict(named.identity) == dict(by_list.identity)
    assert named.warnings == ()


def test_all_ids_in_order_are_the_same_with_and_without_the_flag(tmp_path: Path) -> None:
    plainly = wide(tmp_path, IDS)
    for flag, value in (("classes", "imagenet"), ("class_columns", "imagenet"), ("classes", "folders")):
        said = wide(tmp_path, IDS, **dict[str, Any]({flag: value}))
        assert dict(said.identity) == dict(plainly.identity)
        assert (said.class_columns, said.selected) == ((), None)
    with pytest.raises(InputError, match="expected a column for each of the 2 class folders"):
        wide(tmp_path, ("a", "b"), classes="folders")


# Names in lists.


NAMES = ("tench, Tinca tinca", "goldfish", "é", 'a "b", c', "x\u2028y")


def test_names_with_commas_and_in_either_form(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\n".join(NAMES[::-1]), encoding="utf-8")
    (tmp_path / "a,b").write_text("goldfish\n")
    for selection, expected in (
        ("tench, Tinca tinca", (0,)),
        ('goldfish, "tench, Tinca tinca"', (1, 0)),
        ('"a ""b"", c",e\u0301', (3, 2)),
        (str(tmp_path / "list"), (4, 3, 2, 1, 0)),
        (str(tmp_path / "a,b"), (1,)),
        ("1,\n0", (1, 0)),
    ):
        assert select_columns(selection, NAMES, 5) == expected
    with pytest.raises(InputError, match=r"'tench' is no file.*quote names that hold commas"):
        select_columns("tench,goldfish", NAMES, 5)
    with pytest.raises(InputError, match=r"it is 'cafè' \(U\+00E8 at character 4\) and not 'café' \(U\+00E9"):
        select_columns("caf\u00e8", ("caf\u00e9",), 1)


def test_forms_of_class_names_are_one() -> None:
    folders = ["cafe\u0301", "e\u0301"]
    assert check_classes((0, 1), ("caf\u00e9", "\u00e9"), folders) is None
    with pytest.raises(InputError, match="give --teacher-classes 1,0 to keep"):
        check_classes((0, 1, 2), ("\u00e9", "caf\u00e9", "x"), folders)


def test_a_name_of_two_columns_is_never_chosen_for_the_user() -> None:
    with pytest.raises(InputError, match=r"a file with the indexes.*'crane' is the name of the columns \[0, 2\]"):
        check_classes((0, 1, 2), ("crane", "ant", "crane"), ["ant", "crane"])
    numbers = [str(i) for i in range(200)]
    with pytest.raises(InputError, match="a file with the indexes"):
        check_classes(range(200), numbers, numbers[::-1])


# Agreement.


@pytest.mark.parametrize("rows", [1, 12, 30, 500])
def test_one_class_has_one_order(rows: int) -> None:
    report = agreement(np.zeros((rows, 1), np.float32), np.zeros(rows, np.int64), ["only"])
    assert (report.top1, report.warning) == (100, None)


@pytest.mark.parametrize("pattern", ["class_{}", "{}_x"])
def test_the_other_order_of_numbers_in_names_is_named(pattern: str) -> None:
    natural = [pattern.format(i) for i in range(1, 13)]
    ours = sorted(natural)
    targets = np.repeat(np.arange(12), 20)
    choices = np.array([natural.index(name) for name in ours])[targets]
    report = agreement(np.eye(12, dtype=np.float32)[choices], targets, ours)
    assert re.search("in numeric order .* 100.00 %: stop, .*--class-order numeric", str(report.warning))
