"""The card of a store: what it is made of, what it takes, and what its labels are like."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labelstore.command.console import byte_count, quantity
from labelstore.encodings.bands import missed
from labelstore.errors import NotStoredError
from labelstore.operations.info import info
from labelstore.operations.synthesised import made_by
from labelstore.storage_table import without_credentials
from labelstore.store import LabelStore
from pipeline.teacher.column_names import class_title, column_titles, title_of
from pipeline.teacher.labeller import NOT_KNOWN
from trainer.report.labels import Looked, by_class, choices_by_class, confusions, look, look_at_store
from trainer.report.page import (
    Bar,
    BarPlot,
    Card,
    Cell,
    Column,
    Counts,
    Facts,
    Folded,
    Histogram,
    Item,
    Matrix,
    Plot,
    Plots,
    Shares,
    Sheet,
    Table,
    Text,
    Tile,
)

BINS = 20
FEW = 12  # classes whose confusions are a matrix
BARS = 20  # classes with a bar each
PAIRS = 12  # of classes that are confused
DIGEST = 12  # characters of a digest
RIGHT, WRONG = 2, 1  # styles
CHOICES = 3
LEAST_SHOWN = 0.005  # probability of a choice that is named


def store_card(path: Path, tiles: int) -> Card:
    """The card of a store, with about as many crops on its sheet as ``tiles``."""
    store = LabelStore.open(path)
    values: Mapping[str, Any] = info(store)
    looked = look_at_store(store)
    items: list[Item] = [Facts(facts(values)), *warnings(store, values)]
    if store.begun:
        items += [bytes_by_part(values), *_quality(values)]
    items += list(_sheet(store, tiles))
    if looked is None:
        items.append(Text("No view is sealed, so that there are no labels to look at.", "note"))
    else:
        items += of_labels(store, looked, values)
    return Card(without_credentials(str(path)), "store", subtitle(values), items)


def subtitle(values: Mapping[str, Any]) -> str:
    """What a store is, in a sentence."""
    labels = values["images"] * values["views"]
    return (
        f"{quantity(labels, 'label')} of {quantity(values['columns'], 'column')}: "
        f"{quantity(values['images'], 'image')} in "
        f"{quantity(values['classes'], 'class')}, {quantity(values['views'], 'view')} of each, crops of "
        f"{values['size']} px, labelled by "
        f"{teacher_of(values['teacher'])}."
    )


def teacher_of(teacher: Mapping[str, Any] | None) -> str:
    """What made labels, in words."""
    if teacher is None or teacher.get("name") == NOT_KNOWN:
        return "a teacher that is not known"
    members = teacher.get("members")
    if isinstance(members, list) and members:
        names = [str(each.get("name", "unknown")) for each in members if isinstance(each, dict)]
        kinds = ", ".join(dict.fromkeys(names))
        return f"an ensemble of {len(names)} ({kinds})"
    return str(teacher.get("name", "a labeller"))


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The identity of a store in words."""
    plan, teacher, engine = (values[name] or {} for name in ("plan", "teacher", "engine"))
    wide, size = values["as_float16"], values["bytes_per_label"]
    encoding = values["encoding"]["name"]
    versions = engine.get("versions") or {}
    found = {
        "complete": "yes: all requested views are sealed"
        if values["complete"]
        else f"no: {values['views']:,} of {values['views_target']:,} views are sealed, "
        f"{quantity(values['missing_blocks'], 'block')} missing",
        "crops": crops_in_words(plan) if plan else "made elsewhere, by a plan that is not known",
        "encoding": f"{encoding}, codec {values['codec']}",
        "bytes a label": f"{sum(size.values()):.1f}"
        + (
            f" (labels in float16 take {wide['ratio']:g} times as many)"
            if wide["ratio"] and encoding != "float16"
            else ""
        ),
        "teacher": ", ".join(
            part
            for part in (
                teacher_of(values["teacher"]),
                f"weights {str(teacher['weights'])[:DIGEST]}" if teacher.get("weights") else "",
                f"input {teacher['size']} px" if teacher.get("size") else "",
            )
            if part
        ),
        "labelled on": ", ".join(
            filter(
                None,
                [
                    str(engine.get("device", "")),
                    str(engine.get("dtype", "")),
                    f"torch {versions['torch']}" if "torch" in versions else "",
                ],
            )
        ),
        "image set": made_by(made) if isinstance(made := values["notes"].get("synthesis"), dict) else "",
        "images": f"digest {str(values['manifest'])[:DIGEST]}"
        + (f", {len(values['skipped']):,} broken ones left out" if values["skipped"] else ""),
        "converted from": values["converted_from"]["encoding"]["name"] if values["converted_from"] else "",
        "seed": "" if values["seed"] is None else str(values["seed"]),
        "format": f"{values['format']}" + (", labels made elsewhere" if values["origin"] == "adopted" else ""),
    }
    return [(name, text) for name, text in found.items() if text]


