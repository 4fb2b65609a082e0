"""Real images at random: what is drawn, how it is cut, and what does not change the draw."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional
from torchvision.transforms import v2

from labelstore.command.console import Console, Stopped
from labelstore.durable import disk
from labelstore.errors import InputError
from pipeline.images.manifest import Manifest, scan
from pipeline.images.provenance import PIECES, Pieces, read_pieces, record_of
from pipeline.networks import build_network
from pipeline.networks.weights import load_weights, read_weights
from pipeline.ranks import Ranks
from pipeline.render.normalise import normalise
from pipeline.synthesis import random
from pipeline.synthesis.making import WORKING
from pipeline.synthesis.method import Setting, Working
from pipeline.synthesis.random import FLIP, RATIO, SCALE, make_random
from pipeline.teacher.engine import batches
from tests.journeys.world import SIDE, TEACHER, draw_images, random_teacher
from tests.pipeline.packing import as_zip
from tests.pipeline.synthesis.toys import config_of, draw_folder, make, tree

CLASSES = ("ant", "bee", "cat", "d\u00e9j\u00e0")
WORKS = Working(Path("none"), WORKING, lambda *_args: None, lambda: False)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return scan(draw_folder(tmp_path_factory.mktemp("images") / "train", CLASSES, per_class=9))


def with_classes(manifest: Manifest, names: list[str]) -> Manifest:
    """The manifest of these classes alone."""
    wanted = [manifest.classes.index(name) for name in names]
    chosen = manifest.subset(np.flatnonzero(np.isin(manifest.targets, wanted)))
    return replace(chosen, classes=tuple(names), targets=np.searchsorted(wanted, chosen.targets))


def drawn(manifest: Manifest, ipc: int, seed: int, take: str) -> dict[str, list[tuple[Any, ...]]]:
    """What is drawn of each class: names of images, boxes, flips."""
    size = 4 if take == "crop" else None
    config = config_of(Path(manifest.location), Path("/nowhere/set"), "random", ipc, seed=seed, take=take, size=size)
    targets = np.arange(len(manifest.classes))
    method = make_random(
        Setting(config=config, manifest=manifest, targets=targets, console=Console(silent=True), ranks=Ranks())
    )
    found = {}
    with mock.patch.object(method, "again", lambda pieces: [0] * len(pieces["sources"])):
        for job in method.jobs:
            pieces = method.make(job, WORKS).pieces
            names = [manifest.names[source] for source in pieces["sources"][:, 0]]
            found[manifest.classes[job.targets[0]]] = [
                (name, *box.tolist(), bool(flip))
                for name, box, flip in zip(names, pieces["boxes"][:, 0], pieces["flips"][:, 0], strict=True)
            ]
    method.close()
    return found


@given(
    st.integers(0, 2**63 - 1),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sets(st.sampled_from(CLASSES), min_size=1),
    st.sampled_from(["copy", "crop"]),
)
@settings(max_examples=12, deadline=None)
def test_fewer_images_are_a_prefix_and_other_classes_change_nothing(
    every: Manifest, seed: int, one: int, other: int, names: set[str], take: str
) -> None:
    few, many = sorted((one, other))
    whole = drawn(every, many, seed, take)
    some = drawn(with_classes(every, sorted(names)), few, seed, take)
    assert some == {name: whole[name][:few] for name in sorted(names)}
    for images in whole.values():
        assert len({name for name, *_ in images}) == many


def test_seeds_draw_other_images(every: Manifest) -> None:
    found = [drawn(every, 3, seed, "copy") for seed in range(20)]
    assert len({str(each) for each in found}) == 20
    of_ant = {image[0] for each in found for image in each["ant"]}
    assert len(of_ant) == 9  # all of them come up


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("photographs") / "train", per_class=20)


def pieces_of(out: Path) -> Pieces:
    return read_pieces(out / PIECES)


@pytest.mark.parametrize("take", ["copy", "link"])
def test_files_are_taken_as_they_are(photographs: Path, tmp_path: Path, take: str) -> None:
    make(photographs, tmp_path / "set", "random", 5, take=take)
    manifest, pieces = scan(photographs), pieces_of(tmp_path / "set")
    for file, source in zip(pieces.files, pieces.arrays["sources"][:, 0], strict=True):
        found, wanted = tmp_path / "set" / file, Path(manifest.place(source))
        assert found.read_bytes() == wanted.read_bytes()
        assert found.suffix == wanted.suffix
        assert found.samefile(wanted) == (take == "link")


def test_a_link_to_another_file_system_is_refused(photographs: Path, tmp_path: Path) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    with mock.patch.object(disk, "link", refuse), pytest.raises(InputError, match=r"hard link.*--take copy"):
        make(photographs, tmp_path / "set", "random", 2, take="link")


def test_centre_fit_is_torchvisions(photographs: Path, tmp_path: Path) -> None:
    make(photographs, tmp_path / "set", "random", 4, take="center", size=12)
    manifest, pieces = scan(photographs), pieces_of(tmp_path / "set")
    for file, source in zip(pieces.files, pieces.arrays["sources"][:, 0], strict=True):
        image = Image.open(manifest.place(source)).convert("RGB")
        side = min(image.size)
        cut = v2.functional.center_crop(v2.functional.pil_to_tensor(image), [side, side])
        wanted = v2.functional.to_pil_image(cut).resize((12, 12), Image.Resampling.BILINEAR)
        found = np.asarray(Image.open(tmp_path / "set" / file))
        assert np.abs(found.astype(int) - np.asarray(wanted)).max() <= 1


def test_frozen_crops_are_pieces_of_their_sources(photographs: Path, tmp_path: Path) -> None:
    make(photographs, tmp_path / "set", "random", 20, take="crop", size=10)
    manifest, pieces = scan(photographs), pieces_of(tmp_path / "set")
    boxes, flips = pieces.arrays["boxes"][:, 0], pieces.arrays["flips"][:, 0]
    for file, source, box, flip in zip(pieces.files, pieces.arrays["sources"][:, 0], boxes, flips, strict=True):
        top, left, height, width = box.tolist()
        image = Image.open(manifest.place(source)).convert("RGB")
        cut = image.crop((left, top, left + width, top + height)).resize((10, 10), Image.Resampling.BILINEAR)
        wanted = np.asarray(cut)[:, ::-1] if flip else np.asarray(cut)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "set" / file)), wanted)
    sources = pieces.arrays["sources"][:, 0]
    shares = boxes[:, 2] * boxes[:, 3] / (manifest.heights[sources] * manifest.widths[sources])
    ratios = boxes[:, 3] / boxes[:, 2]
    assert (shares > SCALE[0] * 0.8).all()
    assert (shares <= SCALE[1]).all()
    assert (ratios > RATIO[0] * 0.8).all()
    assert (ratios < RATIO[1] * 1.25).all()
    assert abs(flips.mean() - FLIP) < 0.25


@pytest.mark.parametrize("decile", [1, 4, 10])
def test_a_decile_of_the_teachers_cross_entropy(photographs: Path, tmp_path: Path, decile: int) -> None:
    weights = random_teacher(tmp_path / "w.safetensors")
    teacher = {"teacher": (TEACHER[1],), "teacher_args": (TEACHER[3],), "weights": (str(weights),)}
    done: Any = make(
        photographs, tmp_path / "set", "random", 2, ce_decile=decile, take="copy", size=SIDE, batch=7, **teacher
    )
    manifest, pieces = scan(photographs), pieces_of(tmp_path / "set")
    losses = oracle(manifest, weights)
    for target in range(3):
        own = np.flatnonzero(manifest.targets == target)
        wanted = own[np.argsort(losses[own], kind="stable")][2 * (decile - 1) : 2 * decile]
        rows = pieces.targets == target
        assert set(pieces.arrays["sources"][rows, 0]) == set(wanted)
        assert np.allclose(pieces.arrays["scores"][rows, 0], losses[pieces.arrays["sources"][rows, 0]], atol=1e-5)
    assert done["teacher"]["cross_entropy"] == pytest.approx(losses[pieces.arrays["sources"][:, 0]].mean(), abs=1e-3)
    assert set(done["teacher"]["worst"]) == {"ant", "bee", "cat"}


def oracle(manifest: Manifest, weights: Path) -> np.ndarray[Any, Any]:
    """Cross-entropy of each image, one by one, centre fit by torchvision, in float64."""
    network = build_network(TEACHER[1], {"width": 16, "norm": "batch"}, classes=3, size=SIDE)
    load_weights(network, read_weights(weights))
    network.eval()
    losses = []
    for image, target in enumerate(manifest.targets):
        picture = Image.open(manifest.place(image)).convert("RGB")
        side = min(picture.size)
        left, top = round((picture.width - side) / 2), round((picture.height - side) / 2)
        cut = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(cut).copy())[None]
        inputs = normalise(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), torch.float32, channels_last=False)
        with torch.inference_mode():
            logits = network(inputs).double()
        losses.append(float(functional.cross_entropy(logits, torch.tensor([target]))))
    return np.array(losses)


def test_dropped_classes_have_no_images_and_the_others_the_same(photographs: Path, tmp_path: Path) -> None:
    make(photographs, tmp_path / "all", "random", 3)
    done = make(photographs, tmp_path / "some", "random", 3, drop_classes=("bee",))
    assert (done["classes"], done["images"]) == (2, 6)
    for file in sorted((tmp_path / "some").glob("*/*")):
        assert (tmp_path / "all" / file.relative_to(tmp_path / "some")).read_bytes() == file.read_bytes()
    assert {path.name for path in (tmp_path / "some").iterdir() if path.is_dir()} == {"ant", "cat"}


def test_fewer_images_where_a_class_has_fewer(photographs: Path, tmp_path: Path) -> None:
    done = make(photographs, tmp_path / "set", "random", 25, allow_fewer=True)
    assert (done["images"], done["fewer"]) == (60, {"ant": 20, "bee": 20, "cat": 20})


def test_a_stopped_command_continues_with_the_batch_that_it_began_with(photographs: Path, tmp_path: Path) -> None:
    """Where no flag names the batch, it is found by the free memory, which may be another the next time."""
    weights = random_teacher(tmp_path / "w.safetensors")
    flags: dict[str, Any] = {"ce_decile": 2, "size": SIDE, "teacher": (TEACHER[1],), "weights": (str(weights),)}
    flags["teacher_args"] = (TEACHER[3],)
    with mock.patch.object(batches, "CPU_BATCH", 8):
        make(photographs, tmp_path / "whole", "random", 2, **flags)
        with mock.patch.object(random.Random, "make", stops(random.Random.make)), pytest.raises(Stopped):
            make(photographs, tmp_path / "set", "random", 2, **flags)
    with mock.patch.object(batches, "CPU_BATCH", 4):
        assert make(photographs, tmp_path / "set", "random", 2, **flags)["made"] == 6  # the signal ended the first job
        make(photographs, tmp_path / "other", "random", 2, **flags)
    records: Any = [record_of(tmp_path / name) for name in ("set", "whole", "other")]
    assert [record["teacher"]["engine"]["batch"] for record in records] == [8, 8, 4]
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def stops(plain: Any) -> Any:
    """A method's `make` that gets a signal in its first job."""

    def make_and_stop(self: Any, job: Any, working: Any, /) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, job, working)

    return make_and_stop


