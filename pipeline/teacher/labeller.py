"""The seam between a build and what makes its labels: crops in, logits out.

A build, its calibration and `verify` use only this protocol of a teacher. A user's labeller needs no base class and no
network: `--labeller module:attribute` loads it by :func:`load_labeller`, and `examples/own_labeller.py` is one that a
web server labels for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import GiftwrapError, InputError, reason
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.networks.imported import imported
from pipeline.plan.augment import inputs_of

NOT_KNOWN = "not known"  # the name of a labeller of which nothing but its normalisation is known


class BrokenLogitsError(InputError):
    """A labeller gave NaN or Inf for a crop.

    Args:
        name: of the labeller.
        row: of the first such crop in its batch.
        column: of its first such logit.
        value: of the logit.
    """

    def __init__(self, name: str, row: int, column: int, value: float) -> None:
        super().__init__(
            f"the teacher {name} gave {value} for class {column} of row {row} of a batch; "
            f"look at its weights, --mean/--std and --dtype"
        )
        self.row, self.column, self.value = row, column, value


class Pending:
    """Logits that a device, or another machine, may still be computing. They stay on their device.

    Args:
        name: of the labeller, for messages.
        logits: float32 ``[n, C]``; or what waits for them, called once, in any thread. Several batches are then under
            way at a time.
    """

    def __init__(self, name: str, logits: Tensor | Callable[[], Tensor]) -> None:
        self._name = name
        self._wait = None if isinstance(logits, Tensor) else logits
        if isinstance(logits, Tensor):
            self._arrive(logits)

    @property
    def waits(self) -> bool:
        """Whether :meth:`result` has to wait for something else than a device."""
        return self._wait is not None

    def _arrive(self, logits: Tensor) -> None:
        """Begin to look whether the logits are finite."""
        self._logits, self._finite = logits, logits.isfinite().all()
        self._event: torch.cuda.Event | None = None
        if logits.is_cuda:  # one byte is copied, so that the check waits for these logits and for nothing after them
            with torch.cuda.device(logits.device):
                pinned = torch.empty((), dtype=torch.bool, pin_memory=True)
                self._finite = pinned.copy_(self._finite, non_blocking=True)
                self._event = torch.cuda.Event()
                self._event.record()

    def result(self) -> Tensor:
        """Wait for the logits, float32 ``[n, C]`` on the labeller's device.

        Raises:
            BrokenLogitsError: when a logit is NaN or infinite; names the first.
        """
        if self._wait is not None:
            wait, self._wait = self._wait, None
            self._arrive(wait())
        if self._event is not None:
            self._event.synchronize()
        if not self._finite:
            row, column = (~self._logits.isfinite()).nonzero()[0].tolist()
            raise BrokenLogitsError(self._name, row, column, float(self._logits[row, column]))
        return self._logits


class Labeller(Protocol):
    """Makes the labels of crops: a teacher, an ensemble, or any other function of pixels.

    A label must depend only on its crop, and not on the other crops of its batch. The attribute ``augments`` may state
    that `start` applies the plan's augmentations of normalised images (``dsa``) by the rows; a labeller without it is
    refused where a plan has them.
    """

    @property
    def size(self) -> int:
        """Side S of the crops that it takes, in pixels."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Channel means of its normalisation, of pixels in [0, 1]."""

    @property
    def std(self) -> tuple[float, float, float]:
        """Channel standard deviations of its normalisation, of pixels in [0, 1]."""

    @property
    def columns(self) -> int:
        """Number of columns C of a label."""

    @property
    def class_columns(self) -> tuple[int, ...]:
        """The column of each class folder; empty where folder k has column k."""

    @property
    def batch(self) -> int:
        """The largest number of crops that `start` takes."""

    @property
    def device(self) -> torch.device:
        """The device of the logits. On a CUDA device, crops are rendered while labels are computed."""

    @property
    def identity(self) -> Mapping[str, Json]:
        """Its identity (P3): the store's ``teacher``. ``name``, ``mean`` and ``std`` are required."""

    @property
    def engine(self) -> Mapping[str, Json]:
        """Its engine (P4): the store's ``engine``. ``dtype`` is required, which sets `verify`'s band."""

    def start(self, pixels: Tensor, rows: CropRows, /) -> Pending:
        """Begin to label crops.

        Args:
            pixels: uint8 ``[n, S, S, 3]``, n at most ``batch``: mixed, not normalised.
            rows: of those crops.
        """


