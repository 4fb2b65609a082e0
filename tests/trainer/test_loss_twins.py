"""Fused twins against the definitions in float64: values, gradients, labels as stored, and what they refuse."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labelstore import LabelStore
from labelstore.errors import InputError
from labelstore.operations.convert import convert
from pipeline.teacher.engine.compiling import CompileError, compilers
from tests.journeys.world import World
from trainer import Replay
from trainer.losses import Loss, LossSpec, definition_of, fused, make_loss
from trainer.losses.closed import gift_rows
from trainer.losses.fused import Fused

SPECS: dict[str, LossSpec] = {
    "gift": LossSpec(),
    "convex": LossSpec(form="convex", weight=0.25, smoothing=0.0),
    "hard": LossSpec(form="convex", weight=1.0, smoothing=0.3),
    "cosine": LossSpec(name="cosine"),
    "kl": LossSpec(name="kl"),
    "kl hot": LossSpec(name="kl", temperature=2.0, t_squared=True),
}
CLASSES, ROWS = (2, 10, 100, 1000, 1271, 21841), (1, 7, 1024)
# Of a row's gradient times its length: what it is stored in rounds it, twice. Triton's interpreter cuts bfloat16 off.
BANDS = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-6 if fused.INTERPRETED else 2**-7}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SCALES = {torch.float16: 4096.0}  # incoming gradients: as large as half precision wants them, or
SCALE = 3.0
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    """Closed forms of any size run uncompiled; a test of the compiled one lowers the limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "WORTH_COMPILING", 2**62)
        yield


