"""The study of generated CIFAR-10 images: its distance, its cells and their order, and the whole at toy size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import cifar_generator as study
from benchmarks.studies import image_sets_cells
from benchmarks.studies.cifar_generator_cells import METHODS, REAL, TOY, Model, Scale, cells
from benchmarks.studies.cifar_generator_table import Results
from benchmarks.studies.feature_distance import Seen, feature_distance
from benchmarks.studies.image_sets_cells import LABELS
from benchmarks.studies.ledger import Ledger


def test_the_distance_is_that_of_the_gaussians() -> None:
    draw = np.random.default_rng(0)
    one = draw.normal(size=(500, 6)) @ draw.normal(size=(6, 6))
    two = draw.normal(size=(400, 6)) @ draw.normal(size=(6, 6)) + draw.normal(size=6)
    linalg = pytest.importorskip("scipy.linalg")
    first, second = np.cov(one.T), np.cov(two.T)
    cross = np.trace(linalg.sqrtm(first @ second)).real
    expected = np.square(one.mean(0) - two.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * cross
    assert feature_distance(one, two) == pytest.approx(expected, rel=1e-9)
    assert feature_distance(two, one) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_known_cases() -> None:
    draw = np.random.default_rng(1)
    one = draw.normal(size=(300, 4))
    assert feature_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert feature_distance(one, one + 3) == pytest.approx(4 * 9, rel=1e-9)
    scales = np.array([1.0, 2.0, 3.0, 0.0])  # a feature that never changes has no root of its own
    centred = one - one.mean(0)
    roots = np.linalg.svd(centred, compute_uv=False) / np.sqrt(len(one) - 1)
    assert feature_distance(centred, 2 * centred) == pytest.approx(np.square(roots).sum(), rel=1e-9)
    assert feature_distance(centred * scales, centred * scales) == pytest.approx(0, abs=1e-7)


def test_the_first_images_of_each_class() -> None:
    targets = np.array([1, 0, 1, 1, 0])
    seen = Seen(np.arange(5.0)[:, None], np.ones(5, np.bool_), targets)
    assert seen.first(2)[:, 0].tolist() == [1, 4, 0, 2]


@pytest.mark.parametrize("scale", [REAL, TOY])
def test_generators_and_sets_come_before_what_needs_them(scale: Scale) -> None:
    every, made = cells(scale, "m"), set[tuple[str, int, int]]()
    assert len(every) == len({cell.name for cell in every})
    for cell in every:
        if cell.kind == "set":
            made.add((cell.method, cell.per_class, cell.seed))
        assert cell.kind != "student" or (cell.method, cell.per_class, cell.seed) in made
    assert [cell.kind for cell in every if cell.kind in ("generator", "judged")] == ["generator", "judged"]
    sets = len(METHODS) * (len(scale.sets.seeds) + len(scale.sets.epochs) - 1)
    assert len(made) == sets
    assert sum(cell.kind == "student" for cell in every) == sets * len(LABELS)


def test_students_of_real_images_are_those_of_the_other_study(tmp_path: Path) -> None:
    others = Ledger[image_sets_cells.Cell](tmp_path / "image-sets.jsonl")
    theirs = image_sets_cells.student_cell("cifar10", "rded", 10, 2, "gift", "convnet-d3")
    assert theirs in image_sets_cells.cells(image_sets_cells.REAL, {})
    others.add(theirs, {"top1": 40.0})
    results = Results(tmp_path / "own.jsonl", REAL, others)
    assert results.top1("rded", "", 10, "gift") == [40.0]
    assert results.top1("random", "", 10, "gift") == []
    assert all(results.of(cell) is None for cell in cells(REAL, "m") if cell.model or cell.per_class == 50)
    for name in ("epochs", "batches"):
        assert getattr(REAL.sets, name)[10] == getattr(image_sets_cells.REAL, name)[10]


def test_models_of_other_numbers_have_other_cells() -> None:
    names = {Model().name, Model(training=5).name, Model(backbone="uvit-s").name, Model(vae="none", side=32).name}
    assert len(names) == 4
    for name in names:
        assert not {*name} & {*'/{}": '}


def test_the_whole_study_at_toy_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", "--quick"])
    assert study.main() == 0
    folder = Path("runs/cifar-generator-quick")
    text, path = (folder / "cifar-generator.md").read_text(), folder / "cifar-generator.jsonl"
    assert capsys.readouterr().out.endswith(f"{text}\n")
    assert "is not FID" in text
    found = {line["cell"]["kind"]: line for line in map(json.loads, path.read_text().splitlines())}
    assert found["generator"]["steps"] == 2
    assert (found["judged"]["images"], len(found["judged"]["by_class"])) == (20, 10)
    assert found["judged"]["distance"] > 0
    assert (folder / "cifar-generator.png").exists()
    before = path.read_bytes()
    assert study.main() == 0
    assert path.read_bytes() == before


def test_a_dry_run_needs_no_data_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GIFTWRAP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", "--quick", "--dry-run"])
    assert study.main() == 0
    assert "15 cells, 15 of them to do" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]
