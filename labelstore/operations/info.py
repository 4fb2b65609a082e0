"""A summary of a store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelstore.command.console import byte_count, quantity
from labelstore.encodings.bands import missed
from labelstore.encodings.fidelity import beside
from labelstore.errors import InputError
from labelstore.operations.synthesised import made_by
from labelstore.spec import Json
from labelstore.store import LabelStore

MAX_LINE = 400
CONTENT = {
    "logits": "logits, one label a crop, made after mixing; no temperature, no softmax",
    "topk": "logits of the largest columns, one label a crop; the others hold the masked value and are not known",
}


def info(store: LabelStore, weights: Path | None = None) -> dict[str, Json]:
    """The identity and state of a store, as JSON; nothing that changes a result is left out.

    Args:
        store: the store.
        weights: file of its teacher's weights, whose size is then given beside the labels'.
    """
    identity, state = store.identity, store.state
    sizes = store.bytes_per_label()
    return {
        "format": identity.format,
        "images": identity.images,
        "views": state.views_sealed,
        "views_target": state.views_target,
        "missing_blocks": store.missing_blocks,
        "classes": len(identity.classes),
        "columns": identity.columns,
        "class_columns": list(identity.class_columns),
        "size": identity.size,
        "encoding": dict(identity.encoding),
        "codec": store.encoding.codec,
        "complete": store.complete,
        "bytes_per_label": dict(sizes),
        "as_float16": as_float16(identity.columns, sizes),
        **({"teacher_bytes": weights_bytes(weights)} if weights else {}),
        "fidelity": store.fidelity,
        "missed": [*missed(identity.encoding, store.fidelity)],
        "converted_from": state.versions[0].get("converted_from"),
        "origin": identity.origin,
        "content": CONTENT[identity.content],
        "class_order": list(identity.classes),
        "skipped": list(identity.skipped),
        "seed": identity.seed if identity.origin == "built" or "seed" in (identity.plan or {}) else None,
        "plan": _plain(identity.plan),
        "block": {"views": identity.block.views, "positions": identity.block.positions},
        "manifest": identity.manifest,
        "teacher": _plain(identity.teacher),
        "engine": _plain(identity.engine),
        "renderer": _plain(identity.renderer),
        "versions": [dict(version) for version in state.versions],
        "notes": dict(store.notes),
    }


def _plain(value: Mapping[str, Json] | None) -> Json:
    return None if value is None else dict(value)


def as_float16(columns: int, sizes: Mapping[str, float]) -> dict[str, Json]:
    """The same store in float16: bytes a label by part, and how many times those of its labels and side arrays."""
    ours = sizes["labels"] + sizes["side"]
    ratio = round(2 * columns / ours, 2) if ours else None
    return {"labels": 2.0 * columns, "columns": sizes["columns"], "side": 0.0, "ratio": ratio}


def weights_bytes(weights: Path) -> int:
    """Size of the file of a teacher's weights."""
    if not weights.is_file():
        raise InputError(
            f"--weights {weights}: expected a file, found none; give the file that the store was built with"
        )
    return weights.stat().st_size


def lines(values: Mapping[str, Any]) -> list[str]:
    """The result of ``info``, one line for each fact; long values are shortened, `--json` has them in full."""
    size, wide, encoding = values["bytes_per_label"], values["as_float16"], values["encoding"]
    wanted = [f"{name} {encoding[name]} requested" for name in ("fidelity", "step") if name in encoding]
    wanted += [f"{encoding['mean_steps']} steps of mean labels in one of labels"] if "mean_steps" in encoding else []
    wanted += ["first choices kept"] if encoding.get("keep_top1") else []
    labels = f"{sum(size.values()):.1f}: {parts_of(size)}"
    shown: dict[str, Any] = {
        "images": f"{values['images']:,} in {quantity(values['classes'], 'class')}, {values['size']} px",
        "views": f"{values['views']:,} of {values['views_target']:,} sealed"
        + (", complete" if values["complete"] else f", {quantity(values['missing_blocks'], 'block')} missing"),
        "labels": f"{quantity(values['columns'], 'column')}: {values['content']}",
        "origin": "adopted: made elsewhere" if values["origin"] == "adopted" else None,
        "class columns": json.dumps(values["class_columns"]) if values["class_columns"] else None,
        "encoding": ", ".join([encoding["name"], f"codec {values['codec']}", *wanted]),
        "bytes a label": labels,
        "as float16": f"{wide['labels']:.1f} for labels: {wide['ratio']} times as many" if wide["ratio"] else None,
        "teacher bytes": byte_count(values["teacher_bytes"]) if "teacher_bytes" in values else None,
        "fidelity": in_words(values["fidelity"]),
        "converted from": _origin(values["converted_from"]) if values["converted_from"] else None,
    }
    if isinstance(made := values["notes"].get("synthesis"), dict):
        shown["image set"] = made_by(made)
    rest = (
        "class_order", "skipped", "seed", "plan", "block", "manifest", "teacher", "engine", "renderer", "versions",
        "notes", "format",
    )  # fmt: skip
    shown |= {name.replace("_", " "): json.dumps(values[name]) for name in rest if values[name] not in (None, {})}
    if "image set" in shown and len(values["notes"]) == 1:  # that is all of it
        del shown["notes"]
    if len(values["versions"]) == 1:  # engine and renderer are all of it
        del shown["versions"]
    cut = {name: text if len(text) <= MAX_LINE else text[:MAX_LINE] + " ..." for name, text in shown.items() if text}
    return [f"{name:<16} {text}" for name, text in cut.items()]


def parts_of(size: Mapping[str, float]) -> str:
    """The bytes of a label by what they hold: its codes, the row of its crop, and scales, calibration and the like."""
    rows, side = f"{size['columns']:.1f} crop rows", f"{size['side']:.1f} scales and calibration"
    return f"{size['labels']:.1f} labels, {rows}, {side}"


def in_words(fidelity: Json) -> str:
    """Fidelity, KL and top-1 agreement in words."""
    kinds: Any = fidelity or {}
    parts = [
        f"{kind} {values['mean']:.5f} on average, {values['p1']:.5f} at the 1st percentile of {values['rows']:,} rows"
        f"{beside(values)}"
        for kind, values in kinds.items()
        if values
    ]
    return "; ".join(parts) or "not measured before the first block"


def _origin(origin: Mapping[str, Any]) -> str:
    """The source of a converted store, as text; its fidelity is relative to that source."""
    text = f"{origin['encoding']['name']}, whose own fidelity was {in_words(origin['fidelity'])}"
    return f"{text}; that one from {_origin(origin['converted_from'])}" if "converted_from" in origin else text
