"""Initial weights of a projector's head: text embeddings from a file, or the mean features of the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import InputError, reason
from pipeline.networks.encoder import Encoder
from pipeline.networks.file_kinds import TORCH, is_safetensors, kind_of
from pipeline.networks.torch_files import read_safetensors
from pipeline.networks.weights import CLASSES_KEY
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import make_renderer
from pipeline.render.normalise import normalise
from trainer.config import TrainConfig
from trainer.evaluate import BATCH
from trainer.material import Material, Normal

NPY = b"\x93NUMPY"  # first bytes of a .npy file
MEANS = 100  # most images of each class for its mean feature


def read_text(path: Path, material: Material) -> Tensor:
    """Read text embeddings, float ``[C, d]``, from a file.

    Raises:
        InputError: when the file holds something else, or names other classes.
    """
    place = f"--text {path}"
    if not path.is_file():
        raise InputError(f"{place}: no such file; `giftwrap text-embeddings` makes one")
    if is_safetensors(path):
        tensors, metadata = read_safetensors(path, place)
        if len(tensors) != 1:
            raise InputError(f"{place}: expected one tensor [C, d], found {len(tensors)}")
        _require_classes(metadata.get(CLASSES_KEY), material.classes, place)
        [tensor] = tensors.values()
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise InputError(f"{place}: expected a tensor of numbers, found {tensor.dtype}; give floats")
        return tensor.float()
    return torch.from_numpy(_read_array(path, place))


def _read_array(path: Path, place: str) -> npt.NDArray[np.float32]:
    """The numbers of a ``.npy`` file."""
    expected = f"{place}: expected text embeddings [C, d] in a .npy or .safetensors file"
    try:
        with path.open("rb") as file:
            begin = file.read(len(NPY))
        kind = kind_of(path)[0]
        # mapped: a header may claim any shape
        array = np.load(path, mmap_mode="r", allow_pickle=False) if begin == NPY else None
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror or reason(error)})") from error
    except (ValueError, EOFError) as error:  # numpy's message suggests to unpickle the file, which executes code
        raise InputError(f"{expected}, found one that ends early, or holds Python objects; make it again") from error
    if array is None:
        found = "one saved by torch, or something else" if kind == TORCH else kind
        raise InputError(f"{expected}, found {found}; `giftwrap text-embeddings` makes one")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{expected} of numbers, found {array.dtype}; give floats")
    return np.array(array, np.float32)


def _require_classes(names: str | None, classes: Sequence[str], place: str) -> None:
    """Refuse text embeddings of other classes than the images'.

    Args:
        names: class names in the file, as JSON; None if it has none.
        classes: classes of the images.
        place: the file, for messages.
    """
    if names is None:
        return
    try:
        found = [str(name) for name in json.loads(names)]
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{place}: metadata {CLASSES_KEY!r} is not a JSON list: {reason(error)}") from error
    # no common names: they may be other names of the same classes
    if found == list(classes) or not {*found} & {*classes}:
        return
    advice = "give text embeddings of these classes, in their order"
    if len(found) != len(classes):
        raise InputError(f"{place}: expected the {len(classes)} classes of the images, found {len(found)}; {advice}")
    theirs, ours = next((one, own) for one, own in zip(found, classes, strict=True) if one != own)
    raise InputError(
        f"{place}: expected the classes of the images, found {theirs!r} in the place of {ours!r}; {advice}"
    )


def class_means(
    encoder: Encoder, normal: Normal, config: TrainConfig, material: Material, channels_last: bool
) -> Tensor:
    """The mean feature of each label column, float ``[C, d]``; 0 for columns without images.

    Uses centre crops of the first `MEANS` images of each class in manifest order.

    Args:
        encoder: the encoder, on the device of the run, in its memory layout.
        normal: the encoder's normalisation.
        config: of the run.
        material: the training data.
        channels_last: memory layout of the encoder.

    Raises:
        InputError: when a feature is not finite.
    """
    manifest = material.manifest
    assert manifest is not None  # noqa: S101  of fresh crops
    spec = PlanSpec(size=material.loader.size, crop="center", flip=0, interpolation=material.interpolation)
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, len(manifest))
    rows = rows.take(np.argsort(rows.image))
    chosen = np.concatenate([np.flatnonzero(manifest.targets == k)[:MEANS] for k in range(len(manifest.classes))])
    device = torch.device(config.render.device)
    sums = torch.zeros(material.columns, encoder.width, dtype=torch.float64)
    counts = torch.zeros(material.columns, dtype=torch.float64)
    columns = torch.tensor(material.label_columns)
    renderer = make_renderer(manifest, spec, **replace(config.render, cache_gib=0).like(material.renderer))
    try:
        for first in range(0, len(chosen), BATCH):
            part = chosen[first : first + BATCH]
            pixels = renderer.render(rows.take(part)).to(device)
            images = normalise(pixels, *normal, torch.float32, channels_last=channels_last)
            with torch.no_grad():
                features = encoder.network(images).double().cpu()
            own = columns[torch.from_numpy(manifest.targets[part])]
            sums.index_add_(0, own, features)
            counts.index_add_(0, own, torch.ones(len(own), dtype=torch.float64))
    finally:
        renderer.close()
    means = (sums / counts.clamp_min(1)[:, None]).float()
    if not bool(torch.isfinite(means).all()):
        raise InputError(f"{encoder.spec.words}: some features are not finite; check --encoder-mean and the weights")
    return means
