"""The whole job on real data in a few minutes: `make demo`.

scikit-learn's handwritten digits become PNG class folders. A small teacher learns from two thirds of them; ten images a
class of these are the small set; a store is built, verified and shown; three students learn from the same store and
schedule by hard labels, KL and GIFT. Every step is a command and is printed before it runs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms import v2

from benchmarks.commands import command
from labelstore.command.console import Console, run_command
from labelstore.durable.newfile import new_file, write_over
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from pipeline.device.memory import keep_freed_memory
from pipeline.images.manifest import scan
from pipeline.networks import build_network, save_weights
from pipeline.render.normalise import normalise

ROOT = Path("runs/demo")
SIDE = 16
PER_CLASS = 10
TEST_SHARE = 3  # every third image is a test image
MEAN, STD = (0.3, 0.3, 0.3), (0.35, 0.35, 0.35)
NORM = '{"norm": "batch"}'
TEACHER_EPOCHS = 30
VIEWS = 200
SUMMARY = Proof("the summary of a demo", lambda path: path.read_bytes().startswith(b'{"seconds": '))
LOSSES = {"hard": "ce", "kl": "kl", "gift": "gift"}


def write_digits(root: Path) -> None:
    """Write train/, test/ and small/ class folders of the digits as RGB PNG, 16 x 16."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the demo needs scikit-learn: pip install 'giftwrap[demo]'") from error
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for index, (image, target) in enumerate(zip(pixels, digits.target, strict=True)):
        split = "test" if index % TEST_SHARE == 0 else "train"
        picture = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("RGB")
        save_once(picture, root / split / str(target) / f"{index:04d}.png")
    for folder in sorted((root / "train").iterdir()):
        for path in sorted(folder.iterdir())[:PER_CLASS]:
            save_once(Image.open(path), root / "small" / folder.name / path.name)


def save_once(picture: Image.Image, path: Path) -> None:
    """Save a picture whole or not at all, unless it is there already."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        picture.save(file, format="PNG")


def train_teacher(root: Path) -> Path:
    """Train ConvNet-D3 on train/, once, and print how far it is; returns its weights."""
    path = root / "teacher.safetensors"
    if path.exists():
        return path
    keep_freed_memory()
    torch.manual_seed(0)
    network = build_network("convnet-d3", {"norm": "batch"}, classes=10, size=SIDE)
    manifest = scan(root / "train", digests=False)
    images = torch.stack([pixels(Path(manifest.place(index))) for index in range(len(manifest))])
    targets = torch.from_numpy(manifest.targets)
    console = Console()
    console.line(f"training a teacher (convnet-d3) on the {len(manifest):,} images of {root / 'train'}")
    inputs = normalise(images, MEAN, STD, torch.float32, channels_last=False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    crop = v2.RandomResizedCrop(SIDE, scale=(0.4, 1.0))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, TEACHER_EPOCHS)
    with console.progress("teacher", TEACHER_EPOCHS, "epochs") as progress:
        for _ in range(TEACHER_EPOCHS):
            for batch in torch.split(torch.randperm(len(targets)), 64):
                loss = functional.cross_entropy(network(crop(inputs[batch])), targets[batch])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            schedule.step()
            progress.advance(note=f"loss {loss.item():.3f}")
    save_weights(network.state_dict(), path, classes=manifest.classes)
    return path


def pixels(path: Path) -> torch.Tensor:
    """One picture, uint8 ``[S, S, 3]``."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture))


def main() -> int:
    """Run the demo and print its result."""
    start = time.monotonic()
    write_digits(ROOT)
    weights = train_teacher(ROOT)
    store, small = ROOT / "store", ROOT / "small"
    command(
        "pipeline", "build", "--images", small, "--teacher", "convnet-d3", "--teacher-args", NORM, "--weights", weights,
        "--mean", *MEAN, "--std", *STD, "--size", SIDE, "--views", VIEWS, "--scale", 0.4, 1, "--flip", 0,
        "--store", store,
    )  # fmt: skip
    command("pipeline", "verify", "--store", store, "--images", small, "--weights", weights)
    if not (ROOT / "sheet.png").exists():
        command("pipeline", "show", "--store", store, "--images", small, "--out", ROOT / "sheet.png")
    accuracy = {}
    for name, loss in LOSSES.items():
        summary = command(
            "trainer", "train", "--store", store, "--images", small, "--student", "convnet-d3", "--student-args", NORM,
            "--loss", loss, "--epochs", VIEWS, "--batch-size", 50, "--lr", 2e-3, "--test-images", ROOT / "test",
            "--run", ROOT / "students" / name,
        )  # fmt: skip
        accuracy[name] = summary["last"]["top1"]
    seconds = round(time.monotonic() - start, 1)
    write_over(ROOT / "summary.json", (json.dumps({"seconds": seconds, "accuracy": accuracy}) + "\n").encode(), SUMMARY)
    print(f"\nTest accuracy of three students trained from {PER_CLASS} images a class, in {seconds:.0f} s\n")
    for name, value in accuracy.items():
        print(f"  {name:<5} {value:6.2f} %   log {ROOT / 'students' / name / 'log.jsonl'}")
    print(f"\n  store {store}\n  sheet {ROOT / 'sheet.png'}\n  table {ROOT / 'summary.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "benchmarks.demo")))
