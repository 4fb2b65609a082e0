"""The study of early teachers at toy size: its cells and their order, what they train, resuming, tables."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.step import draw_set
from benchmarks.studies import thousand_images as study
from benchmarks.studies import thousand_table as table
from benchmarks.studies.ledger import run_cells
from benchmarks.studies.thousand_cells import CIFAR, TOY, Cell, Scale, cells, kept, student
from benchmarks.studies.thousand_plain import Loop, conv_net, plain_top1, read_folder
from benchmarks.studies.thousand_results import Results
from benchmarks.studies.thousand_run import Lab, Pace
from labelstore import LabelStore
from pipeline.networks import build_network
from tests.journeys.world import SERVER

EXPERT = Cell(kind="expert", epochs=2)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Ten classes of four drawn images, and an expert of them."""
    folder = tmp_path_factory.mktemp("study")
    for split in ("train", "test"):
        draw_set(folder / "data" / split, TOY.images, (TOY.side, TOY.side))
    made = Lab(TOY, folder, folder / "data")
    made.run(EXPERT)
    return made


# --- the cells ---


@pytest.mark.parametrize("scale", [CIFAR, TOY])
def test_wherever_the_order_is_cut_the_experts_of_all_students_come_first(scale: Scale) -> None:
    every = cells(scale, {})
    assert len(every) == len({cell.name for cell in every}) == len(set(every))
    labels: set[int] = set()
    for cell in every:
        if cell.kind == "expert" and cell.seed == 0:
            labels |= {epoch for epoch in (*scale.experts, scale.later) if epoch <= cell.epochs}
        assert cell.expert is None or cell.expert in labels


def test_the_adamw_students_have_the_labels_of_the_best_expert() -> None:
    found = [cell.expert for cell in cells(CIFAR, {1: 4, 10: 8}) if cell.optimizer == "AdamW"]
    assert found == [4, 8]


def test_the_first_seed_of_every_question_comes_before_the_longer_expert() -> None:
    names = [cell.name for cell in cells(CIFAR, {})]
    later = names.index("expert-seed0-32-epochs")
    for name in ("ipc50-expert16-seed0", "ipc10-hard-seed2", "ipc1-expert2-swap=3-seed2", "ipc10-expert2-drop-seed0"):
        assert names.index(name) < later


# --- what they train ---


def test_more_images_contain_fewer_and_seeds_and_classes_differ(lab: Lab) -> None:
    def drawn(per_class: int, seed: int, **more: Any) -> dict[str, set[str]]:
        root = lab.images(student(TOY, per_class, 1, seed, **more))
        return {folder.name: {file.name for file in folder.iterdir()} for folder in root.iterdir()}

    one, two = drawn(1, 0), drawn(2, 0)
    assert {len(names) for names in one.values()} == {1}
    assert {len(names) for names in two.values()} == {2}
    assert all(one[name] < two[name] for name in lab.classes)
    assert drawn(1, 1) != one
    indexes = {name: int(next(iter(names))[:-4]) // 10 for name, names in one.items()}
    assert len(set(indexes.values())) > 1
    assert drawn(1, 0, missing=True) == {name: one[name] for name in lab.classes[:-3]}
    for file in two["class 3"]:
        copy = lab.folder / "images" / "ipc2-seed0" / "class 3" / file
        assert copy.read_bytes() == (lab.data / "train" / "class 3" / file).read_bytes()


@pytest.mark.parametrize(
    "cell",
    [
        student(TOY, 2, 2),
        student(TOY, 1, None, 1),
        student(TOY, 1, 1, missing=True),
        student(TOY, 1, 1, relabel=("drop-others",)),
        student(TOY, 1, 2, optimizer="AdamW"),
    ],
    ids=lambda cell: cell.name,
)
def test_students_are_trained_as_their_cells_name_them(lab: Lab, cell: Cell) -> None:
    found = lab.run(cell)
    assert found["top1"] == pytest.approx(100 * sum(found["hits"]) / TOY.tests)
    assert (len(found["hits"]), found["steps"]) == (10, 2)
    made_of = json.loads((lab.folder / "students" / cell.name / "config.json").read_text())["made_of"]
    assert made_of["optimizer"]["name"] == cell.optimizer
    assert made_of["optimizer"]["lr"] == (0.01 if cell.optimizer == "SGD" else 0.001)
    assert made_of["loss"]["name"] == ("ce" if cell.expert is None else "soft_ce")
    text = json.dumps(made_of)
    assert "dsa=one" in text
    assert made_of["run"]["batch_size"] == cell.batch
    assert ("drop-others=class 7,class 8,class 9" in text) == bool(cell.relabel)
    if cell.expert is not None:
        store = LabelStore.open(lab.folder / "labels" / f"{lab.images(cell).name}-expert{cell.expert}")
        assert (store.identity.columns, store.state.views_sealed) == (10, 1)
        assert len(store.identity.classes) == (7 if cell.missing else 10)


def test_a_longer_expert_continues_the_shorter_one_and_keeps_its_epochs(lab: Lab) -> None:
    before = lab.weights(2).read_bytes()
    rows = lab.run(Cell(kind="expert", epochs=TOY.later))["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["agreement"] == 100
    assert lab.weights(2).read_bytes() == before
    assert lab.run(Cell(kind="expert", epochs=1, seed=1))["epochs"][0]["epoch"] == 1


def test_the_plain_loop_has_the_same_network_and_learns(tmp_path: Path) -> None:
    loop = Loop(2, 8, 8, 0.05, 0.9, (0.5,) * 3, (0.25,) * 3)
    plain = conv_net(loop, 16, 10).eval()
    ours = build_network("convnet-d2", {"width": 8}, 10, size=16).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), plain.state_dict().values(), strict=True)))
    crops = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(plain(crops), ours(crops), rtol=1e-4, atol=1e-5)

    for index in range(24):  # dark, and bright
        folder = tmp_path / f"class {index % 2}"
        folder.mkdir(exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 100, (16, 16, 3)) + 150 * (index % 2)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{index}.png")
    pixels, targets = read_folder(tmp_path)
    assert (pixels.shape, targets.tolist()) == ((24, 3, 16, 16), [0] * 12 + [1] * 12)
    assert (pixels[12:].float().mean() - pixels[:12].float().mean()) == pytest.approx(150, abs=5)
    assert plain_top1(tmp_path, tmp_path, loop, 8, 0) == 100
    assert plain_top1(tmp_path, tmp_path, loop, 1, 3) == plain_top1(tmp_path, tmp_path, loop, 1, 3)


