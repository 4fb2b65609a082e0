"""Images in tar shards, zips and Parquet files are read at least as fast as by each container's own library."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.harness import Report, Timing, interleave, machine
from labelstore.spec import Json
from pipeline.images.opening import open_images
from pipeline.images.source import ImageSource

PROMISED = 1.0
CLASSES = 10
BYTES = 110_000  # of an image of ImageNet
SHARDS = 8
GROUP = 100  # rows a row group, as `datasets` writes images
Act = Callable[[], object]


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Read every image of a set, in stored order and in another one, from files beside the report; page cache warm."""
    count, size, rounds = (40, 2_000, 1) if quick else (4_000, BYTES, 7)
    with tempfile.TemporaryDirectory(dir=report.folder, prefix="images-") as folder:
        names, files = drawn(count, size)
        made = {name: make(names, files, Path(folder)) for name, make in MAKERS.items()}
        summary: dict[str, Json] = {}
        for name, path in made.items():
            summary |= measure(report, name, path, files, rounds)
    ratios = [ratio for ratio in summary.values() if isinstance(ratio, float)]
    return {
        **summary,
        "images": count,
        "bytes": size,
        "rivals": {name: own_library(name) for name in made},
        "promised": PROMISED,
        "kept": min(ratios) >= PROMISED,
        "machine": machine(),
    }


def drawn(count: int, size: int) -> tuple[list[str], Mapping[str, bytes]]:
    """Names in the order in which they are packed, and the contents of files of different lengths."""
    rng = np.random.default_rng(0)
    names = [f"class{image % CLASSES}/{image:06d}.jpg" for image in range(count)]
    files = {name: rng.bytes(int(size * (0.5 + rng.random()))) for name in names}
    return [names[image] for image in rng.permutation(count)], files


def measure(report: Report, name: str, path: Path, files: Mapping[str, bytes], rounds: int) -> dict[str, Json]:
    """Times ours is as fast as the other, in stored order and in a random one."""
    source = open_images(path)
    stored = np.argsort(source.listing.layout).tolist() if source.listing.layout is not None else []
    shuffled = np.random.default_rng(1).permutation(len(files)).tolist()
    others = RANDOM.get(name)
    acts: dict[str, Act] = {
        "ours": lambda: taken(source.read_many(stored)),
        own_library(name): lambda: taken(content for _, content in STREAMS[name](path)),
    }
    require_same(source, stored, files, STREAMS[name](path))
    found = interleave(acts, rounds)
    report_rate(report, f"{name}, stored order", found, len(files))
    summary: dict[str, Json] = {f"{name}_stored": found.speedup("ours", own_library(name))}
    if others:
        wanted = [source.listing.names[image] for image in shuffled]
        timing = interleave(
            {"ours": lambda: taken(source.read_many(shuffled)), "other": lambda: taken(others(path, wanted))}, rounds
        )
        report_rate(report, f"{name}, random order", timing, len(files))
        summary[f"{name}_random"] = timing.speedup("ours", "other")
    return summary


def report_rate(report: Report, place: str, timing: Timing, count: int) -> None:
    """A line for each contender."""
    for contender, seconds in timing.wall.items():
        report.add(f"{place}, {contender}", "rate", [count / second for second in seconds], "images/s")


def taken(contents: Iterable[bytes]) -> int:
    """All contents, each looked at."""
    return sum(len(content) + content[-1] for content in contents)


def require_same(
    source: ImageSource, stored: list[int], files: Mapping[str, bytes], theirs: Iterable[tuple[str, bytes]]
) -> None:
    """Compare what both read with what was packed before any time is taken."""
    ours = {source.listing.names[image]: source.read(image) for image in stored}
    digests = sorted(sha256(content).digest() for _, content in theirs)
    if ours != dict(files) or digests != sorted(sha256(content).digest() for content in files.values()):
        raise RuntimeError("other images than those that were packed")


