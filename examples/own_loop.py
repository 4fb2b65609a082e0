"""A training loop of your own, with checkpoints: `python -m examples.own_loop STORE IMAGES [EPOCHS]`.

Trains a ConvNet-D3 from a label store. Stop it at any time; the same command continues after the last finished epoch.
With the README's quickstart: `python -m examples.own_loop runs/store runs/demo/small 20`. The checkpoint is
`runs/own-loop/checkpoint.pt`; remove it to begin again.
"""

from __future__ import annotations

import math
import pickle
import sys
from pathlib import Path
from typing import Any

import torch

import trainer
from examples.arguments import arguments, whole_number
from labelstore.command.console import run_command
from labelstore.errors import InputError, reason

USAGE = "python -m examples.own_loop STORE IMAGES [EPOCHS]"
CHECKPOINT = Path("runs/own-loop/checkpoint.pt")


def train(store: Path, images: Path, checkpoint: Path, epochs: int) -> float:
    """Train up to ``epochs`` epochs in all, and return the loss of the last step.

    Args:
        store: a label store.
        images: the class folder of the store; other images are refused.
        checkpoint: file to continue from when it is there; written after each epoch.
        epochs: each plays one view of the store.
    """
    trainer.seed_all(0)  # torch's, numpy's and Python's random numbers
    replay = trainer.Replay(store, images, batch_size=50, seed=0)
    identity = replay.store.identity
    student = trainer.build_network("convnet-d3", {}, classes=identity.columns, size=identity.size)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    gift = trainer.losses.make_loss(trainer.losses.LossSpec(name="gift"))
    parts: dict[str, Any] = {"student": student, "optimiser": optimiser, "replay": replay}
    if checkpoint.exists():
        load(checkpoint, parts)

    value = float("nan")
    for batch in replay.play(epochs):  # from the saved position on
        loss = gift(student(batch.images), batch.logits, batch.targets, batch.targets2, batch.lam)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        value = loss.item()
        if replay.position == 0:  # an epoch has ended
            saved = {name: part.state_dict() for name, part in parts.items()}
            partial = checkpoint.with_suffix(".partial")
            torch.save(saved | {"random": trainer.random_state()}, partial)
            partial.replace(checkpoint)  # atomic: a kill leaves the old file or the new one
    replay.close()
    return value


def load(checkpoint: Path, parts: dict[str, Any]) -> None:
    """Continue from a checkpoint.

    Raises:
        InputError: it is of another store or another program.
    """
    try:
        saved = torch.load(checkpoint)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        trainer.restore_random_state(saved["random"])
    except (RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{checkpoint}: does not continue with this store ({reason(error)}); remove it to begin again"
        ) from error


def main() -> None:
    """Train from the store that the command line names."""
    store, images, *more = arguments(USAGE, 2, 3)
    epochs = whole_number("EPOCHS", more[0], least=1) if more else 200
    CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)
    loss = train(Path(store), Path(images), CHECKPOINT, epochs)
    if math.isnan(loss):
        print(f"nothing left to train: {CHECKPOINT} has all {epochs} epochs")
    else:
        print(f"loss of the last step {loss:.4f}, checkpoint {CHECKPOINT}")


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "examples.own_loop")))
