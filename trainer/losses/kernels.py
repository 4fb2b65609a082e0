"""The closed forms as Triton kernels: one program computes loss and gradient of a row.

A row of up to `WIDEST` classes stays in registers. Longer rows would spill, so they are read in tiles, in several
passes; after the first pass a row is in the GPU's cache.

They are registered with torch, so that ``torch.compile`` does not trace into them, and run on the current device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from trainer.losses.closed import REACH, SHRUNK, kept_in
from trainer.losses.cosine import TINY


def itself(kernel: Any) -> Any:
    """Return the kernel unwrapped: torch up to 2.11 cannot wrap interpreted kernels, later ones not compile them."""
    return kernel


INTERPRETED = triton.knobs.runtime.interpret
# torch looks for this name to find the kernels of an operator, and caches compiled code by their source.
wrap_triton: Callable[[Any], Any] = itself if INTERPRETED else library.wrap_triton
ONE_BY_ONE = tl.constexpr(INTERPRETED)
SHORTEST, FURTHEST, BACK = tl.constexpr(TINY), tl.constexpr(REACH), tl.constexpr(SHRUNK)
# elements per iteration, and number of programs; few, since usually there is nothing to scale
SCALED, SCALERS = 4096, 256
WIDEST, TILE = 8192, 2048  # most columns that a program holds at once, and the tile of a longer row


@triton.jit
def magnitude(top):
    """The factor by which a row with largest magnitude ``top`` is multiplied so that its squares do not overflow."""
    return tl.where(top > FURTHEST, BACK / top, 1.0)


@triton.jit
def gift_kernel(
    x,  # [B, C], logits of the student
    t,  # [B, C], logits of the teacher or codes in proportion to them
    y,  # int64 [B]
    y2,  # int64 [B]
    lam,  # [B]
    losses,  # float32 [B], written
    gradient,  # [B, C], written
    x_stride,  # in units of UNIT elements
    t_stride,  # likewise
    classes,  # likewise
    rows,
    soft,
    hard,
    rest,  # the hard label elsewhere
    top,  # how much higher it is at its targets together
    HARD: tl.constexpr,
    MIXED: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``1 - cos(x, soft t/|t| + hard s/|s|)`` of a row, and its gradient; NaN for a target that is no class.

    All sums come from one reduction; if squares may overflow, from a second one over scaled rows.
    """
    row = tl.program_id(0).to(tl.int64)
    classes *= UNIT
    x, t, gradient = x + row * x_stride * UNIT, t + row * t_stride * UNIT, gradient + row * classes
    column = tl.arange(0, BLOCK)
    there = column < classes
    a, u = tile(x, column, classes), tile(t, column, classes)
    aa, uu, au, a_sum, u_sum, a_top, u_top = reduced(a * a, u * u, a * u, a, u, tl.abs(a), tl.abs(u))
    a_shrunk, u_shrunk = magnitude(a_top), magnitude(u_top)
    if (a_top > FURTHEST) | (u_top > FURTHEST):
        a *= a_shrunk
        u *= u_shrunk
        aa, uu, au, a_sum, u_sum, a_top, u_top = reduced(a * a, u * u, a * u, a, u, tl.abs(a), tl.abs(u))
    target, target2, own = targets_of(y + row, y2 + row, lam + row, HARD, MIXED)
    of_a, of_u, of_s, cosine = closed(
        x, t, aa, uu, au, a_sum, u_sum, a_shrunk, u_shrunk, target, target2, own, classes, soft, hard, rest, top, HARD
    )
    tl.store(losses + row, 1 - cosine)
    found = of_a * a - of_u * u
    if HARD:
        found -= of_s * hard_label(column, target, target2, own, rest, top, MIXED)
    tl.store(gradient + column, found * (a_shrunk / rows), mask=there)


