"""`python -m trainer train | train-projector | evaluate | compare | plot | report | sweep`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly until a command runs

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from labelstore.command.commands import Command
from labelstore.command.console import Console, quantity
from labelstore.command.program import require_ours, run_program
from labelstore.errors import InputError

require_ours("trainer", "pipeline")

from pipeline.launch.launching import launched
from pipeline.launch.place import start_of

if TYPE_CHECKING:
    from trainer.config import TrainConfig
    from trainer.evaluate_config import EvaluateConfig
    from trainer.generator_config import GeneratorConfig
    from trainer.projector_config import ProjectorConfig
    from trainer.report.config import ReportConfig
    from trainer.runs_config import CompareConfig, PlotConfig, SweepConfig

MORE = {"--store": "--more-stores", "--images": "--more-images"}


def train_command(config: TrainConfig, console: Console) -> int:
    """Train a student, or one for each of --seeds, and print its accuracy."""
    if config.seeds is not None:
        from trainer.seeds import summarise_seeds, train_seeds

        if values := train_seeds(config, console):
            console.summary(values, summarise_seeds(values))
        return 0
    from trainer.summary import summarise
    from trainer.train import train

    if values := train(config, console):
        console.summary(values, summarise(values))
    return 0


def train_generator_command(config: GeneratorConfig, console: Console) -> int:
    """Train a model that generates images."""
    from trainer.generator_run import summarise, train_generator

    if values := train_generator(config, console):
        console.summary(values, summarise(values))
    return 0


def projector_command(config: ProjectorConfig, console: Console) -> int:
    """Train a projector and print its accuracy beside that of its teachers."""
    from trainer.projecting import summarise, train_projector

    if values := train_projector(config, console):
        console.summary(values, summarise(values))
    return 0


def typed_train(words: Sequence[str]) -> Sequence[str]:
    """The words of `train` with those of its recipe.

    Raises:
        InputError: --seed and --seeds are both typed. A config file may contain the default of --seed.
    """
    if "--seed" in words and any(word.partition("=")[0] == "--seeds" for word in words):
        raise InputError("--seed, --seeds: expected one of them, found both; leave one of them out")
    every = without_more(words)
    if not any(word.startswith("--recipe") for word in every):
        return every
    from trainer import recipes

    return recipes.typed(every)


def without_more(words: Sequence[str]) -> list[str]:
    """The words with all but the first path of --store and --images moved to --more-stores and --more-images."""
    found, flag, paths = list[str](), "", 0
    for word in words:
        if word.startswith("--"):
            flag, paths = word, 0
        elif flag in MORE:
            paths += 1
            if paths == 2:
                found.append(MORE[flag])
        found.append(word)
    return found


def evaluate_command(config: EvaluateConfig, console: Console) -> int:
    """Measure a network, or compare several checkpoints of one."""
    if config.several:
        from trainer.checkpoints import compare_checkpoints, in_columns

        rows = compare_checkpoints(config, console)
        console.summary({"checkpoints": [dict(row.to_json()) for row in rows]}, in_columns(rows))
        return 0
    from trainer.evaluate import evaluate_network

    result = evaluate_network(config, console)
    console.summary(
        {"images": result.images, **result.numbers},
        f"{quantity(result.images, 'image')}: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, loss "
        f"{result.loss:.4f}",
    )
    return 0


def compare_command(config: CompareConfig, console: Console) -> int:
    """Print a table of runs."""
    from trainer.compare import compare

    compare(config, console)
    return 0


def sweep_command(config: SweepConfig, console: Console) -> int:
    """Run a grid of builds and runs."""
    from trainer.sweep import sweep

    return sweep(config, console)


def report_command(config: ReportConfig, console: Console) -> int:
    """Make a page of runs, stores, sets and models."""
    from trainer.report.report import report

    report(config, console)
    return 0


def plot_command(config: PlotConfig, console: Console) -> int:
    """Draw curves of runs."""
    from trainer.plot import plot

    plot(config, console)
    return 0


COMMANDS = {
    "train": Command(
        "Train a student, from a label store or with labels made online; or train a teacher.",
        "trainer.config:TrainConfig",
        launched(train_command),
        more="With --store, a student is trained on the stored crops and labels. Without it, crops are fresh: "
        "--labels online runs a teacher on them, and --labels none trains on the classes, which is how teachers are "
        "trained. The same command continues a stopped run exactly, and only prints the results of a finished one.",
        resumes=True,
        typed=typed_train,
        short={"--run": "--run-folder"},
        examples=(
            "--store labels --images train --student convnet-d3 --epochs 300 --test-images test --run-folder run",
            "--config run/config.toml --run-folder again --seed 1",
            "--config run/config.toml --run-folder three --seeds 0 1 2",
        ),
    ),
    "train-generator": Command(
        "Train a model that generates images of the classes of a set: latent diffusion with a U-ViT (DEG).",
        "trainer.generator_config:GeneratorConfig",
        launched(train_generator_command),
        more="The same command continues a stopped run exactly. `synthesize diffusion --model` takes the folder of "
        "the run.",
        resumes=True,
        short={"--run": "--run-folder"},
        examples=(
            "--images train --size 32 --backbone uvit-xs --minutes 8 --run-folder model",
            "--images train --size 256 --vae diffusers:stabilityai/sd-vae-ft-ema --steps 300000 --run-folder model",
        ),
    ),
    "train-projector": Command(
        "Train a projector (HeLlO): a frozen encoder with low-rank matrices and a head, which replaces its teachers.",
        "trainer.projector_config:ProjectorConfig",
        launched(projector_command),
        more="It learns the mean logits of --teacher with --weights (several weights of one network are an ensemble) "
        "on fresh crops. The same command continues a stopped run exactly, and only prints the results of a finished "
        "one.",
        resumes=True,
        short={"--run": "--run-folder"},
        examples=(
            (
                "--images train --encoder timm:mobilenetv2_100 --encoder-weights timm:pretrained --teacher convnet-d3 "
                "--weights a.safetensors b.safetensors --teacher-size 32 --epochs 20 --run-folder projector"
            ),
            "--config projector/config.toml --run-folder again --rank 32",
        ),
    ),
    "evaluate": Command(
        "Measure top-1, top-5 and loss of a student, or of any weights, on test images.",
        "trainer.evaluate_config:EvaluateConfig",
        evaluate_command,
        short={"--run": "--run-folder"},
        examples=(
            "--run-folder run",
            "--weights torchvision:IMAGENET1K_V1 --student torchvision:resnet18 --images test",
            "--weights 'teachers/d3/epoch-*.safetensors' --images test",
        ),
    ),
    "compare": Command(
        "Compare runs in a table: mean, standard deviation and count over seeds, and which options differ.",
        "trainer.runs_config:CompareConfig",
        compare_command,
        more="Runs that differ only in their seed are one row. Unfinished runs are listed but not averaged.",
        examples=("three", "'runs/*' --markdown table.md"),
    ),
    "plot": Command(
        "Draw the curves of one or more runs in one picture (PNG, SVG or PDF); needs matplotlib (the extra `plot`).",
        "trainer.runs_config:PlotConfig",
        plot_command,
        examples=("run", "run again --out curves.pdf"),
    ),
    "report": Command(
        "Make one self-contained web page of runs, stores, image sets, projectors and generators.",
        "trainer.report.config:ReportConfig",
        report_command,
        more="It has a card for each store, set and model, with what it is made of, its size and pictures, and a "
        "table with curves for the runs. The page contains its styles and pictures, and loads nothing.",
        examples=("runs --out page.html", "labels small 'runs/*' --out page.html --title 'Ten images a class'"),
    ),
    "sweep": Command(
        "Build stores and train students for every combination of the values in a TOML file, and compare the runs.",
        "trainer.runs_config:SweepConfig",
        sweep_command,
        more="The same command continues a stopped sweep, and skips what is done.",
        resumes=True,
        short={"--run": "--run-folder"},
        examples=("grid.toml --run-folder grid --dry-run", "grid.toml --run-folder grid --jobs 2"),
    ),
}


def main() -> int:
    """Run the command that the arguments name."""
    return run_program("python -m trainer", "Labels in, student out.", COMMANDS, start=start_of("trainer"))


if __name__ == "__main__":
    sys.exit(main())
