"""HeLlO (arXiv 2408.08201), of which no code was published: RDED's images and crops, labels of a projector.

The loss is the paper's: squared error of the logits plus a weighted hard cross-entropy. Its weight, the optimiser, the
rate, the epochs and the batches are not known: those here are ours, after RDED's protocol.
"""

from __future__ import annotations

from pipeline.recipes import rded
from pipeline.recipes.setting import Flags, Setting, batch_norm

HARD_WEIGHT = 0.1  # ours
build_differs = (
    "in the paper the projector labels fresh crops during training, as --labels online does; a store has those "
    "of its views alone"
)
train_differs = (
    "the paper publishes neither code nor the weight of its cross-entropy, its optimiser, rate, epochs and batches: "
    "those in effect are ours, after RDED's"
)


def build(setting: Setting) -> Flags:
    """RDED's crops, whose images HeLlO begins with; normalised as the projector is."""
    return {name: value for name, value in rded.build(setting).items() if name not in ("mean", "std")}


def train(setting: Setting) -> Flags:
    """Squared error plus hard cross-entropy; AdamW with decay on weights only, a whole cosine."""
    return {
        **batch_norm(setting),
        "loss": "mse+ce",
        "hard_weight": HARD_WEIGHT,
        "epochs": 300,
        "batch_size": rded.batch(setting),
        "optimizer": "AdamW",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "decay": "weights",
        "schedule": "cosine",
        "schedule_per": "epoch",
        "final": 0.0,
        "horizon": 1.0,
        "eval_every": 10,
        "eval_from": 0.0,
        "test_resize": rded.resize(setting),
    }
