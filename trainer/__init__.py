"""Labels in, student out: replay, losses, training."""

from pipeline.networks import build_network
from trainer import losses
from trainer.batch import TrainBatch
from trainer.checkpoint import random_state, restore_random_state, seed_all
from trainer.replay import Replay

__all__ = [
    "Replay",
    "TrainBatch",
    "build_network",
    "losses",
    "random_state",
    "restore_random_state",
    "seed_all",
]
