"""The current GPU of a thread. A thread begins with the first one, and would take memory there for a context."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
T = TypeVar("T")


def make_current(device: torch.device | str) -> None:
    """Make a GPU the current one of this thread; nothing where no number names one."""
    kind, _, number = str(device).partition(":")
    if kind != "cuda" or not number.isdecimal():
        return
    import torch

    if int(number) < torch.cuda.device_count():  # one that is not there is refused where it is chosen
        torch.cuda.set_device(int(number))


def with_current(work: Callable[P, T], device: torch.device) -> Callable[P, T]:
    """``work`` for any thread: it begins by making a GPU the thread's current one."""

    def placed(*args: P.args, **kwargs: P.kwargs) -> T:
        make_current(device)
        return work(*args, **kwargs)

    return placed
