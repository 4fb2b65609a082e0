"""Does the store still hold this teacher's labels of these images? Render, label again, compare."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.command.console import Console
from labelstore.encodings.fidelity import gift_fidelity
from labelstore.errors import InputError, MismatchError
from labelstore.operations.opening import open_store
from labelstore.spec import Json, first_difference, require_same
from labelstore.store import LabelStore
from pipeline.config import VerifyConfig, json_object
from pipeline.device.faults import device_faults
from pipeline.replay.alike import Alike, known_alike
from pipeline.replay.source import Replayer, check_pixels, open_source
from pipeline.teacher.engine.spec import MAX_RELATIVE_ERROR
from pipeline.teacher.imagenet import FOLDERS
from pipeline.teacher.labeller import NOT_KNOWN, Labeller, label_crops, load_labeller
from pipeline.teacher.teacher import Teacher, TeacherSpec, make_teacher, stored_members

MIN_FIDELITY = 0.99
# How a teacher is run of whose engine nothing is known.
PLAIN = {
    "dtype": "float32", "batch": 64, "threads": None, "channels_last": False, "folding": "none", "compile": "none"
}  # fmt: skip
MARGIN = 0.01  # by which the audit rows may fall below the fidelity of the many rows that the store has measured


@device_faults("the store is verified", "a smaller --cache-gib")
def verify(config: VerifyConfig, console: Console, labeller: Labeller | None = None) -> tuple[bool, Mapping[str, Json]]:
    """Whether the store holds within the stated bands, and the figures.

    Args:
        config: the flags.
        console: where the findings go.
        labeller: of the store, in the place of the teacher that ``config.weights`` belong to.

    Raises:
        MismatchError: when it is another labeller than the store's.
    """
    store = open_store(config.store, config.store_cache)
    source = open_source(
        store,
        config.images,
        **config.render.arguments,
        rehash=config.rehash,
        options=config.source,
    )
    with closing(source):
        return verify_source(source, config, console, labeller)


def verify_source(
    source: Replayer, config: VerifyConfig, console: Console, labeller: Labeller | None = None
) -> tuple[bool, Mapping[str, Json]]:
    """Compare pixels, then labels where there are weights."""
    try:
        pixels = check_pixels(source)
    except MismatchError as error:
        console.line(str(error))
        return False, {
            "ok": False,
            "labels_compared": False,
            "pixels_equal": False,
            "max_error": None,
            "fidelity": None,
        }
    values: dict[str, Json] = {
        "ok": True,
        "labels_compared": False,
        "labels_need": needed_for_labels(source.store),
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
    found = (
        f"{pixels.crops} stored crops rendered again, {how}" if pixels.crops else "no crops are stored: not compared"
    )
    console.line(f"pixels: {found}")
    if labeller is None and config.weights:
        labeller = teacher_of(source.store, config, console)
    if labeller is None and config.labeller:
        args = json_object("--labeller-args", config.labeller_args or "{}")
        identity = source.store.identity
        labeller = load_labeller(config.labeller, args, identity.size, identity.classes, identity.crop_columns)
    if labeller is not None:
        values |= {"labels_compared": True}
        require_same_labeller(source.store, labeller, console)
        values.update(compare_labels(source, labeller, console))
    return bool(values["ok"]), values


def needed_for_labels(store: LabelStore) -> str:
    """The inputs that `verify` needs to make the labels of a store again."""
    if is_not_known(store):
        return "a store that `giftwrap adopt --teacher` has made"
    return "--weights of its teacher" if is_of_networks(store) else f"--labeller of {labeller_name(store)}"


def is_not_known(store: LabelStore) -> bool:
    """Whether nothing but the normalisation is known of what made the labels."""
    return store.identity.require("teacher").get("name") == NOT_KNOWN


def is_of_networks(store: LabelStore) -> bool:
    """Whether one network or several made the labels, and no labeller of the user's own."""
    return not {"args", "members"}.isdisjoint(store.identity.require("teacher"))


def labeller_name(store: LabelStore) -> str:
    """The name of a store's labeller."""
    return repr(store.identity.require("teacher").get("name", ""))


def teacher_of(store: LabelStore, config: VerifyConfig, console: Console) -> Teacher:
    """The teacher that the store describes, with the given weights.

    Raises:
        InputError: when no networks made the labels, or the weights are not theirs.
    """
    if is_not_known(store):
        raise InputError(
            "--weights: expected a store whose teacher is known, found one that was adopted without it; adopt the "
            "labels into another store with --teacher and --weights, or leave --weights out and compare only pixels"
        )
    if not is_of_networks(store):
        raise InputError(
            f"--weights: expected a store that networks labelled, found one labelled by {labeller_name(store)}; give "
            f"--labeller"
        )
    stored: Any = store.identity.require("teacher")
    engine: Any = store.identity.engine or PLAIN
    spec = TeacherSpec(
        members=stored_members(
            stored,
            config.weights,
            config.weights_key,
            [json_object("--teacher-args", text) for text in config.teacher_args],
        ),
        classes=",".join(map(str, stored["columns"])) if stored["columns"] else None,
        class_columns=",".join(map(str, store.identity.class_columns)) or FOLDERS,
        mean=tuple(stored["mean"]),
        std=tuple(stored["std"]),
        dtype="float32" if engine["dtype"] == "tf32" and config.render.device == "cpu" else engine["dtype"],
        batch=engine["batch"],
        device=config.render.device,
        threads=config.render.threads or engine["threads"],
        channels_last=engine["channels_last"],
        fold=engine["folding"] != "none",
        compile="on" if engine["compile"] != "none" else "off",
        cuda_graph=engine.get("cuda_graph", False) and config.render.device.startswith("cuda"),
    )
    teacher = make_teacher(spec, size=store.identity.size, classes=store.identity.classes)
    console.report(teacher.notes, teacher.warnings)
    return teacher


def require_same_labeller(store: LabelStore, labeller: Labeller, console: Console) -> None:
    """Refuse a labeller that is not the store's; report where its engine differs.

    Raises:
        MismatchError: names the first difference.
    """
    identity = store.identity
    stored, ours = dict(identity.require("teacher")), dict(labeller.identity)
    require_same("teacher", stored, ours, f"give {needed_for_labels(store)}", flags={"weights": "--weights"})
    found = first_difference(dict(identity.engine), dict(labeller.engine)) if identity.engine else None
    if found:
        console.line(f"engine: differs from the store's in {found[0]}: {found[1]!r} there, {found[2]!r} here")


@dataclass(frozen=True, eq=False)
class AuditErrors:
    """The difference between a labeller's logits of the audit crops and the stored ones.

    Attributes:
        logits: the labeller's, float32 ``[a, C]``.
        maximum: the largest error.
        mean: the mean error.
        band: the largest error that another order of summation explains.
    """

    logits: npt.NDArray[np.float32]
    maximum: float
    mean: float
    band: float

    @property
    def within(self) -> bool:
        """Whether the errors lie within the band."""
        return self.maximum <= self.band


def audit_errors(store: LabelStore, labeller: Labeller, crops: Tensor) -> AuditErrors:
    """Label the audit crops, uint8 ``[a, S, S, 3]``, and compare with the stored float16 logits."""
    stored = store.audit().logits.astype(np.float32)
    logits = label_crops(labeller, crops, store.read(0, slice(len(stored))).rows)
    # equal up to float16 rounding on the engine of the store; another engine sums in another order
    errors = np.abs(logits - stored)
    engines = (store.identity.engine or labeller.engine, labeller.engine)
    share = max(MAX_RELATIVE_ERROR[str(engine["dtype"])] for engine in engines)
    return AuditErrors(logits, float(errors.max()), float(errors.mean()), share * float(np.abs(stored).max()))


