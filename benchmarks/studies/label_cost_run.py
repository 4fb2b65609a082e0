"""What the cells of the label-cost claim do: labels of each way with their bytes, and students of them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.harness import wait_for
from benchmarks.studies.in_process import is_whole, machine_flags, run_build, run_train, run_train_projector
from benchmarks.studies.jobs import held
from benchmarks.studies.label_cost_cells import Cell, Frontier, Network, Scale, Way
from benchmarks.studies.study import choose_images
from labelstore import LabelStore
from labelstore.operations.convert import convert
from labelstore.operations.projector import projector_info
from pipeline.networks import load_network
from pipeline.networks.encoder import Encoder, EncoderSpec, features_of, load_encoder
from pipeline.networks.lora import places
from pipeline.networks.projector import Design, Projector, default_head_rank, make_head, saved
from trainer.file_names import LOG

TIMED, ROUNDS = 64, 3  # crops of a batch that is timed, and how often
TIMED_EPOCHS = 4  # of a projector on the set that is labelled, of which the first does not count
KEPT_BYTES = 4  # of a column of top-k: float16 and its index, int16
GUESSED_S = 60.0  # of a cell, before any is finished
FLOAT32 = 4


class Lab:
    """Does the cells.

    Args:
        scale: of the claim.
        folder: for sets, stores, projectors and runs.
        data: folder of the data sets.
        device: of all commands.
        jobs: cells at the same time.
    """

    def __init__(self, scale: Scale, folder: Path, data: Path, device: str = "cpu", jobs: int = 1) -> None:
        self.scale, self.folder, self.data, self.device = scale, folder, data, device
        self._machine = machine_flags(device, jobs)

    def places(self, cell: Cell) -> tuple[Frontier, Way]:
        """The frontier and the way of a cell."""
        frontier = next(each for each in self.scale.frontiers if each.name == cell.frontier)
        return frontier, next(each for each in frontier.ways if each.name == cell.way)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Do a cell, or continue it; what is found, for its line."""
        start, (frontier, way) = time.monotonic(), self.places(cell)
        if cell.timed:
            found = self.time_labels(frontier, way)
        elif cell.seed is None:
            found = self.make_labels(frontier, way)
        else:
            found = self.train_student(frontier, way, cell.seed)
        return {**found, "device": self.device, "seconds": round(time.monotonic() - start, 1)}

    def make_labels(self, frontier: Frontier, way: Way) -> dict[str, Any]:
        """Make the labels of a way: their bytes, with the encoder where there is one."""
        if way.kind == "projector":
            info: Any = projector_info(self.projector(frontier, way, whole=True))
            return {"bytes": info["total_bytes"], "bytes_with_encoder": info["total_bytes_with_encoder"]}
        size = self.weights(frontier.teacher).stat().st_size if way.kind == "online" else self.bytes(frontier, way)
        return {"bytes": size, "bytes_with_encoder": size}

    def time_labels(self, frontier: Frontier, way: Way) -> dict[str, Any]:
        """Who computes how long, on this machine.

        ``labelling``: seconds of the teacher or projector over a whole training of one student; ``training``: of the
        projector, by the pace of a short training.
        """
        crops = frontier.epochs // way.part * self.count(frontier)
        if way.kind != "projector":
            teacher = frontier.teacher
            rate = seconds_a_crop(teacher.name, teacher.args, self.weights(teacher), teacher.size, self.device)
            return {"labelling": round(rate * crops, 2), "training": 0.0}
        assert frontier.encoder is not None  # noqa: S101  its projector is trained
        rate = seconds_a_crop("projector", {}, self.projector(frontier, way), frontier.encoder.size, self.device)
        trained = frontier.projector_epochs * sum(path.is_file() for path in (self.data / frontier.train).glob("*/*"))
        return {
            "labelling": round(rate * crops, 2),
            "training": round(trained / self.projector_pace(frontier, way), 1),
        }

    def projector_pace(self, frontier: Frontier, way: Way) -> float:
        """Crops a second in the training of a projector, of the later epochs on the set that is labelled."""
        folder = self.folder / "timed" / _key(frontier, way)
        self.train_projector(frontier, way, self.images(frontier), TIMED_EPOCHS, folder)
        epochs = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
        return float(median(epoch["crops_per_second"] for epoch in epochs[1:]))

    def train_student(self, frontier: Frontier, way: Way, seed: int) -> dict[str, Any]:
        """A student of a way, tested after its last epoch."""
        done = run_train(
            *self._machine, "--recipe", "gift", "--images", self.images(frontier), *self.labels(frontier, way),
            "--student", frontier.student, "--student-args", json.dumps(dict(frontier.student_args)),
            "--epochs", frontier.epochs, "--batch-size", frontier.batch, "--seed", seed,
            "--test-images", self.data / frontier.test, "--eval-every", frontier.epochs,
            "--checkpoint-every", frontier.epochs,
            "--run-folder", self.folder / "students" / f"{_key(frontier, way)}-seed{seed}",
        )  # fmt: skip
        return {"top1": done["last"]["top1"]}

    def labels(self, frontier: Frontier, way: Way) -> tuple[object, ...]:
        """The flags for the labels and the loss of a student."""
        online = ("--labels", "online", "--size", frontier.teacher.size, "--loss", "gift")
        if way.kind == "online":
            return (*online, *self.teacher(frontier.teacher))
        if way.kind == "projector":
            assert frontier.encoder is not None  # noqa: S101
            return (
                *online, "--teacher", "projector", "--weights", self.projector(frontier, way),
                "--teacher-size", frontier.encoder.size,
            )  # fmt: skip
        played = ("--store", self.store(frontier, way), "--views", frontier.epochs // way.part)
        if way.kind == "topk":
            return (*played, "--relabel", f"topk={way.largest}", "--loss", "soft_ce")
        return (*played, "--loss", "gift")

    def store(self, frontier: Frontier, way: Way) -> Path:
        """The store of a way, made where it is absent; top-k's is the exact one, of whose labels it takes a part."""
        exact = self.exact(frontier)
        if way.encoding is None:
            return exact
        path, views = self.folder / "stores" / _key(frontier, way), frontier.epochs // way.part
        with held(path):
            if not is_whole(path, views):
                convert(LabelStore.open(exact), path, dict(way.encoding), views=views)
        return path

    def exact(self, frontier: Frontier) -> Path:
        """The store of a frontier's exact labels, made where it is absent."""
        store, teacher = self.folder / "stores" / f"{frontier.name}-float16", frontier.teacher
        with held(store):
            if is_whole(store, frontier.epochs):
                return store
            run_build(
                *self._machine, "--recipe", "gift", "--images", self.images(frontier), *self.teacher(teacher),
                "--size", teacher.size, "--views", frontier.epochs, "--encoding", "float16", "--store", store,
            )  # fmt: skip
        return store

    def bytes(self, frontier: Frontier, way: Way) -> int:
        """Of the labels, the columns of their crops and what decoding needs, for the views that are kept."""
        store = LabelStore.open(self.store(frontier, way))
        each = store.bytes_per_label()
        if way.kind == "topk":
            each = {"labels": KEPT_BYTES * way.largest, "columns": each["columns"]}
        return round(sum(each.values()) * self.count(frontier) * (frontier.epochs // way.part))

    def projector(self, frontier: Frontier, way: Way, *, whole: bool = False) -> Path:
        """The projector of a way, trained if absent; with ``whole``, an unfinished one is trained to the end."""
        folder = self.folder / "projectors" / _key(frontier, way)
        with held(folder):
            if whole or not (folder / "projector.safetensors").exists():
                self.train_projector(frontier, way, self.data / frontier.train, frontier.projector_epochs, folder)
        return folder

    def train_projector(self, frontier: Frontier, way: Way, images: Path, epochs: int, folder: Path) -> None:
        """Train the projector of a way on some images, or continue it."""
        encoder, teacher = frontier.encoder, frontier.teacher
        assert encoder is not None  # noqa: S101  of a frontier with projectors
        layers = adapted_at(loaded(encoder, self.weights(encoder)).network, way.rank)
        run_train_projector(
            *self._machine, *encoder_flags(encoder, self.weights(encoder)), "--images", images,
            *self.teacher(teacher), "--teacher-size", teacher.size, "--rank", way.rank,
            *(("--lora-on", layers) if layers else ()), "--epochs", epochs, "--run-folder", folder,
        )  # fmt: skip

    def teacher(self, teacher: Network) -> tuple[object, ...]:
        """The flags of the teacher."""
        columns = ("--class-columns", teacher.class_columns) if teacher.class_columns else ()
        return (
            "--teacher", teacher.name, "--teacher-args", json.dumps(dict(teacher.args)),
            "--weights", self.weights(teacher), "--mean", *teacher.mean, "--std", *teacher.std, *columns,
        )  # fmt: skip

    def weights(self, network: Network) -> Path:
        """File of its weights."""
        return self.data / network.weights

    def images(self, frontier: Frontier) -> Path:
        """The set that is labelled."""
        real = self.data / frontier.train
        if frontier.per_class is None:
            return real
        chosen = self.folder / "sets" / frontier.name
        with held(chosen):
            return choose_images(real, chosen, frontier.per_class)

    def count(self, frontier: Frontier) -> int:
        """Images of that set."""
        return sum(path.is_file() for path in self.images(frontier).glob("*/*"))


def encoder_flags(encoder: Network, weights: Path) -> tuple[object, ...]:
    """The flags of `train-projector` that state the encoder."""
    return (
        "--encoder", encoder.name, "--encoder-args", json.dumps(dict(encoder.args)), "--encoder-weights", weights,
        "--size", encoder.size, "--encoder-mean", *encoder.mean, "--encoder-std", *encoder.std,
    )  # fmt: skip


def loaded(encoder: Network, weights: Path) -> Encoder:
    """The encoder with its weights."""
    features = features_of(encoder.name, None)
    spec = EncoderSpec(name=encoder.name, weights=str(weights), args=encoder.args, features=features)
    return load_encoder(spec, encoder.size, load_network)


def adapted_at(network: nn.Module, rank: int) -> str | None:
    """For ``--lora-on``: the layers of the default that a rank fits; None when it fits all of them."""
    default = [place for place in places(network) if not place.depthwise]
    fitting = [place.module for place in default if rank <= place.width]
    return None if len(fitting) == len(default) else f"^({'|'.join(map(re.escape, fitting))})$"


def seconds_a_crop(name: str, args: Mapping[str, Any], weights: Path, size: int, device: str) -> float:
    """How long a labeller takes for a crop, in batches."""
    network, _ = load_network(name, args, str(weights), classes=10, size=size)
    network = network.eval().to(device)
    crops, found = torch.randn(TIMED, 3, size, size, device=device), []
    with torch.no_grad():
        network(crops)
        for _ in range(ROUNDS):
            wait_for(crops.device)
            start = time.perf_counter()
            network(crops)
            wait_for(crops.device)
            found.append((time.perf_counter() - start) / TIMED)
    return median(found)


def projector_sizes(encoder: Network, weights: Path, rank: int, columns: int) -> dict[str, Any]:
    """Bytes of a projector that is not trained: of its tensors, without their names; and with its encoder's."""
    frozen = loaded(encoder, weights)
    head_rank = default_head_rank(columns, frozen.width)
    layers = adapted_at(frozen.network, rank)
    design = Design(rank=rank, alpha=float(rank), lora_on=layers, head="zero", head_rank=head_rank, adapt_norms=False)
    projector = Projector(frozen.network, design, make_head(design, columns, frozen.width, None, kept=False))
    size = sum(FLOAT32 * tensor.numel() for tensor in saved(projector.trained.state_dict()).values())
    return {"rank": rank, "columns": columns, "bytes": size, "bytes_with_encoder": size + frozen.bytes}


def _key(frontier: Frontier, way: Way) -> str:
    return f"{frontier.name}-{way.name}".replace(" ", "-").replace(",", "")
