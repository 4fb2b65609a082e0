"""What the README says, done: its commands and its training loop, word for word."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from pipeline.networks import build_network, save_weights
from tests.journeys.world import draw_images, giftwrap

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the README's commands take: images, test images, and the weights of a ResNet-56."""
    draw_images(tmp_path / "images", per_class=4)
    draw_images(tmp_path / "test", per_class=4)
    torch.manual_seed(0)
    save_weights(
        build_network("cifar-resnet56", {}, classes=3, size=32).state_dict(), tmp_path / "resnet56.safetensors"
    )
    return tmp_path


def blocks(language: str) -> list[str]:
    """The README's code in a language, with continued lines joined."""
    return [block.replace("\\\n", " ") for block in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)]


def test_commands_and_loop_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [block for block in blocks("sh") if block.startswith("python -m")]
    assert [shlex.split(command)[2:4] for command in commands] == [
        ["pipeline", "build"],
        ["trainer", "train"],
        ["labelstore", "convert"],
        ["labelstore", "info"],
        ["labelstore", "export"],
        ["trainer", "evaluate"],
    ]
    for command in commands:
        ended = giftwrap(*shlex.split(command)[2:], cwd=folder)
        assert ended.code == 0, (command, ended)
    (loop,) = blocks("python")
    monkeypatch.chdir(folder)
    for epochs in (2, 3):  # and on from the checkpoint
        exec(compile(loop.replace("epochs=200", f"epochs={epochs}"), "README.md", "exec"), {})  # noqa: S102  the point
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        assert (saved["replay"]["epoch"], saved["replay"]["position"]) == (epochs, 0)
    steps = [state["step"] for state in saved["optimiser"]["state"].values()]
    assert min(steps) == max(steps) == 3


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"@[A-Z_]+@", README)


def test_every_flag_is_in_the_readme_or_its_help() -> None:
    for package, command in (
        ("pipeline", "build"),
        ("pipeline", "verify"),
        ("pipeline", "show"),
        ("pipeline", "import"),
        ("trainer", "train"),
        ("trainer", "evaluate"),
        ("labelstore", "info"),
        ("labelstore", "check"),
        ("labelstore", "convert"),
        ("labelstore", "export"),
    ):
        text = giftwrap(package, command, "--help").out
        flags = set(re.findall(r"--[a-z][a-z-]*", text)) - {"--help"}
        named = {flag for flag in flags if re.search(rf"{flag}(?![a-z-])", README) or flag.startswith("--no-")}
        assert flags == named, f"`python -m {package} {command}` takes flags that the README does not name"
