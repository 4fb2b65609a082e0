from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import asdict, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from labelstore import BlockIndex, LabelStore
from labelstore.durable import disk, documents
from labelstore.durable.publish import PARTIAL
from labelstore.errors import InputError, LeaseError
from labelstore.writing import lease as leases
from labelstore.writing.lease import LEASE, Lease, hold, join, require_held
from tests.forking import in_a_fork
from tests.labelstore.making import Content, build, create, make_identity, tree


def leave(root: Path, **changes: Any) -> Lease:
    """A lease left in the store, by default one that this process holds."""
    lease = replace(Lease.of_this_process(), **changes)
    (root / LEASE).write_bytes(documents.encode(asdict(lease)))
    return lease


def finished_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_build_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    content = Content(make_identity(), 2)
    store = create(tmp_path / "s", content, 2)
    with store.lease() as writer:
        before = tree(store.path)
        with pytest.raises(LeaseError, match=rf"is held by build .*, process {os.getpid()} on .*, which is running"):
            build(store.path, content, 2)
        assert tree(store.path) == before
        writer.write(BlockIndex(0, 1), content.block(store, BlockIndex(0, 1)))
    assert not {LEASE, ".partial"} & tree(store.path).keys()
    build(store.path, content, 2)


def hold_until_told(root: Path, held: Event, go: Event) -> None:
    with hold(root):
        held.set()
        go.wait()


def test_a_living_process_is_believed_and_a_killed_one_is_taken_over_at_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    held, go = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold_until_told, args=(tmp_path, held, go))
    process.start()
    assert process.pid is not None
    held.wait()
    with pytest.raises(LeaseError, match=f"process {process.pid} on .*, which is running"), hold(tmp_path):
        pass
    process.kill()
    # Not waited for: what is left of the process still has its number.
    while leases._started(process.pid) is not None:
        pass
    with hold(tmp_path) as lease:
        assert lease.pid == os.getpid()
    process.join()


@pytest.mark.parametrize("left", ["no such process", "a later process of its number"])
def test_dead_leases_are_taken_over(tmp_path: Path, left: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "no such process": {"pid": finished_process()},
        "a later process of its number": {"started": "1"},
    }
    leave(tmp_path, **changes[left])
    with hold(tmp_path) as lease:
        assert leases.read(tmp_path) == lease
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"host": "far"}, r"from here \(\S+\);"),
        ({"host": "far", "pid": 1, "boot": "x"}, r"from here \(\S+\);"),
        ({"space": "pid:[1]"}, "in another container"),
        ({"boot": "another"}, "restarted since, or another machine of that name"),
        ({"boot": "another", "space": "another", "pid": 2**22 + 1}, "restarted since, or another machine of that name"),
        ({"boot": ""}, "restarted since, or another machine of that name"),
    ],
)
def test_a_lease_from_elsewhere_needs_consent(tmp_path: Path, changes: dict, why: str) -> None:
    left = leave(tmp_path, **changes)
    before = tree(tmp_path)
    message = f"process {left.pid} on {left.host}, of which .*{why}.* add --take-over"
    with pytest.raises(LeaseError, match=message), hold(tmp_path):
        pass
    assert tree(tmp_path) == before
    with hold(tmp_path, take_over=True) as lease:
        assert leases.read(tmp_path) == lease


def hide_processes(monkeypatch: pytest.MonkeyPatch, answer: type[OSError] | None) -> list[int]:
    """Hide the processes of others, as /proc mounted with hidepid does; which ones are asked for by a signal."""
    asked: list[int] = []
    plain = Path.read_text

    def read_text(path: Path, *args: Any, **options: Any) -> str:
        if path.name == "stat":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return plain(path, *args, **options)

    def kill(pid: int, number: int) -> None:
        assert number == 0
        asked.append(pid)
        if answer:
            raise answer

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "kill", kill)
    return asked


@pytest.mark.parametrize(("answer", "alive"), [(PermissionError, True), (None, True), (ProcessLookupError, False)])
@pytest.mark.parametrize("started", ["123", ""])
def test_a_process_that_is_hidden_is_asked_for_and_believed_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: type[OSError] | None, alive: bool, started: str
) -> None:
    left = leave(tmp_path, pid=4321, started=started)
    asked = hide_processes(monkeypatch, answer)
    with ExitStack() as held:
        if alive:
            with pytest.raises(LeaseError, match=r"process 4321 on .*, which is running"):
                held.enter_context(hold(tmp_path))
            assert leases.read(tmp_path) == left
        else:
            held.enter_context(hold(tmp_path))
    assert 4321 in asked


