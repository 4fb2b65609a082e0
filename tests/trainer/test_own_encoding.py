"""An encoding that one file, this one, and one line of the table add: labels are built, read and trained from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelstore import LabelStore, check
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.encodings import ENCODINGS, Bands
from labelstore.encodings.base import CodeArray, Codes, Logits, Pairs
from labelstore.spec import Json
from pipeline.build.build import build
from pipeline.config import BuildConfig
from pipeline.device.codes import DeviceCodes
from tests.journeys.world import SIDE, TEACHER, World
from trainer import train as loop
from trainer.config import TrainConfig

LEVELS = 15


class Int4:
    """``labels`` uint8 ``[..., ceil(C / 2)]``, two columns a byte; ``scales`` float32 ``[..., 2]``: lowest and step."""

    name = "int4"
    codec = "raw"
    limit = 1e38
    needs_calibration = False
    scaled = False
    least_columns = 1
    bands = Bands(0.9, 0.5, 0.01, 0.7)
    advice = "use --encoding int8"

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self.arrays = (
            CodeArray("labels", "uint8", 0, -(-columns // 2), "raw"),
            CodeArray("scales", "float32", "NaN", 2, "shuffle", axis="part"),
        )

    @staticmethod
    def label_bytes(columns: int) -> float:
        return columns / 2 + 8

    def to_json(self) -> dict[str, Json]:
        return {"name": self.name}

    def encode(self, logits: Logits, pairs: Pairs) -> dict[str, Any]:  # noqa: ARG002
        low, high = logits.min(-1, keepdims=True), logits.max(-1, keepdims=True)
        step = np.maximum((high - low) / LEVELS, np.float32(1e-30))
        codes = np.rint((logits - low) / step).astype(np.uint8)
        codes = np.concatenate([codes, np.zeros_like(codes[..., : codes.shape[-1] % 2])], axis=-1)
        return {"labels": codes[..., ::2] | codes[..., 1::2] << 4, "scales": np.concatenate([low, step], axis=-1)}

    def decode(self, codes: Codes, pairs: Pairs) -> Logits:  # noqa: ARG002
        packed, low, step = codes["labels"], codes["scales"][..., :1], codes["scales"][..., 1:]
        levels = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)[..., : self._columns]
        return np.asarray(levels * step + low, np.float32)

    def current(self, codes: Codes) -> Codes:
        return codes


def test_one_line_adds_an_encoding(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODINGS, "int4", Int4)
    for name in ("float16", "int4"):
        build(
            from_flags(
                BuildConfig, images=world.images, teacher=(TEACHER[1],), teacher_args=(TEACHER[3],),
                weights=(str(world.weights),), size=SIDE, views=2, batch=32, threads=1, store=tmp_path / name,
                encoding=name,
            ),
            Console(as_json=True),
        )  # fmt: skip
    exact, small = (LabelStore.open(tmp_path / name) for name in ("float16", "int4"))
    assert check(small.path).ok
    expected, found = exact.read(1, slice(None)).logits, small.read(1, slice(None)).logits
    spans = np.ptp(expected, axis=1, keepdims=True)
    assert (np.abs(found - expected) <= spans / LEVELS / 2 * 1.05 + 1e-2).all()
    run = from_flags(
        TrainConfig, store=small.path, images=world.images, student="convnet-d2", student_args='{"width": 8}',
        epochs=1, batch_size=8, run_folder=tmp_path / "run", threads=1,
    )  # fmt: skip
    assert loop.train(run, Console(as_json=True))["steps"] > 0


def test_an_encoding_without_code_for_a_device_is_coded_on_the_cpu() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    pairs, encoding = Pairs.unmixed(np.arange(5)), Int4(7)
    codes = DeviceCodes(encoding, torch.device("cpu"))
    made = codes.encode(torch.from_numpy(logits), pairs)
    expected = encoding.encode(logits, pairs)
    for name, values in expected.items():
        np.testing.assert_array_equal(made[name], values)
    np.testing.assert_array_equal(codes.decode(made, pairs).numpy(), encoding.decode(expected, pairs))
