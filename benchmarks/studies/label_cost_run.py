"""What the cells of the label-cost claim do: labels of each way with their bytes, and students of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.studies.in_process import run_build, run_train, run_train_projector
from benchmarks.studies.label_cost_cells import Cell, Frontier, Network, Scale, Way
from benchmarks.studies.study import choose_images
from labelstore import LabelStore
from labelstore.operations.convert import convert
from labelstore.operations.projector import projector_info
from pipeline.networks import load_network
from pipeline.networks.encoder import EncoderSpec, features_of, load_encoder
from pipeline.networks.projector import Design, Projector, default_head_rank, make_head, saved

TIMED, ROUNDS = 64, 3  # crops of a batch that is timed, and how often
KEPT_BYTES = 4  # of a column of top-k: float16 and its index, int16
GUESSED_S = 60.0  # of a cell, before any is finished
FLOAT32 = 4


class Lab:
    """Does the cells.

    Args:
        scale: of the claim.
        folder: for sets, stores, projectors and runs.
        data: folder of the data sets.
    """

    def __init__(self, scale: Scale, folder: Path, data: Path) -> None:
        self.scale, self.folder, self.data = scale, folder, data

    def places(self, cell: Cell) -> tuple[Frontier, Way]:
        """The frontier and the way of a cell."""
        frontier = next(each for each in self.scale.frontiers if each.name == cell.frontier)
        return frontier, next(each for each in frontier.ways if each.name == cell.way)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Do a cell, or continue it; what is found, for its line."""
        start, (frontier, way) = time.monotonic(), self.places(cell)
        found = self.make_labels(frontier, way) if cell.seed is None else self.train_student(frontier, way, cell.seed)
        return {**found, "seconds": round(time.monotonic() - start, 1)}

    def make_labels(self, frontier: Frontier, way: Way) -> dict[str, Any]:
        """Make the labels of a way: their bytes, with the encoder where there is one, and who computes how long.

        ``labelling``: seconds of the teacher or projector over a whole training of one student, on this machine;
        ``training``: of the projector.
        """
        crops, training = frontier.epochs // way.part * self.count(frontier), 0.0
        if way.kind == "projector":
            start, folder = time.monotonic(), self.projector(frontier, way)
            training = time.monotonic() - start
            info: Any = projector_info(folder)
            size, whole = info["total_bytes"], info["total_bytes_with_encoder"]
            assert frontier.encoder is not None  # noqa: S101  its projector is trained
            rate = seconds_a_crop("projector", {}, folder, frontier.encoder.size)
        else:
            teacher = frontier.teacher
            size = whole = self.weights(teacher).stat().st_size if way.kind == "online" else self.bytes(frontier, way)
            rate = seconds_a_crop(teacher.name, teacher.args, self.weights(teacher), teacher.size)
        return {
            "bytes": size,
            "bytes_with_encoder": whole,
            "labelling": round(rate * crops, 2),
            "training": round(training, 1),
        }

    def train_student(self, frontier: Frontier, way: Way, seed: int) -> dict[str, Any]:
        """A student of a way, tested after its last epoch."""
        done = run_train(
            "--recipe", "gift", "--images", self.images(frontier), *self.labels(frontier, way),
            "--student", frontier.student, "--student-args", json.dumps(dict(frontier.student_args)),
            "--epochs", frontier.epochs, "--batch-size", frontier.batch, "--seed", seed,
            "--test-images", self.data / frontier.test, "--eval-every", frontier.epochs,
            "--checkpoint-every", frontier.epochs,
            "--run-folder", self.folder / "students" / f"{_key(frontier, way)}-seed{seed}",
        )  # fmt: skip
        return {"top1": done["last"]["top1"]}

    def labels(self, frontier: Frontier, way: Way) -> tuple[object, ...]:
        """The flags of a student that say which labels it has, and the loss."""
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
        exact, teacher = self.folder / "stores" / f"{frontier.name}-float16", frontier.teacher
        run_build(
            "--recipe", "gift", "--images", self.images(frontier), *self.teacher(teacher),
            "--size", teacher.size, "--views", frontier.epochs, "--encoding", "float16", "--store", exact,
        )  # fmt: skip
        if way.encoding is None:
            return exact
        path = self.folder / "stores" / _key(frontier, way)
        return convert(LabelStore.open(exact), path, dict(way.encoding), views=frontier.epochs // way.part).path

    def bytes(self, frontier: Frontier, way: Way) -> int:
        """Of the labels, the columns of their crops and what decoding needs, for the views that are kept."""
        store = LabelStore.open(self.store(frontier, way))
        each = store.bytes_per_label()
        if way.kind == "topk":
            each = {"labels": KEPT_BYTES * way.largest, "columns": each["columns"]}
        return round(sum(each.values()) * self.count(frontier) * (frontier.epochs // way.part))

    def projector(self, frontier: Frontier, way: Way) -> Path:
        """The projector of a way, trained where it is absent."""
        encoder, teacher = frontier.encoder, frontier.teacher
        assert encoder is not None  # noqa: S101  of a frontier with projectors
        folder = self.folder / "projectors" / _key(frontier, way)
        run_train_projector(
            *encoder_flags(encoder, self.weights(encoder)), "--images", self.data / frontier.train,
            *self.teacher(teacher), "--teacher-size", teacher.size, "--rank", way.rank,
            "--epochs", frontier.projector_epochs, "--run-folder", folder,
        )  # fmt: skip
        return folder

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
        return choose_images(real, self.folder / "sets" / frontier.name, frontier.per_class)

    def count(self, frontier: Frontier) -> int:
        """Images of that set."""
        return sum(path.is_file() for path in self.images(frontier).glob("*/*"))


def encoder_flags(encoder: Network, weights: Path) -> tuple[object, ...]:
    """The flags of `train-projector` that state the encoder."""
    return (
        "--encoder", encoder.name, "--encoder-args", json.dumps(dict(encoder.args)), "--encoder-weights", weights,
        "--size", encoder.size, "--encoder-mean", *encoder.mean, "--encoder-std", *encoder.std,
    )  # fmt: skip


def seconds_a_crop(name: str, args: Mapping[str, Any], weights: Path, size: int) -> float:
    """How long a labeller takes for a crop, on the CPU."""
    network, _ = load_network(name, args, str(weights), classes=10, size=size)
    network.eval()
    crops, found = torch.randn(TIMED, 3, size, size), []
    with torch.no_grad():
        network(crops)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            network(crops)
            found.append((time.perf_counter() - start) / TIMED)
    return median(found)


def projector_sizes(encoder: Network, weights: Path, rank: int, columns: int) -> dict[str, Any]:
    """Bytes of a projector that is not trained: of its tensors, without their names; and with its encoder's."""
    spec = EncoderSpec(
        name=encoder.name, weights=str(weights), args=encoder.args, features=features_of(encoder.name, None)
    )
    loaded = load_encoder(spec, encoder.size, load_network)
    head_rank = default_head_rank(columns, loaded.width)
    design = Design(rank=rank, alpha=float(rank), lora_on=None, head="zero", head_rank=head_rank, adapt_norms=False)
    projector = Projector(loaded.network, design, make_head(design, columns, loaded.width, None, kept=False))
    size = sum(FLOAT32 * tensor.numel() for tensor in saved(projector.trained.state_dict()).values())
    return {"rank": rank, "columns": columns, "bytes": size, "bytes_with_encoder": size + loaded.bytes}


def _key(frontier: Frontier, way: Way) -> str:
    return f"{frontier.name}-{way.name}".replace(" ", "-").replace(",", "")
