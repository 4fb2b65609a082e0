"""Labels in, student out: replay, losses, training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Imported on first use: importing torch takes seconds, and the help of a command does not need it.
_HOMES = {
    "Replay": "trainer.replay",
    "TrainBatch": "trainer.batch",
    "build_network": "pipeline.networks",
    "random_state": "trainer.checkpoint",
    "restore_random_state": "trainer.checkpoint",
    "seed_all": "trainer.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("trainer.losses")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
