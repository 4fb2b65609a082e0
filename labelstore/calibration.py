"""The calibration of a store: what its encoding was fitted to, published once, before the first block (P6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labelstore import disk, documents, removing
from labelstore import publish as publishing
from labelstore.arrays import ArrayLayout, StoreLayout
from labelstore.encodings.transform import GROUP, Calibration
from labelstore.errors import DamagedError, InputError, MismatchError
from labelstore.leftovers import shard_of
from labelstore.publish import Described, FileEntry
from labelstore.removing import Proof
from labelstore.shards import Shard, described
from labelstore.spec import Json

FILE = "markers/calibration.json"


class Published(NamedTuple):
    """What is known of a published calibration.

    Attributes:
        digest: XXH3-64 of the file of its marker, hex: what blocks and seals know it by.
        numbers: step, reference, centroids, components, fidelity.
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
        wanted: digest by which blocks know it that were coded with it; None where there are none.

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
        if values.dtype != array.dtype or values.shape != shape:
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
        "shards": {array.name: files[array.file()].entry.to_json() for array in layout.calibration},
    }
    marker = Described.of(documents.encode(document))
    digest = marker.entry.xxh3
    if wanted not in (None, digest):
        raise MismatchError(
            f"{root}: this calibration is {digest}, blocks were coded with {wanted}; build where the store was begun, "
            f"restore calibration/ and {FILE} from a copy, or build another store"
        )
    for array in layout.calibration:
        removing.remove(root / array.file(), shard_of(array))
    publishing.publish(root, files)
    publishing.publish(root, {FILE: marker})


def find(root: Path, layout: StoreLayout) -> Published | None:
    """The marker of a store's calibration; None before there is one.

    Raises:
        DamagedError: when it is not what was published.
    """
    path = root / FILE
    try:
        numbers = documents.read(path)
    except FileNotFoundError:
        return None
    digest = publishing.describe([documents.encode(numbers)]).xxh3
    try:
        shards = {name: FileEntry(**entry) for name, entry in numbers.pop("shards").items()}
        names = {array.name for array in layout.calibration}
        width = layout.codes[0].shape[1]
        right = set(shards) == names and 0 < numbers["components"] <= width and len(numbers["centroids"]) == 2
        right = right and type(numbers["components"]) is int and numbers["components"] % GROUP == 0
        finite = np.isfinite([numbers["step"], numbers["reference"], *numbers["centroids"], numbers["fidelity"]]).all()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError.of(path, f"is not the marker of a calibration ({error!r})") from error
    if not (right and finite and numbers["step"] > 0 and numbers["reference"] > 0):
        raise DamagedError.of(path, "is not the marker of a calibration of this store")
    return Published(digest, numbers, shards)


def marker_of(layout: StoreLayout) -> Proof:
    """The proof of the marker of a calibration."""

    def holds(path: Path) -> bool:
        try:
            return find(path.parent.parent, layout) is not None
        except (DamagedError, OSError):
            return False

    return Proof("the marker of a calibration", holds)


def read(root: Path, layout: StoreLayout, published: Published) -> Calibration:
    """A published calibration.

    All labels hang on it, so that whole files are held against their digests: the CRC-32C of a chunk would take the
    shard of another calibration for this one's.

    Raises:
        DamagedError: when a shard of it is not what was published.
    """
    values = {}
    for array in layout.calibration:
        path, entry = root / array.file(), published.shards[array.name]
        extent = array.extent({"component": published.components})
        shard = Shard(array, extent, path, entry)
        if publishing.describe(disk.read_pieces(path)).xxh3 != entry.xxh3:
            raise DamagedError.of(path, f"is not the shard that {FILE} names")
        values[_name(array)] = shard.read()
    numbers = published.numbers
    return Calibration(
        step=float(numbers["step"]),
        reference=float(numbers["reference"]),
        centroids=(float(numbers["centroids"][0]), float(numbers["centroids"][1])),
        fidelity=float(numbers["fidelity"]),
        center=values["center"],
        basis=values["basis"],
        cells=values["cells"],
        means=np.ascontiguousarray(values["means"].T),
    )
