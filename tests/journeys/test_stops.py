"""Commands that are stopped by a signal, and images that do not decode."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from labelstore import LabelStore, check
from pipeline.__main__ import main
from tests.journeys.world import Running, World, giftwrap, start


def wait_for(path: Path, running: Running) -> None:
    """Wait until a file is there; fail when the command ends first."""
    while running.process.is_alive() and not path.exists():
        running.process.join(0.01)
    assert path.exists(), running.end()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_build_says_how_to_resume(number: int, code: int, world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = world.build_words(store, "--views", 40_000)
    running = start(tmp_path, *words)
    wait_for(store / "markers" / "0.0.json", running)
    assert running.process.pid
    second = giftwrap(*words)
    assert second.code == 1
    assert str(running.process.pid) in second.err
    os.kill(running.process.pid, number)
    ended = running.end()
    assert ended.code == code
    assert "stopping after the current block" in ended.err
    assert "-m pipeline build --images" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    assert not (store / "lease.json").exists()
    assert LabelStore.open(store).missing()


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_an_image_that_goes_or_changes_during_a_build_is_named(how: str, world: World, tmp_path: Path) -> None:
    images = shutil.copytree(world.images, tmp_path / "images")
    store, victim = tmp_path / "store", images / "bee" / "03.jpg"
    words = world.build_words(store, "--images", images, "--views", 40_000, "--cache-gib", 0)
    running = start(tmp_path, *words)
    wait_for(store / "markers" / "0.0.json", running)
    other = tmp_path / "other.jpg"
    with Image.open(victim) as picture:
        picture.save(other, quality=30)  # of the same sides
    if how == "gone":
        victim.unlink()
    else:
        other.replace(victim)
    ended = running.end()
    assert ended.code == 2
    assert "Traceback" not in ended.err
    *_, error, kept, resume = ended.err.splitlines()
    assert error.startswith(f"error: {victim}: expected the ")
    assert ("found another one" in error) == (how == "changed")
    assert kept == "finished blocks are kept"
    assert resume.startswith("resume with: ")
    assert "-m pipeline build --images" in resume
    assert check(store).ok
    assert not (store / "lease.json").exists()


def test_a_disk_that_fills_during_a_build_names_the_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_descriptor: int, _pieces: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = tmp_path / "store"
    written = giftwrap(*world.build_words(store))
    assert written.code == 0, written.err
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    monkeypatch.setattr(os, "writev", full)
    monkeypatch.setattr(sys, "argv", [str(word) for word in world.build_words(store, "--views", 1000)])
    assert main() == 1
    said = capsys.readouterr().err
    assert re.search(rf"error: {store}/\S+: No space left on device;", said)
    assert "finished blocks are kept\nresume with: " in said


def test_a_port_that_is_taken_stops_a_build_before_it_begins(world: World, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = giftwrap(*world.build_words(tmp_path / "store", "--metrics-port", taken.getsockname()[1]))
    assert ended.code == 2
    assert "--metrics-port" in ended.err
    assert "expected a free port" in ended.err
    assert "resume" not in ended.err
    assert not (tmp_path / "store").exists()


def test_a_stopped_run_says_how_to_resume(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = (
        "trainer", "train", "--store", world.store, "--images", world.images, "--student", "convnet-d2",
        "--epochs", 100_000, "--batch-size", 8, "--threads", 1, "--run", run,
    )  # fmt: skip
    running = start(tmp_path, *words)
    wait_for(run / "checkpoint.pt", running)
    second = giftwrap(*words)
    assert second.code == 1
    assert "another process trains in this folder" in second.err
    assert running.process.pid
    os.kill(running.process.pid, signal.SIGTERM)
    ended = running.end()
    assert ended.code == 143
    assert "-m trainer train --store" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


def test_a_broken_image_stops_the_build_or_is_left_out_everywhere(world: World, tmp_path: Path) -> None:
    images = shutil.copytree(world.images, tmp_path / "images")
    broken = images / "bee" / "03.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    store = tmp_path / "store"
    ended = giftwrap(*world.build_words(store, "--images", images))
    assert ended.code == 2
    assert "bee/03.jpg" in ended.err
    assert "Traceback" not in ended.err
    ended = giftwrap(*world.build_words(store, "--images", images, "--skip-broken", "--json"))
    assert ended.code == 0, ended.err
    assert "left out, cannot be decoded: bee/03.jpg" in ended.err
    info = giftwrap("labelstore", "info", store, "--json").summary
    assert (info["images"], info["skipped"]) == (23, ["bee/03.jpg"])
    trained = giftwrap(
        "trainer", "train", "--store", store, "--images", images, "--student", "convnet-d2", "--epochs", 1,
        "--threads", 1, "--run", tmp_path / "run",
    )  # fmt: skip
    assert trained.code == 0, trained.err
