"""Encodings on a device are those of numpy: the code is that of a GPU, run on the CPU here."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.encodings import Encoding, Pairs, make_encoding
from labelstore.encodings.components import Calibration, unit_of
from labelstore.encodings.transform import Transform
from labelstore.errors import InputError
from labelstore.format.blocks import BlockIndex
from labelstore.writing.encoding import pairs_of
from pipeline.build import build
from pipeline.build.continuing import open_for
from pipeline.build.filling import OpenBlock
from pipeline.build.labelling import label
from pipeline.config import BuildConfig
from pipeline.device.codes import ROWS_AT_ONCE, DeviceCodes
from pipeline.ranks import Ranks
from tests.journeys.world import SIDE, TEACHER, VIEWS, World
from trainer import Replay
from trainer.labels import StoredLabels

C, R, N = 70, 32, 9
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


DROPPED = [3, 40, 69]  # columns that were constant


def transform(seed: int = 0, *, offset_apart: bool = True, keep_top1: bool = False) -> Transform:
    rng = np.random.default_rng(seed)
    kept = ~np.isin(np.arange(C), DROPPED if seed % 2 and offset_apart else [])
    rows = rng.standard_normal((R, C)) * kept
    if offset_apart:
        rows[0] = kept
        rows[1:] -= rows[1:].sum(axis=1, keepdims=True) / kept.sum() * kept
    basis = np.linalg.qr(rows.T)[0].T
    basis[0] *= np.sign(basis[0].sum()) if offset_apart else 1
    step = 0.1 + 0.3 * rng.random()
    calibration = Calibration(
        step=step,
        reference=0.9 * C**0.5,
        centroids=(0.05, 0.02),
        center=np.where(kept, rng.integers(-500, 500, C) * unit_of(step), -1e4),
        basis=np.rint(basis * 2**15).astype(np.int16),
        offset_apart=offset_apart,
        cells=np.stack([0.5 + 0.3 * rng.random(R), 0.2 * rng.random(R)], axis=1).astype(np.float32),
        means=np.rint(4 * rng.standard_normal((N, R))).astype(np.int16),
        fidelity=0.5,
    )
    return Transform(C, keep_top1=keep_top1).calibrated(calibration)


def drawn(rows: int, seed: int) -> tuple[np.ndarray, Pairs]:
    """Logits of many sizes, and pairs: mixed, unmixed, and with nothing of the first."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, C)) * rng.choice([0, 1e-30, 0.01, 1, 3, 30], (rows, 1))
    own, partners = rng.integers(0, N, (2, rows))
    return x.astype(np.float32), Pairs(own, partners, rng.choice([0, 1, 0.25, 1 / 3], rows))


ENCODINGS = [{"name": "float16"}, {"name": "int8"}, {"name": "int8", "masked": -10000.0}, {"name": "int8", "masked": 0}]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parameters", ENCODINGS)
def test_codes_and_labels_are_bit_equal_to_those_of_numpy(device: str, parameters: dict[str, Any]) -> None:
    encoding = make_encoding(parameters, 5)
    twin = DeviceCodes(encoding, torch.device(device))
    largest = float(np.nextafter(np.float32(encoding.limit), np.float32(0)))
    values = st.one_of(st.floats(-largest, largest, width=32), st.sampled_from([-1e4, 0.0]))

    @settings(deadline=None)
    @given(
        hnp.arrays(np.float32, st.tuples(st.integers(0, 6), st.just(5)), elements=values),
        st.sampled_from([0.0, -15.0, 1e3, 3e4]),
    )
    def same(x: np.ndarray, offset: float) -> None:
        x = np.where((x == -1e4) | (offset == 0), x, x / largest + offset).astype(np.float32)
        pairs = Pairs.unmixed(np.zeros(len(x), int))
        ours, theirs = twin.encode(torch.from_numpy(x), pairs), encoding.encode(x, pairs) if len(x) else {}
        for codes, expected in theirs.items():
            assert ours[codes].dtype == expected.dtype
            assert ours[codes].tobytes() == expected.tobytes()
        decoded = twin.decode(ours, pairs)
        assert decoded.device.type == device
        assert np.array_equal(decoded.cpu(), encoding.decode(ours, pairs))

    same()


@pytest.mark.parametrize("device", DEVICES)
def test_labels_of_format_1_are_decoded(device: str) -> None:
    encoding = make_encoding({"name": "int8"}, 5, 1)
    twin, pairs = DeviceCodes(encoding, torch.device(device)), Pairs.unmixed(np.zeros(9, int))
    codes = encoding.encode(np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32), pairs)
    assert np.array_equal(twin.decode(codes, pairs).cpu(), encoding.decode(codes, pairs))
    assert np.array_equal(twin.directions(codes, pairs).cpu(), codes["labels"])


