"""A run continues within an epoch at the same cost wherever it stopped."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.harness import Report, interleave, machine
from benchmarks.step import CLASSES, draw_set
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.spec import Json
from pipeline.build.build import build
from pipeline.config import BuildConfig
from pipeline.networks import build_network, save_weights
from trainer.batch import TrainBatch
from trainer.replay import Replay

PROMISED = 1.5  # times the latency at the start
SIDE = 16
GROUP = 128
BATCH = 100
VIEWS = 2


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Time the first batch after a state was loaded, at both ends of an epoch, for a new view and one played again."""
    images, rounds = (600, 2) if quick else (20_000, 20)
    with (
        tempfile.TemporaryDirectory(dir=report.folder, prefix="resume-") as folder,
        closing(prepare(Path(folder), images)) as replay,
    ):
        end, again = images - BATCH, replay.order.views
        places = {
            "start": (0, 0),
            "end": (0, end),
            "start, played again": (again, 0),
            "end, played again": (again, end),
        }
        require_same(replay, places["end, played again"])
        ways: dict[str, Callable[[], object]] = {
            name: partial(first_batch, replay, *place) for name, place in places.items()
        }
        timing = interleave(ways, rounds)
        skipping = skip(replay, end)
    for name, seconds in timing.wall.items():
        report.add(name, "first batch", seconds, "s")
    report.add("reading up to the end", "first batch", skipping, "s")
    ratio = max(timing.speedup("start", "end"), timing.speedup("start, played again", "end, played again"))
    at_end = max(median(timing.wall[name]) for name in ("end", "end, played again"))
    return {
        "seconds_at_start": median(timing.wall["start"]),
        "seconds_at_end": at_end,
        "end_over_start": ratio,
        "over_skipping": skipping / at_end,
        "images": images,
        "promised": {"end_over_start": PROMISED},
        **({} if quick else {"kept": ratio <= PROMISED}),
        "machine": machine(),
    }


def prepare(folder: Path, images: int) -> Replay:
    """What replays a store of CutMix crops of drawn images, whose files are read again for every batch."""
    weights, network = folder / "teacher.safetensors", "convnet-d1"
    torch.manual_seed(0)
    save_weights(build_network(network, {"width": 4}, CLASSES, size=SIDE).state_dict(), weights)
    config = from_flags(
        BuildConfig,
        images=draw_set(folder / "images", images, (SIDE, SIDE)),
        teacher=(network,),
        teacher_args=('{"width": 4}',),
        weights=(str(weights),),
        size=SIDE,
        views=VIEWS,
        store=folder / "store",
        mix="cutmix",
        group=GROUP,
    )
    build(config, Console(as_json=True))
    return Replay(config.store, config.images, batch_size=BATCH, cache_bytes=0)


def first_batch(replay: Replay, epoch: int, position: int) -> TrainBatch:
    """Go on at a place, as a run does that was stopped there."""
    replay.load_state_dict({**replay.state_dict(), "epoch": epoch, "position": position})
    return next(iter(replay))


def require_same(replay: Replay, place: tuple[int, int]) -> None:
    """Compare the first batch at a place with what an epoch that is played through has there."""
    first = first_batch(replay, *place)
    replay.load_state_dict({**replay.state_dict(), "epoch": place[0], "position": 0})
    last = list(replay)[-1]
    if not (torch.equal(first.images, last.images) and torch.equal(first.position, last.position)):
        raise RuntimeError("other crops after the state was loaded than in an epoch that is played through")


def skip(replay: Replay, end: int) -> float:
    """Seconds to the batch at ``end`` for a loader that begins the epoch and throws away what was played."""
    replay.load_state_dict({**replay.state_dict(), "epoch": 0, "position": 0})
    start = time.perf_counter()
    for _ in replay:
        if replay.position > end or replay.epoch:
            break
    return time.perf_counter() - start
