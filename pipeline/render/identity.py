"""The renderer's identity: everything besides images and rows on which pixels depend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from labelstore.spec import Json

if TYPE_CHECKING:
    import torch

AugmenterName = Literal["pillow", "dali"]
DecoderName = Literal["cpu", "gpu", "gpu-hw"]
# How a GPU decodes so that pixels do not depend on the rest of the batch: nothing, or all that it can take, goes to
# the decoder in hardware. Chroma is upsampled as on a CPU.
DECODERS: dict[str, dict[str, Json]] = {
    "cpu": {},
    "gpu": {"hw_decoder_load": 0.0, "jpeg_fancy_upsampling": True},
    "gpu-hw": {"hw_decoder_load": 1.0, "jpeg_fancy_upsampling": True},
}
_PACKAGES = (
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "nvidia-nvimgcodec-cu12",
    "nvidia-nvimgcodec-cu13",
    "torch",
    "Pillow",
)


def renderer_id(
    device: torch.device, decoder: str, columns: Sequence[str] = (), augmenter: str = "pillow"
) -> dict[str, Json]:
    """All that pixels depend on besides images and rows.

    Args:
        device: where crops are made.
        decoder: one of `DECODERS`.
        columns: of the rows; operators on floats that they ask for are known by their fingerprints.
        augmenter: whose filter resizes: ``pillow`` or ``dali``.
    """
    from importlib.metadata import PackageNotFoundError, version

    import torch  # commands read the names above and may not need torch

    from pipeline.plan.augment import fingerprints
    from pipeline.render import dali

    operators: dict[str, Json] = {name: list(numbers) for name, numbers in fingerprints(columns, device).items()}
    cpu, with_dali = device.type == "cpu", dali.load() is not None
    versions: dict[str, Json] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # of the CUDA release that is not installed
            continue
    by_dali = augmenter == "dali"
    return {
        **({"augmenter": augmenter} if by_dali else {}),
        "backend": "dali" if with_dali else "Pillow",
        "device": device.type,
        "model": torch.backends.cpu.get_cpu_capability() if cpu else torch.cuda.get_device_name(device),
        "decoder": {"mixed": dict(DECODERS[decoder])} if DECODERS[decoder] else "cpu",
        "region_decoding": decoder == "cpu" and with_dali,
        "resize": "DALI, antialiased" if by_dali else "Pillow",
        **({"operators": operators} if operators else {}),
        "versions": versions,
    }


def decoder_of(renderer: Mapping[str, Json]) -> str:
    """The decoder that a renderer's id names; the nearest one for an id of a later release."""
    named = renderer.get("decoder")
    settings = named.get("mixed") if isinstance(named, dict) else {}
    return next((name for name, options in DECODERS.items() if options == settings), "gpu")


def augmenter_of(renderer: Mapping[str, Json]) -> str:
    """The augmenter that a renderer's id names."""
    return "dali" if renderer.get("augmenter") == "dali" else "pillow"
