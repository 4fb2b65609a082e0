"""What only a GPU shows of the engine: float32 in full, mixing and DSA as on a CPU, a teacher that waits for nothing.

All are skipped without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from labelstore.encodings import Pairs, make_encoding
from labelstore.format.columns import CropRows
from pipeline.device.codes import DeviceCodes
from pipeline.networks import build_network, save_weights
from pipeline.plan.augment import MIXES, cutmix, drawn_inputs, dsa, dsa_one, mixup
from pipeline.render.normalise import network_input
from pipeline.teacher.engine.precision import precision
from pipeline.teacher.teacher import TeacherSpec, make_members, make_teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SIDE, COUNT, GROUP = 32, 48, 8
IMAGES = np.arange(COUNT, dtype=np.uint32)


def products() -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of ``[64, 64, 16, 16]`` with float32 products of 576 and 1,024 terms."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, 3, 3, generator=generator).cuda()
    matrix = torch.randn(1024, 1024, generator=generator).cuda()
    return {
        "convolution": lambda x: torch.nn.functional.conv2d(x, weight.to(x.dtype), padding=1),
        "product": lambda x: x.reshape(1024, 1024) @ matrix.to(x.dtype),
    }


@pytest.mark.parametrize("name", ["convolution", "product"])
def test_float32_is_in_full_whatever_is_set(name: str) -> None:
    function, x = products()[name], torch.randn(64, 64, 16, 16).cuda()
    exact = function(x.double())

    def error() -> float:
        return float((function(x).double() - exact).abs().max() / exact.abs().max())

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with precision("ieee"):
            assert error() < 3e-5
        if torch.cuda.get_device_capability() >= (8, 0):
            with precision("tf32"):
                assert 1e-4 < error() < 1e-2
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Anything in which torch waits for the GPU raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pixels_of(side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (COUNT, side, side, 3), dtype=torch.uint8)


@pytest.mark.parametrize("mix", [cutmix, mixup], ids=["cutmix", "mixup"])
def test_mixing_is_the_cpus_and_does_not_wait(mix: Any) -> None:
    values = mix.draw(1.0, SIDE, 0, 0, np.arange(COUNT))
    partner = np.arange(COUNT)[::-1] % GROUP
    rows, pixels = CropRows(mix.columns, np.concatenate([partner[None], values]).astype(np.uint16)), pixels_of()
    there = pixels.cuda()
    assert mix in MIXES.values()
    mix.mix(there, rows, GROUP)
    with no_waiting():
        found = mix.mix(there, rows, GROUP)
    assert torch.equal(found.cpu(), mix.mix(pixels, rows, GROUP))


@pytest.mark.parametrize("augmentation", [dsa, dsa_one], ids=["dsa", "dsa=one"])
@pytest.mark.parametrize("precise", ["ieee", "tf32"])
def test_dsa_is_the_cpus_and_does_not_wait(augmentation: Any, precise: Any) -> None:
    rows = drawn_inputs(augmentation.columns, SIDE, COUNT)
    assert rows is not None
    how = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "dtype": torch.float32, "channels_last": True}
    plan, pixels = ((0.4, 0.5, 0.6), (0.3, 0.3, 0.3)), pixels_of()
    expected, there = network_input(pixels, rows, **how, plan=plan), pixels.cuda()  # type: ignore[arg-type]
    with precision(precise):
        network_input(there, rows, **how, plan=plan)  # type: ignore[arg-type]
        with no_waiting():
            found = network_input(there, rows, **how, plan=plan)  # type: ignore[arg-type]
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_a_teacher_does_not_wait(dtype: Any, tmp_path: Path) -> None:
    network, file = build_network("convnet-d2", {"width": 8}, 6, size=SIDE), tmp_path / "w.safetensors"
    save_weights(network.state_dict(), file, classes=tuple("abcdef"))
    spec = TeacherSpec(
        members=make_members(["convnet-d2"], [str(file)], [{"width": 8}]),
        classes="0,2,5",
        dtype=dtype,
        batch=64,
        device="cuda",
    )
    teacher = make_teacher(spec, size=SIDE, classes=("a", "c", "f"))
    crops, rows = pixels_of().cuda(), drawn_inputs(dsa.columns, SIDE, COUNT)
    first = teacher.start(crops, rows).result()
    with no_waiting():
        pending = teacher.start(crops, rows)  # a batch that is filled up
    again = pending.result()
    assert torch.equal(first, again)
    assert (again.shape, again.is_cuda) == ((COUNT, 3), True)


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_codes_and_the_largest_logit_are_the_cpus(name: str) -> None:
    logits, pairs = torch.randn(COUNT, 1000), Pairs.unmixed(np.zeros(COUNT, int))
    encoding = make_encoding({"name": name}, 1000)
    there = DeviceCodes(encoding, torch.device("cuda", 0)).encode_measured(logits.cuda(), pairs)
    here = DeviceCodes(encoding, torch.device("cpu")).encode_measured(logits, pairs)
    assert there[1] == here[1]
    assert all(np.array_equal(there[0][array], here[0][array]) for array in here[0])


def test_the_batch_that_is_found_leaves_its_memory(tmp_path: Path) -> None:
    network, file = build_network("convnet-d2", {"width": 8}, 3, size=SIDE), tmp_path / "w.safetensors"
    save_weights(network.state_dict(), file, classes=tuple("abc"))
    members = make_members(["convnet-d2"], [str(file)], [{"width": 8}])
    teacher = make_teacher(TeacherSpec(members=members, device="cuda"), size=SIDE, classes=("a", "b", "c"))
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    assert 1 <= teacher.batch <= 1024
    assert unused < 64 << 20