def crops_in_words(plan: Mapping[str, Any]) -> str:
    """How crops are drawn."""
    kind = str(plan.get("crop", "random"))
    parts = [f"factor {plan['factor']}" if kind == "factor" and "factor" in plan else kind]
    if plan.get("scale"):
        parts.append("{:g} to {:g} of the area".format(*plan["scale"]))
    if plan.get("flip"):
        parts.append(f"flipped with probability {plan['flip']:g}")
    if plan.get("mix") not in (None, "none"):
        parts.append(str(plan["mix"]))
    parts += [str(each) for each in plan.get("augment") or ()]
    return ", ".join(parts)


def warnings(store: LabelStore, values: Mapping[str, Any]) -> list[Item]:
    """What a reader must know first."""
    found: list[Item] = [Text(text, "warning") for text in missed(store.identity.encoding, store.fidelity)]
    if not values["complete"]:
        text = f"Not complete: {values['views']:,} of {values['views_target']:,} requested views can be read."
        found.append(Text(text, "warning"))
    if store.identity.content == "topk":
        found.append(Text("Of each label only the largest columns are known; the others count as impossible.", "note"))
    return found


def bytes_by_part(values: Mapping[str, Any]) -> Shares:
    """Bytes a label, by part."""
    names = {"labels": "labels", "columns": "what made each crop", "side": "scales and calibration"}
    count = values["images"] * values["views"]
    parts = [
        (name, each, f"{each:.1f} B a label, {byte_count(round(each * count))}")
        for key, name in names.items()
        if (each := values["bytes_per_label"][key])
    ]
    return Shares("Bytes by part", parts)


def _quality(values: Mapping[str, Any]) -> list[Item]:
    """What the encoding keeps, where that was measured."""
    kinds = {kind: found for kind, found in (values["fidelity"] or {}).items() if found}
    if not kinds:
        return []
    columns = [
        Column("crops"),
        Column("fidelity", True, "cosine between the GIFT targets of the exact and of the decoded label"),
        Column("1st percentile", True),
        Column("KL, T = 1", True, "divergence of the decoded label from the exact one, in nats"),
        Column("KL, T = 20", True),
        Column("top-1 agreement, %", True),
        Column("measured on", True),
    ]
    rows = [
        [
            Cell(kind),
            Cell.number(found["mean"], 6),
            Cell.number(found["p1"], 6),
            *(Cell(f"{found[key]:.3g}", found[key]) if key in found else Cell("-") for key in ("kl_1", "kl_20")),
            Cell.number(100 * found["top1"], 2) if "top1" in found else Cell("-"),
            Cell(f"{found['rows']:,} labels", found["rows"]),
        ]
        for kind, found in kinds.items()
    ]
    return [Table(columns, rows, "What the encoding keeps of the teacher's labels")]


