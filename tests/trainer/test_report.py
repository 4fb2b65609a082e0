"""The command `report`: what it finds, what its cards say, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import GiftwrapError, InputError
from labelstore.spec import Identity
from labelstore.store import LabelStore
from pipeline.teacher.column_names import class_title, column_titles, title_of
from tests.journeys.world import draw_images
from tests.labelstore.making import make_identity
from tests.trainer.report_pages import Elements, fill, make_generator, make_projector
from tests.trainer.test_compare import make_run
from trainer.compare import table
from trainer.report.config import ReportConfig
from trainer.report.finding import find
from trainer.report.html import render
from trainer.report.models import generator_card
from trainer.report.page import Card, Item, LinePlot, Page, Plots, Sheet, Table, Text
from trainer.report.report import report
from trainer.report.runs import runs_section
from trainer.report.sets import set_card
from trainer.report.stores import store_card
from trainer.runs import find_runs, read_run


def page_of(*things: Path, out: Path, replace: bool = False) -> str:
    """The text of the page of some things."""
    report(from_flags(ReportConfig, things=things, out=out, replace=replace), Console(silent=True))
    return " ".join(Elements(out.read_bytes()).text.split())


def all_of(card: Card, kind: type[Item]) -> list[Item]:
    return [item for item in card.items if isinstance(item, kind)]


def identity(**changes: object) -> Identity:
    return make_identity(12, 3, classes=("cat", "dog"), **changes)  # type: ignore[arg-type]


def test_everything_is_found_by_what_is_there(tmp_path: Path) -> None:
    make_run(tmp_path / "things/runs/a")
    make_run(tmp_path / "things/runs/b", seed=1)
    fill(tmp_path / "things/store", identity(), 2)
    make_projector(tmp_path / "things/projector")
    make_generator(tmp_path / "things/generator", ("ant", "bee"))
    images = draw_images(tmp_path / "images", per_class=2)
    found = find([tmp_path / "things", images, tmp_path / "things/runs/*"])
    assert [(each.kind, each.path.name) for each in found] == [
        ("generator", "generator"),
        ("projector", "projector"),
        ("run", "a"),
        ("run", "b"),
        ("store", "store"),
        ("set", "images"),
    ]
    text = page_of(tmp_path / "things", images, out=tmp_path / "page.html")
    assert "2 runs, 1 store, 1 image set, 1 projector, 1 generator" in text
    for name in ("runs", "store", "images", "projector", "generator"):
        assert name in text


def test_what_is_nothing_of_these_is_named_and_leaves_no_page(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("a note")
    make_run(tmp_path / "run")
    out = tmp_path / "page.html"
    for name, why in (("none", "no such file or folder"), ("empty", "found none of them"), ("note.txt", "found none")):
        with pytest.raises(InputError) as error:
            page_of(tmp_path / "run", tmp_path / name, out=out)
        assert str(error.value).startswith(
            f"{tmp_path / name}: expected a run, a store, an image set, a projector or a gen"
        )
        assert why in str(error.value)
        assert not out.exists()
    with pytest.raises(InputError, match=r"none\*: expected a run"):
        page_of(tmp_path / "none*", out=out)
    for things, where, message in (
        ((), out, "found none"),
        ((tmp_path / "run",), tmp_path / "page.txt", "ends in .html"),
        ((tmp_path / "run",), tmp_path / "no/page.html", "folder that is there"),
    ):
        with pytest.raises(InputError, match=message):
            page_of(*things, out=where)


def test_a_page_is_not_written_into_a_store_or_a_set(tmp_path: Path) -> None:
    fill(tmp_path / "store", identity(), 2)
    images, more = (draw_images(tmp_path / name, per_class=1) for name in ("images", "more"))
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path / "store", images):
        with pytest.raises(InputError, match="--out"):
            page_of(tmp_path / "store", images, more, out=folder / "page.html")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_is_replaced_only_when_told(tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "page.html"
    page_of(run, out=out)
    with pytest.raises(InputError, match=r"exists already.*--replace"):
        page_of(run, out=out)
    make_run(tmp_path / "second", seed=1)
    assert "2 runs" in page_of(run, tmp_path / "second", out=out, replace=True)


def test_the_card_of_a_store_counts_its_labels(tmp_path: Path) -> None:
    content = fill(tmp_path / "store", identity(encoding="float16"), 4)
    card = store_card(tmp_path / "store", 6)
    assert "48 labels of 3 columns: 12 images in 2 classes, 4 views of each" in card.subtitle
    (sheet,) = all_of(card, Sheet)
    assert isinstance(sheet, Sheet)
    assert len(sheet.tiles) == 4  # the crops that the first block keeps
    logits = content.logits.astype(np.float16)
    targets = content.targets[content.order]
    names = {0: "cat", 1: "dog", 2: "column 2 (no class here)"}
    for tile in sheet.tiles:
        (row,) = [row for row in range(4) if np.array_equal(content.crops[row], tile.pixels)]
        choice = int(logits[0, row].argmax())
        assert tile.title == names[targets[0, row]]
        assert tile.lines[0].startswith(f"{names[choice]} ")
        assert tile.right == (choice == targets[0, row])
    right = 100 * (logits.argmax(axis=2) == targets).mean()
    texts = [item.text for item in card.items if isinstance(item, Text)]
    assert any(
        f"48 labels were looked at: the first choice of 3 columns is the target for {right:.2f} % of them (chance 33.33"
        in text
        for text in texts
    )


def test_stores_that_are_not_whole_have_a_card_that_states_it(tmp_path: Path) -> None:
    fill(tmp_path / "begun", identity(), 4, written=2)
    fill(tmp_path / "empty", identity(), 4, written=0)
    for name, sheet in (("begun", "first crops are not written yet"), ("empty", "first crops are not written yet")):
        card = store_card(tmp_path / name, 6)
        texts = " ".join(item.text for item in card.items if isinstance(item, Text))
        assert "Not complete: 0 of 4 requested views can be read" in texts
        assert sheet in texts
        assert "no labels to look at" in texts
        assert not all_of(card, Sheet)
    assert "0 labels of 3 columns" in page_of(tmp_path / "begun", out=tmp_path / "page.html")


def test_runs_of_other_test_images_are_grouped_apart(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / "a/seed-0", (10.0, 30.0)),
        make_run(tmp_path / "a/seed-1", (20.0, 40.0), seed=1),
        make_run(tmp_path / "b", (15.0, 25.0), loss="mse"),
        make_run(tmp_path / "other", (50.0, 90.0), test="elsewhere", test__digest="d" * 64),
    ]
    section = runs_section(folders)
    assert "tested on 2 different sets of images" in section.text
    cards = [part for part in section.parts if isinstance(part, Card)]
    assert [card.title for card in cards] == ["Tested on test", "Tested on elsewhere"]
    (first,) = all_of(cards[0], Table)
    assert isinstance(first, Table)
    names = [column.name for column in first.columns]
    rows = [dict(zip(names, (cell.text for cell in row), strict=True)) for row in first.rows]
    assert [row["last top-1, %"] for row in rows] == ["35.00 ± 7.07", "25.00"]
    assert [row["loss"] for row in rows] == ["kl", "mse"]
    assert [row["runs in"] for row in rows] == ["a", "b"]
    assert [cell.mark for row in first.rows for cell in row if cell.mark] == ["good"]
    expected = table([read_run(folder) for folder in folders[:3]])  # of `giftwrap compare`
    assert [row[names.index("best top-1, %")].value for row in first.rows] == [row.best.mean for row in expected]
    text = page_of(*folders, out=tmp_path / "page.html")
    assert "cannot be compared" in text
    assert text.count("90.00") >= 1


def test_seeds_are_one_curve_in_a_band(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"seed-{seed}", (10.0 + seed, 30.0 - seed), seed=seed) for seed in range(3)]
    (card,) = runs_section(folders).parts
    assert isinstance(card, Card)
    (plots,) = all_of(card, Plots)
    assert isinstance(plots, Plots)
    (top1,) = [plot for plot in plots.plots if isinstance(plot, LinePlot) and plot.y_label == "test top-1, %"]
    (curve,) = top1.curves
    assert list(curve.points) == [(1, 11.0), (2, 29.0)]
    assert (list(curve.low), list(curve.high)) == ([10.0, 28.0], [12.0, 30.0])


def test_unfinished_runs_are_named_and_not_averaged(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", (99.0,), epochs=1, seed=1)]
    (card,) = runs_section(folders).parts
    assert isinstance(card, Card)
    texts = " ".join(item.text for item in card.items if isinstance(item, Text))
    assert "Not finished, and not averaged" in texts
    assert "b: epoch 1 of 2" in texts
    (found,) = all_of(card, Table)
    assert isinstance(found, Table)
    assert [cell.text for cell in found.rows[0][:4]] == [tmp_path.name, "20.00", "20.00", "1 (+1 unfinished)"]


JUNK: tuple[Any, ...] = (None, "text", -1, 1.5, True, [], [1], {}, {"a": 1}, float("nan"), float("inf"), 10**30)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of a document, its own among them."""
    yield path
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(each, (*path, key))


