"""Calibrate, encode and decode labels of many columns, all real but pixels and network: run as a program by its test.

Prints what it found, with the peak memory of the process, as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelstore.command.console import Console
from labelstore.encodings import Pairs
from labelstore.encodings.fidelity import gift_fidelity
from labelstore.encodings.transform import Transform
from labelstore.format.columns import CropRows
from labelstore.spec import BlockShape, Identity
from pipeline.build.calibrate import Calibrator
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.teacher.labeller import Pending

RANK = 256
CHECKED = 1024


class Crops:
    """In the place of a renderer: of each crop the image, and a number that its row gives."""

    def render(self, rows: CropRows) -> Tensor:
        number = sum(rows.column(name).astype("int64") << 13 * at for at, name in enumerate(("top", "left", "width")))
        return torch.from_numpy(np.stack([rows.image.astype("int64"), number], axis=1))


class Labels:
    """In the place of a labeller: labels of low rank, and a little of everything."""

    batch = 128
    device = torch.device("cpu")

    def __init__(self, columns: int, images: int) -> None:
        rng = np.random.default_rng(0)
        self.columns = columns
        fall = np.exp(-np.arange(RANK, dtype=np.float32) / 60)[:, None]
        self._basis = 0.3 * fall * rng.standard_normal((RANK, columns), np.float32)
        self._means = 1.5 * rng.standard_normal((images, RANK), np.float32)

    def logits(self, crops: Tensor) -> Tensor:
        images, number = crops.numpy().T
        rng = np.random.default_rng(number)
        logits = (self._means[images] + rng.standard_normal((len(images), RANK), np.float32)) @ self._basis
        logits += 0.05 * rng.standard_normal(logits.shape, np.float32)
        return torch.from_numpy(logits)

    def start(self, crops: Tensor, _rows: CropRows) -> Pending:
        return Pending("labels", self.logits(crops))


def measure(columns: int, images: int, fidelity: float) -> dict[str, Any]:
    """Calibrate for labels of so many columns, then code some that nothing saw."""
    spec, labels = PlanSpec(size=16), Labels(columns, images)
    sides = np.full(images, 500, np.int32)
    identity = Identity(
        images=images,
        classes=("ant", "bee"),
        columns=columns,
        size=16,
        seed=0,
        group=1,
        manifest="00",
        skipped=(),
        teacher={},
        engine={},
        plan=spec.to_json(),
        crop_columns=spec.columns,
        encoding={"name": "transform"},
        renderer={},
        block=BlockShape.choose(images, columns, 1),
    )
    plan = Plan(spec, sides, sides)
    targets = np.random.default_rng(1).integers(0, columns, images)
    renderer: Any = Crops()
    labeller: Any = labels  # neither is what its annotation says
    start = time.perf_counter()
    encoding = Transform(columns, fidelity=fidelity)
    made = Calibrator(identity, plan, renderer, labeller, targets).calibrate(encoding, Console(as_json=True))
    seconds = {"calibrate": time.perf_counter() - start}
    encoding = encoding.calibrated(made)
    rows = plan.rows(0, 0, min(CHECKED, images))
    logits = torch.cat([labels.logits(part) for part in renderer.render(rows).split(128)]).numpy()
    pairs = Pairs.unmixed(rows.image)
    start = time.perf_counter()
    codes = encoding.encode(logits, pairs)
    seconds["encode"] = time.perf_counter() - start
    start = time.perf_counter()
    decoded = encoding.decode(codes, pairs)
    seconds["decode"] = time.perf_counter() - start
    return {
        "components": made.components,
        "fidelity": float(gift_fidelity(logits, decoded, targets[pairs.images]).mean()),
        "seconds": seconds,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
