"""What conditioning would save: bits of codes by models fitted to other rows, no coder needed.

A code is modelled by how large it should be: the mean magnitude of its component times a factor that is known when it
is decoded. Of each of some sizes there is one histogram, fitted to other rows, so that a model costs a few kilobytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIZES = 48  # histograms
LARGEST_CODE = 30
SMALLEST = 1e-6  # size that is expected
SPANS = (4.0, 16.0, 64.0)  # components before, that magnitudes are averaged over

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
Codes = npt.NDArray[np.int16]


def by_component(fitted: Codes, codes: Codes) -> float:
    """Bytes a row where only the component is known: what contexts are compared with."""
    return _bits(fitted, codes, np.ones(fitted.shape), np.ones(codes.shape)) / 8


def by_neighbours(fitted: Codes, codes: Codes, extra: tuple[FloatArray, FloatArray] | None = None) -> float:
    """Bytes a row where the magnitudes of the components before are known, too, and of each row a number.

    Args:
        fitted: codes that the model is fitted to ``[n, r]``.
        codes: codes to count ``[m, r]``.
        extra: of each row something that grows with its codes, ``[n]`` and ``[m]``.
    """
    mean = np.abs(fitted).mean(axis=0) + 1e-4
    inputs = [_before(array, mean) for array in (fitted, codes)]
    if extra is not None:
        for each, more in zip(inputs, extra, strict=True):
            each.append(np.repeat(np.log(more / extra[0].mean())[:, None], len(mean), axis=1))
    weights = _regression(np.abs(fitted) / mean, inputs[0], mean)
    ours, theirs = (np.exp(sum(w * x for w, x in zip(weights, each, strict=True))) for each in inputs)
    return _bits(fitted, codes, ours, theirs) / 8


def by_class(fitted: Codes, codes: Codes, classes: int) -> tuple[float, float]:
    """Bytes a row where the class of its energy is known, and the bytes of the classes, which are stored."""
    energies = [np.sqrt(np.square(array.astype(np.float64)).sum(axis=1)) for array in (fitted, codes)]
    edges = np.quantile(energies[0], np.arange(1, classes) / classes)
    places = [np.searchsorted(edges, energy) for energy in energies]
    mean = np.abs(fitted).mean(axis=0) + 1e-4
    factors = np.array([(np.abs(fitted[places[0] == k]).mean(axis=0) / mean) for k in range(classes)])
    # A factor of each class and run of 16 components.
    runs = np.arange(len(mean)) // 16
    smooth = np.stack([np.bincount(runs, mean * row) / np.bincount(runs, mean) for row in factors])[:, runs]
    share = np.bincount(places[1], minlength=classes) / len(codes)
    share = share[share > 0]
    stored = float(-(share * np.log2(share)).sum()) / 8
    return _bits(fitted, codes, smooth[places[0]], smooth[places[1]]) / 8, stored


def by_target(fitted: Codes, codes: Codes, targets: tuple[IntArray, IntArray], prior: float) -> float:
    """Bytes a row if the target class is known: components have the variances of rows of that class.

    Args:
        fitted: codes that the model is fitted to ``[n, r]``.
        codes: codes to count ``[m, r]``.
        targets: classes of both ``[n]`` and ``[m]``.
        prior: rows that the mean of all classes counts as, in that of one.
    """
    mean = np.abs(fitted).mean(axis=0) + 1e-4
    factors = np.ones((int(max(map(np.max, targets))) + 1, len(mean)))
    for target in np.unique(targets[0]):
        rows = np.abs(fitted[targets[0] == target]).astype(np.float64)
        factors[target] = (rows.sum(axis=0) + prior * mean) / (len(rows) + prior) / mean
    return _bits(fitted, codes, factors[targets[0]], factors[targets[1]]) / 8


def _before(codes: Codes, mean: FloatArray) -> list[FloatArray]:
    """Logarithms of how large the components before are, over their means, by span ``[n, r]`` each."""
    found = []
    sizes = np.abs(codes.T).astype(np.float32)
    for span in SPANS:
        keep = np.float32(1 - 1 / span)
        logs = np.empty(sizes.shape, np.float32)
        ours, theirs = np.zeros(len(codes), np.float32), 0.0
        for k in range(len(sizes)):
            logs[k] = np.log((ours + 0.5) / (theirs + 0.5))
            ours, theirs = keep * ours + sizes[k], keep * theirs + mean[k]
        found.append(np.ascontiguousarray(logs.T))
    return found


def _regression(ratios: FloatArray, inputs: list[FloatArray], mean: FloatArray) -> FloatArray:
    """Weights of the logarithms: least squares of ratios against 1 + w x, by importance of the component."""
    importance = np.sqrt(mean)
    flat = [(x * importance).ravel() for x in inputs]
    gram = np.array([[a @ b for b in flat] for a in flat])
    right = np.array([a @ ((ratios - 1) * importance).ravel() for a in flat])
    found: FloatArray = np.linalg.solve(gram, right)
    return found


def _bits(fitted: Codes, codes: Codes, ours: FloatArray, theirs: FloatArray) -> float:
    """Bits a row of ``codes`` by histograms of ``fitted``, one for each expected size."""
    mean = np.abs(fitted).mean(axis=0) + 1e-4
    known, new = (np.log(np.maximum(mean * factors, SMALLEST)) for factors in (ours, theirs))
    edges = np.quantile(known[:, mean > 2e-4], np.arange(1, SIZES) / SIZES)
    tail = np.quantile(known, [0.99, 0.997, 0.999])
    edges = np.unique(np.concatenate([edges, tail]))
    counts = np.zeros((len(edges) + 1, LARGEST_CODE + 1))
    np.add.at(counts, (np.searchsorted(edges, known), np.minimum(np.abs(fitted), LARGEST_CODE)), 1)
    counts += 0.05
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    sizes = np.minimum(np.abs(codes), LARGEST_CODE)
    return float((bits[np.searchsorted(edges, new), sizes] + (sizes > 0)).sum() / len(codes))
