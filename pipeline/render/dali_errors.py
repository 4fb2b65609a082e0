"""Classify errors of DALI: a file that it cannot decode, or a device that it cannot use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from labelstore.errors import GiftwrapError

if TYPE_CHECKING:
    import torch

# A sample's own failure: its status after every decoder was tried, nvImageCodec's codes for what a parser finds in a
# file (bad or unsupported code stream, a parser's internal error, an incomplete bitstream), or a box outside the image
# that DALI sees. Found with DALI 2.4 on a CPU; the decoder on a GPU raises them in the same code.
_OF_A_FILE = re.compile(
    r"Failed to decode sample #\d+|nvImageCodec failure: '#(3|4|13|14|17|19)'|is not valid for image dimensions"
)
_REMEDIES = (
    (
        re.compile(
            r"out of memory|MemoryAllocation|bad_alloc|^MemoryError|nvImageCodec failure: '#(5|15)'", re.IGNORECASE
        ),
        "give a lower --cache-gib, a GPU that nothing else uses, or --decoder cpu",
    ),
    (
        re.compile(r"driver|CUDA is not available|cuInitChecked", re.IGNORECASE),
        "update the driver, install the DALI of its CUDA version (nvidia-dali-cuda120), or give --decoder cpu",
    ),
)
_OTHERWISE = "give --decoder cpu, or another --device"
_LONGEST = 300  # characters of DALI's message


class RefusedFileError(RuntimeError):
    """DALI does not decode one of the files of a batch."""


@contextmanager
def explained(
    device: torch.device, kind: type[GiftwrapError] = GiftwrapError, *, of_files: bool = False
) -> Iterator[None]:
    """Errors of DALI become ours.

    Args:
        device: where DALI decodes. On a CPU every error of files counts as one file's own: Pillow decodes it, to the
            same pixels.
        kind: what is raised for another reason than a file.
        of_files: whether a file may be the reason.

    Raises:
        RefusedFileError: a file's own failure.
        GiftwrapError: anything else, which would change pixels if it went unnoticed.
    """
    try:
        yield
    except Exception as error:  # RuntimeError mostly; MemoryError, TypeError, ValueError as its C++ raises them
        if of_files and (device.type == "cpu" or _OF_A_FILE.search(str(error))):
            raise RefusedFileError(str(error)) from error
        words = words_of(error)
        remedy = next((remedy for found, remedy in _REMEDIES if found.search(words)), _OTHERWISE)
        raise kind(f"DALI on {device}: {words}; {remedy}") from error


def words_of(error: BaseException) -> str:
    """DALI's error in one line, without the traceback of the pipeline's definition."""
    text = str(error).rpartition("encountered:")[2].partition("Current pipeline object")[0]
    line = " ".join(text.split()) or type(error).__name__
    line = f"{type(error).__name__}: {line}" if isinstance(error, MemoryError) else line
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
