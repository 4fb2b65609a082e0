"""Scores of images: the teacher's cross-entropy of each with its class, in float64 from float32 logits.

A score depends on the pixels, the teacher and its engine. The engine's batch is fixed, and a batch that is not full is
padded; in the last bits the logits of a crop can also depend on its place in the batch. Each call therefore fills
batches from its own first row. A method that scores one class a call gives every crop the same place however many
processes share the classes, in whatever order they come, and however its images are divided among chunks that are
decoded together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.format.columns import CropRows
from pipeline.build.labelling import Rows, label
from pipeline.build.stages import Busy
from pipeline.render import Renderer
from pipeline.teacher.labeller import Labeller, started


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The scores of n images.

    Attributes:
        losses: cross-entropy of each with its class, in nats, float64 ``[n]``.
        right: whether its largest logit among those of the class folders is its class's, bool ``[n]``.
    """

    losses: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]


def scores_of(logits: Tensor, targets: npt.NDArray[np.integer], class_columns: Sequence[int] = ()) -> Scores:
    """Scores from logits.

    Args:
        logits: float32 ``[n, C]`` on any device.
        targets: class of each image ``[n]``.
        class_columns: the column of each class; empty where class k has column k. The cross-entropy is over all C
            columns, as the label is.
    """
    device = logits.device
    targets_there = torch.from_numpy(np.asarray(targets, np.int64)).to(device)
    folders = torch.tensor(class_columns, dtype=torch.int64, device=device) if len(class_columns) else None
    columns = targets_there if folders is None else folders[targets_there]
    exact = logits.double()
    own = exact.gather(1, columns[:, None])[:, 0]
    choices = (logits if folders is None else logits[:, folders]).argmax(dim=1)
    return Scores((exact.logsumexp(dim=1) - own).cpu().numpy(), (choices == targets_there).cpu().numpy())


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of all images, from those of some after the other."""
    losses = [part.losses for part in parts] or [np.empty(0)]
    right = [part.right for part in parts] or [np.empty(0, np.bool_)]
    return Scores(np.concatenate(losses), np.concatenate(right))


def cross_entropies(
    labeller: Labeller,
    renderer: Renderer,
    rows: Sequence[CropRows],
    targets: npt.NDArray[np.integer],
    *,
    names: Sequence[str] = (),
    together: int = 1,
    busy: Busy | None = None,
    done: Callable[[int], object] = lambda _count: None,
) -> Scores:
    """Score crops that a renderer makes of files: rendered and labelled batch by batch, at once where there is a GPU.

    Memory is that of two batches and the renderer's budget, and does not grow with the rows.

    Args:
        labeller: gives the logits; its size is that of the crops.
        renderer: of the crops.
        rows: of the crops, without mixing.
        targets: class of each image of the renderer's manifest ``[N]``; the rows' images choose among them.
        names: what each of ``rows`` is, for an error; "crops" where left out.
        together: crops that are rendered in one call, such as those of one image, so that it is decoded once.
        busy: counts the time at work.
        done: called with the crops scored until now, after each batch; what it raises ends the scoring.

    Returns:
        The scores of the crops, in the order of the rows.

    Raises:
        InputError: when a file cannot be rendered or a logit is NaN or infinite; names the image.
    """
    if not sum(map(len, rows)):
        return joined([])
    truth = np.asarray(targets)[np.concatenate([part.image for part in rows])]
    job = Rows(list(rows), list(names) or ["crops"] * len(rows))
    parts: list[Scores] = []
    count = 0
    with closing(label(renderer, labeller, together, [job], busy=busy)) as labelled:
        for some in labelled:
            part = truth[count : count + len(some.logits)]
            parts.append(scores_of(some.logits, part, labeller.class_columns))
            count += len(part)
            done(count)
    return joined(parts)


def cross_entropies_of(
    labeller: Labeller, images: Tensor | npt.NDArray[np.uint8], targets: npt.NDArray[np.integer]
) -> Scores:
    """Score images that are in memory.

    Args:
        labeller: gives the logits; its size is that of the images.
        images: uint8 ``[n, S, S, 3]``, any number.
        targets: class of each ``[n]``.

    Raises:
        BrokenLogitsError: when a logit is NaN or infinite; its row counts within a batch.
    """
    pixels = torch.as_tensor(images)
    parts: list[Scores] = []
    for start in range(0, len(pixels), labeller.batch):
        piece = pixels[start : start + labeller.batch]
        rows = CropRows((), np.empty((0, len(piece)), np.uint16))
        logits = started(labeller, piece, rows).result()
        parts.append(scores_of(logits, targets[start : start + len(piece)], labeller.class_columns))
    return joined(parts)
