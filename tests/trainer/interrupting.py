"""Runs that are stopped between two steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from trainer import train as loop
from trainer.step import step


@contextmanager
def interrupted_after(steps: int) -> Iterator[None]:
    """What trains in this context raises KeyboardInterrupt in place of the step that comes after ``steps``."""
    left = steps

    def interrupted(*args: Any) -> Tensor:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return step(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield
