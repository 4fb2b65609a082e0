"""The picture of runs, and what a run's log tells others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from trainer.plot import plot
from trainer.run_log import open_log
from trainer.runs import read_log
from trainer.runs_config import PlotConfig


def entry(epoch: int, **more: float | None) -> dict[str, float | None]:
    return {"epoch": epoch, "loss": 1 / (epoch + 1), "lr": 1e-3, **more}


def test_runs_are_drawn_on_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, epochs in (("a", 3), ("b", 5)):
        (tmp_path / name).mkdir()
        with open_log(tmp_path / name, 0, pytest.fail) as log:
            for epoch in range(epochs):
                log(entry(epoch, **({"test_top1": 10.0, "test_loss": None} if epoch == 2 else {})))
    out = tmp_path / "curves.png"
    found = plot(from_flags(PlotConfig, runs=(tmp_path / "a", tmp_path / "b"), out=out), Console(as_json=True))
    assert found == {str(tmp_path / "a"): 3, str(tmp_path / "b"): 5}
    assert json.loads(capsys.readouterr().out)["epochs"] == found
    with Image.open(out) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 100


@pytest.mark.parametrize("text", [None, "", "no json}\n", "[1]}\n", '{"loss": 1}\n'])
def test_what_is_no_run_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"log\.jsonl: expected"):
        read_log(tmp_path)


def test_a_missing_run_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_log(tmp_path / "none")
    assert str(error.value).count("none/log.jsonl") == 1
    assert "No such file or directory" in str(error.value)


def test_what_was_said_after_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    with open_log(tmp_path, 0, pytest.fail) as log:
        for epoch in range(4):
            log(entry(epoch))
    with open_log(tmp_path, 2, pytest.fail) as log:
        log(entry(2, test_top1=1.0))
    assert read_log(tmp_path) == [entry(0), entry(1), entry(2, test_top1=1.0)]


def test_a_log_that_lacks_epochs_is_said(tmp_path: Path) -> None:
    path, warnings = tmp_path / "log.jsonl", list[str]()
    path.write_text('{"epoch": 0}\n{"epoch": 1, "lo\n[2]\n{"epoch": 3}\n')
    with open_log(tmp_path, 4, warnings.append) as log:
        log(entry(4))
    assert read_log(tmp_path) == [{"epoch": 0}, {"epoch": 3}, entry(4)]
    assert warnings == [f"{path}: expected a line for each of 4 epochs, found 2; the others cannot be restored"]


@pytest.mark.parametrize("out", ["curves.xyz", "no folder/curves.png", "."])
def test_a_picture_that_could_not_be_written_is_refused_first(tmp_path: Path, out: str) -> None:
    with pytest.raises(InputError, match="--out: expected"):
        from_flags(PlotConfig, runs=(tmp_path,), out=tmp_path / out)


def test_scalars_for_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with open_log(tmp_path, 0, pytest.fail, tensorboard=True) as log:
        for epoch in range(3):
            log(entry(epoch, test_loss=None))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "lr"]
    assert [round(event.value, 6) for event in events.Scalars("loss")] == [1.0, 0.5, 0.333333]
