"""Triton kernels: the two passes of `pipeline.render.batched`, and the input of networks from bytes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.render.jobs import BITS, FILTER_RADIUS, HALF, JOB, Task

# The fastest of eleven ways at 224 px (H100), both passes timed alone: 0.86 us a crop; 16 lines took 1.08 us.
BLOCK_LINES, BLOCK_BYTES, WARPS = 8, 256, 4
INPUT_BYTES = 4096  # of crops that a program normalises
# Columns of a job, as `pipeline.render.jobs.JOB` names them.
START, LINES, BETWEEN, PLACE, PLACE_ALONG, LIMIT, LIMIT_ALONG = (tl.constexpr(column) for column in range(7))
STRIDE, STRIDE_ALONG, TAPS, TAPS_ALONG, TARGET, TARGET_ALONG, BASE = (tl.constexpr(column) for column in range(7, 14))
TABLE, LENGTH, LENGTH_ALONG = tl.constexpr(14), tl.constexpr(15), tl.constexpr(16)
COLUMNS = tl.constexpr(len(JOB))
SHIFT, ROUND = tl.constexpr(BITS), tl.constexpr(HALF)
ONE = tl.constexpr(float(1 << BITS))  # the weight 1


def resize_task(task: Task) -> Tensor:
    """Crops uint8 ``[n, S, S, 3]``."""
    count, size = len(task.jobs), task.size
    between = torch.empty((task.lines, size, 3), dtype=torch.uint8, device=task.data.device)
    crops = torch.empty((count, size, size, 3), dtype=torch.uint8, device=task.data.device)
    across = bytes_at_once(size)
    blocks = triton.cdiv(3 * size, across)
    settings: dict[str, Any] = {"SIZE": size, "ROWS": BLOCK_LINES, "BYTES": across, "num_warps": WARPS}
    settings["enable_fp_fusion"] = False
    first = torch.empty((2, count, size), dtype=torch.int32, device=task.data.device)
    weights = torch.empty((task.taps, 2, count, size), dtype=torch.int32, device=task.data.device)
    places = task.places or (task.jobs, task.jobs)  # not read where nothing changes places
    with torch.cuda.device(task.data.device) if task.data.is_cuda else nullcontext():
        weigh_axes[count, 2](
            task.jobs,
            first,
            weights,
            count,
            RADIUS=FILTER_RADIUS[task.interpolation],
            CUBIC=task.interpolation == "bicubic",
            SIZE=size,
            BLOCK=triton.next_power_of_2(size),
            enable_fp_fusion=False,
        )
        shorten_lines[count, triton.cdiv(task.longest, BLOCK_LINES), blocks](
            task.data,
            task.jobs,
            first[1],
            weights[:, 1],
            *places,
            between,
            weights.stride(0),
            PLACES=task.places is not None,
            **settings,
        )
        join_lines[count, triton.cdiv(size, BLOCK_LINES), blocks](
            between, task.jobs, first[0], weights[:, 0], crops, weights.stride(0), **settings
        )
    return crops


def normalise_bytes(pixels: Tensor, scale: tuple[float, ...], shift: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """``pixels * scale + shift`` of each channel, two operations of float32: ``[n, 3, S, S]``, channels last."""
    n, height, width, channels = pixels.shape
    images = torch.empty((n, height, width, channels), dtype=dtype, device=pixels.device)
    count = pixels.numel()
    with torch.cuda.device(pixels.device) if pixels.is_cuda else nullcontext():
        input_of[(triton.cdiv(count, INPUT_BYTES),)](
            pixels.contiguous(), images, count, *scale, *shift, BLOCK=INPUT_BYTES, enable_fp_fusion=False
        )
    return images.permute(0, 3, 1, 2)


def bytes_at_once(size: int) -> int:
    """Bytes of a crop's line that a program makes."""
    return min(BLOCK_BYTES, int(triton.next_power_of_2(3 * size)))


