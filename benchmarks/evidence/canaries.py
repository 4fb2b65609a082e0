"""Deliberate mistakes on copies of data: which are refused, and how much accuracy the others cost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelstore.errors import GiftwrapError
from pipeline.config import json_object
from pipeline.networks import build_network, save_weights
from trainer.losses import LossSpec, make_loss

LABEL_FILES = "labels/c.*"


def shifted_gift(x: Tensor, t: Tensor, y: Tensor, y2: Tensor, lam: Tensor) -> Tensor:
    """GIFT in which each crop has the label of the crop before it in the batch; arguments as of every loss."""
    loss: Tensor = make_loss(LossSpec(name="gift"))(x, t.roll(1, dims=0), y, y2, lam)
    return loss


def copy(source: str, out: str) -> Mapping[str, Any]:
    """Copy a folder."""
    with whole(Path(out)) as made:
        shutil.copytree(source, made)
    return {}


def shift_labels(store: str, out: str, label_bytes: str) -> Mapping[str, Any]:
    """Copy a store, and rotate the bytes of its label files by one label, which has ``label_bytes`` bytes.

    Raises:
        GiftwrapError: the store has no label files.
    """
    with whole(Path(out)) as made:
        shutil.copytree(store, made)
        files = sorted(made.glob(LABEL_FILES))
        if not files:
            raise GiftwrapError(f"{store}: expected files {LABEL_FILES}, found none")
        for file in files:
            file.write_bytes(np.roll(np.frombuffer(file.read_bytes(), np.uint8), int(label_bytes)).tobytes())
    return {}


def shift_classes(images: str, out: str) -> Mapping[str, Any]:
    """Copy a class folder, and move the images of each class into the folder of the next class."""
    folders = sorted(each for each in Path(images).iterdir() if each.is_dir())
    with whole(Path(out)) as made:
        for number, folder in enumerate(folders):
            shutil.copytree(folder, made / folders[(number + 1) % len(folders)].name)
    return {}


def choose_classes(images: str, out: str, *names: str) -> Mapping[str, Any]:
    """Copy some classes of a class folder."""
    with whole(Path(out)) as made:
        for name in names:
            shutil.copytree(Path(images) / name, made / name)
    return {}


def untrained(network: str, arguments: str, size: str, seed: str, out: str) -> Mapping[str, Any]:
    """Write the initial weights of a network of ten classes to ``OUT/weights.safetensors``."""
    torch.manual_seed(int(seed))
    built = build_network(network, json_object("arguments", arguments), 10, size=int(size))
    with whole(Path(out)) as made:
        made.mkdir()
        save_weights(built.state_dict(), made / "weights.safetensors")
    return {}


def refused(*words: str) -> Mapping[str, Any]:
    """Run a giftwrap command in a subprocess, and record whether it is refused and the last lines that it prints.

    Raises:
        GiftwrapError: the command ends with a traceback.
    """
    done = subprocess.run(  # noqa: S603  the words come from a suite
        [sys.executable, "-m", "giftwrap", *words], capture_output=True, text=True, check=False
    )
    if "Traceback" in done.stderr:
        raise GiftwrapError(f"`giftwrap {' '.join(words)}` ended with a traceback:\n{done.stderr}")
    printed = (done.stderr.strip() or done.stdout.strip()).replace(f"{Path.cwd()}/", "")
    message = printed.splitlines()[-3:]
    return {
        "refused": float(done.returncode != 0),
        "exit_code": done.returncode,
        "message": "\n".join(message),
        "reported": "exit code",
        "found": f"exit code {done.returncode}: {message[-1] if message else ''}",
    }


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A temporary folder, renamed to ``out`` when the block ends without an error: ``out`` is always complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        made = Path(folder) / out.name
        yield made
        made.rename(out)
