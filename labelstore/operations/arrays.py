"""A store of labels that are arrays in memory: from an API, a user's ensemble, or any other labeller."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from labelstore.encodings import make_encoding
from labelstore.errors import InputError, reason
from labelstore.format.columns import CropRows
from labelstore.operations.adopting import (
    AdoptedCrops,
    Pixels,
    adopted_identity,
    require_boxes,
    require_finite,
    require_names,
    write_adopted,
)
from labelstore.spec import Identity, Json, require_integer
from labelstore.store import LabelStore

Numbers: TypeAlias = npt.ArrayLike
MAX_SIDE = 65_535  # columns are uint16
SHARE = 65_536  # of MixUp's shares
RENDERER: dict[str, Json] = {"name": "given with the labels"}


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How each crop is mixed with a partner; give ``boxes`` for CutMix or ``shares`` for MixUp.

    Attributes:
        group: consecutive positions within which partners are.
        partners: position of each crop's partner in its view ``[V, N]``.
        boxes: the part of the crop that shows the partner: (top, left, height, width) in pixels of the finished crop,
            ``[V, N, 4]``.
        shares: weight of the crop's own image, 0 to 1, ``[V, N]``.
    """

    group: int
    partners: Numbers
    boxes: Numbers | None = None
    shares: Numbers | None = None


