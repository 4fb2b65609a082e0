"""Read a label store with numpy, without torch: `python -m examples.read_store STORE [IMAGE]`.

Prints how often the teacher agrees with the hard labels, and its mean prediction for one image over all views.
With the README's quickstart: `python -m examples.read_store runs/store 7`.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from examples.arguments import arguments, whole_number
from labelstore import LabelStore
from labelstore.command.console import run_command
from labelstore.errors import InputError

USAGE = "python -m examples.read_store STORE [IMAGE]"


def agreement(store: LabelStore) -> float:
    """Share of crops whose largest logit is that of their hard label, over all views."""
    right = total = 0
    for batch in store.stream((view, slice(None)) for view in range(store.views)):
        right += int((batch.logits.argmax(axis=1) == batch.targets).sum())
        total += len(batch)
    return right / total


def mean_prediction(store: LabelStore, image: int) -> npt.NDArray[np.float64]:
    """The teacher's mean probabilities for the crops of an image, over all views, float64 ``[C]``."""
    logits = store.image(image).logits.astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    mean: npt.NDArray[np.float64] = (odds / odds.sum(axis=1, keepdims=True)).mean(axis=0)
    return mean


def main() -> None:
    """Print what the store has for an image."""
    path, *image = arguments(USAGE, 1, 2)
    store = LabelStore.open(path)
    index = whole_number("IMAGE", image[0]) if image else 0
    if index >= store.identity.images:
        raise InputError(f"IMAGE: expected 0 to {store.identity.images - 1}, found {index}")
    print(f"the teacher agrees with the hard labels on {100 * agreement(store):.2f} % of the crops")
    mean = mean_prediction(store, index)
    best = np.argsort(-mean)[:3]
    print(f"image {index}, mean over {store.views} views:")
    for column in best:
        print(f"  column {column}: {mean[column]:.3f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