def require_same_labels(source: Replayer, labeller: Labeller, console: Console) -> None:
    """Refuse to continue with a renderer and an engine that do not give the audit rows again.

    The crops are compared with the stored ones (P2's band), and the labels of the stored crops with the stored labels,
    so that one difference does not hide the other.

    Raises:
        MismatchError: names the difference.
    """
    pixels = check_pixels(source)
    errors = audit_errors(source.store, labeller, torch.from_numpy(source.store.audit().crops))
    if not errors.within:
        theirs = dict(source.store.identity.require("engine"))
        raise MismatchError(
            f"another engine gives other labels: expected errors of at most {errors.band:.2e} against the audit rows, "
            f"found {errors.maximum:.2e} (mean {errors.mean:.2e}); the store has {theirs}, "
            f"this run has {dict(labeller.engine)}; continue on the engine of the store, or make another --store"
        )
    console.line(
        f"another engine: pixels of {pixels.crops} stored crops differ by {pixels.max_difference} levels at most, "
        f"labels by {errors.maximum:.2e} (band {errors.band:.2e})"
    )


def labels_come_out_again(source: Replayer, labeller: Labeller) -> bool:
    """Whether a labeller reproduces the audit rows of a store bit for bit, in float16."""
    audit = source.store.audit()
    found = audit_errors(source.store, labeller, torch.from_numpy(audit.crops)).logits
    return np.array_equal(found.astype(np.float16), audit.logits)


def compare_labels(source: Replayer, labeller: Labeller, console: Console) -> dict[str, Json]:
    """The labeller's logits of the audit crops against the stored float16 logits and codes."""
    store = source.store
    count = len(store.audit().logits)
    errors = audit_errors(store, labeller, source.crops(0, 0, count))
    if store.identity.engine is None:
        return compare_elsewhere(store, errors, console)
    group = store.identity.group
    labels = store.read(0, slice(0, min(-(-count // group) * group, store.identity.images)))  # whole groups
    partners = labels.rows.partners(group)[:count] if labels.rows.mixed else np.arange(count)
    fidelity = gift_fidelity(
        errors.logits,
        labels.logits[:count],
        labels.targets[:count],
        labels.targets[partners],
        labels.rows.weights(store.identity.size)[:count],
    )
    equal = equal_codes(store, errors.logits, count)
    least = min(MIN_FIDELITY, expected_fidelity(store) - MARGIN)
    ok = errors.within and float(fidelity.mean()) >= least
    console.line(
        f"labels: largest error {errors.maximum:.2e} and mean {errors.mean:.2e} against {count} audit rows "
        f"(band {errors.band:.2e}), {100 * equal:.2f} % of codes equal, fidelity {fidelity.mean():.5f} "
        f"(at least {least:.5f})"
    )
    return {
        "ok": ok,
        "max_error": errors.maximum,
        "mean_error": errors.mean,
        "max_error_band": errors.band,
        "equal_codes": equal,
        "fidelity": float(fidelity.mean()),
    }


def compare_elsewhere(store: LabelStore, errors: AuditErrors, console: Console) -> dict[str, Json]:
    """A labeller's logits of the audit crops against labels that were made elsewhere."""
    theirs: Any = store.audit().logits.astype(np.float32)
    masked: Any = store.identity.encoding.get("masked")
    known = store.identity.content == "topk" and masked is not None
    alike = known_alike(theirs, errors.logits, masked) if known else Alike.of(theirs, errors.logits)
    console.line(f"labels: {alike.text}")
    return {
        "ok": alike.ok,
        "max_error": alike.largest,
        "mean_error": errors.mean,
        "max_error_band": None,
        "equal_codes": None,
        "fidelity": alike.cosine,
    }


def expected_fidelity(store: LabelStore) -> float:
    """The fidelity that remains after all conversions: 1 minus the loss of each encoding."""
    link: Any = {"fidelity": store.fidelity, **store.state.versions[0]}
    kept = 1.0
    while link:
        kept -= max((1 - kind["mean"] for kind in link["fidelity"].values() if kind), default=0.0)
        link = link.get("converted_from")
    return kept


def equal_codes(store: LabelStore, logits: npt.NDArray[np.float32], count: int) -> float:
    """Share of codes of the first rows of view 0 that encoding ``logits`` gives again."""
    stored = store.codes(0, slice(0, count))["labels"]
    codes = store.encoding.encode(logits, store.pairs(0, slice(0, count)))["labels"]
    return float(np.mean(codes == stored))
