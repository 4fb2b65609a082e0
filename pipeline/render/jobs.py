"""Input of the two passes of a batched resize: the places of boxes, and Pillow's weights.

`pipeline.render.batched` resizes with these in plain torch, `pipeline.render.kernels` in Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL
import torch
from torch import Tensor

from pipeline.device.moving import to_device

BITS = 22  # of a weight's fraction
HALF = 1 << BITS - 1
JOB = (
    "start",  # of the image in the data
    "lines",
    "between",  # where they begin between the passes
    "place",  # of the box's first line in the image
    "place along",  # of the first pixel of each
    "limit",  # lines of the image
    "limit along",
    "stride",  # bytes from line to line
    "stride along",
    "taps",
    "taps along",
    "target",  # bytes of the crop from line to line
    "target along",
    "base",  # of the crop's first line's first pixel
    "table",  # where the pixels along the lines begin in the table of places
    "length",
    "length along",
)
COLUMNS_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
FILTER_RADIUS = {"bilinear": 1.0, "bicubic": 2.0}  # in source pixels, where nothing is shrunk

Jobs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes to cut, and their images.

    Attributes:
        data: bytes of images, uint8 ``[B]`` on the device, each image ``[H, W, 3]`` in one run.
        starts: first byte of each crop's image, int64 ``[n]``.
        sides: height and width of each crop's image, int64 ``[n, 2]``.
        boxes: (top, left, height, width), int64 ``[n, 4]``; what reaches outside the image is black.
        flips: whether to flip left to right, bool ``[n]``.
        strips: of images whose strips change places: begins and moves, int64 ``[n, 2, f]`` each, as
            `pipeline.plan.augment.Rearrangement` gives them. Boxes refer to the rearranged images.
    """

    data: Tensor
    starts: Jobs
    sides: Jobs
    boxes: Jobs
    flips: npt.NDArray[np.bool_]
    strips: tuple[Jobs, Jobs] | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """`Boxes` as both passes take them, on the device; a line is what the first pass resizes, a row or a column.

    Attributes:
        data: bytes of images, uint8 ``[B]``.
        jobs: int64 ``[n, 17]``: the columns named in `JOB`.
        lines: of all boxes, which lie one after the other between the passes.
        longest: lines of the box that has most.
        taps: pixels of a box that have a part in one of the crop, at most.
        size: side S of the crops.
        interpolation: ``bilinear`` or ``bicubic``.
        places: of images whose strips change places: where in its image each line of all boxes is, and each pixel along
            the lines, int32 ``[lines]`` and ``[pixels]``; None if nothing changes places.
    """

    data: Tensor
    jobs: Tensor
    lines: int
    longest: int
    taps: int
    size: int
    interpolation: str
    places: tuple[Tensor, Tensor] | None = None


def prepare(boxes: Boxes, size: int, interpolation: str) -> Task:
    """Compute all places and offsets."""
    count, device = len(boxes.starts), boxes.data.device
    places, lengths = boxes.boxes[:, :2], boxes.boxes[:, 2:]
    # What follows has two columns: of the lines, and along them. Pillow takes columns for lines where a box gets lower
    # by more than twice what it gets narrower, since its version 13.
    shrinks = lengths - size
    upright = (shrinks[:, 0] > 0) & (shrinks[:, 0] > 2 * shrinks[:, 1]) & COLUMNS_FIRST
    order = np.where(upright[:, None], [1, 0], [0, 1])
    strides = np.stack([3 * boxes.sides[:, 1], np.full(count, 3)], axis=1)
    targets = np.stack([np.full(count, 3 * size), np.where(boxes.flips, -3, 3)], axis=1)
    base = 3 * size * size * np.arange(count) + np.where(boxes.flips, 3 * (size - 1), 0)
    places, lengths, limits, strides, targets = (
        np.take_along_axis(pair, order, axis=1) for pair in (places, lengths, boxes.sides, strides, targets)
    )
    taps = 2 * np.ceil(FILTER_RADIUS[interpolation] * np.maximum(lengths / size, 1)).astype(np.int64) + 1
    ends = np.cumsum(lengths, axis=0)
    begins = ends - lengths
    pairs = (part for pair in (places, limits, strides, taps, targets) for part in pair.T)
    jobs = np.stack([boxes.starts, lengths[:, 0], begins[:, 0], *pairs, base, begins[:, 1]], axis=1)
    moved = to_device(torch.from_numpy(np.concatenate([jobs, lengths], axis=1)), device)
    found = None
    if boxes.strips:
        strips = np.stack([np.take_along_axis(part, order[:, :, None], axis=1) for part in boxes.strips], axis=-1)
        there = to_device(torch.from_numpy(np.stack([places, lengths, begins], axis=1)), device)
        tables = to_device(torch.from_numpy(strips), device)
        across, along = (find_places(there[:, :, axis], tables[:, axis], int(ends[-1, axis])) for axis in (0, 1))
        found = across, along
    most = int(taps.max())
    return Task(boxes.data, moved, int(ends[-1, 0]), int(lengths[:, 0].max()), most, size, interpolation, found)


