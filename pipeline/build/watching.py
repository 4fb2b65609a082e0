"""Progress of a build: crops and blocks done, busy stages and the bottleneck; for console, log file and Prometheus."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labelstore.command.console import PLAIN_INTERVAL_S, Console
from labelstore.errors import GiftwrapError, InputError
from labelstore.spec import Json
from pipeline.build.stages import STAGES, Busy

if TYPE_CHECKING:
    from prometheus_client.core import Metric

WINDOW_SECONDS = 5.0  # "now" is the mean over the last 5 to 10 seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The progress of a build, and its rates over an interval.

    Attributes:
        seconds: seconds since the start.
        crops: labelled crops, by all ranks.
        crops_wanted: crops to label.
        blocks: written blocks, by all ranks.
        blocks_wanted: blocks to write.
        rate: crops a second.
        busy: fraction of the time that each stage of this rank was busy.
    """

    seconds: float
    crops: int
    crops_wanted: int
    blocks: int
    blocks_wanted: int
    rate: float
    busy: Mapping[str, float]

    @property
    def binding(self) -> str:
        """The busiest stage, which is the bottleneck."""
        return max(self.busy, key=lambda stage: self.busy[stage])

    @property
    def text(self) -> str:
        """The stages and the bottleneck, as text."""
        shares = ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in self.busy.items())
        return f"busy: {shares}; {self.binding} is the bottleneck"

    def to_json(self) -> dict[str, Json]:
        """The entry for the log."""
        return {
            "seconds": round(self.seconds, 3),
            "crops": self.crops,
            "crops_wanted": self.crops_wanted,
            "blocks": self.blocks,
            "blocks_wanted": self.blocks_wanted,
            "crops_per_second": round(self.rate, 3),
            "busy": {stage: round(share, 4) for stage, share in self.busy.items()},
            "binding_stage": self.binding,
        }


@dataclass(frozen=True, slots=True)
class _Mark:
    """Counts at one time."""

    time: float
    crops: int
    busy: Mapping[str, float]


class Watch:
    """Counts crops, blocks and busy time; the threads of all stages add to it.

    Args:
        log: file to which a line of JSON is appended at intervals; None for no log.

    Attributes:
        busy: busy seconds of each stage.
    """

    def __init__(self, log: Path | None = None) -> None:
        self.busy = Busy()
        self._log = log
        self._lock = threading.Lock()
        self._crops = self._blocks = 0
        self.begin(blocks=0, crops=0)

    def begin(self, *, blocks: int, crops: int) -> None:
        """Start counting, with the numbers of blocks and crops to make."""
        self._blocks_wanted, self._crops_wanted = blocks, crops
        self._first = self._old = self._new = self._mark()
        self._logged = self._first.time

    def add_crops(self, count: int) -> None:
        """Count labelled crops."""
        with self._lock:
            self._crops += count

    def add_block(self, _block: object = None) -> None:
        """Count a written block."""
        with self._lock:
            self._blocks += 1

    def so_far(self) -> Moment:
        """Progress since the start."""
        return self._since(self._first, self._mark())

    def now(self) -> Moment:
        """Progress over the last seconds; logged at intervals."""
        mark = self._mark()
        if mark.time - self._new.time >= WINDOW_SECONDS:
            self._old, self._new = self._new, mark
        moment = self._since(self._old, mark)
        if mark.time - self._logged >= PLAIN_INTERVAL_S:
            self.log(moment)
        return moment

    def log(self, moment: Moment) -> None:
        """Add a line to the log.

        Raises:
            GiftwrapError: when it cannot be written.
        """
        self._logged = time.monotonic()
        if self._log is None:
            return
        try:
            with self._log.open("a") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **moment.to_json()}) + "\n")
        except OSError as error:
            raise GiftwrapError(f"--progress-log {self._log}: cannot be written ({error.strerror})") from error

    def _mark(self) -> _Mark:
        return _Mark(time.monotonic(), self._crops, self.busy.seconds())

    def _since(self, start: _Mark, stop: _Mark) -> Moment:
        seconds = max(stop.time - start.time, 1e-9)
        return Moment(
            seconds=stop.time - self._first.time,
            crops=stop.crops,
            crops_wanted=self._crops_wanted,
            blocks=self._blocks,
            blocks_wanted=self._blocks_wanted,
            rate=(stop.crops - start.crops) / seconds,
            busy={stage: (stop.busy[stage] - start.busy[stage]) / seconds for stage in STAGES},
        )

    def collect(self) -> Iterator[Metric]:
        """The counts as Prometheus metrics; called by the Prometheus library on each request."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        moment, seconds = self.so_far(), self.busy.seconds()
        for name, text, count, wanted in (
            ("crops", "labelled", moment.crops, moment.crops_wanted),
            ("blocks", "written", moment.blocks, moment.blocks_wanted),
        ):
            yield CounterMetricFamily(f"giftwrap_build_{name}", f"{name.capitalize()} {text}, by all ranks.", count)
            yield GaugeMetricFamily(f"giftwrap_build_{name}_wanted", f"{name.capitalize()} to be {text}.", wanted)
        busy = CounterMetricFamily(
            "giftwrap_build_stage_busy_seconds", "Seconds that a stage was at work.", labels=["stage"]
        )
        for stage in STAGES:
            busy.add_metric([stage], seconds[stage])
        yield busy


def require_log(log: Path) -> None:
    """Refuse a log that could not be written, or another file of that name; nothing is written.

    Raises:
        InputError: names the file.
    """
    folder = next(parent for parent in log.absolute().parents if parent.exists())
    if not folder.is_dir() or log.is_dir() or not os.access(log if log.exists() else folder, os.W_OK):
        raise InputError(f"--progress-log {log}: expected a file that can be written")
    for line in log.read_bytes().splitlines(keepends=True) if log.is_file() else ():
        if not _is_moment(line) and (line.endswith(b"\n") or not line.startswith(b'{"time": ')):  # one may be cut off
            raise InputError(
                f"--progress-log {log}: expected the log of a build, or no file, found another file; nothing is added "
                f"to it: give another name"
            )


def _is_moment(line: bytes) -> bool:
    try:
        moment = json.loads(line)
        return "time" in moment and "binding_stage" in moment
    except (ValueError, TypeError, RecursionError):
        return False


@contextmanager
def watching(log: Path | None, port: int | None, host: str, console: Console) -> Iterator[Watch]:
    """A context with a `Watch`, its log, and a server for its metrics.

    Args:
        log: file to add lines to.
        port: port of the Prometheus metrics; None for no server.
        host: address of the server.
        console: prints the address.

    Raises:
        InputError: when the file cannot be written, or the port is taken.
    """
    with ExitStack() as stack:
        if log is not None:
            require_log(log)
            try:
                log.parent.mkdir(parents=True, exist_ok=True)
                log.open("a").close()
            except OSError as error:
                raise InputError(
                    f"--progress-log {log}: expected a file that can be written ({error.strerror})"
                ) from error
        watch = Watch(log)
        if port is not None:
            stack.enter_context(_served(watch, host, port))
            console.line(f"metrics: http://{host}:{port}/metrics")
        yield watch


@contextmanager
def _served(watch: Watch, host: str, port: int) -> Iterator[None]:
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise InputError(
            '--metrics-port: needs the Prometheus client library; pip install "giftwrap[metrics]"'
        ) from error

    class Collected(Collector):
        def collect(self) -> Iterator[Metric]:
            return watch.collect()

    registry = CollectorRegistry()
    registry.register(Collected())
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise InputError(
            f"--metrics-port {port}: expected a free port of {host}, found: {error.strerror}; give another one, or "
            f"leave it out"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
