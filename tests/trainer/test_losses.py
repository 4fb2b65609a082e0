"""Every loss against an independent transcription in numpy float64, row by row with plain loops."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labelstore.errors import InputError
from pipeline.networks.imported import imported
from trainer.config import LOSS_NUMBERS
from trainer.loss_table import LOSSES, LossKind
from trainer.losses import LossSpec, cosine_loss, gift_loss, kl_loss, make_loss
from trainer.relabel import require_loss

CLASSES = (2, 10, 1000)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = math.sqrt(a @ a), math.sqrt(b @ b)
    return 0.0 if min(lengths) < 1e-12 else a @ b / lengths[0] / lengths[1]


def direction(v: np.ndarray) -> np.ndarray:
    length = math.sqrt(v @ v)
    return np.zeros_like(v) if length < 1e-12 else v / length


Row = np.ndarray


def smoothed(y: int, classes: int, a: float) -> np.ndarray:
    return np.array([1 - a if c == y else a / (classes - 1) for c in range(classes)])


def log_softmax(v: np.ndarray) -> np.ndarray:
    return v - v.max() - math.log(np.exp(v - v.max()).sum())


def gift_row(
    x: Row,
    t: Row,
    y: int,
    y2: int,
    lam: float,
    gamma: float = 0.1,
    smoothing: float = 0.1,
    form: str = "released",
    weight: float = 0.1,
) -> float:
    s = lam * smoothed(y, len(x), smoothing) + (1 - lam) * smoothed(y2, len(x), smoothing)
    soft, hard = (1, gamma) if form == "released" else (1 - weight, weight)
    return 1 - cosine(x, soft * direction(t) + hard * direction(s))


def kl_row(x: Row, t: Row, temperature: float = 20.0, t_squared: bool = False) -> float:
    log_p, log_q = log_softmax(t / temperature), log_softmax(x / temperature)
    value = sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    return value * temperature**2 if t_squared else value


def ce_row(x: Row, y: int, y2: int, lam: float) -> float:
    return -lam * log_softmax(x)[y] - (1 - lam) * log_softmax(x)[y2]


def soft_ce_row(x: Row, t: Row) -> float:
    return -sum(np.exp(log_softmax(t)) * log_softmax(x))


def mse_row(x: Row, t: Row) -> float:
    return sum((x - t) ** 2) / len(x)


def row_loss(spec: LossSpec, x: Row, t: Row, y: int, y2: int, lam: float) -> float:
    """Numbers are read from the spec field by field, not from `LossSpec.numbers`."""
    losses: dict[str, Callable[[], float]] = {
        "gift": lambda: gift_row(x, t, y, y2, lam, spec.gamma, spec.smoothing, spec.form, spec.weight),
        "cosine": lambda: 1 - cosine(x, t),
        "kl": lambda: kl_row(x, t, spec.temperature, spec.t_squared),
        "soft_ce": lambda: soft_ce_row(x, t),
        "mse": lambda: mse_row(x, t),
        "ce": lambda: ce_row(x, y, y2, lam),
        "mse+ce": lambda: mse_row(x, t) + spec.hard_weight * ce_row(x, y, y2, lam),
        "soft_ce+ce": lambda: soft_ce_row(x, t) + spec.hard_weight * ce_row(x, y, y2, lam),
    }
    return losses[spec.name]()


def oracle(spec: LossSpec, *columns: Row) -> float:
    """Mean over the rows of logits, targets, both classes and their weights."""
    return float(np.mean([row_loss(spec, *row) for row in zip(*columns, strict=True)]))


def case(classes: int, rows: int = 7, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Logits, targets and mixing weights, with lam 0 and 1 and one crop mixed with its own class."""
    rng = np.random.default_rng([seed, classes])
    x, t = rng.normal(0, 4, (2, rows, classes))
    y, y2 = rng.integers(0, classes, (2, rows))
    lam = rng.random(rows)
    lam[:2] = 0, 1
    y2[2] = y[2]
    return x, t, y, y2, lam


def tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