def packed_tars(names: list[str], files: Mapping[str, bytes], folder: Path) -> Path:
    """Shards as WebDataset has them."""
    (folder / "shards").mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shards/s-{shard:03d}.tar", "x") as tar:
            for name in names[shard::SHARDS]:
                for path, content in ((name, files[name]), (name.replace(".jpg", ".cls"), name[5:6].encode())):
                    info = tarfile.TarInfo(path)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder / "shards"


def packed_zip(names: list[str], files: Mapping[str, bytes], folder: Path) -> Path:
    """An archive of stored members."""
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for name in names:
            archive.writestr(name, files[name])
    return folder / "set.zip"


def packed_parquet(names: list[str], files: Mapping[str, bytes], folder: Path) -> Path:
    """A file as `datasets` writes it."""
    pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    images = pa.array([{"bytes": files[name], "path": name} for name in names])
    table = pa.table({"image": images, "label": [int(name[5]) for name in names]})
    kinds = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": [f"class{k}" for k in range(CLASSES)]},
    }
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    parquet.write_table(table, folder / "set.parquet", row_group_size=GROUP)
    return folder / "set.parquet"


def own_library(name: str) -> str:
    """Other readers of a container, if installed."""
    better = {"tar": "webdataset", "parquet": "datasets"}.get(name)
    if better and find_spec(better):
        return better
    return {"tar": "tarfile", "zip": "zipfile", "parquet": "pyarrow"}[name]


def streamed_tars(path: Path) -> Iterator[tuple[str, bytes]]:
    """As WebDataset reads shards, or as Python does."""
    shards = sorted(path.iterdir())
    if own_library("tar") == "webdataset":
        readers = import_module("webdataset.tariterators")
        with ExitStack() as stack:
            opened = [{"url": str(shard), "stream": stack.enter_context(shard.open("rb"))} for shard in shards]
            for sample in readers.group_by_keys(readers.tar_file_expander(opened)):
                yield sample["__key__"], sample["jpg"]
        return
    for shard in shards:
        with tarfile.open(shard) as tar:
            for info in tar:
                if info.name.endswith(".jpg") and (held := tar.extractfile(info)):
                    yield info.name, held.read()


def streamed_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    """As Python reads an archive."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            yield info.filename, archive.read(info)


def streamed_parquet(path: Path) -> Iterator[tuple[str, bytes]]:
    """As `datasets` streams a file without decoding it, or as pyarrow does."""
    if own_library("parquet") == "datasets":
        datasets = import_module("datasets")
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for row in rows.cast_column("image", datasets.Image(decode=False)):
            yield row["image"]["path"], row["image"]["bytes"]
        return
    with import_module("pyarrow.parquet").ParquetFile(path) as file:
        for batch in file.iter_batches(GROUP, columns=["image"]):
            for row in batch.column(0).to_pylist():
                yield row["path"], row["bytes"]


def random_tars(path: Path, names: list[str]) -> Iterator[bytes]:
    """Members of tars by name, as Python finds them."""
    with ExitStack() as stack:
        tars = [stack.enter_context(tarfile.open(shard)) for shard in sorted(path.iterdir())]
        held = {info.name: (tar, info) for tar in tars for info in tar.getmembers()}
        for name in names:
            tar, info = held[name]
            if member := tar.extractfile(info):
                yield member.read()


def random_zip(path: Path, names: list[str]) -> Iterator[bytes]:
    """Members of an archive by name, as Python finds them."""
    with zipfile.ZipFile(path) as archive:
        yield from map(archive.read, names)


MAKERS: Mapping[str, Callable[[list[str], Mapping[str, bytes], Path], Path]] = {
    "tar": packed_tars,
    "zip": packed_zip,
    **({"parquet": packed_parquet} if find_spec("pyarrow") else {}),
}
STREAMS: Mapping[str, Callable[[Path], Iterator[tuple[str, bytes]]]] = {
    "tar": streamed_tars,
    "zip": streamed_zip,
    "parquet": streamed_parquet,
}
RANDOM: Mapping[str, Callable[[Path, list[str]], Iterator[bytes]]] = {"tar": random_tars, "zip": random_zip}
