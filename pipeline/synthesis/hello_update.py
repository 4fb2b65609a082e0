"""HeLlO's image update: images moved so that an encoder sees the same in small copies of their patches.

Yu, Tan, Liu, Wang: Heavy Labels Out! (arXiv 2408.08201) begins with RDED's collages, whose patches were scaled down,
and lowers ``MSE(E(p), E(p^))``, where p is a patch and p^ its down- and upsampled copy. No code was published. These
are our choices, as are the defaults of all flags:

* E(p) is fixed: the features of the patch as it is in the given set. Only the copy is made of the image that is moved.
  With both of them free, one colour all over would be a minimum.
* Patches are the cells of the image; each is resized to the encoder's crops. Adam moves pixels within 0 and 255.

Images of a batch share nothing but the steps: the sum of their losses is lowered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from labelstore.errors import InputError
from labelstore.spec import Json
from labelstore.storage_table import as_typed, scheme_of
from pipeline.config import json_object
from pipeline.device.choosing import choose_device
from pipeline.device.faults import device_faults
from pipeline.device.memory import keep_freed_memory
from pipeline.images.provenance import record_of
from pipeline.networks import load_network
from pipeline.networks.encoder import Encoder, EncoderSpec, features_of, load_encoder
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD, LEVELS, require_normalisation
from pipeline.networks.pretrained import is_distributed
from pipeline.networks.trained import numbers, trained_with
from pipeline.networks.weights import require_file
from pipeline.synthesis.method import Job, Made, Method, Pixels, Setting, Working
from pipeline.synthesis.real import RealImages
from pipeline.synthesis.recovering import Steps, not_fallen, recover
from pipeline.synthesis.views import show
from pipeline.teacher.engine.precision import precision

BATCH = 25  # images moved together
BETAS = (0.9, 0.999)  # of Adam
ADVICE = "give a smaller --update-lr"
OTHER_RATE = "give another --update-lr, or more --update-steps"


@dataclass(frozen=True, eq=False)
class Eye:
    """An encoder, and how it is shown patches.

    Attributes:
        encoder: the encoder as loaded, on its device.
        device: where it is.
        size: side of its crops in pixels.
        mean: of its normalisation, of pixels in [0, 1], by channel.
        std: likewise, the standard deviation.
    """

    encoder: Encoder
    device: torch.device
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def features(self, patches: Tensor, matrix: Tensor) -> Tensor:
        """Features ``[n, d]`` of patches ``[n, 3, c, c]`` in [0, 1], each resized by a matrix ``[size, c]``."""
        mean, std = (torch.tensor(values, device=patches.device)[:, None, None] for values in (self.mean, self.std))
        found: Tensor = self.encoder.network((show(patches, torch.stack([matrix, matrix])) - mean) / std)
        return found.float()

    @property
    def identity(self) -> dict[str, Json]:
        """Everything that determines the features."""
        spec = self.encoder.spec
        return {
            "name": spec.name,
            "args": dict(spec.args),
            "features": spec.features,
            "sha256": self.encoder.weights.digest,
            "size": self.size,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def make_hello_update(setting: Setting) -> Method:
    """The method, from the flags.

    Raises:
        InputError: flags, images or an encoder that do not go together.
    """
    own, side = setting.config.hello_update, side_of(setting)
    cells = cells_of(setting)
    if side % cells or not 1 <= round(own.update_scale * (side // cells)) < side // cells:
        raise InputError(
            f"--update-cells {cells}, --update-scale {own.update_scale}: expected patches whose side is a whole number "
            f"of pixels, and smaller copies of them, found images of {side} px"
        )
    real = RealImages(setting, side, (1.0, 1.0))
    return HelloUpdate(setting, side, cells, real, None if setting.checking else load_eye(setting))


class HelloUpdate:
    """Moves batches of images; see `pipeline.synthesis.method.Method`.

    Attributes:
        jobs: the batches.
    """

    def __init__(self, setting: Setting, side: int, cells: int, real: RealImages, eye: Eye | None) -> None:
        """Move images of a side, which have so many cells a side; without an encoder only `again` works."""
        self._setting, self._options, self._side, self._cells = setting, setting.config.hello_update, side, cells
        self._real, self._eye = real, eye
        self._batch = setting.config.engine.batch or BATCH
        self.jobs: Sequence[Job] = divide(setting, self._batch)
        self._warned = False

    @property
    def parameters(self) -> Mapping[str, Json]:
        """See `Method.parameters`."""
        own = self._options
        return {
            "batch": self._batch,
            "side": self._side,
            "cells": self._cells,
            "small": self._small,
            "betas": list(BETAS),
            **{name: value for name, value in asdict(own).items() if name.startswith("update")},
            "renderer": self._real.renderer.id,
        }

    @property
    def teacher(self) -> Mapping[str, Json] | None:
        """The encoder; see `Method.teacher`."""
        eye = self._eye
        if eye is None:
            return None
        on_cpu = eye.device.type == "cpu"
        engine: dict[str, Json] = {
            "device": "cpu" if on_cpu else torch.cuda.get_device_name(eye.device),
            "threads": torch.get_num_threads() if on_cpu else None,
            "torch": str(torch.__version__),
        }
        return {"encoder": eye.identity, "engine": engine}

    @device_faults("images are updated", "a smaller --batch")
    def make(self, job: Job, working: Working, /) -> Made:
        """See `Method.make`."""
        eye, own = self._eye, self._options
        if eye is None:
            raise InputError("hello-update: expected an encoder, found none; give --encoder and --encoder-weights")
        sources = np.array(
            [
                self._setting.images_of(target)[number]
                for target, number in zip(job.targets.tolist(), job.numbers.tolist(), strict=True)
            ]
        )
        rendered, boxes = self._real.fitted(sources)
        begin = in_unit(rendered.to(eye.device))
        side = self._side // self._cells
        whole = resizing(side, eye.size).to(eye.device)
        copied = (resizing(self._small, eye.size) @ resizing(side, self._small)).to(eye.device)
        black, white = torch.zeros(3, 1, 1, device=eye.device), torch.ones(3, 1, 1, device=eye.device)
        steps = Steps(count=own.update_steps, lr=own.update_lr, betas=BETAS, low=black, high=white, advice=ADVICE)
        with precision("ieee"):
            with torch.no_grad():
                wanted = eye.features(patches(begin, self._cells), whole)

            def losses(images: Tensor) -> Tensor:
                apart = eye.features(patches(images, self._cells), copied) - wanted
                return apart.square().mean(1).view(len(images), -1).mean(1)

            images = recover(begin, lambda images, _step: losses(images).sum(), steps, working)
            pixels = (images * LEVELS).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            with torch.no_grad():
                before, after = losses(begin), losses(in_unit(pixels))
        warning = not_fallen(job.name, float(before.mean()), float(after.mean()), OTHER_RATE)
        if warning and not self._warned:
            self._setting.console.warn(warning)
            self._warned = True
        pieces: dict[str, npt.NDArray[np.generic]] = {
            "sources": sources[:, None],
            "boxes": boxes[:, None],
            "feature_losses_before": before.double().cpu().numpy(),
            "feature_losses": after.double().cpu().numpy(),
        }
        return Made(images=list(pixels.cpu().numpy()), pieces=pieces)

    def again(self, pieces: Mapping[str, npt.NDArray[np.generic]], /) -> Sequence[Pixels | int] | None:
        """None: an image depends on the encoder's weights, at each of many steps."""
        del pieces
        return None

    def close(self) -> None:
        """See `Method.close`."""
        self._real.renderer.close()

    @property
    def _small(self) -> int:
        """Side of a patch's small copy in pixels."""
        return round(self._options.update_scale * (self._side // self._cells))


def side_of(setting: Setting) -> int:
    """Side of the images: --size, or else that of the set's.

    Raises:
        InputError: when these are not all alike.
    """
    if setting.config.size is not None:
        return setting.config.size
    manifest = setting.manifest
    side = int(manifest.heights[0])
    others = np.flatnonzero((manifest.heights != side) | (manifest.widths != side))
    if len(others):
        image = int(others[0])
        raise InputError(
            f"{manifest.place(image)}: expected a square image of {side} px, the height of the first, found "
            f"{manifest.widths[image]} x {manifest.heights[image]}; give --size, to which all are cut from the centre"
        )
    return side


def cells_of(setting: Setting) -> int:
    """Cells a side of an image: the flag, or else those of RDED's collages by the record of their set, or 1.

    Raises:
        InputError: the set is at an address, where no record is read.
    """
    given, images = setting.config.hello_update.update_cells, setting.config.images
    if not given and scheme_of(images):
        raise InputError(
            f"--images {as_typed(images)}: the record of a set, which has the cells of its images, is not read at an "
            f"address; give --update-cells, 1 for images that are no collages"
        )
    made = None if given else record_of(images)
    if not made or made["method"] != "rded":
        return given or 1
    parameters = made["parameters"]
    found = parameters.get("factor") if isinstance(parameters, dict) else None
    return found if isinstance(found, int) else 1


def divide(setting: Setting, batch: int) -> list[Job]:
    """The batches of the images of the set, or of the first --ipc of each class, class by class."""
    found = np.array([len(setting.images_of(target)) for target in setting.targets], np.int64)
    counts = found if setting.config.ipc is None else setting.counts("images")
    targets = np.repeat(setting.targets, counts)
    places = np.concatenate([np.arange(count) for count in counts.tolist()])
    starts = range(0, len(targets), batch)
    return [
        Job(f"batch {index} of {len(starts)}", targets[start : start + batch], places[start : start + batch])
        for index, start in enumerate(starts, 1)
    ]


def load_eye(setting: Setting) -> Eye:
    """The encoder that the flags name, with what its weights were trained with where flags are left out.

    Raises:
        InputError: when it cannot be had, gives no feature vectors, or no side of its crops is known.
    """
    own = setting.config.hello_update
    if own.encoder is None or own.encoder_weights is None:
        raise InputError("hello-update: needs an encoder; give --encoder and --encoder-weights")
    require_normalisation(own.encoder_mean or (), own.encoder_std or (), "encoder: ")
    keep_freed_memory()
    args = json_object("--encoder-args", own.encoder_args)
    if not is_distributed(own.encoder_weights):
        require_file(Path(own.encoder_weights))
    known = trained_with(own.encoder, args, own.encoder_weights)
    size = own.encoder_size or (known.size if known else None)
    if size is None:
        raise InputError(
            f"--encoder-size: {own.encoder_weights} does not record which crops it was trained on; give --encoder-size"
        )
    mean = own.encoder_mean or (known.mean if known else None) or IMAGENET_MEAN
    std = own.encoder_std or (known.std if known else None) or IMAGENET_STD
    spec = EncoderSpec(
        name=own.encoder, weights=own.encoder_weights, args=args, features=features_of(own.encoder, own.features)
    )
    device = choose_device(setting.config.render.device)
    with device_faults("the encoder is loaded", "--device cpu"):
        encoder = load_encoder(spec, size, load_network)
        encoder = replace(encoder, network=encoder.network.to(device))
    setting.console.line(
        f"encoder: {spec.name} of {spec.weights}, its {spec.features} features of {size} px; mean {numbers(mean)}, std "
        f"{numbers(std)}"
    )
    return Eye(encoder, device, size, tuple(mean), tuple(std))


def resizing(length: int, size: int) -> Tensor:
    """The matrix ``[size, length]`` that resizes rows or columns, bilinearly and antialiased where they get fewer."""
    whole = torch.eye(length)[None, None]
    return interpolate(whole, size=(size, length), mode="bilinear", antialias=True)[0, 0]


def patches(images: Tensor, cells: int) -> Tensor:
    """The cells of images ``[n, 3, S, S]``, an image after the other: ``[n cells^2, 3, c, c]``."""
    count, channels, side, _ = images.shape
    parts = images.reshape(count, channels, cells, side // cells, cells, side // cells)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(count * cells**2, channels, side // cells, side // cells)


def in_unit(pixels: Tensor) -> Tensor:
    """Pixels, uint8 ``[n, S, S, 3]``, as numbers in [0, 1], float32 ``[n, 3, S, S]``."""
    return pixels.permute(0, 3, 1, 2).float().contiguous() / LEVELS