def test_directions_are_codes_only_where_codes_are_directions() -> None:
    x = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    pairs = Pairs.unmixed(np.zeros(9, int))
    masked = x.copy()
    masked[4, 1] = -1e4
    moved = x.copy()
    moved[7] -= 15
    cases: tuple[tuple[dict[str, Any], np.ndarray, bool], ...] = (
        ({"name": "int8"}, x, True),
        ({"name": "int8"}, moved, False),
        ({"name": "int8", "masked": -1e4}, x, True),
        ({"name": "int8", "masked": -1e4}, masked, False),
        ({"name": "float16"}, moved, True),
    )
    for parameters, rows, stored in cases:
        encoding = make_encoding(parameters, 5)
        twin, codes = as_on_a_gpu(encoding), encoding.encode(rows, pairs)
        found, decoded = twin.directions(codes, pairs), torch.from_numpy(encoding.decode(codes, pairs))
        assert torch.equal(found, torch.from_numpy(codes["labels"]) if stored else decoded)
        cosines = torch.nn.functional.cosine_similarity(found.float(), decoded)
        assert torch.allclose(cosines, torch.ones(9), atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("offset_apart", "keep_top1"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("seed", range(4))
def test_codes_of_a_transform_are_those_of_numpy_and_labels_agree(
    device: str, seed: int, offset_apart: bool, keep_top1: bool
) -> None:
    encoding = transform(seed, offset_apart=offset_apart, keep_top1=keep_top1)
    twin, kept = DeviceCodes(encoding, torch.device(device)), encoding.calibration.kept
    x, pairs = drawn(ROWS_AT_ONCE + 50, seed)
    x[::3] += 100
    x[:, ~kept] = -1e4
    if seed == 0:
        pairs = Pairs.unmixed(pairs.images)
    expected = encoding.encode(x, pairs)
    ours = twin.encode(torch.from_numpy(x[None]), Pairs(pairs.images[None], pairs.partners[None], pairs.weights[None]))
    for name, codes in expected.items():
        assert ours[name].dtype == codes.dtype
        assert np.array_equal(ours[name][0], codes)
    labels = twin.decode(expected, pairs)
    assert labels.dtype == torch.float32
    theirs = encoding.decode(expected, pairs)
    largest = np.abs(theirs[:, kept]).max(1, keepdims=True)  # components cancel, in another order
    assert (np.abs(labels.numpy(force=True) - theirs) <= 1e-5 * (1 + largest)).all()
    assert np.array_equal(labels.cpu()[:, ~kept], x[:, ~kept])
    far, limit = np.zeros((3, C), np.float32), 2**22 * encoding.calibration.unit
    far[:, ~kept] = -1e4
    three = Pairs.unmixed(np.array([3, 4, 5]))
    for wrong, why in (
        (limit * np.sign(encoding.calibration.basis[3]), "lies .* steps from its prediction, codes reach 32767"),
        (8 * limit * np.sign(encoding.calibration.basis[3]), "lies .* from"),
        (np.full(C, 2**20 * limit), "lies .* from"),
        (np.zeros(C), "has 0 in column 3, which was -10000"),
    ):
        far[1] = wrong if "column" in why else np.where(kept, wrong, -1e4)
        if kept.all() and "column" in why:
            continue
        for encode in (lambda: twin.encode(torch.from_numpy(far), three), lambda: encoding.encode(far, three)):
            with pytest.raises(InputError, match=rf"of image 4: {why}"):
                encode()
    assert all(len(codes) == 0 for codes in twin.encode(torch.from_numpy(x[:0]), pairs.take(slice(0))).values())


def as_on_a_gpu(encoding: Encoding) -> DeviceCodes:
    return DeviceCodes(encoding, torch.device("cpu"))


def test_labels_that_a_gpu_decodes_are_replayed_the_same(world: World) -> None:
    plain, other = (Replay(world.store, world.images, batch_size=7, seed=3) for _ in range(2))
    assert isinstance(other.labels, StoredLabels)
    other.labels._decode = as_on_a_gpu(other.store.encoding).decode
    for ours, theirs in zip(other, plain, strict=True):
        assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ("images", "logits", "targets"))


def test_a_block_that_a_gpu_encodes_is_the_same(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    config = from_flags(
        BuildConfig,
        images=world.images,
        teacher=(TEACHER[1],),
        teacher_args=(TEACHER[3],),
        weights=(str(world.weights),),
        size=SIDE,
        views=VIEWS,
        batch=32,
        store=tmp_path / "store",
    )
    work = build.prepare(config, Console(), Ranks())
    with closing(work.renderer):
        store = open_for(config, work)
        block = OpenBlock(work, BlockIndex(0, 0))
        for each in label(work.renderer, work.labeller, work.identity.group, [block]):
            assert not block.whole
            block.add(each.crops, each.logits)
    coder = as_on_a_gpu(store.encoding)
    moved: list[torch.Tensor] = []
    monkeypatch.setattr("pipeline.device.codes.to_device", lambda values, _device: moved.append(values) or values)
    data = block.data(work.identity, coder)
    # labels that are on the device already are neither copied there nor, on a CPU, back
    assert [each.data_ptr() for each in moved] == [block.logits.data_ptr()]
    assert np.shares_memory(data.logits, block.logits.numpy())
    with store.lease() as writer, writer.queue() as write:
        write(block.block, data)
    data.logits[0, 3, 1] = np.nan
    codes = coder.encode(torch.from_numpy(data.logits), pairs_of(work.identity, data.rows))
    with store.lease() as writer, pytest.raises(InputError, match=r"position 3\W+class 1: expected a number"):
        writer.write(store.missing()[0], replace(data, codes=codes, audit=None))
    for name in ("labels", "scales"):
        (shard,) = (store.path / name).glob("c.*")
        assert shard.read_bytes() == (world.store / name / shard.name).read_bytes()
