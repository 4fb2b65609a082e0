"""The table of runs: which are one row, its statistics against numpy's, and what is refused."""

from __future__ import annotations

import csv
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError, MismatchError
from trainer.compare import Row, Statistic, as_markdown, compare, table
from trainer.runs import find_runs, grouped, read_run
from trainer.runs_config import CompareConfig

MADE: dict[str, Any] = {
    "format": 2,
    "store": {
        "identity": {
            "images": 100,
            "manifest": "a" * 64,
            "teacher": {"name": "convnet-d3", "weights": "b" * 64},
            "engine": {"device": "cpu", "threads": 2, "dtype": "float32"},
            "plan": {"size": 16, "seed": 0, "flip": 0.5},
            "encoding": {"name": "int8"},
            "block": {"views": 1},
        },
        "views": 4,
    },
    "run": {"student": "convnet-d3", "epochs": 2, "loss": "kl", "temperature": 20.0, "lr": 0.1, "batch_size": 50,
            "seed": 0, "threads": 2, "processes": 1, "device": "cpu"},
    "loss": {"name": "kl", "temperature": 20.0},
    "versions": {"torch": "2.14"},
    "test": {"images": 10, "skipped": [], "digest": "c" * 64},
}  # fmt: skip


def make_run(
    folder: Path,
    top1: tuple[float, ...] = (10.0, 20.0),
    *,
    epochs: int = 2,
    test: str = "test",
    made: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """The folder of a run of two epochs; ``changed`` are dotted settings, with double underscores for dots.

    ``made`` takes the place of the store.
    """
    made = deepcopy(MADE if made is None else {**{key: MADE[key] for key in MADE if key != "store"}, **made})
    for name, value in changed.items():
        *path, last = name.split("__")
        place = made if path else made["run"]
        for key in path:
            place = place[key]
        place[last] = value
    folder.mkdir(parents=True)
    document = {"made_of": made, "made_with": {"store": "no store", "images": "train", "test_images": test}}
    (folder / "config.json").write_text(json.dumps(document))
    entries = [
        {"epoch": epoch, "step": 2 * (epoch + 1), "crops_per_second": 50.0 * (epoch + 1), "test_top1": top1[epoch]}
        for epoch in range(epochs)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def rows_of(*places: Path, unfinished: bool = False) -> list[Row]:
    return table([read_run(folder) for folder in find_runs(places)], unfinished=unfinished)


@given(st.lists(st.none() | st.floats(0, 100), max_size=6))
def test_statistics_are_numpys(values: list[float | None]) -> None:
    found, numbers = Statistic.of(values), [value for value in values if value is not None]
    assert found.count == len(numbers)
    if numbers:
        assert found.mean == pytest.approx(np.mean(numbers), abs=1e-9)
    if len(numbers) > 1:
        assert found.std == pytest.approx(np.std(numbers, ddof=1), abs=1e-9)
    assert (found.mean is None, found.std is None) == (not numbers, len(numbers) < 2)


def test_runs_that_differ_in_seed_alone_are_one_row(tmp_path: Path) -> None:
    scores = {0: (50.0, 40.0), 1: (30.0, 60.0), 2: (10.0, 20.0)}
    for seed, top1 in scores.items():
        make_run(tmp_path / "a" / f"seed-{seed}", top1, seed=seed)
    (row,) = rows_of(tmp_path)
    last, best = [top1[-1] for top1 in scores.values()], [max(top1) for top1 in scores.values()]
    assert (row.runs, row.differences, row.name) == (3, {}, str(tmp_path / "a"))
    for found, numbers in ((row.last, last), (row.best, best)):
        assert found.mean == pytest.approx(np.mean(numbers))
        assert found.std == pytest.approx(np.std(numbers, ddof=1))
    # 100 crops and 2 steps an epoch: 2 s at 50 crops/s, then 1 s.
    assert row.steps_per_second.mean == pytest.approx(4 / 3)
    assert row.steps_per_second.std == pytest.approx(0)
    assert row.steps_per_second.count == 3
    assert row.label_bytes is None


@pytest.mark.parametrize(
    "changed",
    [
        {"threads": 8},
        {"processes": 4},
        {"device": "cuda"},
        {"versions__torch": "3"},
        {"store__identity__engine": {"device": "cuda", "dtype": "float32"}},
    ],
)
def test_where_and_how_fast_a_run_was_made_is_no_difference(tmp_path: Path, changed: dict[str, Any]) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **changed)
    assert len(rows_of(tmp_path)) == 1


@pytest.mark.parametrize(
    ("seeds", "rows"),
    [
        ([(0, 0), (1, 1), (2, 2)], [3]),  # the plan takes the run's seed
        ([(0, 0), (1, 0), (2, 0)], [3]),  # one plan for all
        ([(0, 0), (1, 0), (0, 7), (1, 7)], [2, 2]),  # two plans, each for two seeds
    ],
)
def test_seeds_of_fresh_crops(tmp_path: Path, seeds: list[tuple[int, int]], rows: list[int]) -> None:
    store = MADE["store"]["identity"]  # whose own seed is 0 and no run's
    labels = {"source": "image", "store": store | {"seed": 0, "plan": {"seed": 0}}, "columns": 4}
    for run, (seed, plan) in enumerate(seeds):
        crops = {"images": 100, "manifest": "a" * 64, "plan": {"size": 16, "seed": plan}}
        make_run(
            tmp_path / f"{run}", seed=seed, made={"crops": crops, "labels": labels, "engine": {"device": f"{run}"}}
        )
    found = rows_of(tmp_path)
    assert [row.runs for row in found] == rows
    assert [row.differences for row in found] == ([{}] if len(rows) == 1 else [{"plan-seed": 0}, {"plan-seed": 7}])


@pytest.mark.parametrize(
    ("changed", "differences"),
    [
        ({"lr": 0.2}, {"lr": (0.1, 0.2)}),
        ({"loss": "mse", "loss__name": "mse"}, {"loss": ("kl", "mse")}),
        ({"temperature": 4.0, "loss__temperature": 4.0}, {"temperature": (20.0, 4.0)}),
        ({"store__views": 8}, {"store.views": (4, 8)}),
        ({"relabel": ["topk=2"], "lr": 0.2}, {"relabel": ([], ["topk=2"]), "lr": (0.1, 0.2)}),
        ({"store__identity__plan__flip": 0.0, "lr": 1.0}, {"lr": (0.1, 1.0), "store.plan.flip": (0.5, 0.0)}),
        ({"store__identity__engine__dtype": "bfloat16"}, {"store.dtype": ("float32", "bfloat16")}),
        ({"store__identity__manifest": "d" * 64}, {"store.manifest": ("a" * 64, "d" * 64)}),
    ],
)
def test_what_differs_is_a_column_and_what_follows_from_it_is_none(
    tmp_path: Path, changed: dict[str, Any], differences: dict[str, tuple[Any, Any]]
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **changed)
    first, second = rows_of(tmp_path)
    found = {name: (value, second.differences[name]) for name, value in first.differences.items()}
    assert {name: value for name, value in found.items() if name != "images"} == differences


def test_unfinished_runs_are_marked_and_averaged_only_where_wanted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", (10.0, 20.0))
    make_run(tmp_path / "b", (60.0,), epochs=1, seed=1)
    (row,) = rows_of(tmp_path)
    assert (row.runs, row.last.mean, row.unfinished) == (1, 20.0, [f"{tmp_path / 'b'}: epoch 1 of 2"])
    assert "| 1 (+1 unfinished) | 20.00 |" in as_markdown([row])
    (row,) = rows_of(tmp_path, unfinished=True)
    assert (row.runs, row.last.mean) == (2, 40.0)


def test_runs_of_other_test_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", test="others", test__digest="e" * 64)
    config = from_flags(CompareConfig, runs=(tmp_path,))
    with pytest.raises(MismatchError, match=r"a \(test\) than for .*b \(others\).*--anyway"):
        compare(config, Console())
    rows = compare(from_flags(CompareConfig, runs=(tmp_path,), anyway=True), Console())
    assert [row.differences for row in rows] == [{"test-images": "test"}, {"test-images": "others"}]
    assert "others" in capsys.readouterr().out


def test_the_table_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lr in (0.1, 0.2):
        for seed in (0, 1):
            make_run(tmp_path / "runs" / f"{lr}-{seed}", (5.0, 10 * lr + seed), seed=seed, lr=lr)
    files = {"csv": tmp_path / "t.csv", "markdown": tmp_path / "t.md"}
    compare(from_flags(CompareConfig, runs=(tmp_path / "runs" / "*",), **files), Console(as_json=True))
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [group["last"] for group in groups] == [
        {"mean": mean, "std": pytest.approx(np.std([0, 1], ddof=1)), "count": 2} for mean in (1.5, 2.5)
    ]
    with files["csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["lr"], line["last_mean"], line["last_count"]) for line in lines] == [
        ("0.1", "1.5", "2"),
        ("0.2", "2.5", "2"),
    ]
    assert files["markdown"].read_text().splitlines()[2].startswith("| 0.1 | 2 | 1.50 ± 0.71 |")
    with pytest.raises(InputError, match=r"t\.csv"):  # nothing is written over
        from_flags(CompareConfig, runs=(tmp_path,), csv=files["csv"])


@pytest.mark.parametrize(
    ("place", "message"),
    [("none", "no such folder"), ("none-*", "matches nothing"), ("empty", "found none in it")],
)
def test_places_without_a_run_are_named(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        find_runs([tmp_path / place])


def test_a_run_is_found_once_in_natural_order_and_stores_are_not_searched(tmp_path: Path) -> None:
    for name in ("seed-10", "seed-9"):
        make_run(tmp_path / name)
    make_run(tmp_path / "store" / "inner")
    (tmp_path / "store" / "zarr.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"another": "program"}')
    assert find_runs([tmp_path, tmp_path / "seed-9"]) == [tmp_path / "seed-9", tmp_path / "seed-10"]


def test_a_config_of_a_run_that_is_cut_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "config.json").write_text('{"made_of": {}}')
    with pytest.raises(InputError, match=r"a/config\.json: expected the config\.json of a run"):
        grouped([read_run(run)])
