"""In bfloat16, folded and compiled, a teacher labels several times as fast as eagerly in float32, and labels agree."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Report, interleave, machine
from labelstore.spec import Json
from pipeline.device.memory import keep_freed_memory
from pipeline.networks import build_network, save_weights
from pipeline.teacher.engine.spec import MAX_RELATIVE_ERROR
from pipeline.teacher.teacher import Member, Teacher, TeacherSpec, make_teacher

CLASSES = [f"class {number}" for number in range(1000)]
EAGER = "float32 eager"  # in the layout and precision that a network has by default
VARIANTS: dict[str, dict[str, Any]] = {
    EAGER: {"channels_last": False},
    "float32": {},
    "float32 folded": {"fold": True},
    "float32 compiled": {"compile": "require"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16 folded": {"dtype": "bfloat16", "fold": True},
    "bfloat16 compiled": {"dtype": "bfloat16", "compile": "require"},
}
GPU_VARIANTS: dict[str, dict[str, Any]] = {
    "float16": {"dtype": "float16"},
    "bfloat16 folded graph": {"dtype": "bfloat16", "fold": True, "cuda_graph": True},
    "bfloat16 compiled graph": {"dtype": "bfloat16", "compile": "require", "cuda_graph": True},
}
PROMISED = 2.0  # times float32 eager, where the processor computes in bfloat16


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Time a ResNet-18 of random weights at 224 px by every engine, on a GPU where there is one.

    At toy size nothing is compiled.
    """
    device = "cuda" if torch.cuda.is_available() and not quick else "cpu"
    network, size, batch, rounds = ("cifar-resnet20", 32, 4, 1) if quick else ("torchvision:resnet18", 224, 64, 5)
    variants = VARIANTS if device == "cpu" else VARIANTS | GPU_VARIANTS
    if device == "cuda":
        batch = 256
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        member = Member(name=network, weights=str(draw_weights(Path(folder), network, size)))
        teachers = {
            name: make_teacher(
                TeacherSpec(members=(member,), device=device, batch=batch, **options), size=size, classes=CLASSES
            )
            for name, options in variants.items()
            if not (quick and "compile" in options)
        }
    crops = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    differences = compare(teachers, crops)
    timing = interleave({name: partial(made.logits, crops) for name, made in teachers.items()}, rounds)
    for name, seconds in timing.wall.items():
        report.add(name, "rate", [batch / second for second in seconds], "crops/s")
        report.add(name, "largest difference to float32 eager", differences[name], "of the largest logit")
    rates = {name: timing.rate(name, batch)["wall"] for name in teachers}
    best = max(rates, key=lambda name: rates[name])
    times = timing.speedup(best, EAGER)
    halves = device == "cuda" or "bf16" in str(teachers[EAGER].engine["device"])
    return {
        "unit": "crops/s",
        "network": network,
        "size": size,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "crops_per_s": dict(rates),
        "best": best,
        "best_over_eager": times,
        "differences": dict(differences),
        **({"promised": PROMISED, "kept": times >= PROMISED} if halves else {}),
        "machine": machine(),
    }


def draw_weights(folder: Path, network: str, size: int) -> Path:
    """Random weights of a network of 1,000 classes, the same every time."""
    torch.manual_seed(0)
    path = folder / "teacher.safetensors"
    save_weights(build_network(network, {}, classes=len(CLASSES), size=size).state_dict(), path)
    return path


def compare(teachers: dict[str, Teacher], crops: Tensor) -> dict[str, float]:
    """How far each engine's logits are from the plain one's, as a share of the largest; refused beyond the band."""
    expected = teachers[EAGER].logits(crops)
    differences = {}
    for name, teacher in teachers.items():
        difference = float((teacher.logits(crops) - expected).abs().max() / expected.abs().max())
        if difference > MAX_RELATIVE_ERROR[teacher.spec.dtype]:
            raise RuntimeError(f"{name}: other labels than the plain teacher's, by {difference:.1e} of the largest")
        differences[name] = difference
    return differences
