"""Checkpoints: what goes in comes out, resumed equals uninterrupted, and nothing damaged is believed."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from labelstore.durable import disk
from labelstore.errors import DamagedError, InputError, MismatchError
from trainer.checkpoint import (
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)

CONFIG: dict[str, Any] = {"loss": {"name": "gift", "gamma": 0.1}, "seed": 3, "milestones": (0.5, 0.75)}
CPU = torch.device("cpu")


class Run:
    """A little student with dropout and batch norm, on random crops: it draws from torch's generator."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.4), nn.Linear(144, 5)
        )
        self.network.to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-2)

    def steps(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            loss = self.network(images).square().mean()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            losses.append(loss.item())
        return losses

    def state(self, step: int) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": random_state(CPU),
            "step": step,
            "best": None,
            "replay": {"seed": 7, "view_order": "shuffle"},
        }


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole = Run()
    expected = whole.steps(0, 9)
    first = Run()
    losses = first.steps(0, 4)
    save_checkpoint(tmp_path / "last.pt", first.state(4), CONFIG)

    second = Run()
    second.steps(20, 23)  # another history, and another state of the generator
    state = load_checkpoint(tmp_path / "last.pt", CONFIG)
    second.network.load_state_dict(state["network"])
    second.optimiser.load_state_dict(state["optimiser"])
    restore_random_state(state["random"], CPU)
    assert losses + second.steps(state["step"], 9) == expected
    for name, value in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value), name
    assert state["replay"] == {"seed": 7, "view_order": "shuffle"}
    assert state["best"] is None


def test_a_later_checkpoint_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    others = {"last.pt.partial": b"mine", ".last.pt.partial": b"mine too"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    for step in range(3):
        save_checkpoint(path, {"step": step}, CONFIG)
    assert load_checkpoint(path, CONFIG) == {"step": 2}
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file != path} == others


def test_a_file_that_is_no_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"last\.pt: expected the checkpoint of a run.*move it away"):
        save_checkpoint(path, {"step": 1}, CONFIG)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"mine"]


def test_another_configuration_is_refused_by_its_first_difference(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {}, CONFIG)
    other = {**CONFIG, "loss": {"name": "gift", "gamma": 0.2}}
    with pytest.raises(MismatchError, match=r"\(loss\.gamma\): .*last\.pt has 0\.1, this run has 0\.2; give"):
        load_checkpoint(path, other)
    with pytest.raises(MismatchError, match=r"\(milestones\[1\]\)"):
        load_checkpoint(path, {**CONFIG, "milestones": [0.5, 0.8]})
    with pytest.raises(MismatchError, match=r"\(epochs\): .* has None, this run has 9"):
        load_checkpoint(path, {**CONFIG, "epochs": 9})


def test_every_flipped_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"network": {"weight": torch.arange(40.0)}}, CONFIG)
    whole = path.read_bytes()
    for place in [*range(0, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DamagedError, match=r"last\.pt: its bytes are not those that were written"):
            load_checkpoint(path, CONFIG)
    for length in (0, 10, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            load_checkpoint(path, CONFIG)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def resign(path: Path, content: Any) -> None:
    """Write a file with a right digest around any content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    resign(tmp_path / "last.pt", {"format": 1, "config": "{}", "state": Evil(tmp_path / "ran")})
    with pytest.raises(InputError, match="not a checkpoint of a run"):
        load_checkpoint(tmp_path / "last.pt", {})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [({"format": 99}, "expected format 1, found 99"), ([1, 2], "not a checkpoint"), ({}, "not a checkpoint")],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    resign(tmp_path / "last.pt", content)
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path / "last.pt", {})


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pt: No such file"):
        load_checkpoint(tmp_path / "none.pt", {})


@pytest.mark.parametrize("unnamed", [True, False])
def test_written_aside_flushed_renamed_then_the_folder_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1}, CONFIG)
    calls: list[str] = []

    def record(name: str) -> None:
        real = getattr(disk, name)

        def spy(*args: Any) -> Any:
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(disk, name, spy)

    for name in ("sync_descriptor", "link_unnamed", "replace", "sync_folder", "unlink"):
        record(name)
    if not unnamed:
        monkeypatch.setattr(disk, "open_unnamed", lambda _folder: None)
    save_checkpoint(path, {"step": 2}, CONFIG)
    assert calls == ["sync_descriptor", *(["link_unnamed"] if unnamed else []), "replace", "sync_folder"]
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("step", ["sync_descriptor", "link_unnamed", "replace"])
def test_a_crash_in_any_step_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1}, CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(disk, step, lambda *_: (_ for _ in ()).throw(OSError("power")))
        with pytest.raises(OSError, match="power"):
            save_checkpoint(path, {"step": 2}, CONFIG)
    assert load_checkpoint(path, CONFIG) == {"step": 1}
    save_checkpoint(path, {"step": 2}, CONFIG)
    assert load_checkpoint(path, CONFIG) == {"step": 2}