def batch(rows: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Logits, labels, targets at both ends, partners that are sometimes of the same class, weights with 0 and 1."""
    noise = torch.Generator().manual_seed(seed)
    x, t = (3 * torch.randn(rows, classes, generator=noise) for _ in range(2))
    y, y2 = (torch.randint(classes, (rows,), generator=noise) for _ in range(2))
    lam = torch.rand(rows, generator=noise)
    y[0], y2[0] = 0, classes - 1
    if rows > 6:
        x[0], x[1, 1:], t[2], x[5] = 0, 1e-15, 0, 0
        t[5] = 0
        if dtype != torch.float16:
            x[1], x[3], x[4] = 1e-15, 1e-10 * x[3], 1e30 * x[4]
            t[3], t[4] = 1e30 * t[3], 1e-10 * t[4]
        y[1], y2[2], lam[3], lam[4] = classes - 1, y[2], 0, 1
    return [x.to(dtype), t, y, y2, lam]


def value_and_gradient(loss: Callable[..., Tensor], x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    value = loss(leaf, *rest)
    (SCALES.get(x.dtype, SCALE) * value).backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == x.dtype
    return value.detach(), leaf.grad


def require_parity(loss: Loss, spec: LossSpec, x: Tensor, *rest: Tensor) -> None:
    """Value within 1e-6, or as much of it where it is large; each row's gradient within the band of its dtype."""
    definition = make_definition(spec)
    exact = [values.double() if values.is_floating_point() or values.dtype == torch.int8 else values for values in rest]
    expected, slope = value_and_gradient(definition, x.double(), *exact)
    slope *= SCALES.get(x.dtype, SCALE) / SCALE
    value, gradient = value_and_gradient(loss, x, *rest)
    assert value.shape == ()
    assert abs(value.item() - expected.item()) <= 1e-6 * max(1, abs(expected.item()))
    length = x.double().norm(dim=1, keepdim=True).clamp(min=1e-12) if spec.any_scale else 1
    ours, theirs = gradient.double() * length, slope * length
    error = (ours - theirs).norm(dim=1) / (theirs.norm(dim=1) + 0.1 * theirs.norm(dim=1).max())
    assert error.max() <= BANDS[x.dtype] or theirs.norm() == 0
    assert (gradient[slope.norm(dim=1) == 0] == 0).all()


def make_definition(spec: LossSpec) -> Any:
    definition = definition_of(spec.kind, spec.kind.function)
    return lambda *tensors: definition(*tensors, **spec.numbers)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        pytest.param(rows, classes, marks=[pytest.mark.long] * (rows * classes > 1 << 21))
        for rows in ROWS
        for classes in CLASSES
    ],
)
@pytest.mark.parametrize("name", SPECS)
def test_parity(name: str, rows: int, classes: int, device: str) -> None:
    loss = make_loss(SPECS[name])
    assert isinstance(loss, Fused)
    tensors = [values.to(device) for values in batch(rows, classes)]
    if name.startswith("kl"):
        tensors[0].clamp_(-1e3, 1e3)
        tensors[1].clamp_(-1e3, 1e3)
    require_parity(loss, SPECS[name], *tensors)
    require_parity(loss, SPECS[name], *tensors[:3])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("label", [torch.float32, torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", BANDS, ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_parity_of_short_numbers(name: str, dtype: torch.dtype, label: torch.dtype, device: str) -> None:
    x, t, *targets = (values.to(device) for values in batch(40, 100, torch.float16))
    t = (8 * t).to(label)
    require_parity(make_loss(SPECS[name]), SPECS[name], x.to(dtype), t, *targets)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["gift", "cosine"])
def test_rows_of_every_size_in_one_batch(name: str, device: str) -> None:
    scales = (1e-9, 1.0, 1e9, 3e18, 1e30)
    x, t, *targets = (values.to(device) for values in batch(len(scales) ** 2, 50, torch.float16))
    x, t = x.float() + 0.1, t + 0.1
    for row, (ours, theirs) in enumerate(itertools.product(scales, scales)):
        x[row] *= ours
        t[row] *= theirs
    require_parity(make_loss(SPECS[name]), SPECS[name], x, t, *targets)


def test_codes_need_no_scale() -> None:
    x, t, *targets = batch(20, 50, torch.float16)
    scales = t.abs().amax(1, keepdim=True) / 127
    codes = torch.where(scales > 0, t / scales, 0).round().to(torch.int8)
    loss = make_loss(LossSpec())
    found, expected = (value_and_gradient(loss, x.float(), label, *targets) for label in (codes, codes * scales))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert [LossSpec(name=name).any_scale for name in ("gift", "cosine", "kl", "mse")] == [True, True, False, False]


@pytest.mark.parametrize(("encoding", "dtype"), [("float16", torch.float16), ("int8", torch.int8)])
def test_labels_go_in_as_they_are_stored(world: World, encoding: str, dtype: torch.dtype, tmp_path: Path) -> None:
    convert(LabelStore.open(world.store), tmp_path / "store", {"name": encoding})
    decoded, stored = (
        Replay(tmp_path / "store", world.images, batch_size=16, any_scale=any_scale) for any_scale in (False, True)
    )
    loss = make_loss(LossSpec())
    for ours, theirs in zip(stored, decoded, strict=True):
        # int8 codes of labels that have an offset are no directions: their batch comes decoded
        assert ours.logits.dtype in ((dtype,) if encoding == "float16" else (dtype, torch.float32))
        assert theirs.logits.dtype == torch.float32
        x, *targets = torch.randn(theirs.logits.shape), ours.targets, ours.targets2, ours.lam
        found, expected = (value_and_gradient(loss, x, batch.logits, *targets) for batch in (ours, theirs))
        torch.testing.assert_close(found, expected)
    for replay in (decoded, stored):
        replay.close()


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(2, 40),
    st.floats(0, 3),
    st.floats(0, 0.95),
    st.sampled_from(["released", "convex"]),
    st.booleans(),
)
def test_any_numbers(
    seed: int, rows: int, classes: int, weight: float, smoothing: float, form: Any, opposed: bool
) -> None:
    """Also where the labels nearly cancel out, which leaves the work to the definition."""
    spec = LossSpec(form=form, gamma=weight, weight=weight / 3, smoothing=smoothing)
    x, t, *targets = batch(rows, classes, torch.float16, seed)
    if opposed:
        t = -torch.nn.functional.one_hot(targets[0], classes).float() + 1e-3 * t
    x = x.double()
    expected = value_and_gradient(make_definition(spec), x, t.double(), *targets)
    found = value_and_gradient(make_loss(spec), x, t.double(), *targets)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gift", "cosine", "kl"])
