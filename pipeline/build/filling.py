"""Fill the missing blocks of a store: stages render and label crops, and encode and write blocks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from labelstore.command.console import Console
from labelstore.command.stopping import StopSignals
from labelstore.encodings.bands import missed
from labelstore.errors import GiftwrapError
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.columns import CropRows
from labelstore.spec import Identity
from labelstore.store import AuditRows, BlockData, LabelStore
from labelstore.writer import BlockWriter
from labelstore.writing.encoding import pairs_of
from pipeline.build.labelling import label
from pipeline.build.stages import ENCODE, hand_over
from pipeline.build.watching import Watch
from pipeline.device.codes import DeviceCodes
from pipeline.device.faults import device_faults
from pipeline.device.moving import begin_copy
from pipeline.images.manifest import Manifest
from pipeline.plan.plan import Plan
from pipeline.ranks import Ranks
from pipeline.render import Renderer
from pipeline.render.audit import DIGEST_POSITIONS, pixels_digest
from pipeline.teacher.class_order import agreement
from pipeline.teacher.labeller import Labeller

AUDIT_CROPS = 64
# Blocks that wait while one is encoded and one is being labelled: three float32 blocks in memory, and as many on a GPU.
QUEUED_BLOCKS = 1
LOOK_SECONDS = 5.0  # interval between checks for blocks of other ranks
PATIENCE_SECONDS = 20.0  # torchrun kills its ranks 30 s after its signal


@dataclass(frozen=True)
class Work:
    """Everything a build needs, checked and ready; nothing is written yet."""

    manifest: Manifest
    plan: Plan
    renderer: Renderer
    labeller: Labeller
    identity: Identity

    def crops(self, views: int) -> int:
        """Crops of ``views`` views."""
        return views * self.identity.images


class OpenBlock:
    """A block whose labels are being collected, in the order of its rows.

    Args:
        work: what labels are made of.
        block: of the store.

    Attributes:
        block: of the store.
        rows: of each of its views.
        names: of those views.
        logits: float32 ``[v, p, C]`` on the labeller's device; all set once the block is `whole`.
    """

    def __init__(self, work: Work, block: BlockIndex) -> None:
        grid = BlockGrid.of(work.identity)
        views, (start, stop) = range(*grid.views(block)), grid.positions(block)
        self.block = block
        self.rows = [work.plan.rows(view, start, stop) for view in views]
        self.names = [f"view {view}" for view in views]
        labeller = work.labeller
        self.logits = torch.empty((len(views), stop - start, labeller.columns), device=labeller.device)
        self._flat = self.logits.view(-1, labeller.columns)
        self._head: list[Tensor] = []
        self._wanted = min(AUDIT_CROPS if block == AUDIT_BLOCK else DIGEST_POSITIONS, stop - start)
        self._count = 0
        self._filled: torch.cuda.Event | None = None

    @property
    def whole(self) -> bool:
        """Whether all labels are complete."""
        return self._count == len(self._flat)

    def add(self, crops: Tensor, logits: Tensor) -> None:
        """Add the next crops, uint8 ``[n, S, S, 3]``, and their labels, float32 ``[n, C]``."""
        self._flat[self._count : self._count + len(crops)] = logits
        if self._count < self._wanted:
            head = crops[: self._wanted - self._count]
            # asynchronous if the event `_filled` is recorded after it
            self._head.append(begin_copy(head) if head.is_cuda and head.device == self._flat.device else head.cpu())
        self._count += len(crops)
        if self.whole and self._flat.is_cuda:
            self._filled = torch.cuda.current_stream(self._flat.device).record_event()

    def data(self, identity: Identity, coder: DeviceCodes | None = None, *, codes_only: bool = False) -> BlockData:
        """The complete block in host memory, for the store.

        Args:
            identity: of the store.
            coder: encodes the labels on their device; None leaves encoding to the store.
            codes_only: do not copy the labels, unless the encoding cannot represent them.
        """
        rows, codes, largest = np.stack([each.values for each in self.rows]), None, None
        if coder is None:
            logits = self.logits.cpu().numpy()
        else:
            if self._filled is not None:
                self._filled.synchronize()  # afterwards any CUDA stream may read them
            codes, found = coder.encode_measured(self.logits, pairs_of(identity, rows))
            if codes_only and self.block != AUDIT_BLOCK and found <= coder.limit:
                largest, logits = found, np.empty((0, 0, identity.columns), np.float32)
            else:
                logits = coder.to_memory(self.logits)
        head = torch.cat(self._head)
        audit = None
        if self.block == AUDIT_BLOCK:
            first = logits.reshape(-1, logits.shape[-1])[: len(head)]
            audit = AuditRows(crops=head.numpy(), logits=first.astype(np.float16))
        digest = pixels_digest(head[:DIGEST_POSITIONS])
        return BlockData(logits=logits, rows=rows, pixels_digest=digest, audit=audit, codes=codes, largest=largest)


class Filling:
    """Writes this rank's part of the missing blocks.

    Args:
        store: the store to write.
        work: what labels are made of.
        missing: blocks to write, by all ranks.
        ranks: of this build.
        console: prints progress, notes and warnings.
        watch: counts finished crops and blocks.
        stops: whether to stop after the current block.
    """

    def __init__(
        self,
        store: LabelStore,
        work: Work,
        missing: Sequence[BlockIndex],
        ranks: Ranks,
        console: Console,
        watch: Watch,
        stops: StopSignals,
    ) -> None:
        self._store, self._work, self._missing = store, work, missing
        self._ranks, self._console, self._watch, self._stops = ranks, console, watch, stops
        self._grid = BlockGrid.of(work.identity)
        self._looked = time.monotonic()
        self._theirs = set(missing) - set(ranks.shard(missing)) if ranks.first else set()
        watch.begin(blocks=len(missing), crops=sum(map(self._crops, missing)))

    def fill(self, writer: BlockWriter) -> None:
        """Write this rank's blocks; rank 0 returns when all ranks have finished."""
        work, device = self._work, self._work.labeller.device
        on_gpu = device.type != "cpu"
        coder = DeviceCodes(self._store.encoding, device) if on_gpu else None
        queue = writer.queue(QUEUED_BLOCKS, at=self._watch.busy.at, written=self._written)
        with self._console.progress("labels", self._watch.now().crops_wanted, "crops") as self._progress:
            with queue as write:
                finish = partial(self._finish, write, coder)
                labelled = label(
                    work.renderer, work.labeller, work.identity.group, self._open_blocks(), busy=self._watch.busy
                )
                with hand_over(finish, QUEUED_BLOCKS if on_gpu else 0, device) as hand_on, closing(labelled):
                    for each in labelled:
                        each.job.add(each.crops, each.logits)
                        self._watch.add_crops(len(each.crops))
                        if each.job.whole:
                            hand_on(each.job)
                        self._report()
            if self._ranks.first:
                self.wait(self._report)
                self._look()
            end = self._watch.so_far()
            if self._missing:
                self._progress.reach(end.crops, end.crops_wanted, note=end.text)
            self._watch.log(end)

    def _finish(
        self, write: Callable[[BlockIndex, BlockData], object], coder: DeviceCodes | None, whole: OpenBlock
    ) -> None:
        """Write a complete block; for the first one, report the agreement of its labels with the folders."""
        faults = device_faults("labels are encoded", "a smaller --cache-gib")
        with self._watch.busy.at(ENCODE) if coder else nullcontext(), faults:
            data = whole.data(self._work.identity, coder, codes_only=whole.block != self._missing[0])
        if whole.block == self._missing[0]:
            report_agreement(self._work, data, self._console)
        write(whole.block, data)

    def _written(self, block: BlockIndex) -> None:
        """Count a block; after the first, warn early if its labels miss the quality bands."""
        self._watch.add_block(block)
        if block == AUDIT_BLOCK:
            for text in missed(self._store.identity.encoding, self._store.fidelity):
                self._console.warn(text)

    def wait(self, between: Callable[[], object] = lambda: None) -> None:
        """Wait for the other ranks; if one has ended, this one ends too, unless it is stopping already."""

        def patiently() -> None:
            self._require_patience()
            between()

        try:
            self._ranks.barrier(patiently)
        except GiftwrapError:
            if not self._stops.number:
                raise

    def _open_blocks(self) -> Iterator[OpenBlock]:
        """Blocks to label, until a signal arrives."""
        for block in self._ranks.shard(self._missing):
            if self._stops.number:
                return
            yield OpenBlock(self._work, block)

    def _report(self) -> None:
        """Show what is done so far, and which stage is the bottleneck."""
        self._require_patience()
        if self._theirs and time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        now = self._watch.now()
        if now.crops < now.crops_wanted:
            self._progress.reach(now.crops, now.crops_wanted, note=now.text)

    def _require_patience(self) -> None:
        """Stop at once if the launcher is about to kill the ranks."""
        late = self._stops.number and time.monotonic() - self._stops.arrived > PATIENCE_SECONDS
        if late and self._ranks.world > 1:
            raise self._stops.error()

    def _look(self) -> None:
        """Count the blocks that other ranks have written since the last check."""
        self._looked = time.monotonic()
        written = self._theirs - set(self._store.missing()) if self._theirs else set()
        self._theirs -= written
        for block in written:
            self._watch.add_crops(self._crops(block))
            self._watch.add_block()

    def _crops(self, block: BlockIndex) -> int:
        return math.prod(self._grid.extent(block).values())


def report_agreement(work: Work, data: BlockData, console: Console) -> None:
    """Report how often the teacher's first choice is the image's folder; warn if classes seem to be mixed up."""
    rows = [CropRows(work.identity.crop_columns, values) for values in data.rows]
    targets = work.manifest.targets[np.concatenate([view.image for view in rows])]
    # a crop that is mostly its partner's is no evidence for its own folder
    own = np.concatenate([view.weights(work.identity.size) for view in rows]) > 0.5
    logits = data.logits.reshape(-1, data.logits.shape[-1])[:, list(work.identity.label_columns)]
    report = agreement(logits[own], targets[own], work.manifest.classes)
    console.line(report.text)
    if report.warning:
        console.warn(report.warning)
