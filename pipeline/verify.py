"""Does the store still hold what this teacher says of these images? Render, ask the teacher again, compare."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from labelstore.console import Console
from labelstore.errors import MismatchError
from labelstore.fidelity import gift_fidelity
from labelstore.spec import Json, first_difference, require_same
from labelstore.store import LabelStore
from pipeline.config import gibibytes
from pipeline.source import Source, check_pixels, open_source
from pipeline.teacher import Teacher, TeacherSpec, make_teacher

# On the engine of the store the audit logits come out to float16 rounding; another engine sums in another order.
MAX_RELATIVE_ERROR = {"float32": 2e-3, "bfloat16": 5e-2}
MIN_FIDELITY = 0.99


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Render stored crops again, run the teacher on them, and compare with what the store holds."""

    store: Path
    """Folder of the store."""
    images: Path
    """Class folder that the store was made of."""
    weights: str | None = None
    """Weights of the store's teacher; without them only the pixels are compared."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads; the teacher takes as many as the store's did when left out."""
    cache_gib: float = 2.0
    """Memory for decoded images."""
    rehash: bool = False
    """Read every image again instead of believing size and modification time."""
    json: bool = False
    """Print the summary as one JSON object on standard output and all else on standard error."""


def verify(config: VerifyConfig, console: Console) -> tuple[bool, Mapping[str, Json]]:
    """Whether the store holds within the stated bands, and the figures."""
    store = LabelStore.open(config.store)
    source = open_source(
        store,
        config.images,
        device=config.device,
        threads=config.threads,
        cache_bytes=gibibytes("--cache-gib", config.cache_gib),
        rehash=config.rehash,
    )
    with closing(source):
        return verify_source(source, config, console)


def verify_source(source: Source, config: VerifyConfig, console: Console) -> tuple[bool, Mapping[str, Json]]:
    """Compare pixels, then labels where there are weights."""
    try:
        pixels = check_pixels(source)
    except MismatchError as error:
        console.line(str(error))
        return False, {"ok": False, "pixels_equal": False, "max_error": None, "fidelity": None}
    values: dict[str, Json] = {
        "ok": True,
        "crops": pixels.crops,
        "pixels_equal": pixels.equal,
        "pixels_max_difference": pixels.max_difference,
        "pixels_mean_difference": round(pixels.mean_difference, 4),
        "max_error": None,
        "mean_error": None,
        "equal_codes": None,
        "fidelity": None,
    }
    how = "bit for bit" if pixels.equal else "within the band of another renderer"
    console.line(f"pixels: {pixels.crops} stored crops came out again, {how}")
    if config.weights:
        teacher = teacher_of(source.store, config, console)
        values.update(compare_labels(source, teacher, console))
    return bool(values["ok"]), values


def teacher_of(store: LabelStore, config: VerifyConfig, console: Console) -> Teacher:
    """The store's teacher with the given weights, refused when they are not the store's."""
    stored: Any = store.identity.teacher
    engine: Any = store.identity.engine
    dtype: Literal["float32", "bfloat16"] = engine["dtype"]
    spec = TeacherSpec(
        name=stored["name"],
        args=stored["args"],
        weights=config.weights or "",
        classes=",".join(str(column) for column in stored["columns"]) if stored["columns"] else None,
        mean=tuple(stored["mean"]),
        std=tuple(stored["std"]),
        dtype=dtype,
        batch=engine["batch"],
        device=config.device,
        threads=config.threads or engine["threads"],
    )
    teacher = make_teacher(spec, size=store.identity.size, classes=store.identity.classes)
    require_same("teacher", dict(stored), dict(teacher.identity), "give --weights of the store's teacher")
    found = first_difference(dict(engine), dict(teacher.engine))
    if found:
        console.line(f"engine: another than the store's at {found[0]}: {found[1]!r} there, {found[2]!r} here")
    return teacher


def compare_labels(source: Source, teacher: Teacher, console: Console) -> dict[str, Json]:
    """The teacher's logits of the audit crops against the float16 logits and the codes that are stored."""
    store = source.store
    audit = store.audit().logits
    count = len(audit)
    crops = source.crops(0, 0, count)
    ours = np.concatenate([teacher.logits(part).numpy() for part in torch.split(crops, teacher.batch)])
    stored = audit.astype(np.float32)
    errors = np.abs(ours - stored)
    scale = float(np.abs(stored).max())
    band = MAX_RELATIVE_ERROR[str(store.identity.engine["dtype"])] * scale
    group = store.identity.group
    labels = store.read(0, slice(0, min(-(-count // group) * group, store.identity.images)))  # whole groups
    partners = labels.rows.partners(group)[:count] if labels.rows.mixed else np.arange(count)
    fidelity = gift_fidelity(
        ours,
        labels.logits[:count],
        labels.targets[:count],
        labels.targets[partners],
        labels.rows.weights(store.identity.size)[:count],
    )
    equal = equal_codes(store, ours, count)
    ok = float(errors.max()) <= band and float(fidelity.mean()) >= MIN_FIDELITY
    console.line(
        f"labels: largest error {errors.max():.2e} and mean {errors.mean():.2e} against {count} audit rows "
        f"(band {band:.2e}), {100 * equal:.2f} % of codes equal, fidelity {fidelity.mean():.5f} "
        f"(at least {MIN_FIDELITY})"
    )
    return {
        "ok": ok,
        "max_error": float(errors.max()),
        "mean_error": float(errors.mean()),
        "max_error_band": band,
        "equal_codes": equal,
        "fidelity": float(fidelity.mean()),
    }


def equal_codes(store: LabelStore, logits: npt.NDArray[np.float32], count: int) -> float:
    """Share of codes of the first rows of view 0 that encoding ``logits`` gives again."""
    stored = store.codes(0, slice(0, count))["labels"]
    codes = store.encoding.encode(logits, store.pairs(0, slice(0, count)))["labels"]
    return float(np.mean(codes == stored))