def test_backward_again_and_twice(name: str) -> None:
    loss = make_loss(LossSpec(name=name))
    x, *rest = batch(5, 10)
    x.requires_grad_()
    value = loss(x, *rest)
    (once,) = torch.autograd.grad(value, x, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * value, x, retain_graph=True)
    torch.testing.assert_close(thrice, 3 * once)
    with pytest.raises(InputError, match="differentiated once, found create_graph=True; its definition"):
        torch.autograd.grad(value, x, create_graph=True)
    assert not loss(x.detach(), *rest).requires_grad


def test_the_gradient_of_a_step_is_not_scaled() -> None:
    loss, (x, t, y, *_) = make_loss(LossSpec()), batch(3, 10)
    found, expected = (x.clone().requires_grad_() for _ in range(2))
    loss(expected, t, y).backward()
    value = loss(found, t, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "item", None)  # a CPU looks at the factor by it
        if fused.INTERPRETED:
            patch.setattr("trainer.losses.kernels.scale", None)
        fused.backward(value)
    assert found.grad is not None
    assert expected.grad is not None
    assert torch.equal(found.grad, expected.grad)
    again = x.clone().requires_grad_()
    fused.backward(3 * loss(again, t, y))
    torch.testing.assert_close(again.grad, 3 * expected.grad)


def test_labels_that_want_a_gradient_get_one() -> None:
    x, t, y, *_ = batch(5, 10)
    t.requires_grad_()
    make_loss(LossSpec())(x, t, y).backward()
    assert t.grad is not None
    assert t.grad.any()


def test_strided_and_repeated_rows() -> None:
    x, t, *targets = batch(6, 10)
    for ours, label in ((x.T.contiguous().T, t), (x, t[:1].expand(6, -1)), (torch.cat([x, x], 1)[:, :10], t)):
        require_parity(make_loss(LossSpec()), LossSpec(), ours, label, *targets)