@pytest.mark.parametrize("take", ["copy", "center"])
def test_images_in_another_container_give_the_same_set(photographs: Path, tmp_path: Path, take: str) -> None:
    files = {str(path.relative_to(photographs)): path.read_bytes() for path in photographs.glob("*/*")}
    size = None if take == "copy" else 8
    make(photographs, tmp_path / "of-folder", "random", 3, take=take, size=size)
    make(as_zip(files, tmp_path / "set.zip"), tmp_path / "of-zip", "random", 3, take=take, size=size)
    assert tree(tmp_path / "of-zip") == tree(tmp_path / "of-folder")
    with pytest.raises(InputError, match="is not a single file; give --take copy"):
        make(tmp_path / "set.zip", tmp_path / "linked", "random", 3, take="link")


def test_arrays_are_copied_as_the_files_of_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "arrays.npz", images=pixels, labels=np.arange(6) % 2)
    make(tmp_path / "arrays.npz", tmp_path / "set", "random", 2)
    sources = pieces_of(tmp_path / "set").arrays["sources"][:, 0]
    order = np.argsort(np.arange(6) % 2, kind="stable")  # of the listing: by class
    for file, source in zip(pieces_of(tmp_path / "set").files, sources, strict=True):
        assert file.endswith(".ppm")
        with Image.open(tmp_path / "set" / file) as image:
            assert (np.asarray(image) == pixels[order[source]]).all()
    assert len(scan(tmp_path / "set")) == 4
