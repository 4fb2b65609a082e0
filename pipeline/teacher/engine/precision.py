"""Torch's settings that decide the bits of a forward pass: set for a teacher, put back afterwards.

Torch has two interfaces to the precision of float32 products: an old one (``allow_tf32``,
``set_float32_matmul_precision``) and a new one (``fp32_precision``, by backend and operator, where "none" inherits).
Setting never fails. Reading the old one raises where the two disagree, and ``torch.compile`` reads it: both are set, to
the same.

Nothing is set for cuBLAS to be deterministic: it is, unless several streams share a workspace, and torch gives every
handle and stream a separate workspace. ``CUBLAS_WORKSPACE_CONFIG`` only changes its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch

from pipeline.quiet import quiet

Precision = Literal["ieee", "tf32"]
# Where the new interface has a precision, by backend and operator; "mkldnn" is the CPU.
PLACES = (
    ("generic", "all"), ("cuda", "all"), ("mkldnn", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"),
    ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"),
)  # fmt: skip
ALGORITHMS = True, False, True  # whether cuDNN is used, times its algorithms, and takes only deterministic ones
# As `torch.backends` calls them; torch.backends.mkldnn.fp32_precision sets another place than it reads (torch 2.14).
_get: Callable[[str, str], str] = torch._C._get_fp32_precision_getter
_put: Callable[[str, str, str], object] = torch._C._set_fp32_precision_setter


@contextmanager
def precision(products: Precision) -> Iterator[None]:
    """Products of float32 as given on a GPU, in full on a CPU, and no cuDNN algorithm that another run may not take.

    Torch has these settings once a process, for all threads. Where all are as wanted, nothing is written: a thread that
    labels then changes nothing for a thread that trains (`trainer.online.one_precision`).

    Args:
        products: ``ieee`` in full; ``tf32`` of 10 bits of each factor, in convolutions and matrix products.
    """
    _warn_now()
    cudnn: Any = torch.backends.cudnn
    if _is_set(products):
        try:
            yield
        finally:
            if not _is_set(products):  # the network's code has changed something
                cudnn.enabled, cudnn.benchmark, cudnn.deterministic = ALGORITHMS
                _set(*_wanted(products))
        return
    flags = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    new, old = _exchange(products)
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = ALGORITHMS
    try:
        yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = flags
        _set(new, *old)


def _exchange(products: Precision) -> tuple[list[str], tuple[bool, str]]:
    """Set precisions; returns those before: of the new interface, in the order of `PLACES`, and of the old one."""
    found = {place: _get(*place) for place in PLACES}
    new = [own if place == PLACES[0] or own != found[_above(place)] else "none" for place, own in found.items()]
    cudnn: Any = torch.backends.cudnn
    try:
        convolutions = bool(cudnn.allow_tf32)
    except RuntimeError:  # the interfaces disagree
        convolutions = found["cuda", "conv"] != "tf32"
    for place in PLACES:
        _put(*place, "ieee")  # with which the old interface can be read
    old = convolutions, torch.get_float32_matmul_precision()
    _set(*_wanted(products))
    return new, old


def _wanted(products: Precision) -> tuple[list[str], bool, str]:
    """The arguments of `_set`."""
    places: list[str] = [products if place[0] == "cuda" else "ieee" for place in PLACES]
    return places, products == "tf32", "high" if products == "tf32" else "highest"


def _is_set(products: Precision) -> bool:
    """Whether everything is as `precision` sets it."""
    cudnn: Any = torch.backends.cudnn
    places, convolutions, matmul = _wanted(products)
    if [_get(*place) for place in PLACES] != places or torch.get_float32_matmul_precision() != matmul:
        return False
    try:
        found = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, bool(cudnn.allow_tf32)
    except RuntimeError:  # the interfaces disagree
        return False
    return found == (*ALGORITHMS, convolutions)


def _above(place: tuple[str, str]) -> tuple[str, str]:
    """What a place inherits from."""
    backend, operator = place
    return (backend, "all") if operator != "all" else ("generic", "all")


def _set(new: Sequence[str], convolutions: bool, matmul: str) -> None:
    """Set both interfaces: the old one first, for it sets the new one too."""
    cudnn: Any = torch.backends.cudnn
    cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(matmul)
    for place, own in zip(PLACES, new, strict=True):
        _put(*place, own)


@cache
def _warn_now() -> None:
    """Trigger and hide torch's warning about its old interface, which it prints once per process."""
    with quiet():
        new, old = _exchange("ieee")
        _set(new, *old)
