"""How the teacher's networks are run: folded, ensembled, compiled, in which batches, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from labelstore.errors import GiftwrapError, InputError
from pipeline.device import memory
from pipeline.networks import build_network, save_weights
from pipeline.plan.plan import PlanSpec
from pipeline.teacher.engine import batches, device, folding, neighbours, running
from pipeline.teacher.engine.batches import Workload, even_batch, largest_batch, peak_bytes
from pipeline.teacher.engine.compiling import CompileError
from pipeline.teacher.engine.folding import fold_batch_norms
from pipeline.teacher.engine.graphs import CudaGraph
from pipeline.teacher.engine.neighbours import require_independent
from pipeline.teacher.teacher import Member, Teacher, TeacherSpec, make_members, make_teacher, stored_members

CLASSES = ("cat", "dog", "eel")
SIZE = 16


def trained(network: nn.Module) -> nn.Module:
    """The network in eval mode, with batch norms that do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "size", "folded"),
    [
        ("cifar-resnet20", 32, 19),
        ("torchvision:resnet18", 64, 20),
        ("torchvision:mobilenet_v2", 64, 52),
        ("torchvision:densenet121", 64, 59),  # others stand before a convolution
        ("timm:mobilenetv2_050", 64, 52),  # norm and activation in one module
    ],
)
def test_a_folded_network_is_the_same_function(name: str, size: int, folded: int) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    network = trained(build_network(name, {}, 10, size=size))
    images = torch.randn(2, 3, size, size)
    before, expected = norms(network), copy.deepcopy(network).double()(images.double())
    assert fold_batch_norms(network, images) == folded
    assert norms(network) == before - folded
    torch.testing.assert_close(network.double()(images.double()), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


class Net(nn.Module):
    """A convolution, a batch norm, and whatever is done with them."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], conv: nn.Module | None = None, **norm: Any) -> None:
        super().__init__()
        self.conv, self.norm = conv or nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, **norm)
        self._forward = forward

    def forward(self, images: Tensor) -> Tensor:
        return self._forward(self, images).mean((2, 3))


def plain(net: Net, images: Tensor) -> Tensor:
    return net.norm(net.conv(images))


def after_relu(net: Net, images: Tensor) -> Tensor:
    return net.norm(net.conv(images).relu())


def used_twice(net: Net, images: Tensor) -> Tensor:
    out = net.conv(images)
    return net.norm(out) + out


def called_twice(net: Net, images: Tensor) -> Tensor:
    return net.norm(net.conv(images)) + net.norm(net.conv(images.flip(3)))


@pytest.mark.parametrize(
    ("network", "folded"),
    [
        (Net(plain), 1),
        (Net(plain, affine=False), 1),
        (Net(plain, nn.Conv2d(3, 4, 3, groups=1, bias=True)), 1),
        (Net(after_relu), 0),
        (Net(used_twice), 0),
        (Net(called_twice), 0),
        (Net(plain, weight_norm(nn.Conv2d(3, 4, 3))), 0),
        (Net(plain, track_running_stats=False), 0),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5), nn.BatchNorm1d(5)), 1),
        (nn.Sequential(nn.Flatten(2), nn.Linear(64, 5), nn.BatchNorm1d(3), nn.Flatten()), 0),  # norms another dimension
    ],
)
def test_only_what_a_norm_alone_takes_is_folded(network: nn.Module, folded: int) -> None:
    trained(network)
    images = torch.randn(2, 3, 8, 8)
    expected = copy.deepcopy(network).double()(images.double())
    assert fold_batch_norms(network, images) == folded
    torch.testing.assert_close(network.double()(images.double()), expected, rtol=1e-5, atol=1e-5)


def test_folding_that_changes_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "fuse_conv_bn_weights", lambda weight, bias, *_others: (weight, bias))
    with pytest.raises(InputError, match=r"--fold: folding 1 batch norms changes the logits by .* leave --fold out"):
        fold_batch_norms(trained(Net(plain)), torch.randn(2, 3, 8, 8))


# Teachers of convnets with batch norm.


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Weights of three convnets."""
    folder, files = tmp_path_factory.mktemp("weights"), []
    for seed in range(3):
        torch.manual_seed(seed)
        network = trained(build_network("convnet-d2", {"width": 8, "norm": "batch"}, len(CLASSES), size=SIZE))
        save_weights(network.state_dict(), folder / f"{seed}.safetensors", classes=CLASSES)
        files.append(str(folder / f"{seed}.safetensors"))
    return files


def members(files: Sequence[str], shares: Sequence[float] = ()) -> tuple[Member, ...]:
    return make_members(["convnet-d2"] * len(files), files, [{"width": 8, "norm": "batch"}], shares)


def teacher_of(files: Sequence[str], shares: Sequence[float] = (), **options: Any) -> Teacher:
    spec = TeacherSpec(**{"members": members(files, shares), "batch": 8, **options})
    return make_teacher(spec, size=SIZE, classes=CLASSES)


def crops(count: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8)


@pytest.mark.parametrize("options", [{}, {"fold": True}, {"dtype": "bfloat16"}])
def test_an_ensemble_is_the_weighted_mean_of_its_members(weights: list[str], options: dict[str, Any]) -> None:
    pixels = crops()
    alone = [teacher_of([file], **options).logits(pixels).double() for file in weights]
    together = teacher_of(weights, (3, 1, 4), **options)
    expected = (3 * alone[0] + alone[1] + 4 * alone[2]) / 8
    torch.testing.assert_close(together.logits(pixels).double(), expected, rtol=1e-6, atol=1e-6)
    assert together.engine == teacher_of(weights[:1], **options).engine


def test_the_identity_of_an_ensemble_names_each_member(weights: list[str]) -> None:
    single = dict(teacher_of(weights[:1]).identity)
    together = dict(teacher_of(weights[:2], (30, 10)).identity)
    assert [member["weights"] for member in together["members"]] == [
        teacher_of([file]).identity["weights"] for file in weights[:2]
    ]
    assert [member["share"] for member in together["members"]] == [0.75, 0.25]
    assert together == teacher_of(weights[:2], (0.75, 0.25)).identity
    for other in ((weights[:2], ()), (weights[1::-1], (30, 10)), (weights, ())):
        assert teacher_of(*other).identity != together
    assert {"name", "args", "weights"} <= single.keys()
    assert "members" not in single
    assert stored_members(together, weights[:2]) == members(weights[:2], (30, 10))
    assert stored_members(single, weights[:1]) == members(weights[:1])
    assert make_members(["convnet-d2"], weights[:2], [{}]) == make_members(["convnet-d2"] * 2, weights[:2], [{}])
    with pytest.raises(InputError, match=r"one for each network of the store \(convnet-d2, convnet-d2\), found 1"):
        stored_members(together, weights[:1])


def test_flags_that_do_not_make_an_ensemble_are_refused(weights: list[str], tmp_path: Path) -> None:
    two = ["convnet-d2", "convnet-d2"]
    bad: list[tuple[Any, str]] = [
        ((two, weights, [{}]), "--weights: expected one for each of the 2 networks of --teacher, found 3"),
        ((two, weights[:2], [{}] * 3), "--teacher-args: expected one"),
        ((two, weights[:2], [{}], [1.0]), "--teacher-weights: expected one"),
        ((two, weights[:2], [{}], [1.0, 0.0]), "--teacher-weights: expected numbers above 0"),
        ((two, weights[:2], [{}], [1.0, float("nan")]), "--teacher-weights: expected numbers above 0"),
    ]
    for words, message in bad:
        with pytest.raises(InputError, match=message):
            make_members(*words)
    network = build_network("convnet-d2", {"width": 8, "norm": "batch"}, 3, size=SIZE)
    save_weights(network.state_dict(), tmp_path / "w.safetensors", classes=("cat", "eel", "dog"))
    with pytest.raises(InputError, match=r"found 'eel' instead of 'dog' in column 1"):
        teacher_of([weights[0], str(tmp_path / "w.safetensors")])


# Neighbours.


class AcrossTheBatch(nn.Module):
    """Attends from each crop to all of the batch."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.mean((2, 3))
        return x + (x @ x.T).softmax(1) @ x


def probed(network: nn.Module, batch: int | None = None) -> None:
    @torch.no_grad()
    def logits(pixels: Tensor) -> Tensor:
        return network(pixels.permute(0, 3, 1, 2) / 64 - 2)

    require_independent("net", network.eval(), logits, SIZE, batch)


def drawing(draws: Callable[[Tensor], Tensor], net: Any, images: Tensor) -> Tensor:
    return draws(plain(net, images))


def test_networks_that_look_at_their_neighbours_are_refused() -> None:
    torch.manual_seed(0)
    for norm in ("batch", "instance"):
        probed(build_network("convnet-d2", {"norm": norm}, 3, size=SIZE))
    without = Net(plain, track_running_stats=False)
    with pytest.raises(InputError, match=r"other logits among other crops.*at most 1e-03.*statistics \(norm\) take"):
        probed(without)
    with pytest.raises(InputError, match="attends across it"):
        probed(AcrossTheBatch())
    for draws in (nn.functional.dropout, torch.rand_like):
        with pytest.raises(InputError, match="draws random numbers"):
            probed(Net(partial(drawing, draws)))
    probed(AcrossTheBatch(), batch=1)  # no neighbours


def test_a_teacher_is_probed(weights: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "NEIGHBOUR_BAND", -1.0)
    with pytest.raises(InputError, match="the network convnet-d2 gives a crop other logits"):
        teacher_of(weights[:1])


# Batches and memory.


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 7), st.integers(0, 5))
def test_the_batch_found_is_the_largest_that_fits(budget: int, crop: int, first: int, doublings: int) -> None:
    first, last = 2**first, 2**first << doublings
    if crop > budget:
        with pytest.raises(InputError, match="batch: one crop takes"):
            largest_batch(lambda batch: batch * crop, budget, first, last)
        return
    batch = largest_batch(lambda batch: batch * crop, budget, first, last)
    assert batch * crop <= budget
    assert batch == last or 2 * batch * crop > budget


def test_peak_memory_counts_what_is_alive() -> None:
    def run(count: int) -> None:
        x = torch.zeros(count, 1000, dtype=torch.uint8)
        for _ in range(5):
            x = x.view(10, -1) + 1  # the old one and the new one
            x.add_(1)

    assert peak_bytes(run) == 2000


def test_the_batch_is_found_within_memory(weights: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert teacher_of(weights[:1], batch=None).engine["batch"] == batches.CPU_BATCH
    monkeypatch.setattr(batches, "available_memory", lambda: 1 << 20)
    small = teacher_of(weights[:1], batch=None)
    assert 1 <= small.batch < batches.CPU_BATCH
    assert small.engine["batch"] == small.batch
    assert small.logits(crops(small.batch)).shape == (small.batch, 3)
    assert teacher_of(weights[:1], batch=300).batch == 300  # what is given is taken
    monkeypatch.setattr("pipeline.teacher.teacher.require_weights_fit", lambda *_: None)
    monkeypatch.setattr(batches, "available_memory", lambda: 10_000)
    with pytest.raises(InputError, match="batch: one crop takes"):
        teacher_of(weights[:1], batch=None)


def test_a_resumed_teacher_takes_what_was_found() -> None:
    spec = TeacherSpec(members=(Member(name="t", weights="w"),), compile="on")
    engine = {"batch": 64, "compile": "inductor"}
    assert (spec.like(engine).batch, spec.like(engine).compile) == (64, "require")
    assert spec.like(engine | {"compile": "none"}).compile == "off"
    asked = dataclasses.replace(spec, batch=32, compile="off")
    assert asked.like(engine) == asked  # and is refused as another engine


def test_the_batch_of_a_gpu_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def run(count: int) -> None:
        tried.append(count)
        if count > 500:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: tried.append(0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 100 + 10 * tried[-1])
    for free, unused, batch in (
        (1 << 30, 0, 256),
        (1 << 20, 1 << 30, 256),
        (2 * 700, 0, 64),
        (800, 600, 64),
        (160, 0, 8),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, 1 << 40))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_, unused=unused: 100 + unused)
        assert batches.find_batch(run, torch.device("cuda")) == batch
        assert tried[-1] == 0  # other libraries take their memory from the driver
    assert batches.find_batch(run, torch.device("cuda"), block=24) == 8
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 1 << 40))
    with pytest.raises(InputError, match="batch: one crop takes"):
        batches.find_batch(run, torch.device("cuda"))
    assert tried[-1] == 0


@given(st.integers(0, 10), st.integers(1, 40_000))
def test_batches_divide_a_block_evenly(doublings: int, block: int) -> None:
    most = 2**doublings
    batch = even_batch(most, block)
    assert batch <= most
    assert batch % 8 == 0 or most < 8
    assert -(-block // batch) == -(-block // most)  # as few
    padded = -(-block // batch) * batch - block
    assert padded <= -(-block // most) * most - block
    assert padded < 8 * -(-block // batch)  # less than the multiple in each
    if most == 1024 and block == 3072:
        assert padded == 0


def test_a_trial_takes_what_augmentations_of_normalised_images_take(weights: list[str]) -> None:
    """DSA's float32 images are larger than the rest of a small network, or of one in bfloat16."""
    seen: list[int] = []
    taken = {}
    for columns in ((), PlanSpec(size=SIZE, augment=("dsa",)).columns):
        network = trained(build_network("convnet-d2", {"width": 1, "norm": "batch"}, 3, size=SIZE))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batches, "largest_batch", lambda bytes_of, *_: seen.append(bytes_of(1)) or 4)
            spec = TeacherSpec(members=(Member(name="convnet-d2", weights=weights[0]),))
            running.make_engine(network, spec, torch.device("cpu"), size=SIZE, folded=False, crop_columns=columns)
        taken[columns] = seen[-1]
    plain, augmented = taken.values()
    assert augmented > plain + 2 * SIZE * SIZE * 3 * 4


