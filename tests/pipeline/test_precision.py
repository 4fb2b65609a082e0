"""Float32 means float32, whatever the code of a teacher sets; TF32 is an engine of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from labelstore.store import LabelStore
from pipeline.build.build import build
from pipeline.config import BuildConfig, VerifyConfig
from pipeline.networks import build_network, save_weights
from pipeline.replay.verify import verify
from pipeline.teacher.engine import device
from pipeline.teacher.engine.ensemble import Ensemble
from pipeline.teacher.engine.precision import precision
from pipeline.teacher.engine.running import eager
from pipeline.teacher.engine.spec import MAX_RELATIVE_ERROR
from pipeline.teacher.teacher import Member, TeacherSpec, make_members, make_teacher
from tests.journeys.world import SIDE, TEACHER, World

BACKENDS: Any = torch.backends
OPERATORS = {
    "cuda matmul": BACKENDS.cuda.matmul,
    "cuda conv": BACKENDS.cudnn.conv,
    "cuda rnn": BACKENDS.cudnn.rnn,
    "cpu matmul": BACKENDS.mkldnn.matmul,
    "cpu conv": BACKENDS.mkldnn.conv,
    "cpu rnn": BACKENDS.mkldnn.rnn,
}
# Everything that code of a user's sets to make float32 faster.
CHANGES: dict[str, Callable[[], None]] = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "all": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "all of cuda": lambda: setattr(BACKENDS.cudnn, "fp32_precision", "tf32"),
    "old matmul": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "old conv": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "new matmul": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "new conv": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "cpu": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    "timed": lambda: setattr(BACKENDS.cudnn, "benchmark", True),
    "any algorithm": lambda: setattr(BACKENDS.cudnn, "deterministic", False),
}
FULL = dict.fromkeys(OPERATORS, "ieee")
TF32 = {name: "tf32" if name.startswith("cuda") else "ieee" for name in OPERATORS}


def products() -> dict[str, str]:
    return {name: operator.fp32_precision for name, operator in OPERATORS.items()}


def settings() -> list[object]:
    """Everything that can be read; what raises, because the interfaces disagree, is None."""
    found: list[object] = [*products().values(), *(each.fp32_precision for each in (BACKENDS, BACKENDS.cudnn))]
    cudnn = BACKENDS.cudnn
    found += [cudnn.enabled, cudnn.benchmark, cudnn.deterministic]
    for read in (
        torch.get_float32_matmul_precision,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        lambda: BACKENDS.cudnn.allow_tf32,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    for place in (*OPERATORS.values(), BACKENDS, BACKENDS.cudnn, BACKENDS.mkldnn):
        place.fp32_precision = "none"
    BACKENDS.cudnn.allow_tf32, BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic = True, False, False
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("names", list(itertools.permutations(CHANGES, 2)), ids=" then ".join)
def test_settings_hold_within_and_are_put_back(names: Sequence[str]) -> None:
    for name in names:
        CHANGES[name]()
    before = settings()
    for wanted, made in (("ieee", FULL), ("tf32", TF32)):
        with precision(wanted):  # type: ignore[arg-type]
            assert products() == made
            assert BACKENDS.cuda.matmul.allow_tf32 == BACKENDS.cudnn.allow_tf32 == (wanted == "tf32")
            assert (BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic) == (False, True)
            for change in CHANGES.values():
                change()
        assert settings() == before


def test_what_was_inherited_is_inherited_again() -> None:
    BACKENDS.cudnn.conv.fp32_precision = "none"
    with precision("ieee"):
        pass
    assert BACKENDS.cudnn.conv.fp32_precision == "none"
    BACKENDS.fp32_precision = "tf32"
    assert BACKENDS.cudnn.conv.fp32_precision == "tf32"


@pytest.mark.parametrize("wanted", ["ieee", "tf32"])
def test_nothing_is_written_where_all_is_set(wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that trains meanwhile would be changed by it."""
    with precision(wanted):
        before = settings()
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.teacher.engine.precision._put", None)
            patch.setattr(torch, "set_float32_matmul_precision", None)
            with precision(wanted):
                assert settings() == before
        with precision(wanted):
            for change in CHANGES.values():
                change()
        assert settings() == before
        with precision("tf32" if wanted == "ieee" else "ieee"):
            assert settings() != before
        assert settings() == before