def weights_of(task: Task) -> tuple[Tensor, Tensor]:
    """The first pixel of the box that has a part in each pixel of the crop, and the weights from there on.

    Returns:
        int32 ``[2, n, S]``, across the lines and along them, and int32 ``[taps, 2, n, S]``.
    """
    lengths = task.jobs[:, -2:].T.contiguous()
    return weigh(lengths, task.size, task.interpolation, task.taps)


def find_places(boxes: Tensor, strips: Tensor, total: int) -> Tensor:
    """Where in its image each line of all boxes is, or each pixel along them, when strips have changed places.

    Args:
        boxes: first place, length, and the lengths of all before it, of each box along an axis, int64 ``[n, 3]``.
        strips: begin and move of each strip along it, int64 ``[n, f, 2]``.
        total: sum of the lengths.

    Returns:
        int32 ``[total]``; of no meaning outside the image, which is black.
    """
    count = torch.arange(len(boxes), device=boxes.device)
    crop = torch.repeat_interleave(count, boxes[:, 1], output_size=total)
    place = torch.arange(total, device=boxes.device) + (boxes[:, 0] - boxes[:, 2])[crop]
    move = torch.zeros_like(place)
    for strip in range(strips.shape[1]):
        begin, by = strips[crop, strip].unbind(dim=-1)
        move = torch.where(place >= begin, by, move)  # a later strip begins later, or is empty
    return (place + move).int()


def weigh(lengths: Tensor, size: int, interpolation: str, taps: int) -> tuple[Tensor, Tensor]:
    """Pillow's antialiased filter for axes of ``lengths`` pixels that become ``size``.

    One operation after the other in float64, each rounded as Pillow's own.

    Args:
        lengths: pixels of each axis, int64 ``[...]``.
        size: pixels of the crop.
        interpolation: ``bilinear`` or ``bicubic``.
        taps: pixels that may have a part in one.

    Returns:
        First pixel int32 ``[..., S]``, and weights of ``taps`` pixels from there on int32 ``[taps, ..., S]``.
    """
    length = lengths.double()[..., None]
    # By a tensor: a GPU divides by a number as it multiplies by its reciprocal, which rounds differently.
    scale = length / torch.full_like(length, size)
    stretch = scale.clamp(min=1)
    support = FILTER_RADIUS[interpolation] * stretch
    center = (torch.arange(size, device=lengths.device) + 0.5).double() * scale
    first = (center - support + 0.5).long().clamp_(min=0)
    stop = (center + support + 0.5).long().minimum(lengths[..., None])
    pixels = first + torch.arange(taps, device=lengths.device).view(-1, *[1] * first.ndim)
    x = (pixels - center + 0.5).abs_() * (torch.ones_like(stretch) / stretch)
    parts = _filter(x, interpolation).masked_fill_(pixels >= stop, 0)
    total = torch.zeros_like(center)
    for part in parts:  # in Pillow's order
        total += part
    parts /= total.masked_fill_(total == 0, 1)
    parts *= 1 << BITS
    return first.int(), (parts + torch.where(parts < 0, -0.5, 0.5)).int()


def _filter(x: Tensor, interpolation: str) -> Tensor:
    """The filter at distances ``x``, with Pillow's order of operations."""
    if interpolation == "bilinear":
        return (1 - x).clamp_(min=0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