SPECS: list[dict[str, Any]] = [
    *({"name": name} for name in LOSSES),
    {"name": "gift", "gamma": 0.7, "smoothing": 0.3},
    {"name": "gift", "gamma": 0.0, "smoothing": 0.0},
    {"name": "gift", "form": "convex", "weight": 0.35, "smoothing": 0.2},
    {"name": "gift", "form": "convex", "weight": 1.0},
    {"name": "kl", "temperature": 3.0, "t_squared": True},
    {"name": "mse+ce", "hard_weight": 0.5},
    {"name": "soft_ce+ce", "hard_weight": 2.0},
]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("options", SPECS, ids=str)
def test_equals_the_transcription(options: dict[str, Any], classes: int) -> None:
    spec = LossSpec(**options)
    x, t, y, y2, lam = case(classes)
    mixed = make_loss(spec)(*tensors(x, t, y, y2, lam))
    assert mixed.dtype == torch.float64
    assert mixed.shape == ()
    assert mixed.item() == pytest.approx(oracle(spec, x, t, y, y2, lam), rel=1e-12, abs=1e-13)
    unmixed = make_loss(spec)(*tensors(x, t, y)).item()
    assert unmixed == pytest.approx(oracle(spec, x, t, y, y, np.ones(len(y))), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", LOSSES)
def test_float32_and_autocast_are_close_to_float64(name: str, classes: int) -> None:
    x, t, y, y2, lam = tensors(*case(classes, rows=32))
    loss = make_loss(LossSpec(name=name))
    exact = loss(x, t, y, y2, lam).item()
    assert loss(x.float(), t.float(), y, y2, lam.float()).item() == pytest.approx(exact, rel=2e-5, abs=1e-6)
    half = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = loss(half, t.half(), y, y2, lam.float())
    assert under_autocast.dtype == torch.float32
    rounded = loss(half.double(), t.half().double(), y, y2, lam)
    assert under_autocast.item() == pytest.approx(rounded.item(), rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("options", SPECS, ids=str)
def test_gradients(options: dict[str, Any]) -> None:
    x, t, y, y2, lam = tensors(*case(6, rows=4))
    loss = make_loss(LossSpec(**options))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, t, y, y2, lam), (x,))
    assert torch.autograd.gradcheck(lambda x: loss(x, t, y), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_rows_count_as_cosine_zero_with_zero_gradient(dtype: torch.dtype) -> None:
    x, t, y, *_ = tensors(*case(10))
    x, t = x.to(dtype), t.to(dtype)
    x[1] = 0
    x[3] = 1e-14
    t[4] = 0
    x[5] = t[5] = 0
    x.requires_grad_()
    cosine_part = cosine_loss(x, t)
    cosine_part.backward()
    assert x.grad is not None
    assert (x.grad[[1, 3, 4, 5]] == 0).all()
    assert (x.grad[[0, 2, 6]] != 0).any(1).all()
    kept = [0, 2, 6]
    assert cosine_part.item() == pytest.approx(
        1 - sum(cosine(a, b) for a, b in zip(x.detach()[kept].numpy(), t[kept].numpy(), strict=True)) / 7
    )

    x.grad = None
    gift_loss(x, t, y).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad[[1, 3, 5]] == 0).all()
    # a zero teacher row leaves the hard label alone, whatever its weight
    row = slice(4, 5)
    assert gift_loss(x[row], t[row], y[row], gamma=0.1).item() == pytest.approx(
        gift_loss(x[row], t[row], y[row], form="convex", weight=1.0).item()
    )


def test_a_target_that_cancels_out_has_zero_gradient() -> None:
    y = torch.tensor([1])
    t = -torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = gift_loss(x, t, y, gamma=1.0, smoothing=0.0)
    loss.backward()
    assert x.grad is not None
    assert loss.item() == 1
    assert (x.grad == 0).all()


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0])
def test_released_form_is_convex_form_at_gamma_over_one_plus_gamma(classes: int, gamma: float) -> None:
    x, t, y, y2, lam = tensors(*case(classes))
    released = gift_loss(x, t, y, y2, lam, gamma=gamma)
    convex = gift_loss(x, t, y, y2, lam, form="convex", weight=gamma / (1 + gamma))
    assert released.item() == pytest.approx(convex.item(), abs=1e-12)
    other = gift_loss(x, t, y, y2, lam, form="convex", weight=gamma / (2 + gamma))
    assert abs(released.item() - other.item()) > 1e-6


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["gift", "ce", "mse+ce", "soft_ce+ce"]))
def test_mixing_degenerates_to_single_targets(seed: int, name: str) -> None:
    x, t, y, y2, lam = tensors(*case(5, seed=seed))
    loss = make_loss(LossSpec(name=name))
    ones = torch.ones_like(lam)
    for plain, mixed in (
        (loss(x, t, y), loss(x, t, y, y2, ones)),
        (loss(x, t, y2), loss(x, t, y, y2, 0 * ones)),
        (loss(x, t, y), loss(x, t, y, y, lam)),
        (loss(x, t, y, y2, lam), loss(x, t, y2, y, 1 - lam)),
    ):
        assert mixed.item() == pytest.approx(plain.item(), abs=1e-12)


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_cosine_losses_ignore_the_scale_of_either_side(a: float, b: float) -> None:
    x, t, y, *_ = tensors(*case(10))
    assert gift_loss(a * x, b * t, y).item() == pytest.approx(gift_loss(x, t, y).item(), abs=1e-12)
    assert cosine_loss(a * x, b * t).item() == pytest.approx(cosine_loss(x, t).item(), abs=1e-12)


