"""The current GPU of a thread. Threads start with the first GPU, where a context would take memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
T = TypeVar("T")


def make_current(device: torch.device | str) -> None:
    """Make a GPU the current device of this thread; does nothing for a device without an index."""
    kind, _, number = str(device).partition(":")
    if kind != "cuda" or not number.isdecimal():
        return
    import torch

    if int(number) < torch.cuda.device_count():  # missing devices are refused elsewhere
        torch.cuda.set_device(int(number))


def with_current(work: Callable[P, T], device: torch.device) -> Callable[P, T]:
    """Wrap ``work`` so that it first makes a GPU the current device of its thread."""

    def placed(*args: P.args, **kwargs: P.kwargs) -> T:
        make_current(device)
        return work(*args, **kwargs)

    return placed
