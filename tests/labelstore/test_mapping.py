"""Maps hold no descriptor, go when nothing shows them, and never end the process when a file was cut meanwhile."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore
from labelstore.access.reading import MAP_BYTES, Reader
from labelstore.durable.mapping import map_bytes
from labelstore.durable.storage import LocalStorage
from tests.labelstore.making import Content, build, make_identity

BLOCKS = 300  # more than a process may open files here


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many blocks of a view of four images."""
    path = tmp_path_factory.mktemp("store") / "s"
    build(path, Content(make_identity(4, block=(1, 4)), BLOCKS), BLOCKS)
    return path


def run(script: str, *words: object) -> str:
    """What a script prints, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"ended with {ended.returncode}\n{ended.stderr[-2000:]}"
    return ended.stdout


READ_ALL = """
import os, resource, sys
import numpy as np
from labelstore import LabelStore

path, views = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
open_files = lambda: len(os.listdir("/proc/self/fd"))
before = open_files()
stores = [LabelStore.open(path) for _ in range(5)]
for number, store in enumerate(stores):
    for view in range(views if number == 0 else views // 4):
        store.read(view, [0])
assert open_files() == before, open_files() - before
rng = np.random.default_rng(0)
requests = [(int(view), [int(at)]) for view, at in zip(rng.integers(0, views, 2500), rng.integers(0, 4, 2500))]
most = 0
for number, batch in enumerate(stores[0].stream(requests)):
    assert (batch.view, batch.positions[0]) == (requests[number][0], requests[number][1][0])
    most = max(most, open_files()) if number % 500 == 0 else most
assert most < before + 10, most - before
assert open_files() == before, open_files() - before
"""


def test_descriptors_do_not_grow_with_what_is_read(store: Path) -> None:
    run(READ_ALL, store, BLOCKS)


CUT = """
import os, sys
from labelstore import LabelStore
from labelstore.errors import DamagedError

path, file, size, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
store = LabelStore.open(path)
reader = store.stream_codes([(0, [0]), (0, [4095])]) if how == "stream" else None
if reader:
    next(reader)
else:
    store.codes(0, slice(None) if how == "checked" else [0])
    store.read(1, [0])
whole = os.path.getsize(f"{path}/{file}")
if size < 0:
    os.unlink(f"{path}/{file}")
else:
    os.truncate(f"{path}/{file}", min(size, whole - 1))
try:
    next(reader) if reader else store.codes(0, [4095])
except DamagedError as error:
    print(error)
"""


@pytest.fixture(scope="module", params=["int8", "float16", "zstd"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A block a view, of several chunks and many pages."""
    encoding = {"name": "int8", "codec": "zstd"} if request.param == "zstd" else request.param
    path = tmp_path_factory.mktemp("large") / "s"
    build(path, Content(make_identity(4096, 300, encoding=encoding, block=(1, 4096)), 2), 2)
    return path


@pytest.mark.parametrize("size", [-1, 0, 5000, 10**9])
@pytest.mark.parametrize("how", ["checked", "unchecked", "stream"])
def test_a_file_that_is_cut_while_it_is_mapped_is_damage(large: Path, tmp_path: Path, size: int, how: str) -> None:
    if how == "checked" and LabelStore.open(large).encoding.codec == "zstd":
        pytest.skip("what is unpacked already is read from memory")
    copy = shutil.copytree(large, tmp_path / "s")
    said = run(CUT, copy, "labels/c.0.0.0", size, how)
    assert "labels/c.0.0.0: expected" in said
    assert ("found no file any more" if size < 0 else "since it was opened") in said


def test_an_array_of_mapped_bytes_is_read_only_and_keeps_its_map(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = np.random.default_rng(0).integers(0, 256, 10_000).astype(np.uint8)
    path.write_bytes(data.tobytes())
    with path.open("rb") as file:
        whole = map_bytes(file.fileno(), len(data))
    part = whole[5000:]
    assert np.array_equal(whole, data)
    assert not whole.flags.writeable
    path.unlink()
    del whole
    gc.collect()
    assert np.array_equal(part, data[5000:])
    assert mapped(path) == 1
    del part
    gc.collect()
    assert mapped(path) == 0


def mapped(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


def test_no_bytes_need_no_map(tmp_path: Path) -> None:
    assert map_bytes(-1, 0).shape == (0,)


def test_a_map_that_the_system_refuses_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor while mapping 7 bytes"):
        map_bytes(-1, 7)


def test_the_maps_of_small_shards_are_bounded_too(store: Path) -> None:
    opened = LabelStore.open(store)
    reader = Reader(LocalStorage(store), opened.identity, opened.marker, map_bytes=20 * MAP_BYTES)
    for view in range(100):
        reader.codes(view, np.arange(4))
    assert mapped(store / "labels") + mapped(store / "scales") == 20
