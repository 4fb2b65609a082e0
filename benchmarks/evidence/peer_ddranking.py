"""Train and validate with ddranking 0.2.0; `peers.ddranking` runs this as a script where it can be imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def loaded(folder: str, mean: float, std: float) -> tuple[Any, Any]:
    """Images, float32 ``[N, 3, S, S]``, and their classes, int64 ``[N]``."""
    classes = sorted(each for each in Path(folder).iterdir() if each.is_dir())
    files = [(path, target) for target, each in enumerate(classes) for path in sorted(each.iterdir())]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return images, torch.tensor([target for _, target in files])


def main(given: dict[str, Any]) -> float:
    """Top-1 on the test images after the last epoch, in percent."""
    from ddranking.utils import TensorDataset, build_model, get_optimizer, train_one_epoch, validate
    from torch.utils.data import DataLoader

    torch.manual_seed(given["seed"])
    train, test = (TensorDataset(*loaded(given[name], given["mean"], given["std"])) for name in ("images", "tests"))
    side = train[0][0].shape[-1]
    model = build_model(given["network"], num_classes=10, im_size=(side, side), pretrained=False, device="cpu")
    optimizer = get_optimizer("sgd", model, given["rate"], given["decay"], given["momentum"])
    loader = DataLoader(train, batch_size=given["batch"], shuffle=True)
    for epoch in range(given["epochs"]):
        train_one_epoch(epoch, model, loader, torch.nn.CrossEntropyLoss(), optimizer, device="cpu")
    return float(validate(model, DataLoader(test, batch_size=256), device="cpu"))


if __name__ == "__main__":
    top1 = main(json.loads(sys.argv[1]))
    print(json.dumps({"top1": top1}))
