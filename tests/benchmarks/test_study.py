"""The studies: what they run, what they print, and which encoding they name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import study
from benchmarks.studies.study import Coded, cheapest

TOP1 = {"float16": 50.0, "int8": 50.0, "transform-0.98": 49.5, "transform-0.95": 48.0, "transform-0.92": 40.0}
BYTES = {"float16": 2000.0, "int8": 1000.0, "transform-0.98": 115.0, "transform-0.95": 59.0, "transform-0.92": 35.0}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The words of the commands that a study runs; none is run, and seeds are a point apart."""
    words_said: list[list[str]] = []

    def command(*words: object) -> dict[str, Any]:
        plain = [str(word) for word in words]
        words_said.append(plain)

        def flag(name: str) -> str:
            return plain[plain.index(name) + 1]

        if plain[1] == "build":
            Path(flag("--store")).mkdir(parents=True)
        if plain[1] == "train":
            top1 = TOP1.get(Path(flag("--store")).name, 30.0) + int(flag("--seed")) - 1
            return {"last": {"top1": top1}, "best": {"top1": top1 + 1}}
        labels = BYTES.get(Path(plain[2]).name)  # of `info`
        return {"bytes_per_label": {"labels": labels, "side": 4.0}, "fidelity": {"unmixed": {"mean": 0.95}}}

    monkeypatch.setattr(study, "command", command)
    monkeypatch.setattr(study, "ROOT", tmp_path / "study")
    monkeypatch.setenv("GIFTWRAP_DATA", str(tmp_path))
    for split in ("train", "test"):
        (tmp_path / "cifar10" / split).mkdir(parents=True)
    return words_said


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["study", *words])
    assert study.main() == 0


def test_what_fidelity_is_worth(
    said: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(monkeypatch, "--only", "fidelity")
    out = capsys.readouterr().out
    assert "  int8                   1000.0    4.0  0.95000    50.00 ± 0.82\n" in out
    assert "transform 0.98 is the cheapest whose mean lies no more than one standard deviation below" in out
    assert [words[1] for words in said].count("train") == 15
    assert [words[4:] for words in said if words[1] == "convert"] == [
        ["--encoding", "int8"],
        *(["--encoding", "transform", "--fidelity", fidelity] for fidelity in ("0.98", "0.95", "0.92")),
    ]
    rows = json.loads((tmp_path / "study" / "fidelity" / "summary.json").read_text())
    assert rows[1] == {"encoding": "int8", "labels": 1000.0, "side": 4.0, "fidelity": 0.95, "top1": [49.0, 50.0, 51.0]}
    folders = [words[words.index("--run") + 1] for words in said if words[1] == "train"]
    assert len(set(folders)) == 15


def test_what_losses_are_worth_and_both_by_default(
    said: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(monkeypatch)
    out = capsys.readouterr().out
    assert "              10  gift     30.00 ± 0.82    31.00 ± 0.82\n" in out
    assert "float16" in out
    assert [words[1] for words in said].count("train") == 18 + 15
    assert len(json.loads((tmp_path / "study" / "summary.json").read_text())) == 6


def test_the_cheapest_is_within_a_deviation_of_the_exact_labels() -> None:
    def rows(**top1: list[float]) -> list[Coded]:
        return [Coded(name, {"float16": 9, "int8": 5}.get(name, 1), 0, 1, values) for name, values in top1.items()]

    exact = [48.0, 50.0, 52.0]  # deviation 1.63
    assert cheapest(rows(float16=exact, int8=[48.4] * 3, tiny=[48.3] * 3)).encoding == "int8"
    assert cheapest(rows(float16=exact, int8=[40.0] * 3, tiny=[99.0] * 3)).encoding == "tiny"
    assert cheapest(rows(float16=exact, int8=[48.0] * 3)).encoding == "float16"
