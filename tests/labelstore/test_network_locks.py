"""Locks on file systems that several hosts see: what is known of them, and what a lease does there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

import pytest

from labelstore.durable import documents, locking, mounts
from labelstore.durable.mounts import is_network, kind_of
from labelstore.durable.publish import PARTIAL
from labelstore.errors import LeaseError
from labelstore.format.leftovers import LOCK
from labelstore.writing import lease as leases
from labelstore.writing.lease import LEASE, Lease, hold, join
from tests.labelstore.making import Content, build, create, make_identity, tree

MOUNTINFO = """\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:30 / /home rw - nfs4 server:/home rw,vers=4.2,local_lock=none
31 30 0:31 / /home/me/fast rw - xfs /dev/nvme0n1 rw
32 21 0:32 / /data\\040set rw shared:1 master:2 - fuse.sshfs host:/ rw
33 21 0:33 / /scratch rw - ext4 /dev/vdb rw
34 33 0:34 / /scratch rw - lustre mgs:/scratch rw,flock
broken line
"""


@pytest.mark.parametrize(
    ("folder", "kind", "network"),
    [
        ("/", "ext4", False),
        ("/home/me", "nfs4", True),
        ("/home/me/fast/store", "xfs", False),
        ("/homes", "ext4", False),
        ("/data set/x", "fuse.sshfs", True),
        ("/scratch/run", "lustre", True),  # the later of two mounts at one place
    ],
)
def test_the_kind_of_a_file_system(folder: str, kind: str, network: bool, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTINFO)
    assert kind_of(Path(folder), table) == kind
    assert is_network(Path(folder), table) is network
    assert not is_network(Path(folder), tmp_path / "none")


@pytest.fixture
def on_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder is on a network, and locks of folders hold for nobody, as between two hosts."""
    monkeypatch.setattr(mounts, "is_network", lambda _folder: True)
    real = fcntl.flock

    def flock(descriptor: int | IO[bytes], operation: int) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if not os.path.isdir(f"/proc/self/fd/{number}"):  # noqa: PTH112  of a descriptor
            real(number, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


def leave_dead_lease(root: Path) -> None:
    """As if the first process of a build had died and left its ranks."""
    lease = Lease.of_this_process()
    (root / LEASE).write_bytes(documents.encode({**asdict(lease), "started": "1"}))


@pytest.mark.usefixtures("on_network")
def test_a_build_on_a_network_leaves_what_it_leaves_elsewhere(tmp_path: Path) -> None:
    content = Content(make_identity(), 2)
    build(tmp_path / "s", content, 2)
    assert not {LEASE, LOCK, PARTIAL} & tree(tmp_path / "s").keys()


@pytest.mark.usefixtures("on_network")
def test_ranks_of_a_dead_build_on_another_host_are_seen(tmp_path: Path) -> None:
    root = create(tmp_path / "s", Content(make_identity(), 2), 2).path
    with hold(root) as held, join(root, held.build):
        leave_dead_lease(root)
        with (
            pytest.raises(LeaseError, match="written by other processes of a build whose first one is gone"),
            hold(root),
        ):
            pass
    with hold(root):  # they have ended
        pass
    assert not {LEASE, LOCK, PARTIAL} & tree(root).keys()


@pytest.mark.usefixtures("on_network")
def test_a_lock_that_was_removed_while_it_was_awaited_is_none(tmp_path: Path) -> None:
    with leases._locked(tmp_path):
        descriptor = os.open(tmp_path / LOCK, os.O_RDWR)
        assert leases._is_there(descriptor, tmp_path / LOCK)
    assert not leases._is_there(descriptor, tmp_path / LOCK)
    with leases._locked(tmp_path):
        assert not leases._is_there(descriptor, tmp_path / LOCK)
    os.close(descriptor)
    assert [*tmp_path.iterdir()] == []


def test_an_earlier_start_of_a_job_is_taken_over_wherever_it_was(tmp_path: Path) -> None:
    root = create(tmp_path / "s", Content(make_identity(), 2), 2).path

    def leave(job: tuple[str, int]) -> None:
        lease = asdict(Lease.of_this_process(job)) | {"host": "elsewhere"}
        (root / LEASE).write_bytes(documents.encode(lease))

    for job in (("a", 1), ("a", 2), ("b", 0), ("", 0)):
        leave(job)
        with pytest.raises(LeaseError, match="add --take-over"), hold(root, job=("a", 1)):
            pass
    with pytest.raises(LeaseError, match="add --take-over"), hold(root):
        pass
    leave(("a", 0))
    with hold(root, job=("a", 1)) as held:
        assert held.build.startswith("a:1:")
    assert LEASE not in tree(root)


def test_a_lock_is_seen_without_being_taken(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert locking.is_held(path) is None
    with locking.hold(path, "busy", ""):
        assert locking.is_held(path) is True
    assert locking.is_held(path) is False


@contextmanager
def two_hosts(folder: Path, *, shared_locks: bool) -> Iterator[tuple[Path, Path]]:
    """A folder through two FUSE mounts, as two hosts see it; skipped where nothing can be mounted."""
    if shutil.which("bindfs") is None or shutil.which("umount") is None:
        pytest.skip("needs bindfs")
    real, views = folder / "real", (folder / "a", folder / "b")
    mounted = []
    try:
        for place in (real, *views):
            place.mkdir()
        options = ["--multithreaded", "--enable-lock-forwarding"] if shared_locks else []
        for view in views:
            made = subprocess.run(["bindfs", *options, real, view], capture_output=True, check=False)
            if made.returncode:
                pytest.skip(f"nothing can be mounted here: {made.stderr.decode()}")
            mounted.append(view)
        yield views
    finally:
        for view in mounted:
            subprocess.run(["umount", view], check=True)


@pytest.mark.parametrize("shared_locks", [False, True])
def test_what_is_assumed_of_locks_holds_on_fuse(shared_locks: bool, tmp_path: Path) -> None:
    """A lock of a file is shared where the file system passes it on; that of a folder never is."""
    with two_hosts(tmp_path, shared_locks=shared_locks) as (a, b):
        assert is_network(a)
        with locking.hold(a / "lock", "busy", ""):
            assert locking.is_held(b / "lock") is shared_locks
        there, here = (os.open(view, os.O_RDONLY | os.O_DIRECTORY) for view in (a, b))
        fcntl.flock(there, fcntl.LOCK_EX)
        fcntl.flock(here, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for descriptor in (there, here):
            os.close(descriptor)


def test_two_hosts_share_a_lease_through_files(tmp_path: Path) -> None:
    with two_hosts(tmp_path, shared_locks=True) as (a, b):
        root = create(a / "s", Content(make_identity(), 2), 2).path
        with hold(root) as held, join(b / "s", held.build):
            leave_dead_lease(root)
            for view in (a, b):
                with pytest.raises(LeaseError, match="written by other processes"), hold(view / "s"):
                    pass
        with hold(b / "s"), pytest.raises(LeaseError, match="which is running"), hold(root):
            pass
        assert [name for name in (LEASE, LOCK) if (root / name).exists()] == []