@triton.jit
def gift_tiles_kernel(
    x,  # [B, C], logits of the student
    t,  # [B, C], logits of the teacher or codes in proportion to them
    y,  # int64 [B]
    y2,  # int64 [B]
    lam,  # [B]
    losses,  # float32 [B], written
    gradient,  # [B, C], written
    x_stride,  # in units of UNIT elements
    t_stride,  # likewise
    classes,  # likewise
    rows,
    soft,
    hard,
    rest,  # the hard label elsewhere
    top,  # how much higher it is at its targets together
    HARD: tl.constexpr,
    MIXED: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As `gift_kernel`, for rows that are longer than a block."""
    row = tl.program_id(0).to(tl.int64)
    classes *= UNIT
    x, t, gradient = x + row * x_stride * UNIT, t + row * t_stride * UNIT, gradient + row * classes
    aa, uu, au, a_sum, u_sum, a_top, u_top = sums(x, t, classes, 1.0, 1.0, BLOCK)
    a_shrunk, u_shrunk = magnitude(a_top), magnitude(u_top)
    if (a_top > FURTHEST) | (u_top > FURTHEST):
        aa, uu, au, a_sum, u_sum, a_top, u_top = sums(x, t, classes, a_shrunk, u_shrunk, BLOCK)
    target, target2, own = targets_of(y + row, y2 + row, lam + row, HARD, MIXED)
    of_a, of_u, of_s, cosine = closed(
        x, t, aa, uu, au, a_sum, u_sum, a_shrunk, u_shrunk, target, target2, own, classes, soft, hard, rest, top, HARD
    )
    tl.store(losses + row, 1 - cosine)
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        found = of_a * (tile(x, column, classes) * a_shrunk) - of_u * (tile(t, column, classes) * u_shrunk)
        if HARD:
            found -= of_s * hard_label(column, target, target2, own, rest, top, MIXED)
        tl.store(gradient + column, found * (a_shrunk / rows), mask=column < classes)


@triton.jit
def reduced(aa, uu, au, a, u, a_top, u_top):
    """Sums and largest magnitudes in one reduction; one by one in the interpreter, where that is faster."""
    if ONE_BY_ONE:
        a_top, u_top = tl.max(a_top, 0), tl.max(u_top, 0)
        return tl.sum(aa, 0), tl.sum(uu, 0), tl.sum(au, 0), tl.sum(a, 0), tl.sum(u, 0), a_top, u_top
    return tl.reduce((aa, uu, au, a, u, a_top, u_top), 0, added)


@triton.jit
def added(aa, uu, au, a, u, a_top, u_top, aa2, uu2, au2, a2, u2, a_top2, u_top2):
    """Combine two parts of a row: sums, and the largest magnitudes."""
    a_top, u_top = tl.maximum(a_top, a_top2), tl.maximum(u_top, u_top2)
    return aa + aa2, uu + uu2, au + au2, a + a2, u + u2, a_top, u_top


@triton.jit
def sums(x, t, classes, a_shrunk, u_shrunk, BLOCK: tl.constexpr):
    """The results of `reduced` over tiles of two rows, each row multiplied by a factor."""
    zeros = tl.zeros((BLOCK,), tl.float32)
    aa, uu, au, a_sum, u_sum, a_top, u_top = zeros, zeros, zeros, zeros, zeros, zeros, zeros
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        a, u = tile(x, column, classes) * a_shrunk, tile(t, column, classes) * u_shrunk
        aa += a * a
        uu += u * u
        au += a * u
        a_sum += a
        u_sum += u
        a_top, u_top = tl.maximum(a_top, tl.abs(a)), tl.maximum(u_top, tl.abs(u))
    return reduced(aa, uu, au, a_sum, u_sum, a_top, u_top)


@triton.jit
def closed(
    x, t, aa, uu, au, a_sum, u_sum, a_shrunk, u_shrunk, target, target2, own, classes, soft, hard, rest, top,
    HARD: tl.constexpr,
):  # fmt: skip
    """As `trainer.losses.closed.gift_rows`: the coefficients of the gradient, before 1 / rows, and the cosine."""
    length, u_length = tl.sqrt(aa), tl.sqrt(uu)
    of_u, of_s = tl.where(u_length < SHORTEST, 0.0, soft / u_length), 0.0
    squared = of_u * of_u * uu
    product = of_u * au
    if HARD:
        right = is_class(target, classes) & is_class(target2, classes)
        first, second = top * own, top * (1 - own)
        both = tl.where(target == target2, 2 * first * second, 0.0)
        squares = classes * rest * rest + 2 * rest * top + first * first + second * second + both
        of_s = hard / tl.sqrt(squares)
        a1, a2 = tl.load(x + target, mask=right, other=0), tl.load(x + target2, mask=right, other=0)
        u1, u2 = tl.load(t + target, mask=right, other=0), tl.load(t + target2, mask=right, other=0)
        of_peaks = (first * u1.to(tl.float32) + second * u2.to(tl.float32)) * u_shrunk
        squared += hard * hard + 2 * of_u * of_s * (rest * u_sum + of_peaks)
        product += of_s * (rest * a_sum + (first * a1.to(tl.float32) + second * a2.to(tl.float32)) * a_shrunk)
    whole = tl.sqrt(squared)
    dead = (length < SHORTEST) | (whole < SHORTEST)
    slope = tl.where(dead, 0.0, 1 / (length * whole))
    cosine = product * slope
    if HARD:
        cosine = tl.where(right, cosine, float("nan"))
    return tl.where(dead, 0.0, cosine / aa), slope * of_u, slope * of_s, cosine


@triton.jit
def tile(row, column, classes):
    """Some columns of a row in float32; 0 beyond its end."""
    return tl.load(row + column, mask=column < classes, other=0).to(tl.float32)


@triton.jit
def targets_of(y, y2, lam, HARD: tl.constexpr, MIXED: tl.constexpr):
    """A row's targets, and the weight of the first one."""
    target = tl.load(y) if HARD else 0
    target2, own = target, 1.0
    if MIXED:
        target2, own = tl.load(y2), tl.load(lam).to(tl.float32)
    return target, target2, own


@triton.jit
def hard_label(column, target, target2, own, rest, top, MIXED: tl.constexpr):
    """The smoothed hard label at some columns."""
    if MIXED:
        return rest + top * (tl.where(column == target, own, 0.0) + tl.where(column == target2, 1 - own, 0.0))
    return rest + tl.where(column == target, top, 0.0)


@triton.jit
def is_class(target, classes):
    """Whether a target is a class."""
    return (target >= 0) & (target < classes)


@triton.jit
def kl_kernel(
    x,  # [B, C], logits of the student
    t,  # [B, C], logits of the teacher
    losses,  # float32 [B], written
    gradient,  # [B, C], written
    x_stride,  # in units of UNIT elements
    t_stride,  # likewise
    classes,  # likewise
    rows,
    cold,  # 1 / temperature
    factor,  # of the loss
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``KL(softmax(t / T) || softmax(x / T))`` of a row, and its gradient."""
    row = tl.program_id(0).to(tl.int64)
    classes *= UNIT
    x, t, gradient = x + row * x_stride * UNIT, t + row * t_stride * UNIT, gradient + row * classes
    column = tl.arange(0, BLOCK)
    there = column < classes
    a, b = tile(x, column, classes) * cold, tile(t, column, classes) * cold
    a -= tl.max(tl.where(there, a, float("-inf")), 0)
    b -= tl.max(tl.where(there, b, float("-inf")), 0)
    q, p = tl.where(there, tl.exp(a), 0.0), tl.where(there, tl.exp(b), 0.0)
    q_sum, p_sum = tl.sum(q, 0), tl.sum(p, 0)
    q /= q_sum
    p /= p_sum
    difference = tl.where(there, (b - tl.log(p_sum)) - (a - tl.log(q_sum)), 0.0)
    tl.store(losses + row, tl.sum(p * difference, 0) * factor)
    tl.store(gradient + column, (q - p) * (factor * cold / rows), mask=there)


@triton.jit
def kl_tiles_kernel(
    x,  # [B, C], logits of the student
    t,  # [B, C], logits of the teacher
    losses,  # float32 [B], written
    gradient,  # [B, C], written
    x_stride,  # in units of UNIT elements
    t_stride,  # likewise
    classes,  # likewise
    rows,
    cold,  # 1 / temperature
    factor,  # of the loss
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As `kl_kernel`, for rows that are longer than a block."""
    row = tl.program_id(0).to(tl.int64)
    classes *= UNIT
    x, t, gradient = x + row * x_stride * UNIT, t + row * t_stride * UNIT, gradient + row * classes
    zeros = tl.zeros((BLOCK,), tl.float32)
    a_top, b_top = zeros + float("-inf"), zeros + float("-inf")
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        there = column < classes
        a_top = tl.maximum(a_top, tl.where(there, tile(x, column, classes) * cold, float("-inf")))
        b_top = tl.maximum(b_top, tl.where(there, tile(t, column, classes) * cold, float("-inf")))
    a_most, b_most = tl.max(a_top, 0), tl.max(b_top, 0)
    q_sum, p_sum = zeros, zeros
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        there = column < classes
        q_sum += tl.where(there, tl.exp(tile(x, column, classes) * cold - a_most), 0.0)
        p_sum += tl.where(there, tl.exp(tile(t, column, classes) * cold - b_most), 0.0)
    q_total, p_total = tl.sum(q_sum, 0), tl.sum(p_sum, 0)
    q_log, p_log = tl.log(q_total), tl.log(p_total)
    loss = zeros
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        there = column < classes
        a, b = tile(x, column, classes) * cold - a_most, tile(t, column, classes) * cold - b_most
        q, p = tl.exp(a) / q_total, tl.exp(b) / p_total
        loss += tl.where(there, p * ((b - p_log) - (a - q_log)), 0.0)
        tl.store(gradient + column, (q - p) * (factor * cold / rows), mask=there)
    tl.store(losses + row, tl.sum(loss, 0) * factor)


@triton.jit
def scale_kernel(
    values,  # [n], changed
    factor,  # scalar
    count,
    BLOCK: tl.constexpr,
):
    """Multiply in place; nothing is read or written if the factor is 1."""
    by = tl.load(factor).to(tl.float32)
    if by != 1:
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, count, tl.num_programs(0) * BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < count
            tl.store(values + place, tl.load(values + place, mask=inside, other=0).to(tl.float32) * by, mask=inside)


@triton.jit
def mean_kernel(
    values,  # float32 [n]
    mean,  # float32, written
    count,
    BLOCK: tl.constexpr,
):
    """The mean, always summed in the same order."""
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        sums += tl.load(values + place, mask=place < count, other=0)
    tl.store(mean, tl.sum(sums, 0) / count)


def registered(function: Callable[..., Any]) -> Any:
    """Register a function as a torch operator: opaque under the interpreter, else visible to the compiler."""
    name = f"giftwrap::{function.__name__}_rows"
    if not INTERPRETED:
        return library.triton_op(name, function, mutates_args=())
    operator = library.custom_op(name, function, mutates_args=())
    operator.register_fake(lambda x, *_rest, **_numbers: results(x))
    return operator


def results(x: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate losses and gradient."""
    return x.new_empty(x.shape[0], dtype=torch.float32), x.new_empty(x.shape, dtype=kept_in(x))


def sizes(classes: int) -> dict[str, int]:
    """The block for a row, or for a tile of it, and the number of warps."""
    if classes > WIDEST:
        return {"BLOCK": TILE, "num_warps": 16}  # of eight ways the fastest at 21,841 classes (H200)
    block = triton.next_power_of_2(classes)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 32)}  # 2 of 1, 2, 4 and 8 at 1,000 classes (H200)


def in_units(x: Tensor, t: Tensor) -> tuple[int, tuple[int, int, int]]:
    """The largest unit that divides both strides and the number of classes, and the three counted in it.

    Triton can then assume aligned rows, and vectorises loads and stores.
    """
    lengths = (x.stride(0), t.stride(0), x.shape[1])
    unit = next(unit for unit in (8, 4, 2, 1) if all(length % unit == 0 for length in lengths))
    return unit, (lengths[0] // unit, lengths[1] // unit, lengths[2] // unit)


def lines(values: Tensor) -> Tensor:
    """The values with contiguous rows."""
    return values if values.stride(1) == 1 else values.contiguous()


@registered
def gift(
    x: Tensor,
    t: Tensor,
    y: Tensor | None = None,
    y2: Tensor | None = None,
    lam: Tensor | None = None,
    *,
    soft: float,
    hard: float,
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    """As `trainer.losses.closed.gift_rows`, in float32."""
    losses, gradient = results(x)
    x, t, classes = lines(x), lines(t), int(x.shape[1])
    rest = smoothing / (classes - 1)
    targets = [losses if values is None else values.contiguous() for values in (y, y2, lam)]
    unit, lengths = in_units(x, t)
    numbers = (*lengths, x.shape[0], soft, hard, rest, 1 - smoothing - rest)
    kernel = gift_kernel if classes <= WIDEST else gift_tiles_kernel
    wrap_triton(kernel)[(x.shape[0],)](
        x,
        t,
        *targets,
        losses,
        gradient,
        *numbers,
        HARD=y is not None,
        MIXED=y2 is not None,
        UNIT=unit,
        **sizes(classes),
    )
    return losses, gradient


@registered
def kl(x: Tensor, t: Tensor, *, temperature: float, t_squared: bool) -> tuple[Tensor, Tensor]:
    """As `trainer.losses.closed.kl_rows`, in float32."""
    losses, gradient = results(x)
    x, t, classes = lines(x), lines(t), int(x.shape[1])
    factor = temperature**2 if t_squared else 1.0
    unit, lengths = in_units(x, t)
    numbers = (*lengths, x.shape[0], 1 / temperature, factor)
    kernel = kl_kernel if classes <= WIDEST else kl_tiles_kernel
    wrap_triton(kernel)[(x.shape[0],)](x, t, losses, gradient, *numbers, UNIT=unit, **sizes(classes))
    return losses, gradient


def mean(values: Tensor) -> Tensor:
    """The mean of float32 values ``[n]``; not for compiled code."""
    found = values.new_empty(())
    mean_kernel[(1,)](values, found, len(values), BLOCK=SCALED, num_warps=16)
    return found


def scale(values: Tensor, factor: Tensor) -> Tensor:
    """The values times a scalar, in place; not for compiled code."""
    count = values.numel()
    scale_kernel[(min(triton.cdiv(count, SCALED), SCALERS),)](values, factor, count, BLOCK=SCALED)
    return values
