"""The device of a teacher, and its description in the engine (P4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.device.choosing import choose_device
from pipeline.networks.load import library_version
from pipeline.teacher.engine.spec import EngineDType, TeacherSpec

DTYPES: Mapping[EngineDType, torch.dtype] = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
TF32_CAPABILITY = (8, 0)  # of the first GPUs that have it
# Instructions that decide which kernels of one capability are taken.
CPU_FEATURES = ("avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "amx_fp16")


def teacher_device(name: str, dtype: str) -> torch.device:
    """The device that a teacher runs on.

    Raises:
        InputError: when it is not there, does not have the dtype, or only emulates it.
    """
    device = choose_device(name)
    if dtype == "tf32":
        require_tf32(device)
    has = _cpu_features()
    if device.type == "cpu" and dtype == "float16" and has and not (has.get("avx512_fp16") or has.get("amx_fp16")):
        raise InputError(
            "--dtype float16: this CPU does not compute in float16, torch would emulate it many times slower; "
            "give --dtype bfloat16 or float32, or --device cuda"
        )
    return device


def require_tf32(device: torch.device) -> None:
    """Refuse a device that does not compute in TF32."""
    if device.type == "cpu":
        raise InputError("--dtype tf32: a CPU computes float32 in full; give --dtype float32, or --device cuda")
    if torch.cuda.get_device_capability(device) < TF32_CAPABILITY:
        raise InputError(
            f"--dtype tf32: {torch.cuda.get_device_name(device)} computes float32 in full; give --dtype float32"
        )


def describe_engine(
    spec: TeacherSpec, device: torch.device, batch: int, *, folded: bool, compilers: Mapping[str, Json] | None
) -> dict[str, Json]:
    """The description of the engine (P4).

    Args:
        spec: of the teacher.
        device: where it runs.
        batch: crops a batch.
        folded: whether any batch norm was folded.
        compilers: name and version of what torch.compile used; None when nothing is compiled.
    """
    libraries: dict[str, Json] = {"torch": str(torch.__version__), **_library_versions(spec), **(compilers or {})}
    if device.type == "cuda":
        model = torch.cuda.get_device_name(device)
        cudnn_version: Callable[[], int | None] = torch.backends.cudnn.version
        libraries["cudnn"] = cudnn_version()
    else:
        has = _cpu_features()
        features = [feature for feature in CPU_FEATURES if has.get(feature)]
        model = " ".join(["cpu", torch.backends.cpu.get_cpu_capability(), *features])
    return {
        "device": model,
        "dtype": spec.dtype,
        "batch": batch,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "channels_last": spec.channels_last,
        "folding": "batch-norm" if folded else "none",
        "compile": "none" if compilers is None else "inductor",
        **({"cuda_graph": True} if spec.cuda_graph else {}),
        "versions": libraries,
    }


def _cpu_features() -> Mapping[str, bool]:
    """Instructions of this processor; empty if torch is too old to report them."""
    features: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return features


def _library_versions(spec: TeacherSpec) -> dict[str, Json]:
    """Of the libraries that the networks' code comes from."""
    versions: dict[str, Json] = {}
    for member in spec.members:
        versions |= library_version(member.name)
    return versions
