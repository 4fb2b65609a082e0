"""The lease: at most one build writes a store.

``lease.json`` names the build and its process. It is created exclusively, and replaced only when its process is
known to be dead, or with ``--take-over``. A process is known only on its own host since its last start: another boot
of a host of this name may be another machine. A cluster that starts a job again, after all of its processes have
ended, names the job: its earlier start is dead wherever it was. Looking and replacing happen under a lock of the
store's folder, which the system lets go when a process dies, so two builds cannot both take over.

On a network file system a lock of a folder may hold only within a host. There an empty file in the folder, which is
removed after use, is locked in its place.

Other processes of the same build share its lease. Each keeps a lock of the folder of temporaries for as long as it may
write: a lease whose process is dead is taken over only when they are gone too.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labelstore.durable import disk, documents, mounts, publish, removing
from labelstore.durable.locking import is_locked
from labelstore.durable.publish import PARTIAL, Described
from labelstore.durable.removing import Proof
from labelstore.errors import DamagedError, LeaseError
from labelstore.format.leftovers import LOCK, STAGED

LEASE = "lease.json"
MAX_PID = 2**31  # a process id is an int32 everywhere
MAX_NAME = 255  # characters of a host's name and of the ids


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Who holds a store.

    Attributes:
        build: random id of the build; ``JOB:ATTEMPT:ID`` where its launcher names the job.
        host: host name.
        boot: id of the host's current boot, empty if the system has none.
        space: the process-id space (container) that ``pid`` counts in, empty if the system has none.
        pid: process id.
        started: start time of the process in clock ticks since the boot, empty if the system has none.
    """

    build: str
    host: str
    boot: str
    space: str
    pid: int
    started: str

    @classmethod
    def of_this_process(cls, job: tuple[str, int] = ("", 0)) -> Lease:
        """A new lease for this process, which belongs to a start of a job."""
        name, attempt = job
        token = secrets.token_hex(8)
        return cls(
            build=f"{name}:{attempt}:{token}" if name else token,
            host=socket.gethostname(),
            boot=_boot(),
            space=_space(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
        )

    def __str__(self) -> str:
        return f"build {self.build}, process {self.pid} on {self.host}"

    @property
    def elsewhere(self) -> bool:
        """Whether nothing can be known from here about the process: another host, boot or container."""
        return (self.host, self.boot, self.space) != (socket.gethostname(), _boot(), _space())

    def precedes(self, other: Lease) -> bool:
        """Whether this is the lease of an earlier start of the other's job."""
        ours, theirs = self.build.split(":"), other.build.split(":")
        if len(ours) != 3 or len(theirs) != 3 or not ours[1].isdecimal():
            return False
        return ours[0] == theirs[0] and int(ours[1]) < int(theirs[1])

    @property
    def dead(self) -> bool:
        """Whether the process, known not to be elsewhere, is gone: no such process, or a later one of its number.

        Of another user's process the system may reveal only that it exists, which is taken as alive.
        """
        found = _started(self.pid)
        return found is None or (found not in ("", self.started) and self.started != "")


@contextmanager
def hold(root: Path, *, take_over: bool = False, job: tuple[str, int] = ("", 0)) -> Iterator[Lease]:
    """Hold the store for the length of the context; it is let go however the context ends.

    A process that was forked meanwhile does not release it when it leaves the context too.

    Args:
        root: the store's folder.
        take_over: take the lease of a build that cannot be seen from here.
        job: id of the job that this process belongs to, and which start of it, where its launcher starts it again only
            after all of its processes have ended.

    Raises:
        LeaseError: when another build holds it; names its host and process.
    """
    lease = Lease.of_this_process(job)
    try:
        _acquire(root, lease, take_over=take_over)
        yield lease
    finally:
        if os.getpid() == lease.pid:
            _release(root, lease)


@contextmanager
def join(root: Path, build: str) -> Iterator[Lease]:
    """Write beside the process that holds the store, as another process of its build.

    Args:
        root: the store's folder.
        build: id of the build, as the holder's lease names it.

    Raises:
        LeaseError: when that build does not hold the store, or its holder is gone.
    """
    with _locked(root):
        lease = read(root)
        if lease is None or lease.build != build:
            raise LeaseError(
                f"{root} on {socket.gethostname()}: build {build} does not hold it, but {lease or 'nobody'}; start the "
                f"build again, on hosts that all see the store's folder under this name"
            )
        require_held(root, lease)
        disk.require_folder(root / PARTIAL)
        descriptor = _open(root / PARTIAL)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        yield lease
    finally:
        os.close(descriptor)


def _release(root: Path, lease: Lease) -> None:
    with _locked(root):
        if read(root) == lease and not _shared(root):  # a lease that others share is left to outlive its process
            clear_partial(root)
            _remove_partial(root)
            removing.remove(root / LEASE, _proof(lease))


def _acquire(root: Path, lease: Lease, *, take_over: bool) -> None:
    with _locked(root):
        held = read(root)
        if held is not None:
            _require_free(root, held, take_over=take_over or held.precedes(lease))
        disk.require_folder(root / PARTIAL)
        disk.make_folder(root / PARTIAL)
        if _shared(root):
            raise LeaseError(
                f"{root} is written by other processes of a build whose first one is gone ({held}); "
                f"they end after their current block: wait for them or stop them"
            )
        document = documents.encode(dict(asdict(lease)))
        if held is None:
            _publish(root, document)
        else:
            publish.replace(root, LEASE, document, _proof(held))


def read(root: Path) -> Lease | None:
    """Who holds the store now."""
    path = root / LEASE
    try:
        return _parse(documents.read(path))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError, RecursionError, DamagedError) as error:
        why = getattr(error, "why", None) or error
        raise LeaseError(f"{path}: cannot be read ({why}); remove it when no build is running") from error


