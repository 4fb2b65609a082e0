"""Encode and decode labels on a device: twins of ``labelstore.encodings``.

Codes and labels of ``float16`` and ``int8`` equal those of numpy, bit for bit. So do codes of ``transform``, except for
values on the edge of a quantisation cell; its labels agree up to the rounding of float32 products.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.encodings import Codes, Encoding, Pairs
from labelstore.encodings.components import (
    BASIS_UNIT,
    BOUNDS,
    MAX_CODE,
    MAX_OFFSET_UNITS,
    MAX_UNITS,
    SCALES,
    UncodableError,
    quantise,
    require_codes,
)
from labelstore.encodings.first_choice import LEAD, LEAST_LEAD
from labelstore.encodings.int8 import MASKED_CODE, MAX_OFFSET, SMALLEST_STEP, TOP
from labelstore.encodings.transform import Transform
from labelstore.errors import InputError
from pipeline.device.moving import to_device, to_host

ROWS_AT_ONCE = 4096
LARGEST = "largest logit"  # beside the names of arrays


class Twin(Protocol):
    """An encoding on a device."""

    def encode(self, logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:
        """Codes of float32 ``[n, C]`` on the device, within the encoding's limit."""
        ...

    def decode(self, codes: Mapping[str, Tensor], pairs: Pairs) -> Tensor:
        """Logits of codes on the device, float32 ``[n, C]``."""
        ...

    def are_directions(self, codes: Codes) -> bool:
        """Whether the array ``labels`` of these codes is proportional to the logits in each row."""
        ...


