"""What the target class would save as a context of the coder: codes of photographs of ten classes, 100 each.

    python -m benchmarks.studies.fewer_bytes_targets STORE

``STORE`` is a float16 store of unmixed crops, 8 views or more: the first is measured, three are fitted to, and those
from the fifth on give the mean labels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.studies import fewer_bytes_context as context
from benchmarks.studies.fewer_bytes_model import Problem, Settings, entropy_of, make_problem, search
from benchmarks.studies.fewer_bytes_predict import quantised_means
from benchmarks.studies.rate_labels import read
from labelstore import LabelStore

FITTED = 3
FINER = 8

Float32Array = npt.NDArray[np.float32]


def problem_of(store: LabelStore) -> tuple[Problem, Float32Array]:
    """Labels of some views, and the mean labels of others ``[N, C]``."""
    measured, fitted = read(store, range(1)), read(store, range(1, 1 + FITTED))
    others = read(store, range(1 + FITTED, store.views))
    means = np.zeros((store.identity.images, store.identity.columns), np.float64)
    np.add.at(means, others.pairs.images, others.logits)
    mean = (means / (store.views - 1 - FITTED)).astype(np.float32)
    targets = store.target_columns.astype(np.int64)
    parts = (fitted.logits, fitted.pairs), (measured.logits, measured.pairs)
    return make_problem(*parts, mean[fitted.pairs.images], targets), mean


def main() -> None:
    """Print bytes by context."""
    store = LabelStore.open(Path(sys.argv[1]))
    problem, mean = problem_of(store)
    rotated = mean @ problem.basis.T

    def predict(step: float) -> tuple[Float32Array, Float32Array, float]:
        kept, size = quantised_means(rotated, step / FINER)
        return kept[problem.fitted.pairs.images], kept[problem.measured.pairs.images], size

    coded = search(problem, predict, Settings())
    targets = [problem.targets[rows.pairs.images] for rows in (problem.fitted, problem.measured)]
    print(f"entropy of each component by itself    {entropy_of(coded.codes):6.2f} B a label")
    print(f"model of components                    {context.by_component(coded.fitted, coded.codes):6.2f}")
    for prior in (20.0, 100.0, 500.0):
        found = context.by_target(coded.fitted, coded.codes, (targets[0], targets[1]), prior)
        print(f"and of the target, a prior of {prior:3.0f} rows  {found:6.2f}")
    print(f"and of neighbours' magnitudes          {context.by_neighbours(coded.fitted, coded.codes):6.2f}")


if __name__ == "__main__":
    main()
