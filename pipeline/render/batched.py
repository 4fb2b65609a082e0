"""Many crops cut, resized and flipped at once on a device, with Pillow's own integers: its crops, bit for bit.

Pillow resizes along rows, then along columns. Each pass sums bytes times weights of 22 bits, rounds once and clips to a
byte. Integers add up the same in any order, so a crop depends only on its box, and is equal on a CPU and on a GPU. Two
kernels do it on a GPU that Triton can compile for; plain torch, here, everywhere else.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipeline.device.kernels import kernels_agree
from pipeline.device.moving import to_device
from pipeline.render.jobs import BITS, FILTER_RADIUS, HALF, JOB, Boxes, Task, prepare, weights_of


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


def resize_plainly(task: Task) -> Tensor:
    """Both passes in plain torch, on any device."""
    data, size, count = task.data, task.size, len(task.jobs)
    firsts, weights_by_tap = weights_of(task)
    job = dict(zip(JOB, task.jobs.T, strict=True))
    channel = torch.arange(3, device=data.device)
    crop = torch.repeat_interleave(torch.arange(count, device=data.device), job["lines"], output_size=task.lines)
    line = (torch.arange(task.lines, device=data.device) + (job["place"] - job["between"])[crop])[:, None]
    missing = (line < 0) | (line >= job["limit"][crop, None])
    row = line if task.places is None else task.places[0][:, None]
    start = job["start"][crop, None] + row * job["stride"][crop, None]
    first = firsts[1][crop]
    along = job["place along"][crop, None] + first
    sums = torch.full((task.lines, size, 3), HALF, dtype=torch.int32, device=data.device)
    for tap, (_, of_pixels) in enumerate(weights_by_tap):
        black = missing | (along + tap < 0) | (along + tap >= job["limit along"][crop, None])
        column = along + tap
        if task.places is not None:
            black |= first + tap >= job["length along"][crop, None]  # of the next box in the table; weights are 0 there
            column = task.places[1][(job["table"][crop, None] + first + tap).masked_fill_(black, 0)]
        index = (start + column * job["stride along"][crop, None]).masked_fill_(black, 0)
        weights = of_pixels[crop].masked_fill_(black, 0)
        sums += data[index[..., None] + channel].int() * weights[..., None]
    between = (sums >> BITS).clamp_(0, 255).byte()
    sums = torch.full((count, size, size, 3), HALF, dtype=torch.int32, device=data.device)
    for tap, (of_lines, _) in enumerate(weights_by_tap):
        inside = (firsts[0] + tap).minimum(job["lines"][:, None] - 1)  # weights beyond are 0
        sums += between[job["between"][:, None] + inside].int() * of_lines[:, :, None, None]
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
    sides = np.array([[37, 61], [224, 100]] * 2)
    boxes = np.array([[3, 4, 30, 50], [-4, -4, 230, 100]] * 2)  # by rows first, and by columns
    flips = np.array([True, False, False, True])
    data = to_device(torch.from_numpy(rng.integers(0, 256, 3 * (37 * 61 + 224 * 100), np.uint8)), device)
    begins = np.array([[[0, 17], [0, 30]], [[0, 100], [0, 40]]] * 2)
    moves = np.array([[[20, -17], [31, -30]], [[124, -100], [60, -40]]] * 2)  # two strips a side change places
    for interpolation, strips in itertools.product(FILTER_RADIUS, (None, (begins, moves))):
        given = Boxes(data, np.array([0, 3 * 37 * 61] * 2), sides, boxes, flips, strips)
        task = prepare(given, 32, interpolation)
        if not torch.equal(resize_task(task), resize_plainly(task)):
            raise RuntimeError("other pixels than plain torch's")
