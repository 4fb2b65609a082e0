"""CIM (ECCV 2026; LINs-lab/CIM, main.py and data/utils/evaluator.py): GIFT's evaluator with mean squared error.

Its images are mosaics of 2 x 2, of which a crop is one cell or the whole; DSA follows on the normalised image.
"""

from __future__ import annotations

from pipeline.recipes import gift
from pipeline.recipes.setting import Flags, Setting

RATES = {"swin_v2_t": 1e-4, "vit_tiny_patch16_224": 1e-4, "efficientnet_b0": 2e-3}
build_differs = (
    "the teacher has the student's architecture and labels each batch during training: give it as --teacher; DSA draws "
    "one of crop, scale and rotation for each crop, where the authors' code draws it once a batch; that code "
    "normalises each set by its own mean and deviation, here they are the teacher's: see --mean and --std"
)
train_differs = "only the best of four evaluations is reported there, as mean and population deviation of three runs"


def build(_setting: Setting) -> Flags:
    """One cell of 2 x 2, or the whole image, and DSA."""
    return {"crop": "factor", "factor": 2, "augment": ("dsa",), "flip": 0.5, "mix": "none"}


def train(setting: Setting) -> Flags:
    """GIFT's optimiser, schedule, batches and tests; squared error of the logits, and rates by network."""
    own = {name: value for name, value in gift.train(setting).items() if name not in gift.LOSS}
    return {**own, "loss": "mse", "lr": RATES.get(setting.architecture, 1e-3)}