def from_arrays(
    path: Path | str,
    *,
    images: Sequence[Path | str] | npt.NDArray[np.uint8],
    targets: Numbers,
    classes: Sequence[str],
    sides: Numbers,
    size: int,
    boxes: Numbers,
    flips: Numbers,
    logits: Numbers,
    labeller: str,
    mean: Sequence[float],
    std: Sequence[float],
    order: Numbers | None = None,
    mixing: Mixing | None = None,
    crops: Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.uint8]] | None = None,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    encoding: Mapping[str, Json] | None = None,
    class_columns: Sequence[int] = (),
    notes: Mapping[str, Json] | None = None,
    seed: int = 0,
) -> LabelStore:
    """Make a store of labels in V views of N images, whatever made them.

    A crop is cut from its image, resized to S x S (antialiased), flipped, then mixed. ``boxes``, ``flips``, ``logits``
    and what ``mixing`` holds have the axes ``[V, N]``: entry n of a view is image n. With ``order`` it is the position
    n of the view, and image ``order[v, n]``. Everything is checked before anything is written.

    Args:
        path: folder of the store to make; the same call continues one that was stopped.
        images: the image files, or the SHA-256 of each file, uint8 ``[N, 32]``.
        targets: class of each image ``[N]``.
        classes: their names; of a class folder, the names of its folders in that order.
        sides: height and width of each image in pixels, after EXIF orientation, ``[N, 2]``.
        size: side S of the crops.
        boxes: (top, left, height, width) in pixels of the image, integers ``[V, N, 4]``.
        flips: whether each crop is flipped left to right, bool ``[V, N]``.
        logits: raw, without a temperature or softmax, ``[V, N, C]``; of probabilities p give log p.
        labeller: name of what made the labels.
        mean: channel means by which students' inputs are normalised, of pixels in [0, 1]; the labeller's.
        std: channel standard deviations, likewise.
        order: image at each position, a permutation in each view, ``[V, N]``; drawn from ``seed`` when None.
        mixing: how crops were mixed; needs ``order``.
        crops: returns crops as labelled, uint8 ``[n, S, S, 3]``, of a view and entries n: up to 64 are stored,
            and replay is compared with them. Without it there is no check that boxes and flips mean what we take them
            for.
        interpolation: antialiased filter that resized the crops.
        encoding: of the labels; ``{"name": "int8"}`` when None, or ``{"name": "float16"}``.
        class_columns: column of each class, where labels have other columns too.
        notes: provenance, kept with the store and never compared.
        seed: of the order of views.

    Raises:
        InputError: names the first number that is wrong: a shape, NaN, a box beyond its image, an unknown class.
        MismatchError: the store that is there has other images or labels.
    """
    digests = digests_of(images)
    count = len(digests)
    values = array_of("logits", logits)
    if values.ndim != 3 or values.shape[1] != count or 0 in values.shape or values.dtype.kind != "f":
        raise InputError(f"logits: expected floats [V, {count}, C], found {values.dtype} {[*values.shape]}")
    views, _, columns = values.shape
    mix: Literal["none", "cutmix", "mixup"] = "none"
    if not isinstance(labeller, str) or not labeller:
        raise InputError(f"labeller: expected a name, found {labeller!r}")
    if mixing:
        if not isinstance(mixing, Mixing):
            raise InputError(f"mixing: expected a labelstore.Mixing, found a {type(mixing).__name__}")
        mix = "mixup" if mixing.boxes is None else "cutmix"
    require_names(classes)
    classified = integers("targets", targets, (count,), 0, len(classes) - 1)
    identity = adopted_identity(
        image_digests=digests,
        targets=classified,
        classes=classes,
        columns=columns,
        size=size,
        views=views,
        teacher={"name": labeller, "mean": three("mean", mean), "std": three("std", std)},
        mix=mix,
        group=mixing.group if mixing else 1,
        interpolation=interpolation,
        encoding=encoding,
        renderer=None if crops is None else RENDERER,
        class_columns=class_columns,
    )
    known_sides = integers("sides", sides, (count, 2), 1, MAX_SIDE)
    given = Given(
        identity=identity,
        logits=values,
        order=permutations(order, views, count) if order is not None else drawn_order(seed, views, count),
        by_image=order is None,
        columns=columns_of(identity, boxes, flips, mixing, (views, count), by_image=order is None),
    )
    limit = make_encoding(identity.encoding, columns).limit
    for view in range(views):
        where = f"view {view}, {'image' if order is None else 'position'}"
        require_finite(values[view], limit, partial("{} {}".format, where), "logits")
        require_boxes(given.rows(view, 0, count), known_sides, view)
    return write_adopted(
        path,
        identity,
        image_digests=digests,
        targets=classified,
        sides=known_sides,
        views=views,
        read=given.read,
        pixels=None if crops is None else given.pixels_by(crops),
        notes=notes,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """The arrays of a store, checked.

    Attributes:
        identity: of the store.
        logits: ``[V, N, C]``.
        order: image at each position, int64 ``[V, N]``.
        by_image: whether entries of the other arrays are images, and not positions.
        columns: the crop columns but the image's, by name, int64 ``[V, N]``.
    """

    identity: Identity
    logits: npt.NDArray[np.floating[Any]]
    order: npt.NDArray[np.int64]
    by_image: bool
    columns: Mapping[str, npt.NDArray[np.int64]]

    def read(self, view: int, start: int, stop: int) -> AdoptedCrops:
        """Rows and labels at some positions of a view."""
        return AdoptedCrops(self.rows(view, start, stop), self.logits[view][self.entries(view, start, stop)])

    def rows(self, view: int, start: int, stop: int) -> CropRows:
        """The rows at some positions of a view."""
        images, entries = self.order[view, start:stop], self.entries(view, start, stop)
        known = {"image_low": images & 0xFFFF, "image_high": images >> 16}
        known |= {name: column[view, entries] for name, column in self.columns.items()}
        names = self.identity.crop_columns
        return CropRows(names, np.stack([known[name] for name in names]).astype(np.uint16))

    def entries(self, view: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The indexes into the arrays of some positions of a view."""
        return self.order[view, start:stop] if self.by_image else np.arange(start, stop)

    def pixels_by(self, crops: Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.uint8]]) -> Pixels:
        """``crops`` by positions."""
        return lambda view, start, stop: np.asarray(crops(view, self.entries(view, start, stop)))


def digests_of(images: Sequence[Path | str] | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """SHA-256 of each file, uint8 ``[N, 32]``, or what is given as such."""
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 32 or not len(images):
            raise InputError(f"images: expected files, or uint8 [N, 32], found {images.dtype} {[*images.shape]}")
        return images
    if not images:
        raise InputError("images: expected at least one file, found none")
    found = []
    for image in images:
        try:
            with Path(image).open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"images: {image}: cannot be read ({error.strerror})") from error
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)


def array_of(name: str, values: object) -> npt.NDArray[Any]:
    """Values as an array, without a copy if they are one.

    Raises:
        InputError: they are none, or hide some of their entries.
    """
    try:
        array: npt.NDArray[Any] = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors of a GPU or with a history
        raise InputError(f"{name}: expected an array, found a {type(values).__name__} ({reason(error)})") from error
    if np.ma.is_masked(values):
        raise InputError(f"{name}: expected an array whose entries all count, found a masked one")
    return array


def integers(name: str, values: Numbers, shape: tuple[int, ...], least: int, most: int) -> npt.NDArray[np.int64]:
    """Integers of a shape within limits, as int64."""
    array = array_of(name, values)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise InputError(f"{name}: expected integers {[*shape]}, found {array.dtype} {[*array.shape]}")
    wrong = (array < least) | (array > most)
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise InputError(f"{name}{[*place]}: expected {least} to {most}, found {array[place]}")
    return array.astype(np.int64)


def three(name: str, values: Sequence[float]) -> list[Json]:
    """A number for each channel."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected three numbers, found {values!r:.100}") from error
    low = 0.0 if name == "std" else -np.inf
    if len(numbers) != 3 or not all(low < value < np.inf for value in numbers):
        raise InputError(f"{name}: expected three {'positive ' if name == 'std' else ''}numbers, found {numbers}")
    return [*numbers]


def permutations(order: Numbers, views: int, count: int) -> npt.NDArray[np.int64]:
    """An order, every view of which shows every image once."""
    array = integers("order", order, (views, count), 0, count - 1)
    for view, images in enumerate(array):
        shown = np.bincount(images, minlength=count)
        if shown.max() > 1:
            raise InputError(
                f"order: expected every image once in each view, found image {shown.argmax()} {shown.max()} times in "
                f"view {view}"
            )
    return array


def drawn_order(seed: int, views: int, count: int) -> npt.NDArray[np.int64]:
    """A permutation for each view, int64 ``[V, N]``: of a seed, the same with every version of numpy."""
    if not 0 <= require_integer("seed", seed) < 2**63:
        raise InputError(f"seed: expected 0 to 2**63 - 1, found {seed}")
    words = (np.random.Philox(key=[seed, view]).random_raw(count) for view in range(views))
    return np.stack([np.argsort(each, kind="stable") for each in words])


def columns_of(
    identity: Identity,
    boxes: Numbers,
    flips: Numbers,
    mixing: Mixing | None,
    axes: tuple[int, int],
    *,
    by_image: bool,
) -> dict[str, npt.NDArray[np.int64]]:
    """The crop columns but the image's, by name, int64 ``[V, N]``."""
    cut = integers("boxes", boxes, (*axes, 4), 0, MAX_SIDE)
    flipped = array_of("flips", flips)
    if flipped.shape != axes or flipped.dtype != bool:
        raise InputError(f"flips: expected bool {[*axes]}, found {flipped.dtype} {[*flipped.shape]}")
    columns = {name: cut[..., at] for at, name in enumerate(("top", "left", "height", "width"))}
    columns["bits"] = flipped.astype(np.int64)
    if mixing is None:
        return columns
    if by_image or (mixing.boxes is None) == (mixing.shares is None):
        raise InputError("mixing: expected order, and either boxes (CutMix) or shares (MixUp)")
    partners = integers("mixing.partners", mixing.partners, axes, 0, axes[1] - 1)
    start = np.arange(axes[1]) // identity.group * identity.group
    outside = partners // identity.group != start // identity.group
    if outside.any():
        view, place = (int(index) for index in np.argwhere(outside)[0])
        raise InputError(
            f"mixing.partners[{view}, {place}]: expected a position of the same group of {identity.group}, found "
            f"{partners[view, place]}"
        )
    columns["partner"] = partners - start
    if mixing.boxes is None:
        return columns | {"share": shares_of(mixing.shares, axes)}
    filled = integers("mixing.boxes", mixing.boxes, (*axes, 4), 0, identity.size)
    if (filled[..., :2] + filled[..., 2:]).max() > identity.size:
        raise InputError(f"mixing.boxes: expected boxes within crops of {identity.size} px, found one that is not")
    return columns | {f"mix_{name}": filled[..., at] for at, name in enumerate(("top", "left", "height", "width"))}


def shares_of(shares: Numbers | None, axes: tuple[int, int]) -> npt.NDArray[np.int64]:
    """MixUp's shares as the format has them, int64 ``[V, N]``."""
    array = array_of("mixing.shares", shares)
    if array.shape != axes or array.dtype.kind != "f" or not ((array >= 0) & (array <= 1)).all():
        raise InputError(f"mixing.shares: expected floats from 0 to 1, {[*axes]}, found {array.dtype} {[*array.shape]}")
    rounded: npt.NDArray[np.int64] = np.minimum(np.rint(array * SHARE), SHARE - 1).astype(np.int64)
    return rounded