class Float16Twin:
    """Twin of ``float16``."""

    def encode(self, logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:  # noqa: ARG002
        """Round to nearest."""
        return {"labels": logits.half()}

    def decode(self, codes: Mapping[str, Tensor], pairs: Pairs) -> Tensor:  # noqa: ARG002
        """Exact."""
        return codes["labels"].float()

    def are_directions(self, codes: Codes) -> bool:  # noqa: ARG002
        """Always."""
        return True


class Int8Twin:
    """Twin of ``int8``, with the dtypes of numpy's computation."""

    def __init__(self, masked: float | None) -> None:
        self._masked = masked

    def encode(self, logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:  # noqa: ARG002
        """Round each row to multiples of its step."""
        kept = None if self._masked is None else logits != self._masked
        step, offset = _step_and_offset(*_range(logits, kept))
        codes = (logits / torch.where(step > 0, step, torch.inf)[:, None]).round_()
        codes = codes.sub_(offset[:, None]).clamp_(-TOP, TOP).to(torch.int8)
        if kept is not None:
            codes.masked_fill_(~kept, MASKED_CODE)
        return {"labels": codes, "scales": torch.stack([step, offset], dim=1)}

    def decode(self, codes: Mapping[str, Tensor], pairs: Pairs) -> Tensor:  # noqa: ARG002
        """Code and offset times step."""
        step, offset = codes["scales"][:, :1], codes["scales"][:, 1:]
        logits = (codes["labels"].float() + offset).mul_(step)
        if self._masked is not None:
            logits.masked_fill_((codes["labels"] == MASKED_CODE) & ~step.isnan(), self._masked)
        return logits

    def are_directions(self, codes: Codes) -> bool:
        """If no label has an offset and nothing is masked; format 1 has neither."""
        if codes["scales"].ndim < codes["labels"].ndim:
            return True
        return not (codes["scales"][..., 1].any() or (codes["labels"] == MASKED_CODE).any())


def _range(rows: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """The smallest and the largest kept value of each row ``[n]``; zeros if none is kept."""
    if kept is None:
        return rows.amin(dim=1), rows.amax(dim=1)
    some = kept.any(dim=1)
    low = torch.where(kept, rows, torch.inf).amin(dim=1)
    high = torch.where(kept, rows, -torch.inf).amax(dim=1)
    return torch.where(some, low, 0.0), torch.where(some, high, 0.0)


def _step_and_offset(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Step and offset of rows, float32 ``[n]``: as ``labelstore.encodings.int8`` makes them, operation by operation."""
    largest = torch.maximum(high, -low).abs()
    span = high.double() - low.double()
    # Divisors are tensors: a GPU replaces division by a number by multiplication with its reciprocal, which rounds
    # differently.
    least = largest.double() / torch.full_like(span, MAX_OFFSET)
    narrow = torch.maximum(span / torch.full_like(span, 2 * TOP), least).float()
    moved = (largest > span) & (narrow >= SMALLEST_STEP)
    step = torch.where(moved, narrow, largest / torch.full_like(largest, TOP))
    middle = (high.double() + low.double()) / 2
    offset = torch.where(moved, (middle / step.double()).round(), 0.0)
    return step, offset.float()


class TransformTwin:
    """Twin of ``transform``.

    The codes of the means stay in memory; those of the needed images are copied to the device.
    """

    def __init__(self, encoding: Transform, device: torch.device) -> None:
        calibration = encoding.calibration
        self._encoding, self._calibration, self._device = encoding, calibration, device
        self._scales = torch.from_numpy(SCALES).to(device)
        self._bounds = torch.from_numpy(BOUNDS * calibration.reference**2).to(device)
        self._cells = torch.from_numpy(calibration.cells.astype(np.float64)).to(device)
        self._center = torch.from_numpy(calibration.center_units).to(device)
        self._center32 = torch.from_numpy(calibration.center32).to(device)
        self._kept = None if calibration.kept.all() else torch.from_numpy(calibration.kept).to(device)
        self._points = torch.from_numpy(calibration.points).to(device)
        self._basis = torch.from_numpy(np.ascontiguousarray(calibration.basis)).to(device)
        self._synthesis = torch.from_numpy(calibration.synthesis).to(device)

    def encode(self, logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:
        """Rotate and quantise the residual of the prediction.

        Raises:
            InputError: as ``Transform.encode``.
        """
        calibration = self._calibration
        # Whole numbers in float64: exact, whatever the order of the sums.
        units = (logits.double() / calibration.unit).round_().sub_(self._center)
        squares, rest, bad = (
            self._offset_apart(units, logits) if calibration.offset_apart else self._whole(units, logits)
        )
        scales = torch.bucketize(squares, self._bounds)
        rest -= self._prediction(pairs, torch.float64)
        rest /= (self._scales[scales].double() * calibration.step)[:, None]
        magnitudes = rest.abs()
        codes = (magnitudes + (0.5 - self._cells[:, 1])).floor_().clamp_(min=1)
        codes.masked_fill_(magnitudes < self._cells[:, 0], 0)
        bad |= codes.amax(dim=1) > MAX_CODE
        if bad.any():
            self._refuse(int(bad.nonzero()[0]), logits, pairs)
        found = {"labels": codes.copysign_(rest).to(torch.int16), "scales": scales.to(torch.uint8)}
        if self._encoding.keep_top1:
            self._keep_first_choice(found, logits, pairs)
        return found

    def _keep_first_choice(self, found: Mapping[str, Tensor], logits: Tensor, pairs: Pairs) -> None:
        """Encode labels whose first choice has lost some of its lead, about a third, again on the CPU."""
        rows = self._short(found, logits, pairs).nonzero()[:, 0]
        if not len(rows):
            return
        again = self._encoding.encode(logits[rows].cpu().numpy(), pairs.take(rows.cpu().numpy()))
        found["labels"][rows] = to_device(torch.from_numpy(again["labels"]), self._device)

    def _short(self, found: Mapping[str, Tensor], logits: Tensor, pairs: Pairs) -> Tensor:
        """Which labels have to be encoded again, bool ``[n]``; twin of ``first_choice.shortfall``."""
        unit = self._calibration.unit
        components = self._points[found["labels"].int() & 0xFFFF].double()
        components *= self._scales[found["scales"].int()].double()[:, None]
        components += self._prediction(pairs, torch.float64)
        decoded = (components / unit).round_() @ self._basis.double()
        decoded += self._center / BASIS_UNIT
        exact = logits.double()
        first = logits.argmax(dim=1, keepdim=True)
        lead = (exact.gather(1, first) - exact).mul_(LEAD / (unit * BASIS_UNIT)).clamp_(min=LEAST_LEAD / BASIS_UNIT)
        own = decoded.gather(1, first)
        decoded += lead
        return decoded.scatter_(1, first, -torch.inf).amax(dim=1) > own[:, 0]

    def _whole(self, units: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squares of lengths ``[n]``, components ``[n, r]``, and what cannot be coded ``[n]``, as format 1 had them."""
        bad = logits.new_zeros(len(logits), dtype=torch.bool)
        return logits.double().square_().sum(dim=1), self._rotated(units), bad

    def _offset_apart(self, units: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same with the offset as component 0; twin of ``Calibration.analysed``."""
        count = logits.shape[1]
        if self._kept is not None:
            bad = ((logits != self._center32) & ~self._kept).any(dim=1)
            units, count = torch.where(self._kept, units, 0.0), max(int(self._calibration.kept.sum()), 1)
        else:
            bad = logits.new_zeros(len(logits), dtype=torch.bool)
        total = units.sum(dim=1)
        offset = (total / torch.full_like(total, count)).round_()
        shape = units - offset[:, None]
        if self._kept is not None:
            shape *= self._kept
        bad |= (shape.abs().amax(dim=1) > MAX_UNITS) | (offset.abs() > MAX_OFFSET_UNITS)
        found = self._rotated(shape)
        found[:, 0] = offset * self._calibration.offset_length
        return shape.square_().sum(dim=1) * self._calibration.unit**2, found, bad

    def _rotated(self, units: Tensor) -> Tensor:
        return units @ self._basis.T.double() * (self._calibration.unit * BASIS_UNIT)

    def _refuse(self, row: int, logits: Tensor, pairs: Pairs) -> None:
        """Raise the error of numpy's encoder for a label."""
        one = slice(row, row + 1)
        try:
            rest, _ = self._calibration.rest(logits[one].cpu().numpy(), pairs.take(one))
            require_codes(quantise(rest, self._calibration.cells))
        except UncodableError as error:
            raise InputError(f"label of image {pairs.images[row]}: {error.why}") from error

    def decode(self, codes: Mapping[str, Tensor], pairs: Pairs) -> Tensor:
        """Centroids, plus the prediction, times the basis."""
        values = self._points[codes["labels"].int() & 0xFFFF]
        values *= self._scales[codes["scales"].int()][:, None]
        values += self._prediction(pairs, torch.float32)
        return torch.addmm(self._center32, values, self._synthesis)

    def are_directions(self, codes: Codes) -> bool:  # noqa: ARG002
        """Never: codes are components of a residual."""
        return False

    def _prediction(self, pairs: Pairs, dtype: torch.dtype) -> Tensor:
        """Predicted coefficients of crops ``[n, r]``."""
        own = self._means(pairs.images, dtype)
        if (pairs.weights == 1).all():
            return own
        weights = to_device(torch.from_numpy(pairs.weights), self._device).to(dtype)[:, None]
        return weights * own + (1 - weights) * self._means(pairs.partners, dtype)

    def _means(self, images: npt.NDArray[np.int64], dtype: torch.dtype) -> Tensor:
        codes = to_device(torch.from_numpy(self._calibration.means[images]), self._device)
        return codes.to(dtype) * self._calibration.mean_step


class OnTheCpu:
    """An encoding without a twin: arrays are copied to the CPU and back."""

    def __init__(self, encoding: Encoding, device: torch.device) -> None:
        self._encoding, self._device = encoding, device
        if device.type != "cpu":
            warn_once(encoding.name, str(device))

    def encode(self, logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:
        """As the encoding itself."""
        codes = self._encoding.encode(to_host({"logits": logits})["logits"].numpy(), pairs)
        return {name: torch.from_numpy(values) for name, values in codes.items()}

    def decode(self, codes: Mapping[str, Tensor], pairs: Pairs) -> Tensor:
        """As the encoding itself."""
        values = {name: each.numpy() for name, each in to_host(dict(codes)).items()}
        return to_device(torch.from_numpy(self._encoding.decode(values, pairs)), self._device)

    def are_directions(self, codes: Codes) -> bool:  # noqa: ARG002
        """Unknown, so False."""
        return False


@cache
def warn_once(name: str, device: str) -> None:
    """Warn that labels of an encoding are coded in memory."""
    warnings.warn(f"labels: encoding {name} has no code for {device}; its labels are coded on the CPU", stacklevel=2)


# By the encoding's name; those without a line are coded by `OnTheCpu`.
TWINS: dict[str, Callable[[Any, torch.device], Twin]] = {
    "float16": lambda _encoding, _device: Float16Twin(),
    "int8": lambda encoding, _device: Int8Twin(encoding.masked),
    "transform": TransformTwin,
}


class DeviceCodes:
    """An encoding on a device: decodes codes from host memory to labels there, and encodes labels of the device.

    Args:
        encoding: ready to code.
        device: any of torch.

    Attributes:
        limit: the largest magnitude that a logit may have.
    """

    def __init__(self, encoding: Encoding, device: torch.device) -> None:
        self._device, self.limit = device, encoding.limit
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._current = encoding.current
        self._twin = TWINS.get(encoding.name, OnTheCpu)(encoding, device)

    def encode(self, logits: Tensor, pairs: Pairs) -> dict[str, npt.NDArray[Any]]:
        """Codes in memory, as ``Encoding.encode`` makes them.

        A GPU uses a separate CUDA stream that does not wait for the teacher's: ``logits`` must be complete.

        Args:
            logits: float32 ``[..., C]``; not copied when it is on this device.
            pairs: which images the crops show ``[...]``.
        """
        return self.encode_measured(logits, pairs)[0]

    def encode_measured(self, logits: Tensor, pairs: Pairs) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """The same, and the largest magnitude of the logits: NaN if one is, and codes of more than `limit` are void."""
        lead, rows, flat = logits.shape[:-1], logits.reshape(-1, logits.shape[-1]), pairs.flat()
        with torch.cuda.stream(self._stream):
            there = to_device(rows, self._device)
            parts = [self._twin.encode(there[part], flat.take(part)) for part in _parts(len(rows))]
            made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            low, high = torch.aminmax(there) if there.numel() else (there.new_zeros(()),) * 2
            codes = to_host({**made, LARGEST: torch.maximum(-low, high)})
        largest = float(codes.pop(LARGEST))
        return {name: values.numpy().reshape(*lead, *values.shape[1:]) for name, values in codes.items()}, largest

    def to_memory(self, logits: Tensor) -> npt.NDArray[np.float32]:
        """Complete logits of this device in host memory; those of a CPU are not copied."""
        with torch.cuda.stream(self._stream):
            return to_host({"logits": logits})["logits"].numpy()

    def decode(self, codes: Codes, pairs: Pairs) -> Tensor:
        """Logits of codes ``[n, ...]``, float32 ``[n, C]`` on the device."""
        codes = self._current(codes)
        moved = {name: to_device(torch.from_numpy(values), self._device) for name, values in codes.items()}
        return self._twin.decode(moved, pairs)

    def directions(self, codes: Codes, pairs: Pairs) -> Tensor:
        """Labels of codes ``[n, ...]`` without their scales: as stored, unless they must be decoded.

        Codes of ``int8`` are proportional to the labels if no label has an offset and nothing is masked.
        """
        if not self._twin.are_directions(codes):
            return self.decode(codes, pairs)
        return to_device(torch.from_numpy(codes["labels"]), self._device)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, max(count, 1), ROWS_AT_ONCE))
