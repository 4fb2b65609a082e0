"""The ranks of a command on a Ray cluster: placed, started together, started again when one is lost, stopped together.

Each rank is an actor that runs the command in a separate process. Ray restarts the process of an actor that it has
lost, here or on another node; then all ranks begin again, and continue with what was finished.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from labelstore.command.console import Console
from labelstore.command.stopping import StopSignals
from labelstore.errors import GiftwrapError, InputError, reason
from labelstore.version import __version__
from pipeline.launch.place import ATTEMPT, JOB, START, environment_of
from pipeline.launch.ray_cluster import Cluster
from pipeline.launch.ray_worker import Host, RankWorker
from pipeline.launch.relay import Relay

RESTARTS = 3  # of all ranks, after one was lost
POLL_SECONDS = 0.2
WAIT_SECONDS = 10.0  # before a line states that there is no room yet
START_SECONDS = 2.0  # between two requests to an actor that is starting
GRACE_SECONDS = 2.0  # for the other ranks to end by themselves when one has ended
PATIENCE_SECONDS = 30.0  # in which ranks end their current block, as torchrun has it
KEPT = "what was finished is kept"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a rank.

    Attributes:
        code: its exit code; 0 when it is lost.
        lost: why it did not end by itself; empty when it did.
        killed: whether a signal of the command ended it before it could print that it is stopped.
    """

    code: int = 0
    lost: str = ""
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of all ranks.

    Attributes:
        code: exit code of the command; None when the ranks are to be started again.
        rank: of the rank that decided it.
        why: that rank was lost.
    """

    code: int | None
    rank: int = 0
    why: str = ""


def verdict_of(ended: Mapping[int, Ended], order: Sequence[int], stopped: int) -> Verdict:
    """Determine the outcome from the ends of all ranks.

    Args:
        ended: of each rank.
        order: the ranks in the order in which they have ended.
        stopped: number of the signal that has stopped the command; 0 without one.
    """
    if stopped:
        return Verdict(ended[0].code if 0 < ended[0].code < 128 else 128 + stopped)
    lost = [rank for rank in order if ended[rank].lost]
    if lost and ended[0] != Ended():  # the first rank ends well only where all is finished
        return Verdict(None, lost[0], ended[lost[0]].lost)
    failed = [rank for rank in order if ended[rank].code]
    # Ranks that ended because of another rank end later, or have exit code 1 where the other has 2.
    failed.sort(key=lambda rank: ended[rank].code != InputError.exit_code)
    return Verdict(ended[failed[0]].code, failed[0]) if failed else Verdict(0)


def why_lost(error: BaseException) -> str:
    """Why Ray has lost a rank, in a few words."""
    if "memory" in str(error) or "Memory" in type(error).__name__:
        return "its host ran out of memory"
    if "node" in str(error).lower() and "died" in str(error).lower():
        return "its process or its node has ended"
    return "its process has ended; raylet.out beside its logs has Ray's reason, such as too little memory"


def environments(
    hosts: Sequence[Host], port: int, job: str, attempt: int, start: Sequence[str]
) -> list[dict[str, str]]:
    """The environment of each rank.

    Args:
        hosts: of the ranks; those of one node follow one another.
        port: on which the first host is met.
        job: id of this command.
        attempt: how often the ranks were started before.
        start: the words that start this program, for the message about resuming.
    """
    nodes = [host.node for host in hosts]
    shared = {
        "MASTER_ADDR": LOOPBACK if len({*nodes}) == 1 else hosts[0].address,
        "MASTER_PORT": str(port),
        JOB: job,
        ATTEMPT: str(attempt),
        START: json.dumps(list(start)),
    }
    return [shared | environment_of(rank, nodes) for rank in range(len(nodes))]


def grouped(hosts: Sequence[Host]) -> list[int]:
    """The order of actors in which those of one node follow one another."""
    first = {host.node: index for index, host in reversed([*enumerate(hosts)])}
    return sorted(range(len(hosts)), key=lambda index: (first[hosts[index].node], index))


def run_ranks(cluster: Cluster, words: Sequence[str], start: Sequence[str], console: Console) -> int:
    """Run a command in all ranks, and print what the first of them prints; returns the exit code.

    Args:
        cluster: where.
        words: of the command line.
        start: the words before them.
        console: where notes go.

    Raises:
        GiftwrapError: ranks were lost too often, or the cluster.
    """
    job = secrets.token_hex(8)
    with StopSignals() as stops, lost_cluster(cluster), placed(cluster, console, stops) as actors:
        for attempt in range(RESTARTS + 1):
            hosts = hosts_of(cluster, actors, console, stops)
            if stops.number:
                raise stops.error()
            if not attempt:
                names = ", ".join(dict.fromkeys(host.name for host in hosts))
                logs = cluster.logs / f"giftwrap-{job}-*"
                console.line(f"ray {cluster.ray.__version__}: {len(hosts)} ranks on {names}; logs of ranks: {logs}")
            found = Attempt(cluster, actors, hosts, stops, console.standard_output).run(words, start, job, attempt)
            if found.code is not None:
                return found.code
            again = f"; starting all ranks again ({attempt + 1} of {RESTARTS})" if attempt < RESTARTS else ""
            console.warn(f"rank {found.rank} on {hosts[found.rank].name} was lost ({found.why}){again}")
        error = GiftwrapError(
            f"rank {found.rank} was lost {RESTARTS + 1} times in this command ({found.why}); see its log: "
            f"{cluster.logs / f'giftwrap-{job}-{RESTARTS}-rank-{found.rank}'}.err"
        )
        error.add_note(KEPT)
        raise error


@contextmanager
def lost_cluster(cluster: Cluster) -> Iterator[None]:
    """Explain an error of Ray itself.

    Raises:
        GiftwrapError: with Ray's reason.
    """
    try:
        yield
    except cluster.ray.exceptions.RayError as error:
        raise GiftwrapError(f"--ray: the cluster does not work any more ({reason(error)}); {KEPT}") from error


@contextmanager
def placed(cluster: Cluster, console: Console, stops: StopSignals) -> Iterator[list[Any]]:
    """An actor for each rank, close together; all are gone at the end."""
    ray = cluster.ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = {"CPU": 1, **({"GPU": cluster.gpus} if cluster.gpus else {})}
    group = placement_group([bundle] * cluster.workers, strategy="PACK")
    actors: list[Any] = []
    try:
        wait_for(lambda: group.wait(POLL_SECONDS), "room on the cluster for all ranks", console, stops)
        for index in range(cluster.workers):
            options = ray.remote(RankWorker).options(
                num_cpus=1,
                num_gpus=cluster.gpus,
                max_restarts=RESTARTS,
                max_task_retries=0,  # ranks begin again together
                max_concurrency=4,  # it is stopped, and read, while it runs
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
            )
            actors.append(options.remote(os.getcwd(), str(cluster.logs)))  # noqa: PTH109  as it is typed
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)
        remove_placement_group(group)


def wait_for(ready: Any, what: str, console: Console, stops: StopSignals) -> None:
    """Call ``ready``, which waits a little, until it holds; print what is waited for when it takes long.

    Raises:
        KeyboardInterrupt: or `Stopped`, when a signal came.
    """
    began, shown = time.monotonic(), False
    while not ready():
        if stops.number:
            raise stops.error()
        if not shown and time.monotonic() - began > WAIT_SECONDS:
            console.line(f"waiting for {what}")
            shown = True


def hosts_of(cluster: Cluster, actors: list[Any], console: Console, stops: StopSignals) -> list[Host]:
    """Wait for all ranks and return their places; sorts the actors by rank.

    Raises:
        InputError: giftwrap is another version somewhere, or the working folder is absent.
    """
    ray = cluster.ray
    found: dict[int, Host] = {}

    def answered() -> bool:
        """Ask those that have not answered; an actor that Ray is restarting is not available for a while."""
        requests = {actor.host.remote(): index for index, actor in enumerate(actors) if index not in found}
        for reference in ray.wait([*requests], num_returns=len(requests), timeout=START_SECONDS)[0]:
            try:
                found[requests[reference]] = ray.get(reference)
            except ray.exceptions.ActorUnavailableError:
                time.sleep(POLL_SECONDS)
        return len(found) == len(actors)

    try:
        wait_for(answered, "all ranks to start", console, stops)
    except ray.exceptions.ActorDiedError as error:
        last = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
        raise InputError(
            f"--ray: a rank cannot start on the cluster ({reason(InputError(*last))}); giftwrap {__version__} has to "
            f"be installed on all of its hosts"
        ) from error
    hosts = [found[index] for index in range(len(actors))]
    order = grouped(hosts)
    actors[:], hosts = [actors[index] for index in order], [hosts[index] for index in order]
    for host in hosts:
        if host.version != __version__:
            raise InputError(
                f"--ray: expected giftwrap {__version__} on all hosts, as here, found {host.version} on {host.name}"
            )
        if not host.has_folder:
            raise InputError(
                f"--ray: {host.name} has no folder {os.getcwd()}; start the command in a folder that all hosts have"  # noqa: PTH109
            )
    return hosts


class Attempt:
    """One start of all ranks, watched until all have ended.

    Args:
        cluster: where.
        actors: of the ranks.
        hosts: of the ranks.
        stops: signals to pass on.
        out: where standard output of the first rank goes.
    """

    def __init__(
        self, cluster: Cluster, actors: Sequence[Any], hosts: Sequence[Host], stops: StopSignals, out: TextIO
    ) -> None:
        self._cluster, self._actors, self._hosts, self._stops, self._out = cluster, actors, hosts, stops, out
        self._ended: dict[int, Ended] = {}
        self._order: list[int] = []
        self._sent: list[int] = []  # signals, to all ranks that ran
        self._alone_since: float | None = None  # since a rank has ended badly, or a signal came

    def run(self, words: Sequence[str], start: Sequence[str], job: str, attempt: int) -> Verdict:
        """Run the command in all ranks; what the first one prints is printed, and the error of the one that failed.

        Raises:
            KeyboardInterrupt: or `Stopped`, when a signal came before the first rank could handle it.
        """
        ray = self._cluster.ray
        port: int = ray.get(self._actors[0].free_port.remote())
        each = environments(self._hosts, port, job, attempt, start)
        names = [f"giftwrap-{job}-{attempt}-rank-{rank}" for rank in range(len(each))]
        running = {
            actor.run.remote(list(words), environment, name): rank
            for rank, (actor, environment, name) in enumerate(zip(self._actors, each, names, strict=True))
        }
        relay = Relay(ray, self._actors[0], self._out)
        while running:
            done, _ = ray.wait([*running], timeout=POLL_SECONDS)
            for reference in done:
                rank = running.pop(reference)
                self._ended[rank] = self._how(reference)
                self._order.append(rank)
            relay.poll()
            if self._stop_when_due([*running.values()]):
                relay.hold()  # a rank's message about being stopped, if the command was not stopped
        found = verdict_of(self._ended, self._order, self._stops.number)
        if found.code is not None:
            relay.finish()
            if self._stops.number and (self._ended[0].killed or self._ended[0].lost):
                raise self._stops.error()  # which prints what that rank would have printed
            if found.rank:
                Relay(ray, self._actors[found.rank], sys.stderr, f"rank {found.rank}: ").finish()
        return found

    def _how(self, reference: Any) -> Ended:
        """The end of a rank; a rank that was stopped by a signal of this command does not count as lost."""
        try:
            code: int = self._cluster.ray.get(reference)
        except self._cluster.ray.exceptions.RayError as error:
            return Ended(lost=why_lost(error))
        if code < 0 and -code not in self._sent:
            return Ended(lost=f"ended by {signal.Signals(-code).name}")
        return Ended(code) if code >= 0 else Ended(128 - code, killed=True)

    def _stop_when_due(self, ranks: Sequence[int]) -> bool:
        """Pass a signal on; stop ranks beside one that has ended badly, and kill those that do not end in time.

        Returns:
            Whether ranks are stopped that no signal has stopped.
        """
        now, bad = time.monotonic(), any(each.code or each.lost for each in self._ended.values())
        if self._alone_since is None and (bad or self._stops.number):
            self._alone_since = now
        if self._alone_since is None:
            return False
        waited = now - self._alone_since
        if self._stops.number and self._stops.number not in self._sent:
            self._send(self._stops.number, ranks)
        elif bad and not self._sent and waited > GRACE_SECONDS:
            self._send(signal.SIGTERM, ranks)
        elif bad and not self._stops.number and waited > PATIENCE_SECONDS and signal.SIGKILL not in self._sent:
            self._send(signal.SIGKILL, ranks)
        return bad and not self._stops.number and bool(self._sent)

    def _send(self, number: int, ranks: Sequence[int]) -> None:
        self._sent.append(number)
        for rank in ranks:
            self._actors[rank].stop.remote(number)
