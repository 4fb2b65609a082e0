"""The calibration of a store: what its encoding was fitted to, published once, before the first block (P6)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from labelstore.durable import documents, removing
from labelstore.durable import publish as publishing
from labelstore.durable.nameless import zeros
from labelstore.durable.publish import Described, FileEntry
from labelstore.durable.removing import Proof
from labelstore.durable.storage import LocalStorage, ReadStorage, read_whole
from labelstore.encodings.components import Calibration, unit_of
from labelstore.encodings.transform import GROUP
from labelstore.errors import DamagedError, InputError, MismatchError
from labelstore.format.arrays import ArrayLayout, StoreLayout
from labelstore.format.leftovers import shard_of
from labelstore.format.shards import Shard, described
from labelstore.spec import Json

FILE = "markers/calibration.json"
UNPACKING_THREADS = 4
MEANS_BYTES = 256 << 20
"""Memory of the codes of mean labels of a store that is read; larger ones are in an unnamed file."""
SMALLEST, LARGEST = 1e-30, 1e30  # of steps and lengths
KL_AND_TOP1 = ("kl_1", "kl_20", "top1")  # not in format 1


class Published(NamedTuple):
    """The record of a published calibration.

    Attributes:
        digest: XXH3-64 of the file of its marker, hex: blocks and seals refer to it by this.
        numbers: step, reference, centroids, components, fidelity; since format 2 KL, top-1 agreement, and whether
            component 0 is the offset.
        shards: what is known of each of its shards, by array.
    """

    digest: str
    numbers: dict[str, Any]
    shards: dict[str, FileEntry]

    @property
    def components(self) -> int:
        """Codes of a row."""
        return int(self.numbers["components"])


def _name(array: ArrayLayout) -> str:
    """The attribute of a calibration that an array holds."""
    return array.name.rpartition("/")[2]


def publish(root: Path, layout: StoreLayout, calibration: Calibration, wanted: str | None = None) -> None:
    """Publish a calibration: its shards, then its marker. What a stopped one left is replaced.

    Args:
        root: folder of the store.
        layout: its arrays.
        calibration: what was fitted.
        wanted: digest to which blocks refer; None if there are no blocks.

    Raises:
        InputError: when it is not one of this store.
        MismatchError: when it is another than blocks were coded with.
    """
    width, components = layout.codes[0].shape[1], calibration.components
    if not 0 < components <= width or components % GROUP:
        raise InputError(f"calibration: expected at most {width} components, a multiple of {GROUP}, found {components}")
    files = {}
    for array in layout.calibration:
        values = getattr(calibration, _name(array))
        values = values.T if _name(array) == "means" else values
        shape = array.extent({"component": components})
        narrow = values.dtype == np.int8 and _name(array) == "means"
        if (values.dtype != array.dtype and not narrow) or values.shape != shape:
            raise InputError(
                f"{array.name}: expected {array.dtype} {list(shape)}, found {values.dtype} {list(values.shape)}"
            )
        files[array.file()] = described(array, values)
    document: dict[str, Json] = {
        "step": calibration.step,
        "reference": calibration.reference,
        "centroids": list(calibration.centroids),
        "components": calibration.components,
        "fidelity": calibration.fidelity,
        **{name: value for name in KL_AND_TOP1 if (value := getattr(calibration, name)) is not None},
        "offset": calibration.offset_apart,
        "shards": {array.name: files[array.file()].entry.to_json() for array in layout.calibration},
    }
    marker = Described.of(documents.encode(document))
    digest = marker.entry.xxh3
    if wanted not in (None, digest):
        raise MismatchError(
            f"{root}: this calibration is {digest}, blocks were coded with {wanted}; build on the machine where the "
            f"store was started, "
            f"restore calibration/ and {FILE} from a copy, or build another store"
        )
    for array in layout.calibration:
        removing.remove(root / array.file(), shard_of(array))
    publishing.publish(root, files)
    publishing.publish(root, {FILE: marker})


def find(storage: ReadStorage, layout: StoreLayout) -> Published | None:
    """The marker of a store's calibration; None before there is one.

    Raises:
        DamagedError: when it is not what was published.
    """
    try:
        data = read_whole(storage, FILE, documents.MAX_BYTES)
    except FileNotFoundError:
        return None
    fields = documents.load_fields(storage.root / FILE, data)
    numbers: dict[str, Any] = {
        "step": fields.number("step", SMALLEST, LARGEST),
        "reference": fields.number("reference", SMALLEST, LARGEST),
        "centroids": fields.numbers("centroids", 2),
        "components": fields.integer("components", GROUP, layout.codes[0].shape[1]),
        "fidelity": fields.number("fidelity", -2, 2),
        **{name: fields.number(name) for name in KL_AND_TOP1 if name in fields},
        "offset": fields.flag("offset") if "offset" in fields else False,
    }
    if numbers["components"] % GROUP:
        raise fields.wrong("components", f"a multiple of {GROUP}", numbers["components"])
    named = fields.fields("shards")
    shards = {
        array.name: FileEntry.read(named.fields(array.name), chunks=array.chunk_crcs) for array in layout.calibration
    }
    named.end()
    fields.end()
    return Published(publishing.describe([data]).xxh3, numbers, shards)


def marker_of(layout: StoreLayout) -> Proof:
    """The proof of the marker of a calibration."""

    def holds(path: Path) -> bool:
        try:
            return find(LocalStorage(path.parent.parent), layout) is not None
        except (DamagedError, OSError):
            return False

    return Proof("the marker of a calibration", holds)


def read(storage: ReadStorage, layout: StoreLayout, published: Published) -> Calibration:
    """A published calibration.

    All labels depend on it, so that whole files are compared with their digests: by the CRC-32C of a chunk alone, the
    shard of another calibration could pass for this one's.

    Raises:
        DamagedError: when a shard of it is not what was published.
    """
    values = {}
    for array in layout.calibration:
        entry = published.shards[array.name]
        extent = array.extent({"component": published.components})
        shard = Shard(array, extent, storage, array.file(), entry)
        if shard.describe().xxh3 != entry.xxh3:
            raise DamagedError.of(storage.root / array.file(), f"is not the shard that {FILE} names")
        values[_name(array)] = _means(shard) if _name(array) == "means" else shard.read()
    numbers, step = published.numbers, float(published.numbers["step"])
    center = values["center"]
    measured: dict[str, Any] = {name: float(numbers[name]) for name in KL_AND_TOP1 if name in numbers}
    return Calibration(
        step=step,
        reference=float(numbers["reference"]),
        centroids=(float(numbers["centroids"][0]), float(numbers["centroids"][1])),
        fidelity=float(numbers["fidelity"]),
        center=center if center.dtype == np.float64 else center * unit_of(step),
        basis=values["basis"],
        cells=values["cells"],
        means=values["means"],
        offset_apart=bool(numbers.get("offset", False)),
        **measured,
    )


def _means(shard: Shard) -> npt.NDArray[Any]:
    """The codes of the means as labels are decoded with them: image by image ``[N, r]``, int8 where that holds all."""
    components, images = shard.extent
    table = zeros((images, components), np.int8, MEANS_BYTES)
    if not _filled(table, shard):
        table = zeros((images, components), np.int16, MEANS_BYTES)
        _filled(table, shard)
    return table


def _filled(table: npt.NDArray[Any], shard: Shard) -> bool:
    """Unpack a shard into a table of a smaller type; returns whether all values fit."""
    limits, step = np.iinfo(table.dtype), shard.layout.chunk[1]

    def fill(run: int) -> bool:
        codes = shard.column(run)
        if not limits.min <= codes.min() <= codes.max() <= limits.max:
            return False
        table[run * step : (run + 1) * step] = codes
        return True

    with ThreadPoolExecutor(UNPACKING_THREADS, thread_name_prefix="giftwrap-unpack") as pool:
        held = pool.map(fill, range(-(-len(table) // step)))
        whole = all(held)
        pool.shutdown(cancel_futures=True)
    return whole
