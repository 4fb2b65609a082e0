"""The label-cost claim: its cells, what is done again, and when a peer lies above our stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmarks.studies import label_cost
from benchmarks.studies.jobs import startable
from benchmarks.studies.label_cost_cells import REAL, TOY, Cell, Scale, cells
from benchmarks.studies.label_cost_run import Lab, adapted_at
from benchmarks.studies.ledger import Ledger, run_cells
from labelstore.errors import InputError
from pipeline.networks.lora import choose


@pytest.mark.parametrize("scale", [REAL, TOY])
def test_labels_are_made_before_students_need_them_and_all_ways_have_all_seeds(scale: Scale) -> None:
    every, made = [*cells(scale)], set[tuple[str, str]]()
    assert len(every) == len({cell.name for cell in every})
    for cell in every:
        if cell.seed is None:
            made.add((cell.frontier, cell.way))
        assert (cell.frontier, cell.way) in made
    ways = sum(len(frontier.ways) for frontier in scale.frontiers)
    assert len(every) == ways * (2 + len(scale.seeds))
    assert all(cell.timed for cell in every[-ways:])


class Quick(Lab):
    """A lab whose cells take no time, and which lists them."""

    def run(self, cell: Cell) -> dict[str, Any]:
        with (self.folder / "done").open("a") as file:
            file.write(f"{cell.name}\n")
        if cell.seed is not None:
            return {"top1": 40.0 + cell.seed, "seconds": 0.1}
        if cell.timed:
            return {"labelling": 1.0, "training": 0.0, "seconds": 0.1}
        return {"bytes": 10, "bytes_with_encoder": 20, "seconds": 0.1}


def test_finished_cells_are_not_done_again_and_points_are_means_of_their_seeds(tmp_path: Path) -> None:
    lab, ledger = Quick(REAL, tmp_path, tmp_path), Ledger[Cell](tmp_path / "cells.jsonl")
    run_cells(label_cost.Work(lab, ledger), ledger, float("inf"))
    done = (tmp_path / "done").read_text().splitlines()
    ways = sum(len(frontier.ways) for frontier in REAL.frontiers)
    assert len(done) == len({*done}) == ways * (2 + REAL.enough) == len([*cells(REAL)]) - ways
    again = Ledger[Cell](ledger.path)
    assert label_cost.Work(lab, again).to_do() == []
    (point, *_), narrow = (label_cost.points_of(each, REAL, again) for each in REAL.frontiers)
    assert (point["way"], point["bytes"], point["bytes_with_encoder"]) == ("float16", 10, 20)
    assert (point["seconds"], point["top1"], point["seeds"]) == (1.0, 40.5, 2)
    ledger.add(Cell(frontier="wide", way="float16", seed=2), {"top1": 42.0})
    (point, *_) = label_cost.points_of(REAL.frontiers[0], REAL, ledger)
    assert (point["top1"], point["seeds"]) == (41.0, 3)
    assert {"projector of rank 2", "projector of rank 32"} <= {each["way"] for each in narrow}
    lines = ledger.path.read_text().splitlines()
    ledger.path.write_text("".join(f"{line}\n" for line in lines[1:]))
    left = Ledger[Cell](ledger.path)
    assert len(label_cost.points_of(REAL.frontiers[0], REAL, left)) == len(REAL.frontiers[0].ways) - 1


def test_seconds_are_measured_while_nothing_else_runs(tmp_path: Path) -> None:
    ledger, running = Ledger[Cell](tmp_path / "cells.jsonl"), list[Cell]()
    work = label_cost.Work(Quick(REAL, tmp_path, tmp_path), ledger)
    while left := work.to_do():
        running += startable(work, left, running, 6)
        assert len(running) == 1 or not any(cell.timed for cell in running)
        assert all(needed in ledger for cell in running for needed in work.needs(cell))
        ledger.add(running.pop(), {})
    assert all(line["cell"]["timed"] for line in ledger.lines[-17:])


def test_a_peer_lies_above_when_none_of_ours_has_so_few_bytes_and_so_much_accuracy() -> None:
    def point(way: str, kind: str, size: int, whole: int, top1: float) -> dict[str, Any]:
        return {"way": way, "kind": kind, "bytes": size, "bytes_with_encoder": whole, "top1": top1}

    ours = [point("float16", "float16", 1000, 1000, 60.0), point("int8", "convert", 100, 100, 50.0)]
    assert label_cost.above([*ours, point("p", "projector", 150, 2000, 55.0)]) == [{"way": "p", "counted": "bytes"}]
    assert label_cost.above([*ours, point("t", "topk", 150, 150, 50.0)]) == []
    assert [each["way"] for each in label_cost.above([*ours, point("t", "topk", 50, 50, 5.0)])] == ["t", "t"]


def test_full_size_needs_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIFTWRAP_DATA", raising=False)
    with pytest.raises(InputError, match="GIFTWRAP_DATA"), label_cost.places(quick=False):
        pass


def test_projectors_adapt_the_layers_that_their_rank_fits() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 40, 1), nn.Linear(40, 10))
    assert adapted_at(network, 8) is None
    assert [place.module for place in choose(network, adapted_at(network, 9), 9)] == ["3"]
