"""`python -m trainer train | evaluate | plot`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly until a command runs

import sys
from typing import Any

import tyro

from labelstore.console import Console, run_command
from pipeline import ranks
from trainer import recipes
from trainer.config import TrainConfig
from trainer.evaluate import evaluate_command
from trainer.plot import PlotConfig, plot
from trainer.subject import EvaluateConfig
from trainer.train import say, train


def main() -> int:
    """Run the command that the arguments name."""
    arguments: list[str] = []
    if code := run_command("trainer", lambda: arguments.extend(recipes.typed(sys.argv[1:]))):
        return code
    config: Any = tyro.extras.subcommand_cli_from_dict(
        {"train": TrainConfig, "evaluate": EvaluateConfig, "plot": PlotConfig},
        prog="python -m trainer",
        description="Labels in, student out.",
        args=arguments,
    )
    console = Console(as_json=config.json)

    def command() -> int:
        if isinstance(config, TrainConfig):
            if values := train(config, console):
                console.summary(values, say(values))
            return 0
        if isinstance(config, PlotConfig):
            plot(config, console)
            return 0
        result = evaluate_command(config, console)
        console.summary(
            {"images": result.images, **result.numbers},
            f"{result.images:,} images: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, loss {result.loss:.4f}",
        )
        return 0

    python = ranks.python()
    return run_command("trainer", command, resumes=isinstance(config, TrainConfig) and bool(python), python=python)


if __name__ == "__main__":
    sys.exit(main())
