"""`python -m labelstore info | check | push | ...`; what a command needs is imported when it runs."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly until a command runs

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from labelstore.command.commands import Command
from labelstore.command.program import require_ours, run_program

require_ours("labelstore")

from labelstore.command.console import Console, byte_count, quantity
from labelstore.errors import FormatError, InputError
from labelstore.export_table import EXPORTS, Exported, ExportOptions

if TYPE_CHECKING:
    from labelstore.command.export_config import ExportConfig
    from labelstore.config import CheckConfig, ConvertConfig, InfoConfig, PullConfig, PushConfig
    from labelstore.operations.repair import RepairReport
    from labelstore.operations.transfer import Transfer
    from labelstore.spec import Json
    from labelstore.store import LabelStore


def info_command(config: InfoConfig, console: Console) -> int:
    """Print the description of a store, a projector, a generator or a synthesised set."""
    from labelstore.durable.places import is_synthesised
    from labelstore.format.root import ROOT
    from labelstore.operations.generator import generator_info, generator_lines, is_generator
    from labelstore.operations.info import info, lines
    from labelstore.operations.projector import is_projector, projector_info, projector_lines
    from labelstore.operations.synthesised import set_info, set_lines
    from labelstore.store import LabelStore

    for is_one, found, shown, why in (
        (is_projector, projector_info, projector_lines, "is a projector, whose record has its encoder's"),
        (is_generator, generator_info, generator_lines, "is a generator, which has no teacher"),
        (is_synthesised, set_info, set_lines, "is an image set, which has no labels"),
    ):
        if is_one(config.store):
            if config.weights:
                raise InputError(f"--weights: {config.store} {why}; leave it out")
            values = found(config.store)
            console.summary(values, "\n".join(shown(values)))
            return 0
    if config.store.is_dir() and not (config.store / ROOT).exists():
        raise FormatError(
            f"{config.store}: expected a label store, a projector, a generator or an image set of synthesize, found "
            f"none of their files in it; `giftwrap report` also describes runs"
        )
    store = LabelStore.open(config.store)
    values = info(store, config.weights)
    warn_of_quality(store, console)
    console.summary(values, "\n".join(lines(values)))
    return 0


def warn_of_quality(store: LabelStore, console: Console) -> None:
    """Warn of each quality band that the labels of a store miss."""
    from labelstore.encodings.bands import missed

    for text in missed(store.identity.encoding, store.fidelity):
        console.warn(text)


def check_command(config: CheckConfig, console: Console) -> int:
    """Check a store, name what is damaged, and with --repair make it one that a build can finish."""
    from labelstore.operations.check import check
    from labelstore.operations.info import in_words
    from labelstore.operations.repair import repair

    with console.progress("blocks", 1, "blocks") as progress:
        if config.repair:
            repaired = repair(config.store, take_over=config.take_over, progress=progress.reach)
            report = repaired.before
        else:
            repaired, report = None, check(config.store, progress.reach)
    for damage in report.damaged:
        console.line(f"damaged: {damage.file}: {damage.why}")
    fate = "it is removed" if repaired else "the next build that needs its name replaces it"
    for path in report.unpublished:
        console.line(f"unpublished: {path} has no marker: no reader sees it, {fate}")
    for path in report.stray:
        console.warn(f"{path} does not belong to the store and is left alone; a build that needs its name is refused")
    values: dict[str, Json] = {
        "ok": report.ok,
        "damaged": [f"{damage.file}: {damage.why}" for damage in report.damaged],
        "damaged_blocks": [str(block) for block in report.blocks],
        "unpublished": list(report.unpublished),
        "stray": list(report.stray),
        "missing_blocks": report.missing,
        "files": report.files,
        "bytes": report.bytes,
        "fidelity": report.fidelity,
    }
    found = "all checksums match" if report.ok else f"{len(report.damaged)} DAMAGED"
    if report.missing:
        found += f"; {report.missing:,} of the requested blocks are not written yet"
    text = f"{config.store}: {quantity(report.files, 'file')}, {byte_count(report.bytes)} read; {found}"
    if report.fidelity:
        text += f"; fidelity {in_words(report.fidelity)}"
    if repaired is None:
        advice = "" if report.ok else "; run it again with --repair, then the build that made the store"
        if any(damage.part == "root" for damage in report.damaged):
            advice = "; nothing can be repaired without it"
        console.summary(values, text + advice)
        return 0 if report.ok else 1
    values |= {
        "made_again": list(repaired.made_again),
        "removed_blocks": [str(block) for block in repaired.removed],
        "removed_calibration": repaired.calibration,
        "unsealed_views": repaired.unsealed,
        "needs_build": repaired.needs_build,
        "left": list(repaired.left),
    }
    console.summary(values, "\n".join([text, *repair_lines(repaired)]))
    return 1 if repaired.left else 0


def repair_lines(repaired: RepairReport) -> list[str]:
    """The result of a repair, and the next step."""
    lines = []
    if repaired.made_again:
        lines.append(f"made again: {', '.join(repaired.made_again)}")
    if repaired.removed:
        lines.append(f"removed what is damaged, blocks {', '.join(map(str, repaired.removed))}")
    if repaired.calibration:
        lines.append("removed the damaged calibration; a build makes it again, and refuses if its bytes are others")
    if repaired.unsealed:
        lines.append(f"{quantity(repaired.unsealed, 'view')} not sealed until that is filled")
    if repaired.needs_build:
        lines.append(f"run the `{repaired.maker}` that made the store: it fills what is missing, and nothing else")
    lines += [
        f"{file}: depends only on the images; restore it from a copy of the store, or from a new store of the same "
        f"images (`giftwrap build` with --views 1 and another --store)"
        for file in repaired.left
    ]
    return lines


def convert_command(config: ConvertConfig, console: Console) -> int:
    """Convert a store and print the size and quality of its labels."""
    from labelstore.encodings.bands import missed
    from labelstore.operations.convert import convert
    from labelstore.operations.info import in_words
    from labelstore.operations.opening import open_store

    source = open_store(config.source, config.store_cache)
    with console.progress("blocks", 1, "blocks") as progress:
        store = convert(
            source,
            config.destination,
            config.codes.parameters(config.encoding),
            views=config.views,
            take_over=config.take_over,
            progress=progress.reach,
        )
    warn_of_quality(store, console)
    before, after = source.bytes_per_label(), store.bytes_per_label()
    console.summary(
        {
            "store": str(config.destination),
            "images": store.identity.images,
            "views": store.state.views_sealed,
            "complete": store.complete,
            "bytes_per_label": dict(after),
            "bytes_per_label_before": dict(before),
            "fidelity": store.fidelity,
            "missed": [*missed(store.identity.encoding, store.fidelity)],
            "converted_from": store.state.versions[0].get("converted_from"),
        },
        f"{config.destination}: {quantity(store.identity.images, 'image')} x "
        f"{quantity(store.state.views_sealed, 'view')} sealed; "
        f"{sum(after.values()):.1f} B a label instead of {sum(before.values()):.1f}; against the labels of "
        f"{config.source}, fidelity {in_words(store.fidelity)}",
    )
    return 0


def export_command(config: ExportConfig, console: Console) -> int:
    """Export labels and print what was written."""
    from labelstore.durable.places import require_apart
    from labelstore.operations.opening import open_store

    require_apart({"--cache-dir": config.store_cache.cache_dir}, {})
    softmax = 1.0 if config.temperature is None else config.temperature
    temperature = softmax if config.probabilities else None
    store = open_store(config.store, config.store_cache)
    if config.views is not None and config.views > store.views:
        raise InputError(f"--views {config.views}: expected at most the {store.views:,} sealed views of {config.store}")
    with console.progress("views", 1, "views") as progress:
        options = ExportOptions(
            views=config.view if config.views is None else range(config.views),
            order=config.order,
            temperature=temperature,
            images=config.images,
            batch_size=config.batch_size,
            progress=progress.reach,
        )
        made: Exported = EXPORTS[config.format](store, config.out, options)
    content = "logits" if temperature is None else f"probabilities at temperature {temperature:g}"
    values: dict[str, Json] = {
        "out": str(config.out),
        "format": config.format,
        "shape": list(made.shape),
        "dtype": "float16",
        "content": content,
        "order": config.order,
        "bytes": made.size,
    }
    if made.beside:
        values["beside"] = str(made.beside)
    console.summary(
        values,
        f"{config.out}: {content} of {list(made.shape)}, float16, {byte_count(made.size)}; {made.words}"
        + (f"; their order is in {made.beside}" if made.beside else ""),
    )
    return 0


def push_command(config: PushConfig, console: Console) -> int:
    """Copy a store to a bucket."""
    from labelstore.operations.transfer import push

    with console.progress("files", 1, "files") as progress:
        found = push(config.store, config.address, progress.reach)
    tell_copied(found, config.address, console)
    return 0


def pull_command(config: PullConfig, console: Console) -> int:
    """Copy a store from an address."""
    from labelstore.operations.transfer import pull

    with console.progress("files", 1, "files") as progress:
        found = pull(config.address, config.store, progress.reach)
    tell_copied(found, config.store, console)
    return 0


def tell_copied(found: Transfer, place: Path, console: Console) -> None:
    """Print what was copied to a place."""
    state = found.store.state
    values: dict[str, Json] = {
        "to": str(place),
        "views": state.views_sealed,
        "files": found.files,
        "copied": found.copied,
        "bytes": found.bytes,
    }
    already = f"; {found.files - found.copied:,} were there" if found.copied < found.files else ""
    console.summary(
        values,
        f"{place}: {quantity(state.views_sealed, 'sealed view')}; {found.copied:,} of {quantity(found.files, 'file')} "
        f"copied, "
        f"{byte_count(found.bytes)}{already}",
    )


COMMANDS = {
    "info": Command(
        "Print the description and the size of a store, a projector, a generator or a synthesised image set.",
        "labelstore.config:InfoConfig",
        info_command,
        examples=("labels", "labels --weights w.safetensors --json", "set"),
    ),
    "check": Command(
        "Compare every byte of a store with its checksum; --repair mends what can be mended.",
        "labelstore.config:CheckConfig",
        check_command,
        examples=("labels", "labels --repair"),
    ),
    "convert": Command(
        "Make a store of another encoding from the labels of a store, without its teacher.",
        "labelstore.config:ConvertConfig",
        convert_command,
        more="The same command continues a stopped conversion, and converts views that were added since.",
        resumes=True,
        examples=("labels small --encoding transform", "labels small --encoding transform --fidelity 0.99"),
    ),
    "push": Command(
        "Copy the finished views of a store to a bucket.",
        "labelstore.config:PushConfig",
        push_command,
        more="The same command continues a stopped copy, and adds views that were finished since. Nothing is deleted.",
        resumes=True,
        examples=("labels s3://bucket/labels", "labels gs://bucket/labels"),
    ),
    "pull": Command(
        "Copy the finished views of a store at an address to a folder.",
        "labelstore.config:PullConfig",
        pull_command,
        more="The same command continues a stopped copy, and adds views that were finished since. Nothing is deleted.",
        resumes=True,
        examples=("s3://bucket/labels labels", "hf://datasets/owner/name/labels labels"),
    ),
    "export": Command(
        "Write labels for other tools: one .npy file, a Parquet file with a row for each crop, or SRe2L's files.",
        "labelstore.command.export_config:ExportConfig",
        export_command,
        examples=("labels logits.npy --view 0", "labels labels.parquet --format parquet --probabilities"),
    ),
}


def main() -> int:
    """Run the command that the arguments name."""
    return run_program(
        "python -m labelstore",
        "Look at a label store, convert it, export its labels.",
        COMMANDS,
        start=(sys.executable, "-m", "labelstore"),
    )


if __name__ == "__main__":
    sys.exit(main())