def _parse(document: Mapping[str, Any]) -> Lease:
    """The lease that a document holds.

    Raises:
        TypeError: when a field is missing or not one of a lease.
        ValueError: when a value is none that a process writes.
    """
    lease = Lease(**{name: value for name, value in document.items() if name != "crc32c"})
    for name, value in asdict(lease).items():
        if name == "pid":
            right = type(value) is int and 0 < value < MAX_PID
        else:
            right = type(value) is str and len(value) <= MAX_NAME and value.isprintable()
        if not right:
            raise ValueError(f"{name}: found {repr(value)[:40]}")
    return lease


def _publish(root: Path, document: bytes) -> None:
    """Create the lease; where that is refused, nothing is left."""
    try:
        publish.publish(root, {LEASE: Described.of(document)})
    except Exception:
        removing.remove(root / PARTIAL / LEASE, STAGED)
        if not (root / LEASE).exists():  # else it is released as any lease is
            _remove_partial(root)  # unless a dead build has left something there
        raise


def _remove_partial(root: Path) -> None:
    """Remove the folder of temporaries, when nothing but its lock is left in it."""
    if removing.may_go(root / PARTIAL / LOCK, removing.EMPTY):
        removing.remove(root / PARTIAL / LOCK, removing.EMPTY)
    removing.remove_folder(root / PARTIAL)


def require_held(root: Path, lease: Lease) -> None:
    """Raise LeaseError when the store's lease is not ``lease`` any more, or its process is gone."""
    if (held := read(root)) != lease:
        raise LeaseError(f"{root}: this build ({lease}) lost the store to {held or 'nobody'}; it must not write on")
    if lease.elsewhere:
        return  # of a process on another host, the ranks' own connection shows whether it is alive
    if lease.pid != os.getpid() and lease.dead:
        raise LeaseError(f"{root}: the process that holds it for this build ({lease}) is gone; run the build again")


def require_free(root: Path, *, take_over: bool = False) -> None:
    """Refuse a store that another build holds.

    Raises:
        LeaseError: names its host and process.
    """
    if held := read(root):
        _require_free(root, held, take_over=take_over)


def clear_partial(root: Path) -> None:
    """Remove the temporaries of the last writer; files of other names stay."""
    for path in sorted((root / PARTIAL).iterdir()):
        if removing.may_go(path, STAGED):
            removing.remove(path, STAGED)


def _proof(lease: Lease) -> Proof:
    """The proof of the file of a lease."""
    return Proof(f"the lease of {lease}", lambda path: read(path.parent) == lease)


def _require_free(root: Path, held: Lease, *, take_over: bool) -> None:
    if held.elsewhere:
        if not take_over:
            raise LeaseError(
                f"{root} is held by {held}, of which nothing can be known from here ({_here(held)}); "
                f"make sure that it is dead, then add --take-over"
            )
    elif not held.dead:
        raise LeaseError(f"{root} is held by {held}, which is running; wait for it or stop it")


def _here(held: Lease) -> str:
    """A description of this host, and why a process on a host of this name cannot be checked."""
    host = socket.gethostname()
    if held.host != host:
        return host
    restarted = "restarted since, or another machine of that name"
    return f"{host}, {restarted if held.boot != _boot() else 'in another container'}"


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    descriptor, on_network = _open(root), mounts.is_network(root)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        while on_network and not _is_there(descriptor, root / LOCK):
            os.close(descriptor)
            descriptor = _open(root)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if on_network and _is_there(descriptor, root / LOCK) and removing.may_go(root / LOCK, removing.EMPTY):
            removing.remove(root / LOCK, removing.EMPTY)
        os.close(descriptor)


def _is_there(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name. Opening it again refreshes the cache of network clients."""
    try:
        again = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), os.fstat(again))
    finally:
        os.close(again)


def _shared(root: Path) -> bool:
    """Whether another process shares the store's lease; to be called under the lock of the store's folder."""
    return is_locked(_open(root / PARTIAL))


def _open(folder: Path) -> int:
    """The file or folder that is locked for a folder."""
    if mounts.is_network(folder):
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Start time of a process, empty if the system does not give it; None when there is no such process."""
    try:
        # The name of the program, in parentheses, may hold anything; the fields are counted after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
