"""In which memory layout a network gets its images: decided here, for teachers, students and evaluation alike."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.device.faults import is_fault


def takes_channels_last(trial: Callable[[bool], object]) -> bool:
    """Whether a network works in channels-last layout, which convolutions are fastest in; else it must contiguously.

    Networks that flatten features by ``view`` do not.

    Args:
        trial: runs the network as it will be run, channels-last or contiguous; changes nothing that is kept.

    Raises:
        Exception: what the contiguous trial raised, where neither layout works.
    """
    try:
        trial(True)
    except Exception as error:  # a network may raise anything
        if is_fault(error):
            raise
        trial(False)
        return False
    return True


def memory_format(channels_last: bool) -> torch.memory_format:
    """Torch's name of a layout."""
    return torch.channels_last if channels_last else torch.contiguous_format
