"""Write the golden stores of the current format that are not there yet; run by hand, for a new format or encoding."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore import BlockIndex, LabelStore
from labelstore.spec import FORMAT
from tests.labelstore.making import GOLDEN, Content, build, calibration, create, make_identity

STORES = GOLDEN / f"format-{FORMAT}"


def write(name: str, content: Content, means: npt.NDArray[np.int16] | None = None) -> None:
    """Build a store, extend it and pack it, with what is read from it beside it.

    Args:
        name: of the store.
        content: of it.
        means: codes of its calibration's mean labels ``[N, r]``; zeros when left out.
    """
    if (STORES / f"{name}.zip").exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        if means is not None:
            with create(Path(folder) / name, content, 3).lease() as writer:
                writer.calibrate(replace(calibration(content), means=means))
        build(Path(folder) / name, content, 3)
        build(Path(folder) / name, content, 6)
        store = LabelStore.open(Path(folder) / name)
        np.savez_compressed(
            STORES / f"{name}.npz",
            logits=np.stack([store.read(view, slice(None)).logits for view in range(6)]),
            rows=content.rows,
            targets=content.targets,
            digests=content.digests,
            crops=store.audit().crops,
            pixels=store.pixels_digest(BlockIndex(2, 1)),
        )
        shutil.make_archive(str(STORES / name), "zip", folder)


if __name__ == "__main__":
    STORES.mkdir(exist_ok=True)
    write("int8", Content(make_identity(10, 3), 6))
    masked = Content(make_identity(10, 5, encoding={"name": "int8", "masked": -1e4}), 6)
    masked.logits[..., 3] = -1e4
    masked.logits[:, 5:, :3] += 100
    write("int8-masked", masked)
    write("float16-mixed", Content(make_identity(10, 3, encoding="float16", group=2, block=(2, 6)), 6))
    encoding: dict[str, Any] = {"name": "transform", "step": 0.5}
    write("transform-mixed", Content(make_identity(10, 64, encoding=encoding, group=2, block=(2, 6)), 6))
    encoding = {"name": "transform", "step": 1.0, "mean_steps": 8, "keep_top1": True}
    chosen = Content(make_identity(10, 64, encoding=encoding, group=2, block=(2, 6)), 6)
    rng = np.random.default_rng(1)  # within what view 0, which is fitted to, spans
    chosen.logits[1:] = rng.standard_normal((5, 10, 10)) / np.sqrt(10) @ chosen.logits[0]
    means = rng.integers(-9, 10, calibration(chosen).means.shape).astype(np.int16)
    write("transform-top1", chosen, means)
