"""The order of crops in a run: one global sequence, a pure function of the run's seed (P5).

An epoch plays one view. A view is stored shuffled, so the first time it is played in stored order: reads are
sequential, and the student gets a perfect shuffle. Later plays are permuted within windows, and are read window by
window. The sequence does not depend on world size, workers or where a run stopped: each reader takes its slice of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from labelstore.errors import InputError
from pipeline.plan import draws

WINDOW = 65_536
"""Most positions in a window; part of the format, not a memory setting."""
UNBOUNDED = 2**62
"""Number of views of crops that are rendered as they are played: more than any run has epochs."""

OrderMode = Literal["shuffle", "cycle"]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The order in which a run plays the crops of a store.

    Groups stay whole and start at multiples of ``group`` in every epoch. If ``group`` does not divide the number of
    images, the short last group is played last.

    Attributes:
        views: number of views V that the run plays, fixed when it starts; `UNBOUNDED`: epoch e plays view e.
        images: positions of a view, N.
        group: consecutive positions that mix with each other and are kept together.
        seed: the run's seed, not the store's.
        mode: ``shuffle`` draws a permutation of the views, and a new one each time all have been played; ``cycle``
            repeats them in stored order.
    """

    views: int
    images: int
    group: int = 1
    seed: int = 0
    mode: OrderMode = "shuffle"

    def __post_init__(self) -> None:
        """Refuse invalid numbers."""
        for name in ("views", "images", "group"):
            if getattr(self, name) < 1:
                raise InputError(f"order: {name}: expected at least 1, found {getattr(self, name)}")
        if self.mode not in get_args(OrderMode):
            raise InputError(f"order: mode: expected 'shuffle' or 'cycle', found {self.mode!r}")
        if self.views == UNBOUNDED and self.mode != "cycle":
            raise InputError("order: views without a bound cannot be shuffled; give view_order 'cycle', or views")

    def view(self, epoch: int) -> int:
        """The view that an epoch plays."""
        cycle, step = divmod(epoch, self.views)
        return step if self.mode == "cycle" else int(_permutation(self.views, "views", self.seed, cycle)[step])

    def times_played(self, epoch: int) -> int:
        """How often the view of an epoch was played in earlier epochs."""
        return epoch // self.views

    def positions(self, epoch: int, start: int = 0, stop: int | None = None) -> Int64Array:
        """The positions that an epoch plays from offset ``start`` to ``stop``, int64 ``[n]``."""
        stop = self.images if stop is None else stop
        if not 0 <= start <= stop <= self.images:
            raise InputError(f"order: expected a range of offsets within [0, {self.images}], found {start}:{stop}")
        if not self.times_played(epoch):
            return np.arange(start, stop)
        sequence, offset = [np.arange(0)], 0
        for window in self._windows(epoch):
            size = self._size(window)
            if offset < stop and start < offset + size:
                sequence.append(self._window(epoch, window, max(start - offset, 0), min(stop - offset, size)))
            offset += size
        sequence.append(np.arange(max(start, offset), stop))  # the short last group
        return np.concatenate(sequence)

    @property
    def _whole(self) -> int:
        """Number of positions in whole groups."""
        return self.images // self.group * self.group

    @property
    def _step(self) -> int:
        """Number of positions in a full window: the whole groups within `WINDOW`, at least one."""
        return max(WINDOW // self.group, 1) * self.group

    def _size(self, window: int) -> int:
        """Number of positions in a window; the last may have fewer groups."""
        return min(self._step, self._whole - window * self._step)

    def _windows(self, epoch: int) -> list[int]:
        """The windows in the order of an epoch."""
        count = -(-self._whole // self._step)
        windows: list[int] = _permutation(count, "windows", *self._played(epoch)).tolist()
        return windows

    def _window(self, epoch: int, window: int, start: int, stop: int) -> Int64Array:
        """The positions of a window from offset ``start`` to ``stop`` in the order of an epoch, int64 ``[n]``."""
        count, whole = self._size(window) // self.group, start // self.group
        groups = _permutation(count, "groups", *self._played(epoch), window)[whole : -(-stop // self.group)]
        first = window * self._step + groups * self.group
        played = (first[:, None] + np.arange(self.group)).ravel()
        return played[start - whole * self.group : stop - whole * self.group]

    def _played(self, epoch: int) -> tuple[int, int, int]:
        """The key of the order of a replayed view: run seed, view, times played."""
        return self.seed, self.view(epoch), self.times_played(epoch)


@lru_cache(maxsize=8)
def _permutation(length: int, what: str, *numbers: int) -> Int64Array:
    """The permutation of ``range(length)`` for a key; the last few are cached, at most half a megabyte each."""
    permutation = draws.permutation(draws.key(f"order of {what}", *numbers), length)
    permutation.flags.writeable = False
    return permutation