def test_a_forked_child_neither_lets_go_of_the_lease_nor_writes_under_it(tmp_path: Path) -> None:
    content = Content(make_identity(), 2)
    store = create(tmp_path / "s", content, 2)
    block = store.missing()[0]
    with ExitStack() as held:
        writer = held.enter_context(store.lease())
        before = tree(store.path)
        message = (
            f"LeaseError: {store.path}: process {os.getpid()} has the lease, not process .*, which was forked from it; "
            f"open the store here and write in `with store.join_lease\\('{writer.build}'\\) as writer: "
        )
        for work in (
            lambda: writer.write(block, content.block(store, block)),
            writer.seal,
            writer.sweep,
            lambda: writer.raise_target(4),
            lambda: writer.build,
        ):
            assert re.match(message, in_a_fork(work))
        assert in_a_fork(held.close) == "None"
        assert tree(store.path) == before

        def share_it() -> None:
            other = LabelStore.open(store.path)
            with other.join_lease(leases.read(store.path).build) as sharing:
                sharing.write(block, content.block(other, block))

        assert in_a_fork(share_it) == "None"
        assert block not in store.missing()
        with ExitStack() as shared:
            other = LabelStore.open(store.path)
            sharing = shared.enter_context(other.join_lease(writer.build))
            said = in_a_fork(lambda: sharing.write(other.missing()[0], content.block(other, other.missing()[0])))
            assert re.match(message, said)
            assert in_a_fork(shared.close) == "None"
            sharing.write(other.missing()[0], content.block(other, other.missing()[0]))
        for rest in store.missing():
            writer.write(rest, content.block(store, rest))
        writer.seal()
    assert LEASE not in tree(store.path)
    build(tmp_path / "alone", content, 2)
    assert tree(store.path) == tree(tmp_path / "alone")


def test_take_over_does_not_reach_a_running_build(tmp_path: Path) -> None:
    leave(tmp_path)
    with pytest.raises(LeaseError, match="which is running; wait for it or stop it"), hold(tmp_path, take_over=True):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_it_is_let_go_however_the_build_ends(tmp_path: Path, error: type[BaseException]) -> None:
    def stopped() -> None:
        with hold(tmp_path):
            (tmp_path / ".partial/markers~0.0.json").write_bytes(b"x")
            raise error

    with pytest.raises(error):
        stopped()
    assert tree(tmp_path) == {}


def test_of_many_that_take_over_one_wins(tmp_path: Path) -> None:
    for _ in range(10):
        leave(tmp_path, pid=finished_process() if _ == 0 else 2**22 + 1)
        start, tried = threading.Barrier(6), threading.Barrier(6)
        won: list[str] = []

        def attempt(start: threading.Barrier = start, tried: threading.Barrier = tried, won: list = won) -> None:
            start.wait()
            try:
                with hold(tmp_path) as lease:
                    won.append(lease.build)
                    tried.wait()
            except LeaseError:
                tried.wait()

        threads = [threading.Thread(target=attempt) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert tree(tmp_path) == {}


def test_a_build_that_lost_its_lease_stops(tmp_path: Path) -> None:
    content = Content(make_identity(), 2)
    store = create(tmp_path / "s", content, 2)
    with store.lease() as writer:
        other = leave(store.path, host="far")
        with pytest.raises(LeaseError, match=f"lost the store to build {other.build}, .* on far; it must not write on"):
            writer.write(BlockIndex(0, 1), content.block(store, BlockIndex(0, 1)))
    assert leases.read(store.path) == other
    assert LabelStore.open(store.path).missing()[1] == BlockIndex(0, 1)


def test_others_of_the_build_write_blocks_under_its_lease_and_do_nothing_else(tmp_path: Path) -> None:
    content = Content(make_identity(), 2)
    store, other = create(tmp_path / "s", content, 2), LabelStore.open(tmp_path / "s")
    with store.lease() as writer:
        with other.join_lease(writer.build) as sharing:
            for number, block in enumerate(store.missing()):
                (writer, sharing)[number % 2].write(block, content.block(store, block))
            assert not {"seal", "sweep", "raise_target", "calibrate"} & set(dir(sharing))
        with pytest.raises(LeaseError, match="writing needs the lease"):
            sharing.write(block, content.block(store, block))
        writer.seal()
    build(tmp_path / "alone", content, 2)
    assert tree(store.path) == tree(tmp_path / "alone")


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (None, r"build 0123 does not hold it, but nobody; start the build again, on hosts that all see"),
        ({"build": "4567"}, r"build 0123 does not hold it, but build 4567, .*; start the build again"),
        ({"build": "0123", "pid": 2**22 + 1}, r"process that holds it for this build .* is gone; run the build again"),
    ],
)
def test_a_lease_that_is_not_held_by_this_build_is_not_shared(left: dict | None, message: str, tmp_path: Path) -> None:
    if left is not None:
        leave(tmp_path, **left)
    with pytest.raises(LeaseError, match=message), join(tmp_path, "0123"):
        pass


