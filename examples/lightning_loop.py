"""A student trained by Lightning: `python -m examples.lightning_loop STORE IMAGES [EPOCHS]`.

Needs `pip install 'lightning>=2.6'`. Stop it at any time: the same command continues at the batch after the last
checkpoint, in the middle of an epoch too. With the README's quickstart:
`python -m examples.lightning_loop runs/store runs/demo/small 20`. The checkpoint is `runs/lightning/last.ckpt`; remove
it to begin again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

import trainer
from examples.arguments import arguments, whole_number
from labelstore import LabelStore
from labelstore.command.console import run_command

USAGE = "python -m examples.lightning_loop STORE IMAGES [EPOCHS]"
FOLDER = Path("runs/lightning")
BATCH_SIZE = 50
SAVE_EVERY = 10  # steps


class Student(LightningModule):
    """A ConvNet-D3 that learns from a store.

    Args:
        store: a label store.
        images: the class folder of the store; other images are refused.
    """

    def __init__(self, store: Path, images: Path) -> None:
        super().__init__()
        identity = LabelStore.open(store).identity
        self.network = trainer.build_network("convnet-d3", {}, classes=identity.columns, size=identity.size)
        self.gift = trainer.losses.make_loss(trainer.losses.LossSpec(name="gift"))
        self._places = store, images

    def train_dataloader(self) -> trainer.Replay:
        """The store's crops and labels: each process gets its slice of every batch.

        Lightning's checkpoints hold the place of the replay. It is restored in the middle of an epoch; between two
        epochs Lightning restores no state of a loader (`_FitLoop.restarting` of 2.6.6), so the epoch is given.
        """
        rank, world, epoch = self.global_rank, self.trainer.world_size, self.current_epoch
        return trainer.Replay(*self._places, batch_size=BATCH_SIZE, epoch=epoch, rank=rank, world=world)

    def training_step(self, batch: trainer.TrainBatch, _index: int) -> Tensor:
        """The loss of a batch; ``share`` weighs slices of several processes by their sizes."""
        loss = self.gift(self.network(batch.images), batch.logits, batch.targets, batch.targets2, batch.lam)
        return loss * batch.share

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(store: Path, images: Path, folder: Path, epochs: int) -> Trainer:
    """Train up to ``epochs`` epochs in all; each plays one view of the store."""
    trainer.seed_all(0)
    last = folder / "last.ckpt"
    # Saved after steps, where the loader and Lightning's counters agree: `save_on_exception` saves between a batch and
    # its step, and `save_top_k=0` without a number of steps saves nothing before the end.
    saving = ModelCheckpoint(
        folder, save_last=True, save_top_k=0, every_n_train_steps=SAVE_EVERY, enable_version_counter=False
    )
    lightning = Trainer(
        max_epochs=epochs, callbacks=[saving], logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    lightning.fit(Student(store, images), ckpt_path=last if last.exists() else None, weights_only=True)
    lightning.save_checkpoint(last)
    return lightning


def main() -> None:
    """Train from the store that the command line names."""
    store, images, *more = arguments(USAGE, 2, 3)
    lightning = train(Path(store), Path(images), FOLDER, whole_number("EPOCHS", more[0], least=1) if more else 200)
    print(f"{lightning.global_step} steps in all, checkpoint {FOLDER / 'last.ckpt'}")


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "examples.lightning_loop")))