def test_a_block_decides_the_batch(weights: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(running, "find_batch", lambda _run, _device, block: asked.append(block) or 4)
    spec = TeacherSpec(members=members(weights[:1]))
    make_teacher(spec, size=SIZE, classes=CLASSES)
    work = Workload(block=lambda columns: 100 * columns)
    assert make_teacher(spec, size=SIZE, classes=CLASSES, work=work).batch == 4
    assert asked == [None, 300]


def test_weights_larger_than_memory_are_refused_unread(weights: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("pipeline.teacher.teacher.load_network", refuse)
    monkeypatch.setattr(batches, "available_memory", lambda: 2000)
    with pytest.raises(InputError, match=r"0.safetensors: expected at most the memory .* has free \(2.0 kB\)"):
        teacher_of(weights[:1])


def test_memory_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemAvailable:   100 kB\n")
    assert memory.available_memory(tmp_path) == 100 << 10
    cgroup = tmp_path / "sys/fs/cgroup"
    cgroup.mkdir(parents=True)
    (cgroup / "memory.current").write_text("3000\n")
    for limit, free in (("max", 100 << 10), ("5000", 2000), ("1000", 0), (str(1 << 40), 100 << 10)):
        (cgroup / "memory.max").write_text(f"{limit}\n")
        assert memory.available_memory(tmp_path) == free
    assert memory.available_memory() > 1 << 20


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_running_out_of_memory_is_said_in_words(weights: list[str], error: RuntimeError) -> None:
    def fail(_images: Tensor) -> Tensor:
        raise error

    teacher = teacher_of(weights[:1])
    broken = dataclasses.replace(teacher, run=dataclasses.replace(teacher.run, network=fail))
    with pytest.raises(GiftwrapError, match=r"out of memory with a batch of 8 crops .*smaller --batch"):
        broken.logits(crops())
    error = RuntimeError("another")
    with pytest.raises(RuntimeError, match="another"):
        broken.logits(crops())


def test_float16_is_not_imitated(weights: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cpu_features", lambda: {"avx512_bf16": True, "avx512_fp16": False})
    with pytest.raises(InputError, match="--dtype float16: this CPU does not compute in float16"):
        teacher_of(weights[:1], dtype="float16")
    monkeypatch.setattr(device, "_cpu_features", lambda: {"avx512_fp16": True})
    exact, half = teacher_of(weights[:1]), teacher_of(weights[:1], dtype="float16")
    pixels = crops()
    torch.testing.assert_close(half.logits(pixels), exact.logits(pixels), rtol=1e-2, atol=1e-2)
    assert half.engine["dtype"] == "float16"


# Compiling, without a compiler.


@pytest.mark.parametrize("missing", ["CXX", "PATH"])
def test_without_a_compiler_the_teacher_runs_and_says_so_or_stops(
    missing: str, weights: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(missing, "/nonexistent")
    teacher = teacher_of(weights[:1], compile="on")
    (warning,) = teacher.warnings
    assert "--compile on: the teacher runs uncompiled, which is slower: torch.compile needs a C++ compiler" in warning
    assert teacher.engine == teacher_of(weights[:1]).engine
    with pytest.raises(CompileError, match=r"install g\+\+.*is required, by --compile require or because the store"):
        teacher_of(weights[:1], compile="require")


def test_a_compiled_network_that_lies_is_not_used(weights: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "compilers", lambda _device: {"c++": "1"})

    def wrong(function: Callable[[Tensor], Tensor], example: Tensor, *, name: str) -> Callable[[Tensor], Tensor]:
        return (lambda images: 1.01 * function(images)) if "network" in name else function

    monkeypatch.setattr(running, "compile_function", wrong)
    with pytest.raises(CompileError, match="the compiled network gives other logits: they differ by"):
        teacher_of(weights[:1], compile="require")

    def other(function: Callable[[Tensor], Tensor], example: Tensor, *, name: str) -> Callable[[Tensor], Tensor]:
        return lambda images: function(images) + 1

    monkeypatch.setattr(running, "compile_function", other)
    (warning,) = teacher_of(weights[:1], compile="on").warnings
    assert "the compiled normalisation of crops gives other images" in warning


def test_a_cuda_graph_keeps_the_weights_that_it_was_captured_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph holds addresses, not tensors: weights that were freed gave labels of whatever came to lie there."""

    class Captured:
        def replay(self) -> None:
            """Nothing: only lifetimes matter here."""

    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Captured)
    monkeypatch.setattr(torch.cuda, "Stream", Mock)
    monkeypatch.setattr(torch.cuda, "current_stream", Mock())
    network = nn.Linear(3, 2).requires_grad_(False)
    weight = weakref.ref(network.weight)
    graph = CudaGraph(network, torch.zeros(4, 3))
    del network
    gc.collect()
    assert weight() is not None
    assert graph(torch.ones(4, 3)).shape == (4, 2)
