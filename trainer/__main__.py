"""`python -m trainer train | evaluate | plot`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly until a command runs

import sys

from labelstore.command.console import Console
from labelstore.command.program import Command, require_ours, run_program

require_ours("trainer", "pipeline")

from pipeline import ranks
from trainer import recipes
from trainer.config import EvaluateConfig, PlotConfig, TrainConfig


def train_command(config: TrainConfig, console: Console) -> int:
    """Train a student and print how it does."""
    from trainer.train import summarise, train

    if values := train(config, console):
        console.summary(values, summarise(values))
    return 0


def evaluate_command(config: EvaluateConfig, console: Console) -> int:
    """Measure a network and print how it does."""
    from trainer.evaluate import evaluate_network

    result = evaluate_network(config, console)
    console.summary(
        {"images": result.images, **result.numbers},
        f"{result.images:,} images: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, loss {result.loss:.4f}",
    )
    return 0


def plot_command(config: PlotConfig, console: Console) -> int:
    """Draw curves of runs."""
    from trainer.plot import plot

    plot(config, console)
    return 0


COMMANDS = {
    "train": Command(
        TrainConfig,
        train_command,
        resumes=True,
        typed=recipes.typed,
        short={"--run": "--run-folder"},
        examples=(
            "--store labels --images train --student convnet-d3 --epochs 300 --test-images test --run-folder run",
            "--config run/config.toml --run-folder again --seed 1",
        ),
    ),
    "evaluate": Command(
        EvaluateConfig,
        evaluate_command,
        short={"--run": "--run-folder"},
        examples=(
            "--run-folder run",
            "--weights torchvision:IMAGENET1K_V1 --student torchvision:resnet18 --images test",
        ),
    ),
    "plot": Command(PlotConfig, plot_command, examples=("run", "run again --out curves.pdf")),
}


def main() -> int:
    """Run the command that the arguments name."""
    return run_program("python -m trainer", "Labels in, student out.", COMMANDS, start=ranks.started("trainer"))


if __name__ == "__main__":
    sys.exit(main())
