"""The missing blocks of a store: their crops rendered and labelled, encoded and written, each by a stage of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.command.console import Console
from labelstore.command.stopping import Stops
from labelstore.encodings.bands import missed
from labelstore.errors import GiftwrapError
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.columns import CropRows
from labelstore.spec import Identity
from labelstore.store import AuditRows, BlockData, LabelStore
from pipeline.build.labelling import label
from pipeline.build.watching import Watch
from pipeline.device.codes import DeviceCodes
from pipeline.images.manifest import Manifest
from pipeline.plan.plan import Plan
from pipeline.ranks import Ranks
from pipeline.render import Renderer
from pipeline.render.audit import DIGEST_POSITIONS, pixels_digest
from pipeline.teacher.class_order import agreement
from pipeline.teacher.teacher import Teacher

AUDIT_CROPS = 64
QUEUED_BLOCKS = 1  # waiting to be encoded, while one is encoded and one is made: three blocks of float32 in memory
LOOK_SECONDS = 5.0  # between looks at what other ranks have written
PATIENCE_SECONDS = 20.0  # torchrun kills its ranks 30 s after it has told them to stop


@dataclass(frozen=True)
class Work:
    """Everything a build needs, checked and ready; nothing is written yet."""

    manifest: Manifest
    plan: Plan
    renderer: Renderer
    teacher: Teacher
    identity: Identity

    def crops(self, views: int) -> int:
        """Crops of ``views`` views."""
        return views * self.identity.images


class OpenBlock:
    """A block whose crops are being labelled.

    Args:
        work: what labels are made of.
        block: of the store.
        labelled: is told how many crops more are labelled.
        done: takes the block when it is whole.

    Attributes:
        rows: of each of its views.
        names: of those views.
    """

    def __init__(
        self,
        work: Work,
        block: BlockIndex,
        labelled: Callable[[int], object],
        done: Callable[[BlockIndex, BlockData], object],
    ) -> None:
        grid = BlockGrid.of(work.identity)
        views, (start, stop) = range(*grid.views(block)), grid.positions(block)
        self.rows = [work.plan.rows(view, start, stop) for view in views]
        self.names = [f"view {view}" for view in views]
        self._block, self._labelled, self._hand_on = block, labelled, done
        self._logits = np.empty((len(views), stop - start, work.teacher.columns), np.float32)
        self._flat = self._logits.reshape(-1, work.teacher.columns)
        self._head: list[Tensor] = []
        self._wanted = min(AUDIT_CROPS if block == AUDIT_BLOCK else DIGEST_POSITIONS, stop - start)
        self._done = 0

    def take(self, crops: Tensor, labels: npt.NDArray[np.float32]) -> None:
        """The next crops and their labels; hands the block on with the last ones."""
        self._flat[self._done : self._done + len(crops)] = labels
        if self._done < self._wanted:
            self._head.append(crops[: self._wanted - self._done].cpu())
        self._done += len(crops)
        self._labelled(len(crops))
        if self._done == len(self._flat):
            self._hand_on(self._block, self._data())

    def _data(self) -> BlockData:
        head = torch.cat(self._head)
        audit = None
        if self._block == AUDIT_BLOCK:
            audit = AuditRows(crops=head.numpy(), logits=self._flat[: len(head)].astype(np.float16))
        return BlockData(
            logits=self._logits,
            rows=np.stack([rows.values for rows in self.rows]),
            pixels_digest=pixels_digest(head[:DIGEST_POSITIONS]),
            audit=audit,
        )


class Filling:
    """Writes this rank's share of the missing blocks.

    Args:
        store: held or shared by this process.
        work: what labels are made of.
        missing: blocks to write, by all ranks.
        ranks: of this build.
        console: where it speaks.
        watch: is told what is done.
        stops: whether to stop after the block in hand.
    """

    def __init__(
        self,
        store: LabelStore,
        work: Work,
        missing: Sequence[BlockIndex],
        ranks: Ranks,
        console: Console,
        watch: Watch,
        stops: Stops,
    ) -> None:
        self._store, self._work, self._missing = store, work, missing
        self._ranks, self._console, self._watch, self._stops = ranks, console, watch, stops
        self._grid = BlockGrid.of(work.identity)
        self._looked = time.monotonic()
        self._theirs = set(missing) - set(ranks.shard(missing)) if ranks.first else set()
        watch.begin(blocks=len(missing), crops=sum(map(self._crops, missing)))

    def fill(self) -> None:
        """Write them; the first rank stays until all are written."""
        work, device = self._work, self._work.teacher.device
        coder = DeviceCodes(self._store.encoding, device) if device.type != "cpu" else None
        writer = self._store.writer(
            QUEUED_BLOCKS,
            encode=coder.encode if coder else None,
            at=self._watch.busy.at,
            written=self._written,
        )
        with self._console.progress("labels", self._watch.now().crops_wanted, "crops") as self._progress:
            with writer as write:
                jobs, group = self._jobs(write), work.identity.group
                label(work.renderer, work.teacher, group, jobs, busy=self._watch.busy, between=self._say)
            if self._ranks.first:
                self.wait(self._say)
                self._look()
            end = self._watch.so_far()
            if self._missing:
                self._progress.reach(end.crops, end.crops_wanted, note=end.text)
            self._watch.log(end)

    def _written(self, block: BlockIndex) -> None:
        """Count a block; with the first, say which bands its labels miss: there is time to stop."""
        self._watch.add_block(block)
        if block == AUDIT_BLOCK:
            for text in missed(self._store.identity.encoding, self._store.fidelity):
                self._console.warn(text)

    def wait(self, between: Callable[[], object] = lambda: None) -> None:
        """Wait for the other ranks; one that has ended ends this one too, unless it stops anyhow."""

        def patiently() -> None:
            self._require_patience()
            between()

        try:
            self._ranks.barrier(patiently)
        except GiftwrapError:
            if not self._stops.number:
                raise

    def _jobs(self, write: Callable[[BlockIndex, BlockData], object]) -> Iterator[OpenBlock]:
        """Blocks to label, until a signal says stop."""

        def hand_on(block: BlockIndex, data: BlockData) -> None:
            if block == self._missing[0]:
                report_agreement(self._work, data, self._console)
            write(block, data)

        for block in self._ranks.shard(self._missing):
            if self._stops.number:
                return
            yield OpenBlock(self._work, block, self._watch.add_crops, hand_on)

    def _say(self) -> None:
        """What is done so far, and which stage binds."""
        self._require_patience()
        if self._theirs and time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        now = self._watch.now()
        if now.crops < now.crops_wanted:
            self._progress.reach(now.crops, now.crops_wanted, note=now.text)

    def _require_patience(self) -> None:
        """Stop at once when a launcher of several ranks is about to kill them."""
        late = self._stops.number and time.monotonic() - self._stops.heard > PATIENCE_SECONDS
        if late and self._ranks.world > 1:
            raise self._stops.error()

    def _look(self) -> None:
        """See what other ranks have written since."""
        self._looked = time.monotonic()
        written = self._theirs - set(self._store.missing()) if self._theirs else set()
        self._theirs -= written
        for block in written:
            self._watch.add_crops(self._crops(block))
            self._watch.add_block()

    def _crops(self, block: BlockIndex) -> int:
        return math.prod(self._grid.extent(block).values())


def report_agreement(work: Work, data: BlockData, console: Console) -> None:
    """Say how often the teacher's first choice is the image's folder; warn when that smells of a mix-up."""
    rows = [CropRows(work.identity.crop_columns, values) for values in data.rows]
    targets = work.manifest.targets[np.concatenate([view.image for view in rows])]
    # a crop that is mostly its partner's says nothing of its own folder
    own = np.concatenate([view.weights(work.identity.size) for view in rows]) > 0.5
    logits = data.logits.reshape(-1, data.logits.shape[-1])[:, list(work.identity.label_columns)]
    report = agreement(logits[own], targets[own], work.manifest.classes)
    console.line(report.text)
    if report.warning:
        console.warn(report.warning)