def test_a_lease_of_this_build_on_another_host_is_shared_until_it_is_lost(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).mkdir()
    held = leave(tmp_path, build="0123", host="far")
    with join(tmp_path, "0123") as lease:
        assert lease == held
        require_held(tmp_path, lease)
        leave(tmp_path, build="4567")
        with pytest.raises(LeaseError, match=r"lost the store to build 4567"):
            require_held(tmp_path, lease)


def test_those_that_share_a_lease_stop_with_its_holder_and_are_waited_for(tmp_path: Path) -> None:
    content = Content(make_identity(), 2)
    store = create(tmp_path / "s", content, 2)
    root, block = store.path, store.missing()[0]
    (root / PARTIAL).mkdir()
    spawn = multiprocessing.get_context("spawn")
    held, go = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=hold_until_told, args=(root, held, go))
    holder.start()
    held.wait()
    with store.join_lease(leases.read(root).build) as sharing:
        holder.kill()
        holder.join()
        before = tree(root)
        with pytest.raises(LeaseError, match="is gone; run the build again"):
            sharing.write(block, content.block(store, block))
        with pytest.raises(LeaseError, match="other processes of a build whose first one is gone"), hold(root):
            pass
        assert tree(root) == before
    with hold(root):
        pass
    assert LEASE not in tree(root)


def test_a_holder_that_leaves_before_the_others_leaves_them_the_lease(tmp_path: Path) -> None:
    store = create(tmp_path / "s", Content(make_identity(), 2), 2)
    with ExitStack() as others:
        with store.lease() as writer:
            others.enter_context(join(store.path, writer.build))
        assert LEASE in tree(store.path)
    leave(store.path, pid=finished_process())
    with hold(store.path):
        pass
    assert LEASE not in tree(store.path)


PIDS: list[Any] = [0, -1, -5, 2**31, 2**63, 10**30, 1.0, 1e300, float("nan"), True, "1", []]
NO_TEXTS: list[Any] = [None, 7, ["x"], {}, "a\nb", "\ud800", "x" * 1000, float("inf")]
HOSTILE: dict[str, Any] = {
    "nothing": {},
    "no pid": {"pid": None},
    **{f"pid {pid!r}": {"pid": pid} for pid in PIDS},
    **{
        f"{name} {value!r}": {name: value}
        for name in ("build", "host", "boot", "space", "started")
        for value in NO_TEXTS
    },
    "one more": {"more": 1},
    "a list": [1],
    "a number": 1,
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_an_unreadable_lease_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    changes = HOSTILE[name]
    whole = {**asdict(Lease.of_this_process()), **changes} if isinstance(changes, dict) and changes else changes
    if isinstance(whole, dict) and whole:
        text = json.dumps(whole, separators=(",", ":"))
        whole = {**whole, "crc32c": disk.crc32c(text.encode())}
    (tmp_path / LEASE).write_text(json.dumps(whole, separators=(",", ":")) + "\n")
    before = tree(tmp_path)
    for use in (lambda: leases.read(tmp_path), lambda: hold(tmp_path).__enter__()):
        with pytest.raises(LeaseError) as caught:
            use()
        assert re.fullmatch(r".*lease\.json: cannot be read .*; remove it when no build is running", str(caught.value))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"pid":' + "9" * 5000 + "}", '{"a":' * 900 + "1" + "}" * 900]
)
def test_a_lease_that_is_no_json_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / LEASE).write_text(text)
    with pytest.raises(LeaseError, match=r"^[^\n]*cannot be read[^\n]*$"):
        leases.read(tmp_path)


@pytest.mark.parametrize("number", ["EPERM", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV"])
def test_where_hard_links_are_refused_a_creation_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    def refuse(*_: object, **__: Any) -> None:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(os, "link", refuse)
    message = r"refused a hard link .*; build the store on a local file system that has them"
    with pytest.raises(InputError, match=message):
        create(tmp_path / "s", Content(make_identity(), 2), 2)
    assert tree(tmp_path) == {}
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match=message):
        create(tmp_path / "there", Content(make_identity(), 2), 2)
    assert tree(tmp_path) == {"there": "folder"}


@pytest.mark.parametrize("number", ["ENOSPC", "EACCES", "EIO", "EROFS"])
def test_other_errors_of_a_link_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    def refuse(*_: object, **__: Any) -> None:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, number))) as caught, hold(tmp_path):
        pass
    assert caught.value.errno == getattr(errno, number)
    assert tree(tmp_path) == {}
