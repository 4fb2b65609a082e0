"""A store opened together with its images, and the check that its crops are reproduced (P2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.durable.keeping import Cached
from labelstore.durable.places import require_apart
from labelstore.durable.storage import LocalStorage
from labelstore.errors import MismatchError
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.columns import CropRows
from labelstore.store import LabelStore
from pipeline.config import manifest_cache
from pipeline.images.manifest import Manifest, require_same_images, scan, with_classes, with_order
from pipeline.images.manifest_cache import cache_in
from pipeline.images.source_table import ClassOrder, ImageOptions
from pipeline.plan.plan import PlanSpec
from pipeline.render import Renderer, augmenter_of, decoder_of, make_renderer
from pipeline.render.audit import DIGEST_POSITIONS, compare, pixels_digest


@dataclass(frozen=True, eq=False)
class LabelledCrop:
    """One crop with its label.

    Attributes:
        view: the view.
        position: its position in it.
        row: what made it, one row.
        pixels: after mixing, before the normalisation, uint8 ``[S, S, 3]``.
        logits: its label, float32 ``[C]``.
        target: hard label of its own image, as a column of ``logits``.
    """

    view: int
    position: int
    row: CropRows
    pixels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    target: int

    @property
    def image(self) -> int:
        """Index of the image."""
        return int(self.row.image[0])

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.pixels.shape[:2]))
        return f"LabelledCrop(view {self.view}, position {self.position}: image {self.image}, {shape} px)"


@dataclass(frozen=True)
class Replayer:
    """Replays a store: its labels, its images, and the renderer that turns rows into crops."""

    store: LabelStore
    manifest: Manifest
    spec: PlanSpec
    renderer: Renderer

    @property
    def same_renderer(self) -> bool:
        """Whether every sealed view was rendered by a renderer with this one's id."""
        return all(version["renderer"] == self.renderer.id for version in self.store.state.versions)

    def crops(self, view: int, start: int, stop: int) -> Tensor:
        """Stored crops ``start`` to ``stop`` of a view, after mixing, uint8 ``[stop - start, S, S, 3]``."""
        group, images = self.store.identity.group, self.store.identity.images
        first, last = start // group * group, min(-(-stop // group) * group, images)
        pixels = self.renderer.render(self.store.rows(view, slice(first, last)))
        return pixels[start - first : stop - first]

    def crop(self, view: int, position: int) -> LabelledCrop:
        """One crop, rendered, with its label.

        Raises:
            InputError: when there is no such position.
            NotStoredError: when the view is not there.
        """
        label = self.store.read(view, [position])
        at = int(label.positions[0])
        pixels = self.crops(view, at, at + 1)[0].cpu().numpy()
        return LabelledCrop(label.view, at, label.rows, pixels, label.logits[0], int(label.targets[0]))

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def at_size(self, size: int, *, device: str, threads: int | None, cache_bytes: int | None) -> Replayer:
        """The same boxes, rendered at another size; the renderer of this object is released.

        Rows need `pipeline.plan.augment.sides.at_size`.
        """
        self.renderer.close()
        spec = self.spec.at_side(size)
        decoder = None if device == "cpu" else decoder_of(self.renderer.id)
        renderer = make_renderer(
            self.manifest,
            spec,
            device=device,
            decoder=decoder,
            augmenter=augmenter_of(self.renderer.id),
            threads=threads,
            cache_bytes=cache_bytes,
        )
        return replace(self, spec=spec, renderer=renderer)

    def close(self) -> None:
        """Release the renderer."""
        self.renderer.close()


@dataclass(frozen=True)
class PixelReport:
    """The result of rendering stored crops again.

    Attributes:
        crops: number of crops compared.
        equal: whether every compared crop is equal bit for bit.
        max_difference: largest difference to the audit crops, in levels.
        mean_difference: mean difference to the audit crops, in levels.
    """

    crops: int
    equal: bool
    max_difference: int
    mean_difference: float


def open_images(
    store: LabelStore, images: Path, *, options: ImageOptions | None = None, rehash: bool = False
) -> Manifest:
    """The manifest of ``images``, after checking that they are the images of ``store``.

    What is read of the images is kept beside a store in a folder, and of a store that is read from elsewhere in the
    folder of its pieces. Where there is none, it is kept nowhere; `scan(images, cache=FILE)` keeps it where it is
    wanted, and its manifest is taken instead of a path.

    Raises:
        MismatchError: when it is another set; names the first difference.
    """
    identity = store.identity
    cache = None
    if isinstance(store.storage, LocalStorage):
        cache = manifest_cache(store.path)
        require_apart({"--store": store.path, "the cache of --store": cache}, {"--images": images})
    elif isinstance(store.storage, Cached):
        cache = cache_in(store.storage.cache.folder, images)
    manifest = scan_as(
        images,
        identity.classes,
        options=options,
        cache=cache,
        rehash=rehash,
        leave_out=identity.skipped,
    )
    manifest = with_order(store.image_digests, manifest)
    require_same_images(identity, store.image_digests, store.targets, manifest)
    return manifest


