"""Builds to be killed: images, a teacher, and ranks in separate processes, on a disk that is slow and fills up."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.ports import own_port
from labelstore.durable import disk
from labelstore.writing import lease as leases
from pipeline import __main__ as pipeline_command
from pipeline.networks import build_network
from pipeline.networks.weights import save_weights

COLUMNS, CLASSES, SIDE = 64, 4, 8  # a transform takes 64 columns and more
NETWORK: dict[str, Any] = {"width": 8, "norm": "batch"}
STEPS = ("write_file", "sync_file", "sync_folder", "link", "replace", "unlink")
STALL_S = 0.01  # before every step of the disk, so that publishing takes as long as labelling
POLL_S = 0.003
MARKER = re.compile(r"markers/\d+\.\d+\.json")

# Ranks run in processes forked from one that has imported everything: seconds less each, and still processes.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "tyro",
        "torch.distributed",
        "pipeline.__main__",
        "pipeline.build.build",
        "pipeline.render.dali",
        "benchmarks.__main__",
    ]
)


def draw_images(root: Path, count: int) -> None:
    """A class folder of smooth pictures."""
    generator = np.random.default_rng(0)
    for index in range(count):
        folder = root / f"class{index % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:03d}.png")


def save_teacher(path: Path) -> None:
    """Weights of a ConvNet-D1 with batch norm: random, but fixed."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    network = build_network("convnet-d1", NETWORK, classes=COLUMNS, size=SIDE)
    torch.random.set_rng_state(state)
    save_weights(network.state_dict(), path)


def build_words(folder: Path, encoding: str, store: Path, views: int) -> list[str]:
    """The command that builds a store."""
    return [
        "pipeline", "build", "--images", str(folder / "images"), "--teacher", "convnet-d1", "--teacher-args",
        json.dumps(NETWORK),
        "--weights", str(folder / "teacher.safetensors"), "--size", str(SIDE), "--views", str(views), "--batch", "64",
        "--class-columns", ",".join(map(str, range(CLASSES))), "--threads", "1", "--encoding", encoding,
        "--store", str(store), "--json",
    ]  # fmt: skip


def tree(root: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file; folders too, so that none is left over."""
    return {
        path.relative_to(root).as_posix(): "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
    }


@dataclass(frozen=True)
class Rank:
    """A process of a build, with all that it prints in a file."""

    process: BaseProcess
    log: Path


def start(words: Sequence[str], world: int, *, stall_s: float = STALL_S, full: Path | None = None) -> list[Rank]:
    """Start the ranks of a build, as torchrun does.

    Args:
        words: the command.
        world: how many.
        stall_s: seconds before each step of the disk.
        full: as long as this file is there, the disk is full.
    """
    ranks = []
    for rank in range(world):
        log = Path(words[words.index("--store") + 1] + f".rank{rank}.log")
        place = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": own_port()}
        process = SERVER.Process(target=be_rank, args=(list(words), place, log, stall_s, full), daemon=True)
        process.start()
        ranks.append(Rank(process, log))
    return ranks


def be_rank(words: list[str], place: dict[str, object], log: Path, stall_s: float, full: Path | None) -> None:
    """What `python -m WORDS` does as one rank, on a disk that is slow, and full at times."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    sys.argv = words
    for name in STEPS:
        setattr(disk, name, troubled(getattr(disk, name), stall_s, full if name == "write_file" else None))
    sys.exit(pipeline_command.main())


def troubled(step: Callable[..., None], stall_s: float, full: Path | None) -> Callable[..., None]:
    """A step of the disk that takes longer, and fails when the disk is full."""

    def call(*args: Any) -> None:
        time.sleep(stall_s)
        if full is not None and full.exists():
            raise OSError(28, "No space left on device", str(args[0]))
        step(*args)

    return call


def require(condition: bool, what: str, ranks: Sequence[Rank]) -> None:
    """Raise with what the ranks printed."""
    if not condition:
        logs = "\n".join(f"rank {n}, exit code {r.process.exitcode}: {r.log.read_text()}" for n, r in enumerate(ranks))
        raise RuntimeError(f"{what}\n{logs}")


def require_done(ranks: Sequence[Rank]) -> None:
    """Wait for the ranks; all must have done their work."""
    for rank in ranks:
        rank.process.join()
    require(not any(rank.process.exitcode for rank in ranks), "an undisturbed build failed", ranks)


def wait_for_lease(store: Path, ranks: Sequence[Rank]) -> bool:
    """Wait until the first rank holds the store; False when it ends before."""
    while ranks[0].process.is_alive():
        held = leases.read(store)
        if held and held.pid == ranks[0].process.pid:
            return True
        time.sleep(POLL_S)
    return False


def markers(store: Path) -> set[str]:
    """The blocks that are published, by the names of their markers."""
    return {path.name for path in store.glob("markers/*.json") if MARKER.fullmatch(f"markers/{path.name}")}


def digest(file: Path) -> str:
    """SHA-256 of a file, hex; empty when it is not there."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