def test_torch_agrees_where_it_has_the_loss() -> None:
    functional = torch.nn.functional
    x, t, y, *_ = tensors(*case(10))
    expected = {
        "kl": functional.kl_div(
            (x / 20).log_softmax(1), (t / 20).log_softmax(1), log_target=True, reduction="batchmean"
        ),
        "soft_ce": functional.cross_entropy(x, t.softmax(1)),
        "mse": functional.mse_loss(x, t),
        "ce": functional.cross_entropy(x, y),
        "cosine": 1 - functional.cosine_similarity(x, t).mean(),
    }
    for name, value in expected.items():
        assert make_loss(LossSpec(name=name))(x, t, y).item() == pytest.approx(value.item(), rel=1e-12)


def test_kl_survives_extreme_logits() -> None:
    x = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    kl_loss(x, -x.detach(), temperature=1.0).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_inputs_are_left_alone() -> None:
    x, t, y, y2, lam = tensors(*case(10))
    before = [value.clone() for value in (x, t, y, y2, lam)]
    for name in LOSSES:
        make_loss(LossSpec(name=name))(x, t, y, y2, lam)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, t, y, y2, lam), strict=True))


@pytest.mark.parametrize("options", SPECS, ids=str)
def test_spec_round_trip(options: dict[str, Any]) -> None:
    spec = LossSpec(**options)
    plain: dict[str, Any] = spec.to_json()
    assert LossSpec(**plain).to_json() == plain
    for name, value in options.items():
        assert plain[name] == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "giift"}, "expected one of gift, cosine, kl, .* found 'giift'"),
        ({"form": "additive"}, "expected 'released' or 'convex', found 'additive'"),
        ({"gamma": -0.1}, "gamma: expected a number >= 0"),
        ({"gamma": math.nan}, "gamma"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"weight": 1.1}, "weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"hard_weight": math.inf}, "--hard-weight: expected"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LossSpec(**options)


def test_bad_tensors_are_refused() -> None:
    x, t, y, y2, lam = tensors(*case(10))
    calls = [
        (lambda: gift_loss(x, t[:, :9], y), r"one shape \[B, C\].*\[7, 10\] and \[7, 9\]"),
        (lambda: gift_loss(x[:, :1], t[:, :1], y), "C >= 2"),
        (lambda: gift_loss(x, t, y[:3]), r"y: expected shape \[7\], found \[3\]"),
        (lambda: gift_loss(x, t, y.double()), "y: expected class indexes as int64"),
        (lambda: gift_loss(x, t, y, y2), "y2 and lam belong together"),
        (lambda: gift_loss(x, t, y, y2, lam[:, None]), "lam: expected shape"),
        (lambda: make_loss(LossSpec(name="ce"))(x, t, y, lam=lam), "y2 and lam belong together"),
    ]
    for call, message in calls:
        with pytest.raises(InputError, match=message):
            call()


def test_every_pair_of_losses_differs() -> None:
    x, t, y, *_ = tensors(*case(10))
    values = {name: make_loss(LossSpec(name=name))(x, t, y).item() for name in LOSSES}
    for a, b in itertools.combinations(values, 2):
        assert values[a] != pytest.approx(values[b], rel=1e-6)


def huber(x: torch.Tensor, t: torch.Tensor, *, temperature: float, width: float = 1.0) -> torch.Tensor:
    """A loss that this file and one line in the table add, with a parameter that has no flag."""
    return torch.nn.functional.huber_loss(x / temperature, t / temperature, delta=width)


def test_a_loss_is_one_file_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    line = LossKind(
        function=f"{__name__}:huber",
        numbers=("temperature",),
        own_numbers=("width",),
        targets=False,
        all_columns=True,
    )
    monkeypatch.setitem(LOSSES, "huber", line)
    spec = LossSpec(name="huber", temperature=0.5)
    x, t, y, y2, lam = tensors(*case(10))
    assert spec.to_json() == {"name": "huber", "temperature": 0.5}
    assert make_loss(spec)(x, t, y, y2, lam).item() == huber(x, t, temperature=0.5).item()
    narrow = LossSpec(name="huber", temperature=0.5, args='{"width": 0.3}')
    assert narrow.numbers == {"temperature": 0.5, "width": 0.3}
    plain: dict[str, Any] = narrow.to_json()
    assert LossSpec(**plain) == narrow
    assert make_loss(narrow)(x, t, y, y2, lam).item() == huber(x, t, temperature=0.5, width=0.3).item()
    with pytest.raises(InputError, match=r"--loss huber: fails when called .*, and with .*'width': 'wide'"):
        make_loss(LossSpec(name="huber", args='{"width": "wide"}'))
    with pytest.raises(InputError, match="--loss huber: needs the logits of all columns"):
        spec.require_content("topk")
    with pytest.raises(InputError, match="--loss huber: is a loss of logits"):
        require_loss(["hard"], spec)


def test_every_number_of_the_table_is_a_flag_or_has_a_default() -> None:
    for name, kind in LOSSES.items():
        assert set(kind.numbers) <= LOSS_NUMBERS.keys(), name
        parameters = inspect.signature(imported("loss", kind.function)).parameters
        assert all(parameters[number].default is not inspect.Parameter.empty for number in kind.own_numbers), name