def started(labeller: Labeller, pixels: Tensor, rows: CropRows) -> Pending:
    """What a labeller's `start` returns.

    Raises:
        InputError: when that is no `Pending`.
    """
    pending: Any = labeller.start(pixels, rows)
    if not isinstance(pending, Pending):
        raise InputError(
            f"labeller {labeller.identity.get('name', '')}: expected a Pending from start(), found "
            f"{type(pending).__name__}; return Pending(name, logits)"
        )
    return pending


def label_crops(labeller: Labeller, crops: Tensor, rows: CropRows) -> npt.NDArray[np.float32]:
    """Logits, float32 ``[n, C]``, of any number of crops, uint8 ``[n, S, S, 3]``, batch by batch.

    Raises:
        BrokenLogitsError: when a logit is NaN or infinite; its row counts within a batch.
    """
    pieces = [slice(start, start + labeller.batch) for start in range(0, len(crops), labeller.batch)]
    return np.concatenate(
        [started(labeller, crops[piece], rows.take(piece)).result().cpu().numpy() for piece in pieces]
    )


def require_fit(labeller: Labeller, size: int, classes: int, columns: Sequence[str]) -> None:
    """Refuse a labeller that does not fit the crops or the class folders of a build.

    Args:
        labeller: any.
        size: side of the crops in pixels.
        classes: number of class folders.
        columns: of the plan's rows.

    Raises:
        InputError: names what was expected and found.
    """
    name = labeller.identity.get("name", "")
    for what, held, needed in (
        ("identity", labeller.identity, ("name", "mean", "std")),
        ("engine", labeller.engine, ("dtype",)),
    ):
        if missing := [key for key in needed if key not in held]:
            raise InputError(f"labeller {name}: expected {' and '.join(missing)} in its {what}, found none; add it")
    if inputs_of(columns) and not getattr(labeller, "augments", False):
        raise InputError(
            f"labeller {name}: expected one that applies the plan's augmentations of normalised images (--augment dsa) "
            f"by the rows of the crops, found one that does not state it (augments = True); leave them out, or add that"
        )
    if labeller.size != size:
        raise InputError(f"labeller {name}: expected one for crops of {size} px, found {labeller.size} px")
    placed = len(labeller.class_columns) or labeller.columns
    if placed != classes or any(not 0 <= column < labeller.columns for column in labeller.class_columns):
        raise InputError(
            f"labeller {name}: expected a column for each of {classes} class folders, found {labeller.columns} columns "
            f"and class_columns {labeller.class_columns}"
        )


MEMBERS = ("size", "mean", "std", "columns", "class_columns", "batch", "device", "identity", "engine", "start")


def load_labeller(
    place: str, args: Mapping[str, Any], size: int, classes: tuple[str, ...], columns: Sequence[str]
) -> Labeller:
    """The labeller that ``--labeller`` names.

    Args:
        place: ``module:attribute`` of a callable, which is given ``size``, ``classes`` and ``args`` by name and returns
            a :class:`Labeller`.
        args: of ``--labeller-args``.
        size: side of the crops in pixels.
        classes: names of the class folders, in target order.
        columns: of the plan's rows.

    Raises:
        InputError: when it cannot be imported or made, or is no labeller.
    """
    make = imported("--labeller", place)
    try:
        made: Labeller = make(size=size, classes=classes, **args)
    except GiftwrapError:
        raise
    except Exception as error:  # code of the user's may raise anything
        raise InputError(
            f"--labeller {place}: cannot be made with size={size}, {len(classes)} classes and --labeller-args "
            f"{dict(args)} ({type(error).__name__}: {reason(error)})"
        ) from error
    if absent := [name for name in MEMBERS if not hasattr(made, name)]:
        raise InputError(
            f"--labeller {place}: expected a labeller (pipeline/teacher/labeller.py), found {type(made).__name__} "
            f"without {', '.join(absent)}"
        )
    require_fit(made, size, len(classes), columns)
    return made