class Fast(nn.Module):
    """A network whose author wants it fast, in its constructor and whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, str]] = []
        for change in CHANGES.values():
            change()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(products())
        for change in CHANGES.values():
            change()
        return images.mean((2, 3))


@pytest.mark.parametrize(("dtype", "made"), [("float32", FULL), ("bfloat16", FULL), ("tf32", TF32)])
def test_a_teacher_that_changes_settings_runs_in_full(dtype: Any, made: dict[str, str]) -> None:
    network = Fast()
    before = settings()
    spec = TeacherSpec(members=(Member(name="t", weights="w"),), dtype=dtype, batch=2)
    engine = eager(network, spec, torch.device("cpu"), 2)
    for _ in range(3):
        engine.logits(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
        assert settings() == before
    assert network.seen == [made] * 3
    both = [Fast(), Fast()]
    engine = eager(Ensemble(both, (0.5, 0.5), spec.products), spec, torch.device("cpu"), 2)
    engine.logits(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
    assert [network.seen for network in both] == [[made], [made]]  # the second one runs after the first one's changes


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    network = build_network("convnet-d2", {"width": 8}, 3, size=16)
    save_weights(network.state_dict(), file, classes=("a", "b", "c"))
    return str(file)


def test_tf32_is_an_engine_of_a_gpu(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TeacherSpec(members=make_members(["convnet-d2"], [weights], [{"width": 8}]), dtype="tf32", batch=4)
    with pytest.raises(InputError, match=r"--dtype tf32: a CPU computes float32 in full; give --dtype float32, or"):
        make_teacher(spec, size=16, classes=("a", "b", "c"))
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Old GPU")
    for capability, refused in (((7, 5), True), ((8, 0), False), ((9, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, found=capability: found)
        if refused:
            with pytest.raises(InputError, match="--dtype tf32: Old GPU computes float32 in full"):
                device.require_tf32(gpu)
        else:
            device.require_tf32(gpu)
    monkeypatch.setattr(device, "require_tf32", lambda _device: None)
    teacher = make_teacher(spec, size=16, classes=("a", "b", "c"))
    assert teacher.engine["dtype"] == "tf32"
    assert MAX_RELATIVE_ERROR["float32"] < MAX_RELATIVE_ERROR["tf32"] <= MAX_RELATIVE_ERROR["float16"]
    assert all(weight.dtype == torch.float32 for weight in teacher.run.network.parameters())  # type: ignore[attr-defined]


def test_a_store_in_tf32_is_verified_in_float32_on_a_cpu(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    config = from_flags(
        BuildConfig,
        images=world.images,
        teacher=(TEACHER[1],),
        teacher_args=(TEACHER[3],),
        weights=(str(world.weights),),
        size=SIDE,
        views=2,
        batch=16,
        threads=1,
        dtype="tf32",
        store=store,
    )
    with monkeypatch.context() as patch:
        patch.setattr(device, "require_tf32", lambda _device: None)
        build(config, Console(silent=True))
    assert LabelStore.open(store).identity.require("engine")["dtype"] == "tf32"
    words = from_flags(VerifyConfig, store=store, images=world.images, weights=(str(world.weights),))
    ok, values = verify(words, Console())
    assert ok
    assert values["max_error_band"] == pytest.approx(1e-2 * float(np.abs(LabelStore.open(store).audit().logits).max()))
    assert "engine: differs from the store's in dtype: 'tf32' there, 'float32' here" in capsys.readouterr().out
