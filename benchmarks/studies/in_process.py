"""Commands of giftwrap by their flags, in this process and without their prints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelstore import LabelStore
from labelstore.command.command_line import read_command
from labelstore.command.console import Console
from pipeline.__main__ import COMMANDS as PIPELINE
from pipeline.build.build import build
from pipeline.synthesis.synthesize import synthesize
from trainer.__main__ import COMMANDS as TRAINER
from trainer.projecting import train_projector
from trainer.train import train


def machine_flags(device: str, jobs: int) -> tuple[object, ...]:
    """The flags of each command that renders crops: its device, and on a GPU a share of the processor's cores.

    Args:
        device: cpu, cuda or cuda:N.
        jobs: commands at the same time.
    """
    if device == "cpu":
        return ()
    return "--device", device, "--decoder", "cpu", "--threads", max((os.cpu_count() or 1) // jobs, 1)


def run_train(*words: object) -> Mapping[str, Any]:
    """Run `giftwrap train`; its summary."""
    return train(read_command(TRAINER["train"], "train", _typed("train", words)).config, Console(silent=True))


def run_train_projector(*words: object) -> Mapping[str, Any]:
    """Run `giftwrap train-projector`; its summary."""
    name = "train-projector"
    return train_projector(read_command(TRAINER[name], name, _typed(name, words)).config, Console(silent=True))


def run_build(*words: object) -> Mapping[str, Any]:
    """Run `giftwrap build`; its summary."""
    return build(read_command(PIPELINE["build"], "build", _typed("build", words)).config, Console(silent=True))


def run_synthesize(*words: object) -> Mapping[str, Any]:
    """Run `giftwrap synthesize`; its summary."""
    name = "synthesize"
    return synthesize(read_command(PIPELINE[name], name, _typed(name, words)).config, Console(silent=True))


def is_whole(store: Path, views: int) -> bool:
    """Whether a store has its labels of that many views."""
    return LabelStore.exists(store) and LabelStore.open(store).state.views_sealed >= views


def _typed(name: str, words: tuple[object, ...]) -> list[str]:
    return [name, *map(str, words)]
