"""Many crops cut, resized and flipped at once on a device, with Pillow's own integers: its crops, bit for bit.

Pillow resizes along rows, then along columns. Each pass sums bytes times weights of 22 bits, rounds once and clips to a
byte. Integers add up the same in any order, so a crop depends on nothing but its box, and comes out alike on a CPU and
on a GPU. Two kernels do it on a GPU that Triton can compile for; plain torch, here, everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import PIL
import torch
from torch import Tensor

from pipeline.device.kernels import kernels_agree
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
    "length",
    "length along",
)
COLUMNS_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}

Jobs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Boxes:
    """What to cut from which image.

    Attributes:
        data: bytes of images, uint8 ``[B]`` on the device, each image ``[H, W, 3]`` in one run.
        starts: first byte of each crop's image, int64 ``[n]``.
        sides: height and width of each crop's image, int64 ``[n, 2]``.
        boxes: (top, left, height, width), int64 ``[n, 4]``; what reaches outside the image is black.
        flips: whether to flip left to right, bool ``[n]``.
    """

    data: Tensor
    starts: Jobs
    sides: Jobs
    boxes: Jobs
    flips: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Task:
    """`Boxes` as both passes take them, on the device; a line is what the first pass resizes, a row or a column.

    Attributes:
        data: bytes of images, uint8 ``[B]``.
        jobs: int64 ``[n, 16]``: the columns named in `JOB`.
        lines: of all boxes, which lie one after the other between the passes.
        longest: lines of the box that has most.
        first: first pixel of the box that has a part in each pixel of the crop, int32 ``[2, n, S]``: across the lines
            and along them.
        weights: of that pixel and those after it, int32 ``[2, n, S, taps]``.
        size: side S of the crops.
    """

    data: Tensor
    jobs: Tensor
    lines: int
    longest: int
    first: Tensor
    weights: Tensor
    size: int


def resize_all(boxes: Boxes, size: int, interpolation: str) -> Tensor:
    """Crops of side ``size``, uint8 ``[n, S, S, 3]`` on the device of the images."""
    device = boxes.data.device
    if not len(boxes.starts):
        return torch.empty((0, size, size, 3), dtype=torch.uint8, device=device)
    task = prepare(boxes, size, interpolation)
    if device.type == "cuda" and kernels_work(device):
        from pipeline.render.kernels import resize_task  # Triton is there

        return resize_task(task)
    return resize_plainly(task)


def prepare(boxes: Boxes, size: int, interpolation: str) -> Task:
    """Where everything lies, and the weights of both passes."""
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
    taps = 2 * np.ceil(_SUPPORT[interpolation] * np.maximum(lengths / size, 1)).astype(np.int64) + 1
    ends = np.cumsum(lengths[:, 0])
    pairs = (part for pair in (places, limits, strides, taps, targets) for part in pair.T)
    jobs = np.stack([boxes.starts, lengths[:, 0], ends - lengths[:, 0], *pairs, base], axis=1)
    moved = to_device(torch.from_numpy(np.concatenate([jobs, lengths], axis=1)), device)
    first, weights = weigh(moved[:, -2:].T.contiguous(), size, interpolation, int(taps.max()))
    return Task(boxes.data, moved, int(ends[-1]), int(lengths[:, 0].max()), first, weights, size)


def weigh(lengths: Tensor, size: int, interpolation: str, taps: int) -> tuple[Tensor, Tensor]:
    """Pillow's antialiased filter for axes of ``lengths`` pixels that become ``size``.

    One operation after the other in float64, each rounded as Pillow's own.

    Args:
        lengths: pixels of each axis, int64 ``[...]``.
        size: pixels of the crop.
        interpolation: ``bilinear`` or ``bicubic``.
        taps: pixels that may have a part in one.

    Returns:
        First pixel int32 ``[..., S]``, and weights of ``taps`` pixels from there on int32 ``[..., S, taps]``.
    """
    length = lengths.double()[..., None]
    # By a tensor: a GPU divides by a number as it multiplies by its reciprocal, which rounds differently.
    scale = length / torch.full_like(length, size)
    stretch = scale.clamp(min=1)
    support = _SUPPORT[interpolation] * stretch
    center = (torch.arange(size, device=lengths.device) + 0.5).double() * scale
    first = (center - support + 0.5).long().clamp_(min=0)
    stop = (center + support + 0.5).long().minimum(lengths[..., None])
    pixels = first[..., None] + torch.arange(taps, device=lengths.device)
    x = (pixels - center[..., None] + 0.5).abs_() * (torch.ones_like(stretch) / stretch)[..., None]
    parts = _filter(x, interpolation).masked_fill_(pixels >= stop[..., None], 0)
    total = torch.zeros_like(center)
    for tap in range(taps):  # in Pillow's order
        total += parts[..., tap]
    parts /= total.masked_fill_(total == 0, 1)[..., None]
    parts *= 1 << BITS
    return first.int(), (parts + torch.where(parts < 0, -0.5, 0.5)).int()


def _filter(x: Tensor, interpolation: str) -> Tensor:
    """The filter at distances ``x``, with Pillow's order of operations."""
    if interpolation == "bilinear":
        return (1 - x).clamp_(min=0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def resize_plainly(task: Task) -> Tensor:
    """Both passes in plain torch, on any device."""
    data, size, count = task.data, task.size, len(task.jobs)
    job = dict(zip(JOB, task.jobs.T, strict=True))
    channel = torch.arange(3, device=data.device)
    crop = torch.repeat_interleave(torch.arange(count, device=data.device), job["lines"], output_size=task.lines)
    line = (torch.arange(task.lines, device=data.device) + (job["place"] - job["between"])[crop])[:, None]
    missing = (line < 0) | (line >= job["limit"][crop, None])
    start = job["start"][crop, None] + line * job["stride"][crop, None]
    along = job["place along"][crop, None] + task.first[1][crop]
    sums = torch.full((task.lines, size, 3), HALF, dtype=torch.int32, device=data.device)
    for tap in range(task.weights.shape[-1]):
        black = missing | (along + tap < 0) | (along + tap >= job["limit along"][crop, None])
        index = (start + (along + tap) * job["stride along"][crop, None]).masked_fill_(black, 0)
        weights = task.weights[1][crop, :, tap].masked_fill_(black, 0)
        sums += data[index[..., None] + channel].int() * weights[..., None]
    between = (sums >> BITS).clamp_(0, 255).byte()
    sums = torch.full((count, size, size, 3), HALF, dtype=torch.int32, device=data.device)
    for tap in range(task.weights.shape[-1]):
        inside = (task.first[0] + tap).minimum(job["lines"][:, None] - 1)  # weights beyond are 0
        sums += between[job["between"][:, None] + inside].int() * task.weights[0][:, :, tap, None, None]
    pixel = torch.arange(size, device=data.device)
    across, along = pixel * job["target"][:, None], pixel * job["target along"][:, None]
    target = (job["base"][:, None, None] + across[:, :, None] + along[:, None, :])[..., None] + channel
    crops = torch.empty(count * size * size * 3, dtype=torch.uint8, device=data.device)
    crops[target.flatten()] = (sums >> BITS).clamp_(0, 255).byte().flatten()
    return crops.view(count, size, size, 3)


@cache
def kernels_work(device: torch.device) -> bool:
    """Whether Triton's kernels run on a GPU and give the right crops; warns when they do not."""
    return kernels_agree(lambda: _compare_kernels(device), "crops are the same and take longer")


def _compare_kernels(device: torch.device) -> None:
    from pipeline.render.kernels import resize_task

    rng = np.random.default_rng(0)
    sides = np.array([[37, 61], [224, 100]])
    boxes = np.array([[3, 4, 30, 50], [-4, -4, 230, 100]])
    data = to_device(torch.from_numpy(rng.integers(0, 256, 3 * (37 * 61 + 224 * 100), np.uint8)), device)
    for interpolation in _SUPPORT:
        given = Boxes(data, np.array([0, 3 * 37 * 61]), sides, boxes, np.array([True, False]))
        task = prepare(given, 32, interpolation)
        if not torch.equal(resize_task(task), resize_plainly(task)):
            raise RuntimeError("other pixels than plain torch's")
