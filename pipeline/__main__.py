"""`python -m pipeline build | adopt | verify | show | import | synthesize | text-embeddings`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly until a command runs

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labelstore.command.commands import Command
from labelstore.command.console import Console, byte_count, duration, quantity
from labelstore.command.program import require_ours, run_program
from labelstore.errors import InputError
from labelstore.export_table import EXPORTS

require_ours("pipeline")
EXPORTS["fkd"] = "pipeline.exporting.fkd:export_fkd"

from pipeline.launch.launching import launched
from pipeline.launch.place import start_of

if TYPE_CHECKING:
    from pipeline.adopt.config import AdoptConfig
    from pipeline.config import BuildConfig, ShowConfig, VerifyConfig
    from pipeline.importing.config import ImportConfig, TextConfig
    from pipeline.synthesis.config import SynthesizeConfig


def typed_build(words: Sequence[str]) -> Sequence[str]:
    """The words of `build` with those of its recipe."""
    if not any(word.startswith("--recipe") for word in words):
        return words
    from pipeline.build import recipe

    return recipe.typed(words)


def build_command(config: BuildConfig, console: Console) -> int:
    """Build a store and print what it holds."""
    from pipeline.config import require_labels

    require_labels(config.teacher)
    from pipeline.build.build import build

    done = build(config, console)
    if config.dry_run or not done:
        return 0
    console.summary(done, summarise(done))
    return 0


def summarise(done: Mapping[str, Any]) -> str:
    """The summary of a build for people."""
    from labelstore.encodings.fidelity import beside
    from labelstore.operations.info import parts_of

    sizes = done["bytes_per_label"]
    fidelity = "; ".join(
        f"{kind} {values['mean']:.5f}{beside(values)}"
        for kind, values in done["fidelity"].items()
        if values is not None
    )
    return (
        f"store {done['store']}: {quantity(done['images'], 'image')} x {quantity(done['views'], 'view')} sealed; "
        f"{quantity(done['crops'], 'crop')} labelled in {duration(done['seconds'])}; "
        f"{sum(sizes.values()):.1f} B a label ({parts_of(sizes)}); fidelity {fidelity}"
    )


def adopt_command(config: AdoptConfig, console: Console) -> int:
    """Adopt labels and print what the store holds."""
    from pipeline.adopt.adopting import adopt

    done = adopt(config, console)
    if config.dry_run:
        return 0
    console.summary(done, adopted(done))
    return 0


def adopted(done: Mapping[str, Any]) -> str:
    """The summary of adopted labels for people."""
    from labelstore.operations.info import parts_of

    sizes, views = done["bytes_per_label"], done["views"]
    return (
        f"store {done['store']}: {quantity(done['images'], 'image')} x {quantity(views, 'view')} sealed, adopted; "
        f"{quantity(done['labels'], 'label')} written, {sum(sizes.values()):.1f} B a label ({parts_of(sizes)})"
    )


def verify_command(config: VerifyConfig, console: Console) -> int:
    """Verify a store and print whether its labels are reproduced."""
    from pipeline.replay.verify import verify

    ok, values = verify(config, console)
    console.summary(values, f"{config.store}: {verdict(ok, values)}")
    return 0 if ok else 1


def verdict(ok: bool, values: Mapping[str, Any]) -> str:
    """What was verified."""
    if not ok:
        return "NOT verified: the labels are not those"
    if not values["labels_compared"]:
        return f"pixels verified; labels were not compared, which needs {values['labels_need']}"
    return "verified"


def import_command(config: ImportConfig, console: Console) -> int:
    """Import images, and print how many; of a tensor file how much was rounded."""
    from labelstore.storage_table import scheme_of
    from pipeline.images.opening import recognised
    from pipeline.images.source_table import CLASS_FOLDER

    kind = config.source.images_format or recognised(config.data)
    there = config.data.is_dir() or scheme_of(config.data)
    if kind == "tensors" or (kind == CLASS_FOLDER and not there):
        return import_tensor_file(config, console)
    from pipeline.importing.copying import copy_images

    if config.of_tensors:
        raise InputError(f"{config.of_tensors[0]}: belongs to tensor files, and {config.data} is none; leave it out")
    with console.progress("images", 1, "images") as progress:
        report = copy_images(config, progress.reach)
    console.report(report.notes)
    shards = quantity(report.shards, "shard")
    where = f"{shards} in {config.out}" if report.shards else config.out
    console.summary(
        {"out": str(config.out), "images": report.images, "classes": report.classes, "shards": report.shards},
        f"{quantity(report.images, 'image')} in {quantity(report.classes, 'class')} written to {where}, byte for byte",
    )
    return 0


def import_tensor_file(config: ImportConfig, console: Console) -> int:
    """Import a tensor file and print how much was rounded."""
    from pipeline.images.class_names import entries
    from pipeline.importing.importing import import_tensors

    if config.shards or config.shard_mib:
        raise InputError(
            f"--shards, --shard-mib: {config.data} is a tensor file: import it as a class folder, then that folder as "
            f"shards"
        )
    names = config.source.class_names
    with console.progress("images", 1, "images") as progress:
        report = import_tensors(
            config.data,
            config.out,
            mean=config.mean,
            std=config.std,
            normalise=config.normalise,
            labels=config.labels,
            argmax=config.argmax,
            index=config.index,
            class_names=None if names is None else entries(names, (), "--class-names"),
            progress=progress.reach,
        )
    console.report(report.notes)
    if report.clipped_share > 0.01:
        console.warn("more than 1 % of the values lie outside of 0 to 255: --mean and --std may be others")
    console.summary(
        {
            "out": str(config.out),
            "images": report.images,
            "classes": report.classes,
            "max_rounding_error": report.max_rounding_error,
            "mean_rounding_error": report.mean_rounding_error,
            "clipped_share": report.clipped_share,
            "max_clipped": report.max_clipped,
            "mean_clipped": report.mean_clipped,
        },
        f"{quantity(report.images, 'image')} in {quantity(report.classes, 'class')} written to {config.out}; rounded "
        f"to 8 bits: by "
        f"{report.max_rounding_error:.4f} levels at most, {report.mean_rounding_error:.4f} on average; "
        f"{100 * report.clipped_share:.4f} % of values clipped, by {report.max_clipped:.1f} levels at most, "
        f"{report.mean_clipped:.1f} on average",
    )
    return 0


def show_command(config: ShowConfig, console: Console) -> int:
    """Draw a contact sheet and print how many crops, or images, it shows."""
    if config.store is None:
        from pipeline.replay.folder import draw_folder

        count = draw_folder(
            config.images,
            config.out,
            start=config.start,
            count=config.count,
            columns=config.columns,
            render=config.render,
            options=config.source,
            console=console,
        )
        console.summary({"out": str(config.out), "images": count}, f"{quantity(count, 'image')} drawn to {config.out}")
        return 0
    from pipeline.replay.show import show

    count = show(config)
    console.summary({"out": str(config.out), "crops": count}, f"{quantity(count, 'crop')} drawn to {config.out}")
    return 0


def synthesize_command(config: SynthesizeConfig, console: Console) -> int:
    """Make an image set, or check one, and print what it holds."""
    if config.check:
        from pipeline.synthesis.checking import check, verdict_of

        found = check(config, console)
        console.summary(found, verdict_of(found))
        return 0 if found["ok"] else 1
    from pipeline.synthesis.synthesize import synthesize

    done = synthesize(config, console)
    if done:
        console.summary(done, synthesised(done))
    return 0


def synthesised(done: Mapping[str, Any]) -> str:
    """The summary of a synthesis for people."""
    from pipeline.synthesis.looking import in_words

    fewer = f", fewer than --ipc in {len(done['fewer']):,} of them" if done["fewer"] else ""
    size = byte_count(done["bytes"])
    teacher = f"; {in_words(done['teacher'])}" if "teacher" in done else ""
    if done["found"]:
        there = f"{quantity(done['images'], 'image')} in {quantity(done['classes'], 'class')}, {size}"
        return f"{done['out']}: is there already, {there}{teacher}"
    return (
        f"{done['out']}: {quantity(done['images'], 'image')} in {quantity(done['classes'], 'class')}{fewer}, "
        f"{done['made']:,} made now in {duration(done['seconds'])}; {size}{teacher}"
    )


def text_command(config: TextConfig, console: Console) -> int:
    """Make text embeddings and print their shape."""
    from pipeline.importing.text import text_embeddings

    classes, width = text_embeddings(config)
    console.summary(
        {"out": str(config.out), "classes": classes, "width": width, "templates": len(config.template)},
        f"text embeddings of {quantity(classes, 'class')}, {width:,} numbers each, written to {config.out}",
    )
    return 0


COMMANDS = {
    "build": Command(
        "Make a label store: a teacher labels augmented crops of images.",
        "pipeline.config:BuildConfig",
        launched(build_command),
        more="The same command continues a stopped build; a larger --views extends a finished store. A view is one "
        "crop of every image, so that --views is the number of labels of each image. The engine (device, precision, "
        "batch, threads, compilation) affects the last bits of labels: it is recorded, and a store is continued on the "
        "same engine.",
        resumes=True,
        typed=typed_build,
        short={"--log": "--progress-log"},
        examples=(
            "--images train --teacher convnet-d3 --weights w.safetensors --size 32 --views 300 --store labels",
            "--config build.toml --store labels --views 600",
        ),
    ),
    "adopt": Command(
        "Make a label store of existing labels, in the files that SRe2L, G-VBSM, EDC, CV-DD or FKD write.",
        "pipeline.adopt.config:AdoptConfig",
        adopt_command,
        more="The same command continues a stopped one; a larger --views extends a finished store.",
        resumes=True,
        examples=(
            "FKD_soft_label --images train --size 224 --store labels",
            "FKD_soft_label --images train --size 224 --views 100 --store labels",
        ),
    ),
    "verify": Command(
        "Render stored crops again, run the teacher on them, and compare both with the store.",
        "pipeline.config:VerifyConfig",
        verify_command,
        more="Takes one store; verify the stores of a training from several one by one.",
        examples=(
            "--store labels --images train",
            "--store labels --images train --weights w.safetensors --device cuda",
        ),
    ),
    "show": Command(
        "Draw a contact sheet (PNG): stored crops with their class, the teacher's top 3 and its confidence; or images.",
        "pipeline.config:ShowConfig",
        show_command,
        more="Without a store, the images of a set are drawn, with their classes.",
        examples=(
            "--store labels --images train --out sheet.png",
            "--store labels --images train --out sheet.png --view 3 --count 64",
            "set --out sheet.png",
        ),
    ),
    "import": Command(
        "Copy images from any container to a class folder or tar shards; write the images of a tensor file as 8-bit "
        "PNG.",
        "pipeline.importing.config:ImportConfig",
        import_command,
        more="The same command continues a stopped one.",
        examples=(
            "data.pt --out train",
            "data.pt --out train --mean 0.4914 0.4822 0.4465 --std 0.2023 0.1994 0.201",
            "train --out shards --shards 100",
        ),
    ),
    "synthesize": Command(
        "Make a small image set from a large one: a class folder with a record of the pieces of each image.",
        "pipeline.synthesis.config:SynthesizeConfig",
        launched(synthesize_command),
        more="The same command continues a stopped one, to the same files. Flags whose help begins with the name of a "
        "method belong to that method only.",
        resumes=True,
        examples=(
            "random --images train --ipc 10 --out set",
            "rded --images train --teacher torchvision:resnet18 --weights w.safetensors --size 224 --ipc 10 --out set",
            "--check set --images train",
        ),
    ),
    "text-embeddings": Command(
        "Make text embeddings of class names [C, d], which the head of a projector can start from; needs the extra "
        "`clip`.",
        "pipeline.importing.config:TextConfig",
        text_command,
        more="Prompts of several templates are averaged: of each the embedding has length 1, and so has the mean.",
        examples=(
            "--model open_clip:RN50/openai --classes train --out text.npy",
            "--model open_clip:RN50/openai --classes names.txt --template 'a {}.' 'one {}.' --out text.safetensors",
        ),
    ),
}


def main() -> int:
    """Run the command that the arguments name."""
    return run_program("python -m pipeline", "Images in, labels out.", COMMANDS, start=start_of("pipeline"))


if __name__ == "__main__":
    sys.exit(main())
