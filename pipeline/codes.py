"""Labels become codes, and codes labels, on the device where they are made and used: twins of ``labelstore.encodings``.

Codes of ``float16`` and ``int8`` and their labels are those of numpy, bit for bit. Codes of ``transform`` are too, but
for values on the very edge of a cell; its labels agree within the rounding of the device's float32 products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.encodings import Codes, Encoding, Pairs
from labelstore.encodings.float16 import Float16
from labelstore.encodings.int8 import Int8
from labelstore.encodings.transform import BASIS_UNIT, BOUNDS, MAX_CODE, SCALES, Transform
from labelstore.errors import InputError
from pipeline.moving import to_device, to_host

ROWS_AT_ONCE = 4096


class Twin(Protocol):
    """An encoding on a device."""

    def encode(self, logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:
        """Codes of float32 ``[n, C]`` on the device, within the encoding's limit."""
        ...

    def decode(self, codes: Mapping[str, Tensor], pairs: Pairs) -> Tensor:
        """Logits of codes on the device, float32 ``[n, C]``."""
        ...


class Float16Twin:
    """Twin of ``float16``."""

    def encode(self, logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:  # noqa: ARG002
        """Round to nearest."""
        return {"labels": logits.half()}

    def decode(self, codes: Mapping[str, Tensor], pairs: Pairs) -> Tensor:  # noqa: ARG002
        """Exact."""
        return codes["labels"].float()


class Int8Twin:
    """Twin of ``int8``."""

    def encode(self, logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:  # noqa: ARG002
        """Scale each row to its largest magnitude and round."""
        top = logits.abs().amax(dim=1)
        # By a tensor: a GPU divides by a number as it multiplies by its reciprocal, which rounds differently.
        scales = top / torch.full_like(top, 127)
        quotients = logits / torch.where(scales > 0, scales, torch.inf)[:, None]
        return {"labels": quotients.round_().clamp_(-127, 127).to(torch.int8), "scales": scales}

    def decode(self, codes: Mapping[str, Tensor], pairs: Pairs) -> Tensor:  # noqa: ARG002
        """Code times scale."""
        return codes["labels"].float() * codes["scales"][:, None]


class TransformTwin:
    """Twin of ``transform``.

    The codes of the means stay in memory; those of the images that are asked for come along.
    """

    def __init__(self, encoding: Transform, device: torch.device) -> None:
        calibration = encoding.calibration
        self._calibration, self._device = calibration, device
        self._scales = torch.from_numpy(SCALES).to(device)
        self._bounds = torch.from_numpy(BOUNDS * calibration.reference**2).to(device)
        self._cells = torch.from_numpy(calibration.cells.astype(np.float64)).to(device)
        self._center = torch.from_numpy(calibration.center).to(device)
        self._offset = torch.from_numpy(calibration.offset).to(device)
        self._points = torch.from_numpy(calibration.points).to(device)
        self._basis = torch.from_numpy(np.ascontiguousarray(calibration.basis)).to(device)
        self._synthesis = torch.from_numpy(calibration.synthesis).to(device)

    def encode(self, logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:
        """Rotate what the prediction leaves, and quantise it.

        Raises:
            InputError: when a label lies further from its prediction than codes reach.
        """
        calibration = self._calibration
        scales = torch.bucketize(logits.double().square_().sum(dim=1), self._bounds)
        # Integers in float64: exact, whatever the order of the sums.
        units = (logits / calibration.unit).round_().double() - self._center
        rest = units @ self._basis.T.double() * (calibration.unit * BASIS_UNIT)
        rest -= self._prediction(pairs, torch.float64)
        rest /= (self._scales[scales].double() * calibration.step)[:, None]
        magnitudes = rest.abs()
        codes = (magnitudes + (0.5 - self._cells[:, 1])).floor_().clamp_(min=1)
        codes.masked_fill_(magnitudes < self._cells[:, 0], 0)
        if (far := codes.amax(dim=1) > MAX_CODE).any():
            row = int(far.nonzero()[0])
            raise InputError(
                f"label of image {pairs.images[row]}: lies {float(codes[row].max()):.3g} steps from its prediction, "
                f"codes reach {MAX_CODE}; look at the teacher, or use --encoding int8"
            )
        return {"labels": codes.copysign_(rest).to(torch.int16), "scales": scales.to(torch.uint8)}

    def decode(self, codes: Mapping[str, Tensor], pairs: Pairs) -> Tensor:
        """Centroids, plus the prediction, times the basis."""
        values = self._points[codes["labels"].int() & 0xFFFF]
        values *= self._scales[codes["scales"].int()][:, None]
        values += self._prediction(pairs, torch.float32)
        return torch.addmm(self._offset, values, self._synthesis)

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


class DeviceCodes:
    """An encoding on a device, with numpy's arrays going in where labels are used, and coming out where they are made.

    Args:
        encoding: ready to code.
        device: any of torch.
    """

    def __init__(self, encoding: Encoding, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._twin: Twin
        if isinstance(encoding, Transform):
            self._twin = TransformTwin(encoding, device)
        elif isinstance(encoding, Int8):
            self._twin = Int8Twin()
        else:
            assert isinstance(encoding, Float16)  # noqa: S101  the table has no other
            self._twin = Float16Twin()

    def encode(self, logits: npt.NDArray[np.float32], pairs: Pairs) -> dict[str, npt.NDArray[Any]]:
        """Codes of ``[..., C]``, as ``Encoding.encode`` makes them.

        A GPU works on a stream of its own, and waits for nothing that a teacher is doing.
        """
        lead, rows, flat = logits.shape[:-1], logits.reshape(-1, logits.shape[-1]), pairs.flat()
        with torch.cuda.stream(self._stream):
            parts = [
                self._twin.encode(to_device(torch.from_numpy(rows[part]), self._device), flat.take(part))
                for part in _parts(len(rows))
            ]
            codes = to_host({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        return {name: values.numpy().reshape(*lead, *values.shape[1:]) for name, values in codes.items()}

    def decode(self, codes: Codes, pairs: Pairs) -> Tensor:
        """Logits of codes ``[n, ...]``, float32 ``[n, C]`` on the device."""
        moved = {name: to_device(torch.from_numpy(values), self._device) for name, values in codes.items()}
        return self._twin.decode(moved, pairs)

    def directions(self, codes: Codes, pairs: Pairs) -> Tensor:
        """Labels of codes ``[n, ...]``, each up to a scale of its own: as stored, unless they must be decoded."""
        if isinstance(self._twin, TransformTwin):
            return self.decode(codes, pairs)
        return to_device(torch.from_numpy(codes["labels"]), self._device)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, max(count, 1), ROWS_AT_ONCE))
