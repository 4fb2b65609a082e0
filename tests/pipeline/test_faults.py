"""Faults of a device: what counts as one, and what is said; devices that are not there."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from labelstore.errors import InputError
from pipeline.device.choosing import choose_device
from pipeline.device.faults import DeviceFailedError, DeviceMemoryError, device_faults, is_fault, lacks_memory
from pipeline.networks.layout import takes_channels_last
from pipeline.teacher.engine import batches
from pipeline.teacher.engine.compiling import compile_function
from trainer.trial import one_line_errors

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\nmore lines"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),  # of pinned memory
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
]
LOST = [
    torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: device-side assert triggered\nFor debugging consider"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("No CUDA GPUs are available"),
]


def raising(error: Exception) -> Callable[..., None]:
    def act(*_: object, **__: object) -> None:
        raise error

    return act


@pytest.mark.parametrize("error", [*NO_MEMORY, *LOST], ids=lambda error: str(error).split("\n")[0][-40:])
def test_faults_are_known_by_what_torch_says(error: RuntimeError) -> None:
    assert is_fault(error)
    memory = error in NO_MEMORY
    assert lacks_memory(error) is memory
    error = type(error)(*error.args)
    error.add_note("something is kept")
    with pytest.raises(DeviceMemoryError if memory else DeviceFailedError) as found, device_faults("it runs", "less"):
        raise error
    first = str(error).partition("\n")[0]
    rest = "; free memory, or give less" if memory else "; see nvidia-smi"
    how = "out of memory" if memory else "the GPU failed"
    assert str(found.value).startswith(f"{how} while it runs ({first}){rest}")
    assert "\n" not in str(found.value)
    assert found.value.__notes__ == ["something is kept"]
    assert found.value.exit_code == 1
    with pytest.raises(type(found.value), match="while it runs"), device_faults("outside", "more"):
        raise found.value  # the innermost names the stage


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory"), OSError("disk")])
def test_other_errors_pass(error: Exception) -> None:
    assert not is_fault(error)
    with pytest.raises(type(error)) as found, device_faults("it runs", "less"):
        raise error
    assert found.value is error


@pytest.mark.parametrize("error", [NO_MEMORY[1], LOST[1]], ids=["memory", "lost"])
def test_a_fault_is_no_fault_of_the_network(error: RuntimeError) -> None:
    """Trials that take any error of a network as its own let faults of the device pass."""
    for act in (
        lambda: takes_channels_last(raising(error)),
        lambda: compile_function(nn.Identity(), torch.zeros(1), name="n"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", lambda *_, **__: raising(error))
            with pytest.raises(RuntimeError) as found:
                act()
        assert found.value is error
    with pytest.raises(RuntimeError) as found, one_line_errors("student"):
        raise error
    assert found.value is error


def test_a_batch_for_which_cudnn_lacks_memory_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("reset_peak_memory_stats", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    gpu = torch.device("cuda", 0)
    for error in NO_MEMORY:
        assert batches._gpu_bytes(raising(error), 1, gpu) == float("inf")
    with pytest.raises(RuntimeError, match="launch failure"):
        batches._gpu_bytes(raising(LOST[0]), 1, gpu)


def test_a_device_that_is_not_there_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    count, said = 0, ""

    def available() -> bool:
        if said:
            warnings.warn(said, stacklevel=2)
        return count > 0

    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(InputError, match=r"0 usable CUDA devices \(this torch is built without CUDA\); give"):
            choose_device(name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(InputError, match=r"^device cuda: torch finds 0 usable CUDA devices; give --device cpu$"):
        choose_device("cuda")
    said = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update"
    with pytest.raises(InputError, match=r"devices \(CUDA initialization: The NVIDIA driver on your system is too old"):
        choose_device("cuda")
    said, count = "", 2
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(InputError, match=r"^device cuda:7: torch finds 2 .*; give --device cuda:1, or --device cpu$"):
        choose_device("cuda:7")
    for visible in ("", "0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        count = len(visible)
        with pytest.raises(InputError, match=f"devices .CUDA_VISIBLE_DEVICES is '{visible}'.; give"):
            choose_device("cuda:1")