def with_junk(value: Any, path: tuple[str | int, ...], junk: Any) -> Any:
    """A document with something else at a place."""
    if not path:
        return junk
    changed = copy(value)
    changed[path[0]] = with_junk(value[path[0]], path[1:], junk)
    return changed


def refusal(folders: list[Path]) -> str:
    """Why runs are refused; empty where they have a page."""
    try:
        section = runs_section(folders)
    except InputError as error:
        return str(error)
    render(Page(title="runs", sections=[section]))
    return ""


@pytest.mark.parametrize("damaged", ["config.json", "log.jsonl"])
def test_a_damaged_run_has_a_row_or_is_refused_by_file(tmp_path: Path, damaged: str) -> None:
    make_run(tmp_path / "runs/a")
    file = make_run(tmp_path / "runs/b", seed=1) / damaged
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    refused = 0
    for number, path in enumerate(leaves(lines[-1])):
        for junk in (JUNK * 2)[number * 3 % len(JUNK) :][:3]:  # all of it after every fourth value
            changed = [*lines[:-1], with_junk(lines[-1], path, junk)]
            file.write_text("".join(json.dumps(line) + "\n" for line in changed))
            found = [each.path for each in find([tmp_path / "runs"])]
            assert found == find_runs([tmp_path / "runs"]), "a damaged run is passed over without a word"
            why = refusal(found)
            assert str(file.parent) in why or not why
            assert "\n" not in why
            refused += bool(why)
    assert refused > 2
    file.write_text("[" * 100_000)
    for read in (lambda: runs_section([file.parent]), lambda: table([read_run(file.parent)])):
        with pytest.raises(InputError, match=damaged):
            read()


