"""Small folders of labels, as their authors' programs write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.journeys.world import SIDE
from tests.pipeline.adopt.taught import MEAN, STD, Taught, taught
from tests.pipeline.adopt.writers import Writer

EPOCHS = 4


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """Images, and a network that knows their classes."""
    return taught(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="session")
def written(made: Taught, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives a folder of labels; each is written once."""
    folder, there = tmp_path_factory.mktemp("labels"), dict[tuple[Any, ...], Path]()

    def write(**numbers: Any) -> Path:
        key = tuple(sorted(numbers.items()))
        if key not in there:
            torch.manual_seed(1)
            np.random.seed(1)  # noqa: NPY002  as they draw
            writer = Writer(images=made.images, network=made.network, size=SIDE, mean=MEAN, std=STD, **numbers)
            there[key] = writer.write(folder / str(len(there)), EPOCHS)
        return there[key]

    return write
