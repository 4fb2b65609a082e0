"""The calibration of a store: what its encoding was fitted to, published once, before the first block (P6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labelstore import disk, documents
from labelstore import publish as publishing
from labelstore.arrays import ArrayLayout, StoreLayout
from labelstore.encodings.transform import GROUP, Calibration, unit_of
from labelstore.errors import DamagedError, InputError, MismatchError
from labelstore.publish import Described, FileEntry
from labelstore.shards import Shard, shard_pieces
from labelstore.spec import Json

FILE = "markers/calibration.json"
KL_AND_TOP1 = ("kl_1", "kl_20", "top1")  # not in format 1


class Published(NamedTuple):
    """What is known of a published calibration.

    Attributes:
        digest: XXH3-64 of the file of its marker, hex: what blocks and seals know it by.
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
        files[array.file()] = Described.of(*shard_pieces(array, values))
    document: dict[str, Json] = {
        "step": calibration.step,
        "reference": calibration.reference,
        "centroids": list(calibration.centroids),
        "components": calibration.components,
        "fidelity": calibration.fidelity,
        **{name: value for name in KL_AND_TOP1 if (value := getattr(calibration, name)) is not None},
        "offset": calibration.offset_apart,
        "shards": {array.name: dict(files[array.file()].entry._asdict()) for array in layout.calibration},
    }
    marker = Described.of(documents.encode(document))
    digest = marker.entry.xxh3
    if wanted not in (None, digest):
        raise MismatchError(
            f"{root}: this calibration is {digest}, blocks were coded with {wanted}; build where the store was begun, "
            f"restore calibration/ and {FILE} from a copy, or build another store"
        )
    for file in files:
        disk.unlink(root / file)
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
        figures = [numbers[name] for name in ("step", "reference", "fidelity", *KL_AND_TOP1) if name in numbers]
        right = right and type(numbers.get("offset", False)) is bool and "fidelity" in numbers
        finite = np.isfinite([*figures, *numbers["centroids"]]).all()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError.of(path, f"is not the marker of a calibration ({error!r})") from error
    if not (right and finite and numbers["step"] > 0 and numbers["reference"] > 0):
        raise DamagedError.of(path, "is not the marker of a calibration of this store")
    return Published(digest, numbers, shards)


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
        shard = Shard(array, extent, path, entry.bytes)
        if publishing.describe(disk.read_pieces(path)).xxh3 != entry.xxh3:
            raise DamagedError.of(path, f"is not the shard that {FILE} names")
        values[_name(array)] = shard.read()
    numbers, step = published.numbers, float(published.numbers["step"])
    center = values["center"]
    return Calibration(
        step=step,
        reference=float(numbers["reference"]),
        centroids=(float(numbers["centroids"][0]), float(numbers["centroids"][1])),
        fidelity=float(numbers["fidelity"]),
        center=center if center.dtype == np.float64 else center * unit_of(step),
        basis=values["basis"],
        cells=values["cells"],
        means=np.ascontiguousarray(values["means"].T),
        offset_apart=bool(numbers.get("offset", False)),
        **{name: float(numbers[name]) for name in KL_AND_TOP1 if name in numbers},
    )
