"""Device faults as one-line errors: out of memory, or a failed GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from labelstore.command.console import notes_of
from labelstore.errors import GiftwrapError, reason

# What the texts of torch, cuDNN and cuBLAS contain; some of them are plain RuntimeErrors.
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
FAILED = (
    "CUDA error",
    "CUDA driver error",
    "CUDNN_STATUS_",
    "CUBLAS_STATUS_",
    "device-side assert",
    "unspecified launch failure",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
)


class DeviceMemoryError(GiftwrapError):
    """A device, or the machine, is out of memory."""


class DeviceFailedError(GiftwrapError):
    """A GPU has failed, and cannot be used any more in this process."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error means that memory is exhausted."""
    text = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, (torch.OutOfMemoryError, DeviceMemoryError)) or text


def is_fault(error: BaseException) -> bool:
    """Whether an error is a fault of the device, independent of the computation: out of memory, or failed."""
    if isinstance(error, DeviceFailedError) or lacks_memory(error):
        return True
    accelerator = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
    text = isinstance(error, RuntimeError) and any(words in str(error) for words in FAILED)
    return isinstance(error, accelerator) or text


@contextmanager
def device_faults(doing: str, flags: str) -> Iterator[None]:
    """Turn device faults into one-line errors with a remedy; other errors pass through.

    Args:
        doing: the current work, as it follows "while": "crops are rendered".
        flags: flags that reduce memory: "a smaller --batch".

    Raises:
        DeviceMemoryError: out of memory.
        DeviceFailedError: the GPU has failed.
    """
    try:
        yield
    except RuntimeError as error:
        if lacks_memory(error):
            found: GiftwrapError = DeviceMemoryError(
                f"out of memory while {doing} ({reason(error)}); free memory, or give {flags}"
            )
        elif is_fault(error):
            found = DeviceFailedError(
                f"the GPU failed while {doing} ({reason(error)}); see nvidia-smi and the system's log for the cause, "
                f"then run the same command again"
            )
        else:
            raise
        for note in notes_of(error):
            found.add_note(note)
        raise found from error
