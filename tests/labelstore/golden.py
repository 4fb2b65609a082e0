"""Write the golden stores of the current format; run by hand, once for each format number."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from labelstore import BlockIndex, LabelStore
from labelstore.spec import FORMAT
from tests.labelstore.making import GOLDEN, Content, build, make_identity

STORES = GOLDEN / f"format-{FORMAT}"


def write(name: str, content: Content) -> None:
    with tempfile.TemporaryDirectory() as folder:
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