def test_the_pace_is_of_steps_and_test_images() -> None:
    pace = Pace(TOY)
    short = student(TOY, 1, 1)
    long = Cell(**{**vars(short), "epochs": 2_000})
    per_step = (pace.seconds(long) - pace.seconds(short)) / 1_998
    assert per_step == pytest.approx(pace.train_s(1, 10))
    assert pace.seconds(Cell(kind="expert", epochs=TOY.later)) < pace.seconds(Cell(kind="expert", epochs=200))


# --- finished cells are not trained again ---


class Quick(Lab):
    """A lab that only writes down what it would train; a file is the weights of its experts."""

    def run(self, cell: Cell) -> dict[str, Any]:
        with (self.folder / "trained").open("a") as file:
            file.write(f"{cell.name}\n")
        if cell.kind == "expert":
            for epoch in kept(self.scale, cell):
                self.weights(epoch, cell.seed).parent.mkdir(parents=True, exist_ok=True)
                self.weights(epoch, cell.seed).touch()
            rows = [{"epoch": epoch, "top1": 9.0, "loss": 1.0, "entropy": 1.0} for epoch in kept(self.scale, cell)]
            return {"epochs": rows, "seconds": 1.0}
        if cell.kind == "plain":
            return {"epochs": [{"epoch": cell.epochs, "top1": 9.5}], "seconds": 1.0}
        return {"top1": 10.0 + (cell.expert or 0), "hits": [1] * 10, "steps": 1, "seconds": 1.0}


def killed(folder: Path, after: int) -> None:
    """Run the study, and be killed in the middle of a line."""
    results = Results(folder / "results.jsonl")
    add = results.add

    def add_and_die(cell: Cell, values: Any) -> None:
        add(cell, values)
        if len((folder / "trained").read_text().splitlines()) == after:
            with results.path.open("a") as file:
                file.write('{"cell": {"kind": "stud')
            os.kill(os.getpid(), signal.SIGKILL)

    results.add = add_and_die  # type: ignore[method-assign]
    run_cells(study.Study(Quick(TOY, folder, folder), Pace(TOY), results), results, 60)


def test_a_study_that_is_killed_between_cells_trains_each_once(tmp_path: Path) -> None:
    for after in (3, 9):
        process = SERVER.Process(target=killed, args=(tmp_path, after))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    results = Results(tmp_path / "results.jsonl")
    run_cells(study.Study(Quick(TOY, tmp_path, tmp_path), Pace(TOY), results), results, 60)
    trained = (tmp_path / "trained").read_text().splitlines()
    assert sorted(trained) == sorted(cell.name for cell in cells(TOY, results.best(TOY)))
    assert len(trained) == len(set(trained))
    again = Results(tmp_path / "results.jsonl")
    assert again.top1(TOY, 1, 2) == [12.0, 12.0]
    run_cells(study.Study(Quick(TOY, tmp_path, tmp_path), Pace(TOY), again), again, 60)
    assert (tmp_path / "trained").read_text().splitlines() == trained