def scan_as(
    images: Path,
    classes: Sequence[str],
    *,
    options: ImageOptions | None = None,
    cache: Path | None = None,
    rehash: bool = False,
    digests: bool = True,
    leave_out: Sequence[str] = (),
    skip_broken: bool = False,
    save: bool = True,
) -> Manifest:
    """The manifest of ``images`` with its classes named and ordered as ``classes``, where they are the same."""
    manifest = scan(
        images,
        class_order=order_of(classes),
        options=options,
        cache=cache,
        rehash=rehash,
        digests=digests,
        leave_out=leave_out,
        skip_broken=skip_broken,
        save=save,
    )
    return with_classes(classes, manifest)


def order_of(classes: Sequence[str]) -> ClassOrder:
    """The order that ``classes`` are in."""
    return "bytes" if list(classes) == sorted(classes) else "numeric"


def open_source(
    store: LabelStore | Path | str,
    images: Manifest | Path | str,
    *,
    device: str = "cpu",
    decoder: str | None = None,
    augmenter: str | None = None,
    threads: int | None = None,
    cache_bytes: int | None = None,
    rehash: bool = False,
    options: ImageOptions | None = None,
) -> Replayer:
    """Open a store with its images; refuses images that are not the store's own.

    Crops are made by the augmenter of the store's renderer, unless ``augmenter`` names another, and a GPU decodes as it
    did, unless ``decoder`` names another. ``options`` are those of images at a path.
    """
    opened = store if isinstance(store, LabelStore) else LabelStore.open(store)
    if isinstance(images, Manifest):
        require_same_images(opened.identity, opened.image_digests, opened.targets, images)
        manifest = images
    else:
        manifest = open_images(opened, Path(images), options=options, rehash=rehash)
    spec = PlanSpec.from_json(opened.identity.require("plan"))
    rendered = opened.identity.renderer or {}  # of adopted labels whose crops nothing has rendered
    augmenter = augmenter or augmenter_of(rendered)
    if device != "cpu" and augmenter == augmenter_of(rendered):
        decoder = decoder or decoder_of(rendered)
    renderer = make_renderer(
        manifest,
        spec,
        device=device,
        decoder=decoder,
        augmenter=augmenter,
        threads=threads,
        cache_bytes=cache_bytes,
    )
    return Replayer(opened, manifest, spec, renderer)


def check_pixels(source: Replayer, blocks: int = 8) -> PixelReport:
    """Render stored crops again and compare them with the store (P2).

    The audit crops are compared by value: bit-equal with the same renderer, within P2's band with another. Of the
    blocks that were made by the same renderer, up to ``blocks``, spread over the sealed views, are compared by digest.
    A store of adopted labels may have no crops to compare with; then none are.

    Raises:
        MismatchError: when the crops differ by more than P2 allows; names both renderers and the difference.
    """
    store = source.store
    if store.identity.renderer is None:
        return PixelReport(crops=0, equal=False, max_difference=0, mean_difference=0.0)
    stored = torch.from_numpy(store.audit().crops)
    ours = source.crops(0, 0, len(stored))
    stored_id = store.version(AUDIT_BLOCK)["renderer"] or {"name": "not known"}
    difference = compare(ours, stored, stored_id, dict(source.renderer.id))
    crops = len(stored) + _check_digests(source, blocks)
    return PixelReport(
        crops=crops,
        equal=source.same_renderer and difference.maximum == 0,
        max_difference=difference.maximum,
        mean_difference=difference.mean,
    )


def _check_digests(source: Replayer, blocks: int) -> int:
    """Compare the first crops of some blocks with the digests in their markers; the number of crops."""
    store = source.store
    sealed = [block for block in store.sealed_blocks() if store.version(block)["renderer"] == source.renderer.id]
    chosen = np.unique(np.linspace(0, len(sealed) - 1, min(blocks, len(sealed))).astype(int))
    crops = 0
    for block in (sealed[int(index)] for index in chosen):
        start = store.positions(block)[0]
        stop = min(start + DIGEST_POSITIONS, store.positions(block)[1])
        view = store.block_views(block)[0]
        found = pixels_digest(source.crops(view, start, stop))
        if found != store.pixels_digest(block):
            raise MismatchError(
                f"replay: view {view}, positions {start} to {stop - 1}, renders to pixels with digest {found}, "
                f"the store has {store.pixels_digest(block)}, though renderer and images are the same; "
                f"check the store with `python -m labelstore check`, and this machine's memory"
            )
        crops += stop - start
    return crops