def test_a_large_batch_is_compiled_and_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(fused, "WORTH_COMPILING", 100)
    tensors = batch(10, 10)
    loss = make_loss(LossSpec())
    with pytest.warns(UserWarning, match="not compiled.*found no 'no-such-compiler'"):
        require_parity(loss, LossSpec(), *tensors)
    require_parity(loss, LossSpec(), *tensors)  # warns once
    require_parity(make_loss(LossSpec()), LossSpec(), *batch(9, 10))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled() -> None:
    try:
        compilers(torch.device("cpu"))
    except CompileError as error:
        pytest.skip(str(error))
    torch.compiler.reset()
    loss = make_loss(LossSpec())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "WORTH_COMPILING", 0)
        for rows in (40, 7, 1):
            require_parity(loss, LossSpec(), *batch(rows, 37))
    plain = make_loss(LossSpec())
    whole = torch.compile(lambda *tensors: 2 * plain(*tensors), fullgraph=True)
    x, *rest = batch(40, 37)
    for found, expected in zip(
        value_and_gradient(whole, x, *rest),
        value_and_gradient(lambda *tensors: 2 * plain(*tensors), x, *rest),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@needs_triton
def test_kernels_that_do_not_run_leave_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    import trainer.losses.kernels  # noqa: F401  as it is where nothing is interpreted

    monkeypatch.setattr(fused, "INTERPRETED", True)  # it is not, and a CPU alone runs no kernel
    fused._kernels_work.cache_clear()
    loss = make_loss(LossSpec())
    tensors = batch(7, 10)
    with pytest.warns(UserWarning, match="the same by its closed form.*Triton's kernels do not run here"):
        require_parity(loss, LossSpec(), *tensors)
    fused._kernels_work.cache_clear()


def interpreted() -> None:
    """What `test_kernels` does, in its process."""
    import triton.language as tl

    from trainer.losses import kernels

    for name, spec in SPECS.items():
        loss = make_loss(spec)
        for classes in {"convex": (2, 37, 24), "gift": (21_841, 48), "kl hot": (21_841, 8)}.get(name, (1271,)):
            tensors = batch(7, classes)
            if name.startswith("kl"):
                tensors[:2] = [values.clamp(-1e3, 1e3) for values in tensors[:2]]
            given = [tensors, tensors[:3]][: 1 if classes > 1271 else 2]  # long rows take a second each here
            for some in given:
                require_parity(loss, spec, *some)
            with pytest.MonkeyPatch.context() as patch:  # in tiles, of which the last one is not whole
                patch.setattr(kernels, "WIDEST", 1)
                patch.setattr(kernels, "TILE", 1 << max(classes.bit_length() - 2, 0))
                for some in given:
                    require_parity(loss, spec, *some)
        x, t, *targets = batch(7, 100, torch.float16)
        for dtype, label in ((torch.bfloat16, torch.float16), (torch.float16, torch.int8), (torch.float32, torch.int8)):
            require_parity(loss, spec, x.to(dtype), (8 * t).to(label), *targets)
    with pytest.MonkeyPatch.context() as patch:  # as a GPU does it
        patch.setattr(kernels, "ONE_BY_ONE", tl.constexpr(False))
        require_parity(make_loss(SPECS["gift"]), SPECS["gift"], *batch(2, 9))
    test_strided_and_repeated_rows()
    test_rows_of_every_size_in_one_batch("gift", "cpu")
    test_backward_again_and_twice("gift")
    for classes in (10, kernels.WIDEST + 1):
        loss, (x, t, y, y2, lam) = make_loss(LossSpec()), batch(3, classes)
        y[1] = classes  # no class
        assert loss(x, t, y).isnan()
        assert loss(x, t, y2, y, lam).isnan()
    values = torch.randn(23)
    with pytest.MonkeyPatch.context() as patch:  # several rounds of few programs
        patch.setattr(kernels, "SCALED", 4)
        patch.setattr(kernels, "SCALERS", 2)
        torch.testing.assert_close(kernels.mean(values), values.mean())
        torch.testing.assert_close(kernels.scale(values.clone(), torch.tensor(3.0)), 3 * values)
        assert torch.equal(kernels.scale(values.clone(), torch.tensor(1.0)), values)
    test_the_gradient_of_a_step_is_not_scaled()
    loss, (x, t, y, *_) = make_loss(LossSpec()), batch(3, 10)
    whole = torch.compile(lambda *tensors: SCALE * loss(*tensors), fullgraph=True, backend="aot_eager")
    eager = value_and_gradient(lambda *tensors: SCALE * loss(*tensors), x, t, y)
    torch.testing.assert_close(value_and_gradient(whole, x, t, y), eager)
    assert isinstance(loss, Fused)
    assert loss.rows(x, t) is not gift_rows


@needs_triton
def test_kernels(tmp_path: Path) -> None:
    """Triton's interpreter, in a process of its own: it changes Triton for good."""
    program = "from tests.trainer.test_loss_twins import interpreted; interpreted()"
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning:trainer", "-c", program],
        check=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )


@needs_triton
def test_kernels_are_operators_whose_shapes_are_known() -> None:
    from torch._dynamo.source import ConstantSource
    from torch._library.triton import get_triton_kernels_for_op
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    from trainer.losses import kernels

    with FakeTensorMode():
        x, t = (torch.empty(8, 1000, device="cuda", dtype=dtype) for dtype in (torch.bfloat16, torch.int8))
        losses, gradient = kernels.gift(x, t, soft=1.0, hard=0.0, smoothing=0.1)
        assert (losses.shape, losses.dtype) == ((8,), torch.float32)
        assert (gradient.shape, gradient.dtype) == (x.shape, x.dtype)
    any_rows: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    symbols, eight = ShapeEnv(), torch.empty(8, 1000)
    with FakeTensorMode(shape_env=symbols) as mode:
        x = mode.from_tensor(eight, symbolic_context=any_rows, source=ConstantSource("x"))
        kernels.gift(x, x, soft=1.0, hard=0.0, smoothing=0.1)
        kernels.kl(x, x, temperature=1.0, t_squared=False)
    assert not [guard for guard in symbols.guards if "8" in str(guard.expr)]  # compiled once, for any number of rows
    found: Any = get_triton_kernels_for_op("giftwrap::gift_rows")
    assert {kernel.fn.__name__ for kernel in found} == {"gift_kernel", "gift_tiles_kernel"}
