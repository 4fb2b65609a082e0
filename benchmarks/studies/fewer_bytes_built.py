"""What ``--mean-steps`` and ``--keep-top1`` make of a label of 1,000 columns, calibrated as a build does.

    GIFTWRAP_DATA=... python -m benchmarks.studies.fewer_bytes_built --out DIR

Labels and stores are those of `benchmarks.studies.fewer_bytes`, in the same ``DIR/stores``; all rows that are measured
are one block, and nothing was fitted to them. ``DIR/fewer-bytes-built.jsonl`` has a line a combination of flags,
``fewer-bytes-built.md`` the table; combinations that are there already are not measured again. Some 3 minutes.

``label`` is bytes of codes and scales in whole shards; ``side`` the calibration's share of a label in a set of 10,000
images with 300 views: mean labels by PCodec, and the basis. Logits times 4 are like those of small networks.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.studies.fewer_bytes import sources
from benchmarks.studies.ledger import Ledger, Recorded
from benchmarks.studies.rate_distortion import LARGE_IMAGES, LARGE_VIEWS, fitted_transform, shard_bytes
from benchmarks.studies.rate_labels import KINDS, Case, case_of
from benchmarks.studies.tables import markdown, write_tables
from labelstore.encodings.components import MEAN_STEPS
from labelstore.encodings.fidelity import quality
from labelstore.encodings.fitting import Sample
from labelstore.format import codecs
from labelstore.spec import Json

NAME = "fewer-bytes-built"
TITLE = "# Fewer bytes a label: the flags"
COLUMNS = {
    "label": ".2f",
    "side": ".2f",
    "total": ".2f",
    "fidelity": ".5f",
    "KL 1": ".4f",
    "KL 20": ".3e",
    "top-1": ".4f",
}
PLANES = 16  # components of a chunk of the calibration
CHUNK_BYTES = 24  # of a chunk's place in the index, and of checksums


@dataclass(frozen=True, kw_only=True)
class Trial(Recorded):
    """Flags of a transform, and the labels that it codes.

    Attributes:
        kind: of crops: unmixed or CutMix.
        logits: factor of all logits.
        mean_steps: see `Transform`.
        fidelity: see `Transform`.
        keep_top1: see `Transform`.
    """

    kind: str = KINDS[0]
    logits: int = 1
    mean_steps: int = MEAN_STEPS
    fidelity: float = 0.95
    keep_top1: bool = False

    @property
    def name(self) -> str:
        """In words; unique in the study."""
        return ", ".join(self.cells())

    def cells(self) -> list[str]:
        """The first columns of its row."""
        kept = "yes" if self.keep_top1 else "no"
        return [self.kind, f"x {self.logits}", str(self.mean_steps), str(self.fidelity), kept]


TRIALS = (
    Trial(),
    Trial(keep_top1=True),
    Trial(mean_steps=8),
    Trial(mean_steps=8, keep_top1=True),
    Trial(mean_steps=16, keep_top1=True),
    Trial(mean_steps=8, fidelity=0.93, keep_top1=True),
    Trial(fidelity=0.98),
    Trial(fidelity=0.98, keep_top1=True),
    Trial(logits=4, mean_steps=8),
    Trial(logits=4, mean_steps=8, keep_top1=True),
    Trial(kind=KINDS[1]),
    Trial(kind=KINDS[1], keep_top1=True),
    Trial(kind=KINDS[1], mean_steps=8),
    Trial(kind=KINDS[1], mean_steps=8, keep_top1=True),
)


def measured(case: Case, trial: Trial) -> dict[str, Json]:
    """The line of a trial."""
    case = scaled(case, trial.logits)
    encoding = fitted_transform(case, trial.fidelity, mean_steps=trial.mean_steps, keep_top1=trial.keep_top1)
    calibration, (logits, pairs) = encoding.calibration, (case.rows.logits, case.rows.pairs)
    codes = encoding.encode(logits, pairs)
    targets = case.targets[pairs.images], case.targets[pairs.partners]
    found = quality(logits, encoding.decode(codes, pairs), *targets, pairs.weights)
    label = shard_bytes(case, encoding, codes)
    side = plane_bytes(calibration.means.T.astype(np.int16)) / case.identity.images / LARGE_VIEWS
    side += plane_bytes(calibration.basis) / LARGE_IMAGES / LARGE_VIEWS
    return {
        "label": round(label, 2),
        "side": round(side, 2),
        "total": round(label + side, 2),
        "fidelity": round(float(found.fidelity.mean()), 5),
        "KL 1": round(float(found.kl_1.mean()), 4),
        "KL 20": float(f"{found.kl_20.mean():.3e}"),
        "top-1": round(float(found.top1.mean()), 4),
        "step": round(calibration.step, 4),
        "components": calibration.components,
    }


def scaled(case: Case, factor: int) -> Case:
    """The same labels with all logits times a factor."""
    rows, fitted, search = (
        Sample(part.logits * np.float32(factor), part.pairs) for part in (case.rows, case.fitted, case.search)
    )
    return replace(case, rows=rows, fitted=fitted, search=search, means=case.means * np.float32(factor))


def plane_bytes(planes: npt.NDArray[np.integer[Any]]) -> int:
    """Bytes of an array of the calibration whose components are its first axis."""
    parts = (np.ascontiguousarray(planes[first : first + PLANES]) for first in range(0, len(planes), PLANES))
    return sum(len(codecs.compress("pcodec", part)) + CHUNK_BYTES for part in parts)


def section(lines: Iterable[Mapping[str, Any]]) -> str:
    """All lines as a table, in the order of the trials."""
    by_name = {Trial(**line["cell"]).name: line for line in lines}
    rows = [
        [*trial.cells(), *(format(by_name[trial.name][column], digits) for column, digits in COLUMNS.items())]
        for trial in TRIALS
        if trial.name in by_name
    ]
    return markdown(["kind", "logits", "mean steps", "fidelity", "keep top-1", *COLUMNS], rows)


def main() -> None:
    """Measure what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = os.environ.get("GIFTWRAP_DATA")
    if not data:
        parser.error("set GIFTWRAP_DATA to the folder with imagenet-samples and models")
    ledger: Ledger[Trial] = Ledger(args.out / f"{NAME}.jsonl")
    stores = sources(args.out, Path(data))
    for mixed, store in enumerate(stores):
        case = case_of(store, stores[0], mixed=bool(mixed))
        for trial in TRIALS:
            if trial.kind == KINDS[mixed] and trial not in ledger:
                ledger.add(trial, measured(case, trial))
                print(json.dumps(ledger.of(trial)), flush=True)
    write_tables(ledger.path, TITLE, [section(ledger.lines)])


if __name__ == "__main__":
    main()
