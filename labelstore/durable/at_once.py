"""Requests that wait for their answers at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = 32
Value = TypeVar("Value")
Answer = TypeVar("Answer")


def at_once(act: Callable[[Value], Answer], values: Sequence[Value]) -> list[Answer]:
    """The results of ``act`` for all values, in order, many at a time; the first error is raised."""
    if len(values) < 2:
        return list(map(act, values))
    with ThreadPoolExecutor(min(len(values), AT_ONCE), thread_name_prefix="giftwrap-requests") as pool:
        return list(pool.map(act, values))
