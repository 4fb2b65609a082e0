"""Whether a crop is flipped left to right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from labelstore.format.columns import FLIP_BIT
from pipeline.plan import draws

columns = ("bits",)


def draw(probability: float, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """The bits of the crop of each image ``[n]`` in a view, int64 ``[1, n]``."""
    words = draws.philox(draws.key("flip", seed, view), images)
    return np.where(words[:1] < round(probability * 2**32), FLIP_BIT, 0)