def test_experts_whose_weights_are_gone_are_trained_again_without_a_line(tmp_path: Path) -> None:
    lab, results = Quick(TOY, tmp_path, tmp_path), Results(tmp_path / "results.jsonl")
    results.add(EXPERT, lab.run(EXPERT))
    lab.weights(1).unlink()
    assert study.Study(lab, Pace(TOY), results).to_do()[0] == EXPERT
    lines = results.path.read_text()
    lab.run(EXPERT)
    assert EXPERT not in study.Study(lab, Pace(TOY), results).to_do()
    assert results.path.read_text() == lines


def test_the_time_ends_before_the_first_cell_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(Pace):
        def seconds(self, cell: Cell) -> float:
            return 500.0 if cell.kind == "student" else 1.0

    lab, results = Quick(TOY, tmp_path, tmp_path), Results(tmp_path / "results.jsonl")
    run_cells(study.Study(lab, Slow(TOY), results), results, 5)
    assert (tmp_path / "trained").read_text().splitlines() == [
        "expert-seed0-2-epochs", "plain-seed0-1-epochs", "expert-seed1-1-epochs", "plain-seed1-1-epochs",
    ]  # fmt: skip
    assert "the next one takes 8 min 20 s, more than --minutes leaves" in capsys.readouterr().out


def test_a_dry_run_needs_no_data_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GIFTWRAP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", "--quick", "--dry-run", "--minutes", "0.1"])
    assert study.main() == 0
    out = capsys.readouterr().out
    assert "29 cells, 29 of them to do" in out
    assert "ipc1-expert1-drop-seed0" in out
    assert "beyond 0.1 minutes" in out
    assert not [*tmp_path.iterdir()]


# --- tables ---


def test_the_table_has_the_statistics_of_its_lines(tmp_path: Path) -> None:
    rng, results = np.random.default_rng(0), Results(tmp_path / "results.jsonl")
    top1 = {}
    for cell in cells(CIFAR, {1: 4, 10: 4}):
        value = float(rng.uniform(10, 60)) + 100 * (cell.expert == 4)
        top1[cell] = value
        if cell.kind == "student":
            hits = [100 * index for index in range(10)]
            results.add(cell, {"top1": value, "hits": hits})
        else:
            epochs = [*CIFAR.experts, CIFAR.later] if cell.seed == 0 and cell.kind == "expert" else [cell.epochs]
            rows = [{"epoch": epoch, "top1": value, "loss": 1.0, "entropy": 2.0} for epoch in epochs]
            results.add(cell, {"epochs": rows})
    assert results.best(CIFAR) == {1: 4, 10: 4}
    text = table.report(CIFAR, results)
    assert (tmp_path / "results.md").read_text() in text
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")

    def spread(values: list[float]) -> str:
        return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} ({len(values)})"

    hard = [top1[student(CIFAR, 10, None, seed)] for seed in CIFAR.seeds]
    line = next(line for line in text.splitlines() if line.startswith("| hard labels"))
    assert line.split(" | ")[2] == spread(hard)
    assert line.endswith(f"{top1[student(CIFAR, 50, None)]:.2f} |")
    assert "| the paper, best expert | 21.1 (expert of epoch 20) | 46.3 (expert of epoch 44) |" in text
    missing = next(line for line in text.splitlines() if line.startswith("| images of the classes |"))
    assert missing == "| images of the classes | 45.00 ± 0.00 (3) | 80.00 ± 0.00 (3) | 30.00 ± 0.00 (3) |"
    assert table.report(CIFAR, results) == text

    ours, plain = table.comparison(CIFAR, results)
    error = np.sqrt(np.var(ours, ddof=1) / 3 + np.var(plain, ddof=1) / 3)
    assert table.agreement(ours, plain) == pytest.approx(2 * error + 0.5)
    apart = abs(np.mean(ours) - np.mean(plain))
    assert f"{apart:.2f} points apart, {'within' if apart <= 2 * error + 0.5 else 'NOT within'} two" in text


def test_a_table_of_the_first_cells_leaves_out_the_rest(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    results.add(student(TOY, 1, 1), {"top1": 12.5, "hits": [1] * 10})
    text = table.report(TOY, results)
    assert "| expert, epoch 1 | 12.50 |  |" in text
    assert "## AdamW" not in text
    assert "## Experts" not in text
