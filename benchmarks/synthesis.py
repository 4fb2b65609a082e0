"""RDED scores crops of files as fast as its teacher labels crops that are in memory."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Report, interleave, machine
from benchmarks.render import draw, photographs
from benchmarks.teacher import draw_weights
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.durable.removing import Proof
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.build.labelling import UNDER_WAY
from pipeline.images.manifest import Manifest, scan
from pipeline.ranks import Ranks
from pipeline.render.batches import render_batches
from pipeline.synthesis.config import SynthesizeConfig
from pipeline.synthesis.method import Setting, Working
from pipeline.synthesis.rded import Rded, crops_of, make_rded
from pipeline.synthesis.scoring import cross_entropies, joined, scores_of
from pipeline.teacher.labeller import Labeller, Pending

PROMISED = 0.9  # of the teacher's rate, on a CPU
CROPS = 5  # of each image, as in the paper
CLASSES = 2

Batches = Sequence[tuple[Tensor, CropRows]]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        side: of an image in pixels.
        network: of the teacher.
        batch: crops of the teacher's batch, which those of a class nearly fill.
        pool: images a class.
        ipc: images made of them.
        rounds: that count; 6 give an interval of 95 %.
    """

    side: int
    network: str
    batch: int
    pool: int
    ipc: int
    rounds: int


CPU = Size(side=224, network="torchvision:resnet18", batch=128, pool=51, ipc=10, rounds=6)
GPU = Size(side=224, network="torchvision:resnet18", batch=256, pool=460, ipc=50, rounds=6)
QUICK = Size(side=32, network="cifar-resnet20", batch=4, pool=4, ipc=1, rounds=1)


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Time two classes from their files to finished collages, interleaved with their teacher and their renderer.

    The photographs are those of GIFTWRAP_DATA, drawn ones where it is not set; their files are in the system's cache.
    Decoded images of one class fit the memory for them and those of two do not, so that every round decodes each file
    once, as a run over many classes does.
    """
    on_gpu = torch.cuda.is_available() and not quick
    size = QUICK if quick else GPU if on_gpu else CPU
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = scan(pools(folder, size))
        config = from_flags(
            SynthesizeConfig,
            method="rded",
            images=folder / "images",
            out=folder / "set",
            ipc=size.ipc,
            size=size.side,
            pool=size.pool,
            crops=CROPS,
            factor=2,
            teacher=(size.network,),
            weights=(str(draw_weights(folder, size.network, size.side)),),
            class_columns="0,1",
            batch=size.batch,
            device="cuda" if on_gpu else "cpu",
        )
        config = changed(config, cache_gib=of_one_class(manifest) / 2**30)
        setting = Setting(
            config=config,
            manifest=manifest,
            targets=np.arange(CLASSES),
            console=Console(silent=True),
            ranks=Ranks(),
        )
        with closing(make_rded(setting)) as method:
            return measure(report, method, size, judged=not (quick or on_gpu))


def pools(folder: Path, size: Size) -> Path:
    """A class folder of `CLASSES` classes of `size.pool` images."""
    (folder / "drawn").mkdir()
    source = photographs() or draw(folder / "drawn", CLASSES * size.pool)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for number, file in enumerate(files[: CLASSES * size.pool]):
        target = folder / "images" / f"class {number % CLASSES}"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target / f"{number:05d}{file.suffix}")
    return folder / "images"


def of_one_class(manifest: Manifest) -> int:
    """Bytes of the decoded images of the larger class."""
    pixels = manifest.heights.astype(np.float64) * manifest.widths
    return int(3 * np.bincount(manifest.targets, weights=pixels).max())


def measure(report: Report, method: Rded, size: Size, *, judged: bool) -> dict[str, Json]:
    """Time the contenders, after the scores from files were found to be those of crops in memory."""
    assert method.scorer is not None and method.scored is not None  # noqa: S101, PT018  not for checking
    scorer, scored = method.scorer, method.scored
    rows = [crops_of(method.plan, pool, CROPS) for pool in method.pools.values()]
    batches = [list(render_batches(scored, [each], scorer.batch, CROPS)) for each in rows]
    compare(method, rows, batches)
    timing = interleave(
        {
            "rded": lambda: [method.make(job, idle()) for job in method.jobs],
            "teacher": lambda: label(scorer, itertools.chain.from_iterable(batches)),
            "renderer": lambda: [settled(list(render_batches(scored, [each], scorer.batch, CROPS))) for each in rows],
        },
        size.rounds,
    )
    crops = sum(map(len, rows))
    for name, seconds in timing.wall.items():
        report.add(name, "rate", [crops / second for second in seconds], "crops/s")
    share = timing.interval("teacher", "rded")
    return {
        "unit": "crops/s",
        "crops": crops,
        "size": size.side,
        "network": size.network,
        "batch": scorer.batch,
        "threads": torch.get_num_threads(),
        **{name: timing.rate(name, crops)["wall"] for name in timing.wall},
        "share_of_teacher": share.to_json(),
        "promised": PROMISED,
        **({"kept": share.median >= PROMISED} if judged else {}),
        "engine": dict(scorer.engine),
        "machine": machine(),
    }


def compare(method: Rded, rows: Sequence[CropRows], batches: Sequence[Batches]) -> None:
    """Refuse to time scores of files that are not those of the same crops in memory.

    Raises:
        RuntimeError: names the largest difference.
    """
    assert method.scorer is not None and method.scored is not None  # noqa: S101, PT018  not for checking
    targets, columns = method.setting.manifest.targets, method.scorer.class_columns
    for some, each in zip(batches, rows, strict=True):
        found = cross_entropies(method.scorer, method.scored, [each], targets, together=CROPS).losses
        alone = joined(
            [scores_of(method.scorer.start(crops, part).result(), targets[part.image], columns) for crops, part in some]
        ).losses
        if not np.array_equal(found, alone):
            raise RuntimeError(f"other scores than of crops in memory: {np.abs(found - alone).max():.2e} apart")


def label(scorer: Labeller, batches: Iterable[tuple[Tensor, CropRows]]) -> None:
    """Only the teacher, on crops in device memory."""
    under_way: deque[Pending] = deque()
    for crops, part in batches:
        under_way.append(scorer.start(crops, part))
        if len(under_way) > UNDER_WAY:
            under_way.popleft().result()
    while under_way:
        under_way.popleft().result()


def settled(batches: Batches) -> Batches:
    """Rendered batches, when a GPU has finished them."""
    if batches and batches[0][0].is_cuda:
        torch.cuda.synchronize(batches[0][0].device)
    return batches


def idle() -> Working:
    """A job that nobody watches or stops."""
    return Working(
        file=Path("none"),
        proof=Proof("nothing", lambda _path: False),
        progress=lambda *_args: None,
        stopping=lambda: False,
    )