def test_a_store_whose_root_is_damaged_is_named_as_one(tmp_path: Path) -> None:
    fill(tmp_path / "things/store", identity(), 2)
    (tmp_path / "things/store/zarr.json").write_text("{")
    with pytest.raises(GiftwrapError, match=r"store/zarr.json: .*restore it from a copy"):
        page_of(tmp_path / "things", out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_sheet_of_samples_that_is_damaged_is_left_out_with_a_note(tmp_path: Path) -> None:
    folder = make_generator(tmp_path / "model", ("ant", "bee"))
    (folder / "samples-mine.png").write_bytes(b"mine")
    assert all_of(generator_card(folder, 12), Sheet)
    (folder / "samples-000012.png").write_bytes((folder / "samples-000012.png").read_bytes()[:40])
    card = generator_card(folder, 12)
    assert not all_of(card, Sheet)
    assert any(isinstance(item, Text) and "samples-000012.png cannot be read" in item.text for item in card.items)


def test_the_card_of_a_folder_of_images(tmp_path: Path) -> None:
    images = draw_images(tmp_path / "set", per_class=3, classes=("n01440764", "n02102040-springer", "<b>own"))
    card = set_card(images, 4)
    (sheet,) = all_of(card, Sheet)
    assert isinstance(sheet, Sheet)
    assert sorted({tile.title for tile in sheet.tiles}) == ["<b>own", "English springer", "tench"]
    assert len(sheet.tiles) == 4
    assert any(isinstance(item, Text) and "No record of how the set was made" in item.text for item in card.items)
    assert "9 images in 3 classes" in card.subtitle


def test_samples_of_a_generator_are_named_by_their_classes(tmp_path: Path) -> None:
    classes = tuple(f"class {number}" for number in range(13))
    card = generator_card(make_generator(tmp_path / "model", classes), 12)
    (sheet,) = all_of(card, Sheet)
    assert isinstance(sheet, Sheet)
    assert [tile.title for tile in sheet.tiles] == [*classes[:12]]
    assert [np.unique(tile.pixels).tolist() for tile in sheet.tiles] == [[number] for number in range(12)]
    assert "after 12 steps" in sheet.caption


def test_columns_have_names() -> None:
    assert class_title("n01440764") == "tench"
    assert class_title("n02102040-springer") == "English springer"
    assert class_title("n014407640") == "n014407640"
    assert class_title("n99999999") == "n99999999"
    assert class_title("cat") == "cat"
    assert class_title("n02012849") != class_title("n03126707")  # both are cranes
    imagenet = make_identity(10, 1000, classes=("n01440764", "n02102040"), class_columns=(0, 217))
    titles = column_titles(imagenet)
    assert len(titles) == 1000
    assert title_of(titles, 912) == "worm fence"
    other = make_identity(10, 1000, classes=("n01440764", "n02102040"), class_columns=(1, 217))
    assert title_of(column_titles(other), 912) == "column 912 (no class here)"


def test_the_summary_lists_what_is_on_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "page.html"
    report(from_flags(ReportConfig, things=(run,), out=out), Console(as_json=True))
    values = json.loads(capsys.readouterr().out)
    assert values["runs"] == [str(run)]
    assert values["stores"] == []
    assert values["bytes"] == out.stat().st_size < 3_000_000


def test_a_store_is_not_changed_by_its_card(tmp_path: Path) -> None:
    fill(tmp_path / "store", identity(), 2)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    store_card(tmp_path / "store", 6)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert LabelStore.open(tmp_path / "store").complete
