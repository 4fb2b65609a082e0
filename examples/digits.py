"""Make the data of the README's quickstart: `python -m examples.digits`.

Needs scikit-learn (`pip install '.[demo]'`) and a few minutes on two cores. Writes scikit-learn's handwritten digits
as class folders of 16 px PNG images below `runs/demo/` (`small/`: ten images a class; `train/`; `test/`), and the
weights of a small teacher trained on `train/` (`teacher.safetensors`). What is there already is kept.
"""

from __future__ import annotations

import sys

from benchmarks import demo
from labelstore.command.console import run_command


def main() -> int:
    """Write the images and the teacher's weights."""
    demo.write_digits(demo.ROOT)
    weights = demo.train_teacher(demo.ROOT)
    print(f"images {demo.ROOT / 'small'} and {demo.ROOT / 'test'}, teacher {weights}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "examples.digits")))