@triton.jit
def weigh_axes(
    jobs,  # int64 [n, COLUMNS]
    first,  # int32 [2, n, S], written: across the lines and along them
    weights,  # int32 [taps, 2, n, S], written, as many of each box as it has
    count,  # n
    RADIUS: tl.constexpr,
    CUBIC: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One axis of one box: as `pipeline.render.jobs.weigh`, in float64, each operation rounded as Pillow's own."""
    crop, axis = tl.program_id(0), tl.program_id(1)
    job = jobs + crop * COLUMNS
    pixel = tl.arange(0, BLOCK)
    wanted = pixel < SIZE
    length = tl.load(job + LENGTH + axis)
    scale = length.to(tl.float64) / tl.full((), SIZE, tl.float64)
    stretch = tl.maximum(scale, tl.full((), 1, tl.float64))
    support = RADIUS * stretch
    inverse = tl.full((), 1, tl.float64) / stretch
    center = (pixel.to(tl.float64) + 0.5) * scale
    begin = tl.maximum((center - support + 0.5).to(tl.int64), 0)
    stop = tl.minimum((center + support + 0.5).to(tl.int64), length)
    place = (axis * count + crop) * SIZE + pixel
    tl.store(first + place, begin.to(tl.int32), mask=wanted)
    taps = tl.load(job + TAPS + axis).to(tl.int32)
    total = tl.zeros((BLOCK,), tl.float64)
    for tap in range(taps):  # in Pillow's order
        total += part_of(begin + tap, center, stop, inverse, CUBIC)
    total = tl.where(total == 0, 1, total)
    target = weights + place
    for tap in range(taps):
        part = part_of(begin + tap, center, stop, inverse, CUBIC) / total * ONE
        tl.store(target, (part + tl.where(part < 0, -0.5, 0.5)).to(tl.int32), mask=wanted)
        target += 2 * count * SIZE


@triton.jit
def part_of(pixel, center, stop, inverse, CUBIC: tl.constexpr):
    """The filter at a pixel of the box, for each pixel of the crop; 0 beyond the box."""
    x = tl.abs(pixel.to(tl.float64) - center + 0.5) * inverse
    if CUBIC:
        near = (1.5 * x - 2.5) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * -0.5
        part = tl.where(x < 1, near, tl.where(x < 2, far, 0.0))
    else:
        part = tl.maximum(1 - x, 0.0)
    return tl.where(pixel >= stop, 0.0, part)


@triton.jit
def shorten_lines(
    data,  # uint8 [B]
    jobs,  # int64 [n, COLUMNS]
    first,  # int32 [n, S]
    weights,  # int32 [taps, n, S]
    places,  # int32 [lines], of each line in its image, and ...
    places_along,  # int32 [pixels], ... of each pixel along the lines of a box; read with PLACES
    between,  # uint8 [lines, S, 3], written
    apart,  # from the weights of one tap to those of the next
    PLACES: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """One crop's box, some of its lines, some bytes of each: every line gets S pixels."""
    crop = tl.program_id(0)
    job = jobs + crop * COLUMNS
    lines, top = tl.load(job + LINES), tl.program_id(1) * ROWS
    if top < lines:  # there are programs for the box that has most
        line = top + tl.arange(0, ROWS)
        byte = tl.program_id(2) * BYTES + tl.arange(0, BYTES)
        there, wanted = line < lines, byte < 3 * SIZE
        pixel = byte // 3
        # What is flipped along the lines is so here: the second pass then writes bytes side by side.
        pixel = tl.where(tl.load(job + TARGET_ALONG) < 0, SIZE - 1 - pixel, pixel)
        place = tl.load(job + PLACE) + line
        inside = there & (place >= 0) & (place < tl.load(job + LIMIT))
        if PLACES:
            place = tl.load(places + tl.load(job + BETWEEN) + line, mask=inside, other=0).to(tl.int64)
        begin = tl.load(first + crop * SIZE + pixel, mask=wanted, other=0)
        along = tl.load(job + PLACE_ALONG) + begin
        table = places_along + tl.load(job + TABLE) + begin
        left = tl.load(job + LENGTH_ALONG) - begin  # pixels of the box from there on
        limit, stride = tl.load(job + LIMIT_ALONG), tl.load(job + STRIDE_ALONG)
        source = data + tl.load(job + START) + (place * tl.load(job + STRIDE))[:, None] + (byte % 3)[None, :]
        address = source + (along * stride)[None, :]
        weight = weights + crop * SIZE + pixel
        sums = tl.full((ROWS, BYTES), ROUND, tl.int32)
        for tap in range(tl.load(job + TAPS_ALONG).to(tl.int32)):
            part = wanted & (along + tap >= 0) & (along + tap < limit)
            if PLACES:
                part = part & (tap < left)  # the next box follows in the table; weights are 0 there
                address = source + (tl.load(table + tap, mask=part, other=0) * stride)[None, :]
            value = tl.load(address, mask=inside[:, None] & part[None, :], other=0)
            sums += value.to(tl.int32) * tl.load(weight, mask=part, other=0)[None, :]
            weight += apart
            if not PLACES:
                address += stride
        done = tl.minimum(tl.maximum(sums >> SHIFT, 0), 255).to(tl.uint8)
        target = between + (tl.load(job + BETWEEN) + line)[:, None] * (3 * SIZE) + byte[None, :]
        tl.store(target, done, mask=there[:, None] & wanted[None, :])


@triton.jit
def join_lines(
    between,  # uint8 [lines, S, 3]
    jobs,  # int64 [n, COLUMNS]
    first,  # int32 [n, S]
    weights,  # int32 [taps, n, S]
    crops,  # uint8 [n, S, S, 3], written
    apart,  # from the weights of one tap to those of the next
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """One crop, some of its lines, some bytes of each: as many lines become S, and lie where the crop has them."""
    crop = tl.program_id(0)
    job = jobs + crop * COLUMNS
    line = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    byte = tl.program_id(2) * BYTES + tl.arange(0, BYTES)
    kept, wanted = line < SIZE, byte < 3 * SIZE
    lines = tl.load(job + LINES)
    top = tl.load(first + crop * SIZE + line, mask=kept, other=0)
    address = between + ((tl.load(job + BETWEEN) + top) * (3 * SIZE))[:, None] + byte[None, :]
    weight = weights + crop * SIZE + line
    sums = tl.full((ROWS, BYTES), ROUND, tl.int32)
    for tap in range(tl.load(job + TAPS).to(tl.int32)):
        part = kept & (top + tap < lines)
        value = tl.load(address, mask=part[:, None] & wanted[None, :], other=0)
        sums += value.to(tl.int32) * tl.load(weight, mask=part, other=0)[:, None]
        address += 3 * SIZE
        weight += apart
    done = tl.minimum(tl.maximum(sums >> SHIFT, 0), 255).to(tl.uint8)
    along = tl.load(job + TARGET_ALONG)
    if (along == 3) | (along == -3):
        target = crops + crop.to(tl.int64) * (3 * SIZE * SIZE) + line[:, None] * (3 * SIZE) + byte[None, :]
        tl.store(target, done, mask=kept[:, None] & wanted[None, :])
    else:  # the lines are columns of the crop
        across = tl.load(job + BASE) + line * tl.load(job + TARGET)
        target = crops + across[:, None] + ((byte // 3) * along + byte % 3)[None, :]
        tl.store(target, done, mask=kept[:, None] & wanted[None, :])


@triton.jit
def input_of(
    pixels,  # uint8 [n]
    images,  # [n], written
    count,
    scale_0,
    scale_1,
    scale_2,
    shift_0,
    shift_1,
    shift_2,
    BLOCK: tl.constexpr,
):
    """Some bytes of crops, normalised by channel."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    channel = place % 3
    scale = tl.where(channel == 0, scale_0, tl.where(channel == 1, scale_1, scale_2))
    shift = tl.where(channel == 0, shift_0, tl.where(channel == 1, shift_1, shift_2))
    value = tl.load(pixels + place, mask=inside, other=0).to(tl.float32)
    tl.store(images + place, value * scale + shift, mask=inside)
