"""A student trained with Accelerate: `python -m examples.accelerate_loop STORE IMAGES [EPOCHS]`.

Needs `pip install accelerate`; `accelerate launch -m examples.accelerate_loop ...` runs several processes. Stop it at
any time: the same command continues after the last finished epoch. With the README's quickstart:
`python -m examples.accelerate_loop runs/store runs/demo/small 20`. Checkpoints are `runs/accelerate/epoch-E`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

import trainer
from examples.arguments import arguments, whole_number
from labelstore.command.console import run_command

USAGE = "python -m examples.accelerate_loop STORE IMAGES [EPOCHS]"
FOLDER = Path("runs/accelerate")


def train(store: Path, images: Path, folder: Path, epochs: int) -> int:
    """Train up to ``epochs`` epochs in all, each one view of the store; the number of steps that were left to do."""
    trainer.seed_all(0)
    accelerator = Accelerator()
    # A replay is not prepared: each process makes its own, which gives it its slice of every batch.
    rank, world = accelerator.process_index, accelerator.num_processes
    replay = trainer.Replay(store, images, batch_size=50, seed=0, rank=rank, world=world)
    identity = replay.store.identity
    student = trainer.build_network("convnet-d3", {}, classes=identity.columns, size=identity.size)
    gift = trainer.losses.make_loss(trainer.losses.LossSpec(name="gift"))
    student, optimiser = accelerator.prepare(student, torch.optim.AdamW(student.parameters(), lr=1e-3))
    accelerator.register_for_checkpointing(replay)
    finished = max((int(path.name.partition("-")[2]) for path in folder.glob("epoch-*")), default=0)
    if finished:
        accelerator.load_state(str(folder / f"epoch-{finished}"))

    steps = 0
    for batch in (made.to(accelerator.device) for made in replay.play(epochs)):
        loss = gift(student(batch.images), batch.logits, batch.targets, batch.targets2, batch.lam)
        optimiser.zero_grad()
        accelerator.backward(loss * batch.share)
        optimiser.step()
        steps += 1
        if replay.position == 0:  # an epoch has ended
            accelerator.save_state(str(folder / f"epoch-{replay.epoch}"))
    replay.close()
    return steps


def main() -> None:
    """Train from the store that the command line names."""
    store, images, *more = arguments(USAGE, 2, 3)
    epochs = whole_number("EPOCHS", more[0], least=1) if more else 200
    print(f"{train(Path(store), Path(images), FOLDER, epochs)} steps, checkpoints in {FOLDER}")


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "examples.accelerate_loop")))
