"""The teacher's labels of crops that are rendered for it, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from labelstore.columns import CropRows
from labelstore.errors import InputError
from pipeline.render import Renderer
from pipeline.render.stream import stream
from pipeline.teacher import BrokenLogitsError, Teacher


def label(
    renderer: Renderer, teacher: Teacher, rows: Sequence[CropRows], views: Sequence[str], group: int
) -> Iterator[tuple[Tensor, npt.NDArray[np.float32]]]:
    """Crops uint8 ``[n, S, S, 3]`` and their logits float32 ``[n, C]``, in batches of the teacher's size.

    Args:
        renderer: of the crops.
        teacher: of the labels.
        rows: crops to label, whole groups.
        views: what each of ``rows`` is, for an error.
        group: crops that may mix with each other.

    Raises:
        InputError: when a logit is NaN or infinite; names the first one's image and view.
    """
    done = 0
    for crops in stream(renderer, rows, teacher.batch, group):
        try:
            logits = teacher.logits(crops)
        except BrokenLogitsError as error:
            at, row = 0, done + error.row
            while row >= len(rows[at]):
                row -= len(rows[at])
                at += 1
            raise InputError(
                f"logit of image {rows[at].image[row]} in {views[at]}, class {error.column}: expected a number, "
                f"found {error.value}; look at the teacher's weights, its --dtype and --mean/--std"
            ) from error
        yield crops, logits.numpy()
        done += len(crops)