def _sheet(store: LabelStore, tiles: int) -> Iterator[Item]:
    """Crops that the store keeps whole, with what their labels choose; or why there are none."""
    try:
        audit = store.audit()
        count, group = len(audit.crops), store.identity.group
        batch = store.read(0, slice(0, count))
        whole = store.rows(0, slice(0, min(-(-count // group) * group, store.identity.images)))
        targets = store.target_columns[whole.image]
        mates = targets[whole.partners(group)] if whole.mixed else targets
    except NotStoredError:
        yield Text("No contact sheet: the store's first crops are not written yet, or were removed.", "note")
        return
    looked = look(batch.logits, batch.targets, mates[:count], whole.weights(store.identity.size)[:count])
    chosen = spread(batch.targets, tiles)
    names = column_titles(store.identity)
    shown = [
        Tile(
            audit.crops[row],
            _targets(names, batch.targets[row], mates[row]),
            _choices(names, batch.logits[row]),
            bool(looked.right[row]),
        )
        for row in chosen
    ]
    yield Sheet(
        shown,
        f"Crops of view 0 as students see them, with their targets and the teacher's first {CHOICES} choices (softmax "
        f"at temperature 1). ✓: the first choice is the target; ✗: it is not.",
    )


def spread(targets: np.ndarray[Any, np.dtype[np.int64]], count: int) -> list[int]:
    """At most ``count`` rows: the first of each target before the second of any, then by target."""
    seen: dict[int, int] = {}
    turns = []
    for row, target in enumerate(targets.tolist()):
        turns.append((seen.get(target, 0), target, row))
        seen[target] = seen.get(target, 0) + 1
    return [row for _, _, row in sorted(sorted(turns)[:count], key=lambda turn: (turn[1], turn[0]))]


def _targets(names: dict[int, str], own: int, mate: int) -> str:
    """The targets of a crop in words."""
    return " + ".join(dict.fromkeys(title_of(names, int(column)) for column in (own, mate)))


def _choices(names: dict[int, str], logits: np.ndarray[Any, np.dtype[np.float32]]) -> list[str]:
    """The first choices of a label, in words."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    shares = shifted / shifted.sum()
    best = np.argsort(-shares, kind="stable")[:CHOICES].tolist()
    best = [column for column in best if shares[column] >= LEAST_SHOWN] or best[:1]
    return [f"{title_of(names, column)} {100 * shares[column]:.0f} %" for column in best]


def of_labels(store: LabelStore, looked: Looked, values: Mapping[str, Any]) -> list[Item]:
    """What the labels are like."""
    columns, titles = store.identity.label_columns, [class_title(name) for name in store.identity.classes]
    every = values["images"] * values["views"]
    which = "All" if len(looked) == every else f"{len(looked):,} of"
    mixed = (
        " A mixed crop counts as right where the first choice is one of its two targets."
        if "partner" in store.identity.crop_columns
        else ""
    )
    found: list[Item] = [
        Text(
            f"{which} {every:,} labels were looked at: the first choice of {values['columns']:,} columns is the target "
            f"for {100 * looked.right.mean():.2f} % of them (chance {100 / values['columns']:.2f} %), with a mean "
            f"confidence of {looked.confidences.mean():.3f} and a mean entropy of {looked.entropies.mean():.3f} nats "
            f"(at most {math.log(values['columns']):.3f}).{mixed}"
        ),
        Plots([_confidences(looked), _entropies(looked, values["columns"])]),
    ]
    counts, right = by_class(looked, columns)
    plots, table = agreement_by_class(titles, counts.tolist(), right.tolist(), chance=100 / values["columns"])
    pairs = confusions(looked)
    if pairs and 1 < len(titles) <= FEW:
        plots.append(_matrix(looked, columns, titles))
    found.append(Plots(plots))
    if not pairs:
        found.append(Text("No first choice is another class than the target."))
    elif len(titles) > FEW:
        found.append(_confused(pairs, column_titles(store.identity), dict(zip(columns, counts.tolist(), strict=True))))
    return [*found, table]


def _confidences(looked: Looked) -> Histogram:
    """How sure the labels are, right and wrong ones apart."""
    edges = np.linspace(0, 1, BINS + 1)
    return Histogram(
        "Confidence: the probability of the first choice",
        "probability",
        "crops",
        edges.tolist(),
        _right_and_wrong(looked, looked.confidences, edges),
    )


def _entropies(looked: Looked, columns: int) -> Histogram:
    """The entropies of labels, right and wrong ones apart."""
    edges = np.linspace(0, max(math.log(columns), 1e-3), BINS + 1)
    return Histogram(
        "Entropy of the labels", "nats", "crops", edges.tolist(), _right_and_wrong(looked, looked.entropies, edges)
    )


def _right_and_wrong(
    looked: Looked, numbers: np.ndarray[Any, np.dtype[np.float64]], edges: np.ndarray[Any, np.dtype[np.float64]]
) -> list[Counts]:
    """Counts of numbers between edges, of right and of wrong labels."""
    inside = np.clip(numbers, edges[0], edges[-1])
    return [
        Counts(name, np.histogram(inside[chosen], edges)[0].tolist(), style)
        for name, chosen, style in (("right", looked.right, RIGHT), ("wrong", ~looked.right, WRONG))
    ]


def agreement_by_class(
    titles: Sequence[str], counts: Sequence[int], right: Sequence[int], chance: float
) -> tuple[list[Plot], Folded]:
    """How often the first choice is the target, by class: bars of the lowest, or of all that are few; and a table."""
    shares = [
        (100 * ok / count, name, ok, count) for name, ok, count in zip(titles, right, counts, strict=True) if count
    ]
    few = len(shares) <= BARS
    lowest = shares if few else sorted(shares)[:BARS]
    title = "Agreement with the target, by class" + ("" if few else f": the {BARS} lowest")
    bars = [Bar(name, share, f"{share:.1f} %") for share, name, _, _ in lowest]
    plots: list[Plot] = [BarPlot(title, bars, 100.0, chance, f"chance, {chance:.3g} %")]
    if not few:
        edges = np.linspace(0, 100, BINS + 1)
        found = np.histogram([share for share, *_ in shares], edges)[0].tolist()
        plots.append(Histogram("Agreement, all classes", "%", "classes", edges.tolist(), [Counts("", found)]))
    columns = [Column("class"), Column("crops", True), Column("right", True), Column("agreement, %", True)]
    rows = [
        [Cell(name), Cell(f"{count:,}", count), Cell(f"{ok:,}", ok), Cell.number(share)]
        for share, name, ok, count in shares
    ]
    return plots, Folded(f"Agreement of all {len(shares):,} classes", [Table(columns, rows)])


def _matrix(looked: Looked, columns: Sequence[int], titles: Sequence[str]) -> Matrix:
    """What the classes are taken for, where they are few."""
    shares = choices_by_class(looked, columns)
    texts = [[f"{100 * share:.0f}" if share >= LEAST_SHOWN else "" for share in row] for row in shares.tolist()]
    title = "What the teacher takes each class for, % of its crops"
    return Matrix(title, "target", "first choice", titles, shares.tolist(), texts)


def _confused(pairs: Sequence[tuple[int, int, int]], names: dict[int, str], counts: Mapping[int, int]) -> Table:
    """Which classes are most often taken for which others."""
    rows = [
        [
            Cell(title_of(names, target)),
            Cell(title_of(names, choice)),
            Cell(f"{count:,}", count),
            Cell.number(100 * count / max(counts.get(target, 0), 1), 1),
        ]
        for target, choice, count in pairs[:PAIRS]
    ]
    columns = [Column("class"), Column("taken for"), Column("crops", True), Column("% of the class", True)]
    return Table(columns, rows, f"The {len(rows)} most frequent confusions of {len(pairs):,}")
