"""A training loop of your own, with checkpoints: `python -m examples.own_loop STORE IMAGES [EPOCHS]`.

Trains a ConvNet-D3 from a label store. Stop it at any time; the same command continues after the last finished epoch.
With the README's quickstart: `python -m examples.own_loop runs/store runs/demo/small 20`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import trainer


def train(store: Path, images: Path, checkpoint: Path, epochs: int) -> float:
    """Train up to ``epochs`` epochs in all, and return the loss of the last step.

    Args:
        store: a label store.
        images: the class folder that it was made of; any other is refused.
        checkpoint: file to continue from when it is there; written after each epoch.
        epochs: each plays one view of the store.
    """
    trainer.seed_all(0)  # torch's, numpy's and Python's random numbers
    replay = trainer.Replay(store, images, batch_size=50, seed=0)
    identity = replay.store.identity
    student = trainer.build_network("convnet-d3", {}, classes=identity.columns, size=identity.size)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    gift = trainer.losses.make_loss(trainer.losses.LossSpec(name="gift"))
    parts = {"student": student, "optimiser": optimiser, "replay": replay}
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        trainer.restore_random_state(saved["random"])

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


def main() -> None:
    """Train from the store that the command line names."""
    store, images, *epochs = sys.argv[1:]
    loss = train(Path(store), Path(images), Path("checkpoint.pt"), int(epochs[0]) if epochs else 200)
    print(f"loss of the last step {loss:.4f}")


if __name__ == "__main__":
    main()
