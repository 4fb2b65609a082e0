"""Other evaluators of the same images: a plain PyTorch loop, and ddranking in a separate environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from labelstore.errors import GiftwrapError
from pipeline.config import json_object
from pipeline.networks import build_network

MEAN, STD = 0.5, 0.25
MOMENTUM, DECAY = 0.9, 5e-4
TEST_BATCH = 256
PEERS = "GIFTWRAP_PEERS"


def class_folder(folder: str) -> tuple[Tensor, Tensor]:
    """Images of one size, float32 ``[N, 3, S, S]``, and their classes, int64 ``[N]``."""
    classes = sorted(each for each in Path(folder).iterdir() if each.is_dir())
    files = [(path, target) for target, each in enumerate(classes) for path in sorted(each.iterdir())]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    return images.contiguous(), torch.tensor([target for _, target in files])


def plain(
    images: str, tests: str, network: str, arguments: str, epochs: str, batch: str, rate: str, seed: str, out: str
) -> Mapping[str, Any]:
    """Train a student on whole images and hard labels by SGD with momentum; returns the fields of its line."""
    torch.manual_seed(int(seed))
    x, y = class_folder(images)
    student = build_network(network, json_object("arguments", arguments), 10, size=x.shape[-1])
    optimiser = torch.optim.SGD(student.parameters(), lr=float(rate), momentum=MOMENTUM, weight_decay=DECAY)
    for _ in range(int(epochs)):
        order = torch.randperm(len(x))
        for part in (order[start : start + int(batch)] for start in range(0, len(x), int(batch))):
            loss = cross_entropy(student(x[part]), y[part])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
    student.eval()
    x, y = class_folder(tests)
    with torch.no_grad():
        parts = [slice(start, start + TEST_BATCH) for start in range(0, len(x), TEST_BATCH)]
        hits = [float((student(x[part]).argmax(1) == y[part]).sum()) for part in parts]
    return scored(100 * sum(hits) / len(x), out)


def ddranking(
    images: str, tests: str, network: str, epochs: str, batch: str, rate: str, seed: str, out: str
) -> Mapping[str, Any]:
    """The same with ddranking's networks, training and validation, in a subprocess that can import it.

    Raises:
        GiftwrapError: the subprocess fails; with the last line of its errors.
    """
    script = Path(__file__).with_name("peer_ddranking.py")
    given = {"images": images, "tests": tests, "network": network, "epochs": int(epochs), "batch": int(batch)}
    numbers = {"rate": float(rate), "seed": int(seed), "mean": MEAN, "std": STD, "momentum": MOMENTUM, "decay": DECAY}
    done = subprocess.run(  # noqa: S603  a script of this package
        [sys.executable, str(script), json.dumps({**given, **numbers})],
        env={**os.environ, "PYTHONPATH": str(Path(os.environ[PEERS]) / "ddranking")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise GiftwrapError(f"ddranking: {done.stderr.strip().splitlines()[-1] if done.stderr else 'failed'}")
    return {**scored(float(json.loads(done.stdout.splitlines()[-1])["top1"]), out), "evaluator_version": "0.2.0"}


def scored(top1: float, out: str) -> Mapping[str, Any]:
    """Make the folder of a run, and return the fields of its line."""
    Path(out).mkdir(parents=True, exist_ok=True)
    return {"top1": top1, "reported": "last epoch", "evaluations": 1}
