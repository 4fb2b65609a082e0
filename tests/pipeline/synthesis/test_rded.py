"""RDED held against a plain one: PIL crops, a network called directly, torch's cross-entropy, a sort."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from pipeline.images.manifest import Manifest, scan
from pipeline.networks import build_network
from pipeline.networks.weights import save_weights
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.ranks import Ranks
from pipeline.render import cache as decoded_images
from pipeline.render.crops import CropRenderer
from pipeline.render.device import DeviceRenderer
from pipeline.render.passing import in_passing
from pipeline.synthesis.config import SynthesizeConfig
from pipeline.synthesis.method import Job, Setting, StopRequestedError, Working
from pipeline.synthesis.rded import Rded, best, collages, draw_pool, make_rded
from pipeline.synthesis.scoring import cross_entropies_of, scores_of
from tests.journeys.world import CLASSES, draw_images
from tests.pipeline.test_labeller import MeanColours

SIZE, FACTOR, IPC, POOL, CROPS = 16, 2, 2, 9, 3
ARGS = {"width": 8, "norm": "batch"}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
WIDE = 5  # columns of a teacher that knows other classes too


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("rded") / "images", per_class=11)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("weights")

    def made(seed: int, columns: int = len(CLASSES)) -> Path:
        path = folder / f"{seed}-{columns}.safetensors"
        if not path.exists():
            torch.manual_seed(seed)
            save_weights(build_network("convnet-d2", ARGS, classes=columns, size=SIZE).state_dict(), path)
        return path

    return made


def flags(images: Path, *weights: Path, **changes: Any) -> SynthesizeConfig:
    values: dict[str, Any] = {
        "method": "rded", "images": images, "out": images.parent / "out", "ipc": IPC, "size": SIZE, "factor": FACTOR,
        "pool": POOL, "crops": CROPS, "seed": 5, "teacher": ("convnet-d2",) * len(weights),
        "weights": tuple(map(str, weights)), "teacher_args": ('{"width": 8, "norm": "batch"}',), "mean": MEAN,
        "std": STD, "threads": 1, "batch": 32,
    }  # fmt: skip
    if not weights:
        for name in ("teacher_args", "mean", "std", "batch"):
            values.pop(name)
    return from_flags(SynthesizeConfig, **{**values, **changes})


def setting(config: SynthesizeConfig, **changes: Any) -> Setting:
    manifest = scan(config.images)
    return dataclasses.replace(
        Setting(
            config=config,
            manifest=manifest,
            targets=np.arange(len(manifest.classes)),
            console=Console(silent=True),
            ranks=Ranks(),
        ),
        **changes,
    )


def working(stop_at: int | None = None) -> Working:
    reached = [0]

    def progress(done: int, _total: int, _binding: str = "") -> None:
        reached[0] = done

    def stopping() -> bool:
        return stop_at is not None and reached[0] >= stop_at

    return Working(
        file=Path("none"), proof=Proof("a file of this job", lambda _path: False), progress=progress, stopping=stopping
    )


def made_by(config: SynthesizeConfig, order: Callable[[Any], Any] = list, **changes: Any) -> dict[str, Any]:
    with closing(make_rded(setting(config, **changes))) as method:
        return {job.name: method.make(job, working()) for job in order(method.jobs)}


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(
        np.array_equal(np.stack(ours[name].images), np.stack(theirs[name].images))
        and all(np.array_equal(values, theirs[name].pieces[key]) for key, values in ours[name].pieces.items())
        for name in ours
    )


def pixels(manifest: Manifest, image: int, box: list[int], side: int) -> np.ndarray:
    top, left, height, width = box
    with Image.open(manifest.place(image)) as file:
        crop = file.convert("RGB").crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((side, side), Image.Resampling.BILINEAR))


def normalised(crop: np.ndarray) -> torch.Tensor:
    """By the definition, in float64."""
    values = (crop.astype(np.float64) / 255 - MEAN) / STD
    return torch.from_numpy(values).permute(2, 0, 1)[None].float()


def plain(config: SynthesizeConfig, networks: list[torch.nn.Module], columns: list[int], target: int) -> dict[str, Any]:
    """The pieces of a class and its images, one crop at a time."""
    options, manifest = config.rded, scan(config.images)
    factor = options.factor or 1
    cell = SIZE // factor
    plan = Plan(
        PlanSpec(size=cell, seed=config.seed, scale=(0.08, 1), ratio=(1, 1), flip=0), manifest.heights, manifest.widths
    )
    crops = []
    for image in draw_pool(setting(config), target, options.pool).tolist():
        scored = []
        for number in range(options.crops):
            box = plan.unmixed(number, np.array([image])).boxes()[0].tolist()
            if options.fit == "pad":
                inside = torch.zeros(1, 3, SIZE, SIZE)
                start = (SIZE - cell) // 2
                inside[..., start : start + cell, start : start + cell] = normalised(pixels(manifest, image, box, cell))
            else:
                inside = normalised(pixels(manifest, image, box, SIZE))
            with torch.no_grad():
                logits = torch.stack([network(inside)[0] for network in networks]).mean(0)
            loss = float(functional.cross_entropy(logits[None].double(), torch.tensor([columns[target]])))
            scored.append((loss, number, image, box))
        crops.append(min(scored, key=lambda crop: crop[:2]))
    crops.sort(key=lambda crop: (crop[0], crop[2]))
    sheets = []
    for number in range(config.ipc):
        sheet = Image.new("RGB", (SIZE, SIZE))
        for place in range(factor**2):
            _, _, image, box = crops[place * config.ipc + number]
            piece = Image.fromarray(pixels(manifest, image, box, cell))
            sheet.paste(piece, (place % factor * cell, place // factor * cell))
        sheets.append(np.asarray(sheet))
    order = [[place * config.ipc + number for place in range(factor**2)] for number in range(config.ipc)]
    return {
        "images": np.stack(sheets),
        "sources": [[crops[piece][2] for piece in row] for row in order],
        "boxes": [[crops[piece][3] for piece in row] for row in order],
        "crops": [[crops[piece][1] for piece in row] for row in order],
        "scores": [[crops[piece][0] for piece in row] for row in order],
    }


def network(path: Path, columns: int = len(CLASSES)) -> torch.nn.Module:
    from safetensors.torch import load_file

    made = build_network("convnet-d2", ARGS, classes=columns, size=SIZE)
    made.load_state_dict(load_file(path))
    return made.eval()


def test_it_makes_what_a_plain_program_makes(images: Path, weights: Callable[..., Path]) -> None:
    one, other, wide = weights(0), weights(1), weights(2, WIDE)
    cases = [
        (flags(images, one), [network(one)], [0, 1, 2]),
        (flags(images, one, fit="resize"), [network(one)], [0, 1, 2]),
        (flags(images, one, factor=1, ipc=4), [network(one)], [0, 1, 2]),
        (flags(images, one, other), [network(one), network(other)], [0, 1, 2]),
        (flags(images, wide, class_columns="4,0,2"), [network(wide, WIDE)], [4, 0, 2]),
    ]
    for config, networks, columns in cases:
        found = made_by(config)
        for target, name in enumerate(CLASSES):
            ours, theirs = found[f"class {name}"], plain(config, networks, columns, target)
            for key in ("sources", "boxes", "crops"):
                assert ours.pieces[key].tolist() == theirs[key], (config.rded, key)
            np.testing.assert_allclose(ours.pieces["scores"], theirs["scores"], rtol=2e-5)
            assert np.array_equal(np.stack(ours.images), theirs["images"])


def test_pieces_are_the_same_however_they_are_made(images: Path, weights: Callable[..., Path]) -> None:
    """By two ranks, with classes in another order, with little memory for images or none: the same pixels."""
    config = flags(images, weights(0))
    expected = made_by(config)
    backwards = made_by(config, order=lambda jobs: jobs[::-1])
    assert same(expected, backwards)
    for gib in (0.0, 20_000 / 2**30):  # of a class's pool about 40 kB
        assert same(expected, made_by(changed(config, cache_gib=gib)))
    shares: dict[str, Any] = {}
    for rank in range(2):
        ranks = Ranks(rank, 2, rank, 2)
        shares |= made_by(config, order=ranks.shard)
    assert same(expected, {name: shares[name] for name in expected})
    other_batch = made_by(changed(config, batch=7))
    for name, made in expected.items():  # another engine: the scores alone may differ, in their last bits
        assert np.array_equal(made.pieces["boxes"], other_batch[name].pieces["boxes"])
        np.testing.assert_allclose(made.pieces["scores"], other_batch[name].pieces["scores"], rtol=1e-5)


def test_each_file_is_decoded_once(images: Path, weights: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    actual = decoded_images.Images.decode
    kept: list[int] = []

    def decode(self: decoded_images.Images, files: Any) -> Any:
        read.extend(file.image for file in files)
        kept.append(sum(image.numel() for image in self._kept.values()))
        return actual(self, files)

    monkeypatch.setattr(decoded_images.Images, "decode", decode)
    sides = scan(images)
    budget = int(3 * (sides.heights.astype(int) * sides.widths).max()) * 4  # four images: less than a pool
    config = flags(images, weights(0), cache_gib=budget / 2**30, batch=CROPS * 2, fit="resize")
    with closing(make_rded(setting(config))) as method:
        job = method.jobs[0]
        pool = method.pools[0].tolist()
        method._losses(job, _rows(method, job), working())  # what follows cuts the chosen ones again
        assert sorted(read) == pool
        assert max(kept) <= budget
    read.clear()
    large = flags(images, weights(0), batch=CROPS * 2)
    made_by(large)
    assert sorted(read) == sorted(np.concatenate([draw_pool(setting(large), target, POOL) for target in range(3)]))


def _rows(method: Rded, job: Job) -> Any:
    from pipeline.synthesis.rded import crops_of

    return crops_of(method.plan, method.pools[int(job.targets[0])], method.numbers.crops)


def test_pieces_are_cut_again(images: Path, weights: Callable[..., Path]) -> None:
    """From the record alone: without a teacher, any of the images, in any order."""
    for fit in ("pad", "resize"):
        made = made_by(flags(images, weights(0), fit=fit))
        every = [image for each in made.values() for image in each.images]
        pieces = {key: np.concatenate([each.pieces[key] for each in made.values()]) for key in ("sources", "boxes")}
        with closing(make_rded(setting(flags(images, fit=fit), checking=True))) as method:
            assert method.teacher is None
            order = [4, 0, 5]
            again = method.again({key: values[order] for key, values in pieces.items()})
        assert all(np.array_equal(found, every[place]) for found, place in zip(again, order, strict=True))


def test_pieces_of_something_else_are_refused(images: Path, weights: Callable[..., Path]) -> None:
    pieces = made_by(flags(images, weights(0)))["class ant"].pieces
    with closing(make_rded(setting(flags(images), checking=True))) as method:
        for changes, message in (
            ({"sources": pieces["sources"][:, :3]}, "expected sources and boxes of 4 cells an image"),
            ({"boxes": pieces["boxes"][..., :3]}, "expected sources and boxes of 4 cells an image"),
            ({"sources": pieces["sources"] - 100}, "expected images below 33"),
            ({"boxes": pieces["boxes"] + 50}, "is not within its"),
            ({"boxes": -pieces["boxes"]}, "is not within its"),
        ):
            with pytest.raises(InputError, match=message):
                method.again({**pieces, **changes})


def test_a_teacher_that_gives_no_number_is_named_with_the_image(images: Path) -> None:
    message = r"logit of image \d+ in class bee, class 0: expected a number, found inf"
    with (
        closing(make_rded(setting(flags(images, labeller=f"{__name__}:broken", fit="resize")))) as method,
        pytest.raises(InputError, match=message),
    ):
        method.make(method.jobs[1], working())


def test_a_stopped_class_is_begun_again(images: Path, weights: Callable[..., Path]) -> None:
    config = flags(images, weights(0), batch=8)
    with closing(make_rded(setting(config))) as method:
        job = method.jobs[1]
        with pytest.raises(StopRequestedError):
            method.make(job, working(stop_at=9))
        assert method.make(job, working(stop_at=POOL * CROPS)) is not None  # all is scored: it is finished
        again = method.make(job, working())
    assert same({job.name: again}, {job.name: made_by(config)[job.name]})


def test_a_smaller_set_is_part_of_a_larger_one(images: Path, weights: Callable[..., Path]) -> None:
    """With factor 1 its images are the first; with factor 2 its pieces are the best of the larger one's."""
    few, more = (made_by(flags(images, weights(0), factor=1, ipc=ipc)) for ipc in (2, 6))
    for name, made in few.items():
        assert np.array_equal(np.stack(made.images), np.stack(more[name].images[:2]))
    few, more = (made_by(flags(images, weights(0), ipc=ipc)) for ipc in (1, 2))
    for name, made in few.items():
        assert sorted(made.pieces["scores"].ravel()) == sorted(more[name].pieces["scores"].ravel())[:4]


def test_the_pool_depends_on_the_seed_and_the_class_alone(images: Path, tmp_path: Path) -> None:
    config = flags(images)
    all_classes = setting(config)
    pools = [draw_pool(all_classes, target, 5) for target in range(3)]
    assert all(np.array_equal(np.unique(pool), pool) for pool in pools)
    assert {*pools[1]} <= {*draw_pool(all_classes, 1, 8)}
    for name in ("bee", "cat", "dog"):
        (tmp_path / "fewer" / name).mkdir(parents=True)
        for file in (images / ("ant" if name == "dog" else name)).iterdir():
            (tmp_path / "fewer" / name / file.name).write_bytes(file.read_bytes())
    fewer = setting(flags(tmp_path / "fewer"))
    files = [[Path(all_classes.manifest.place(image)).name for image in pool] for pool in pools]
    found = [[Path(fewer.manifest.place(image)).name for image in draw_pool(fewer, target, 5)] for target in range(3)]
    assert found[:2] == files[1:]
    assert found[2] != files[0]  # the same files under another name
    assert not np.array_equal(draw_pool(setting(flags(images, seed=6)), 1, 5), pools[1])


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_the_best_crops_are_those_of_a_sort(seed: int, images: int, crops: int) -> None:
    """With many equal losses: by loss, then by image, and of an image the first crop."""
    losses = np.random.default_rng(seed).integers(0, 4, (images, crops)).astype(np.float64)
    count = 1 + seed % images
    found = best(losses, count)
    each = [min((losses[image, crop], crop) for crop in range(crops)) for image in range(images)]
    ordered = sorted((loss, image, crop) for image, (loss, crop) in enumerate(each))[:count]
    assert [*zip(*map(np.ndarray.tolist, found), strict=True)] == [(image, crop) for _, image, crop in ordered]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_cells_are_placed_row_by_row(factor: int, images: int, side: int) -> None:
    cells = np.random.default_rng(0).integers(0, 256, (images * factor**2, side, side, 3)).astype(np.uint8)
    for number, collage in enumerate(collages(cells, factor)):
        for row in range(factor):
            for column in range(factor):
                place = collage[row * side : (row + 1) * side, column * side : (column + 1) * side]
                assert np.array_equal(place, cells[number * factor**2 + row * factor + column])


def test_scores_are_exact_and_respect_the_columns() -> None:
    """Hopeless images keep their order: in float32 probabilities all of them are 0."""
    logits = torch.tensor([[0.0, 500, 0, 3], [0, 400, 0, 3], [7, 8, -2, 90]])
    targets = np.array([1, 1, 0])
    found = scores_of(logits, targets, (1, 0))
    exact = logits.numpy().astype(np.float64)
    expected = np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1)) + exact.max(1) - exact[range(3), [0, 0, 1]]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-15)
    assert found.losses[0] == 500
    assert found.right.tolist() == [False, False, True]  # column 3 is no folder's
    plain = scores_of(logits, np.array([1, 3, 3]))
    assert plain.right.tolist() == [True, False, True]


def test_images_in_memory_are_scored_in_any_batches() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (13, 12, 12, 3)).astype(np.uint8)
    targets = np.arange(13) % 3
    found = cross_entropies_of(MeanColours(), pictures, targets)
    logits = torch.from_numpy(pictures.mean(axis=(1, 2)) / 25.5).double()
    losses = functional.cross_entropy(logits, torch.from_numpy(targets), reduction="none").numpy()
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    assert found.right.tolist() == (logits.argmax(1).numpy() == targets).tolist()
    assert len(cross_entropies_of(MeanColours(), pictures[:0], targets[:0]).losses) == 0


def coloured(*, size: int, classes: tuple[str, ...]) -> MeanColours:
    return MeanColours(size=size)


def broken(*, size: int, classes: tuple[str, ...]) -> MeanColours:
    return MeanColours(size=size, broken=True)


def test_a_labeller_of_ones_own_scores_resized_crops(images: Path) -> None:
    own = f"{__name__}:coloured"
    made = made_by(flags(images, labeller=own, fit="resize"))
    assert all((each.pieces["scores"] < 3).all() for each in made.values())
    with pytest.raises(InputError, match=r"--labeller .*: expected a teacher, .* --fit resize"):
        make_rded(setting(flags(images, labeller=own)))
    assert made_by(flags(images, labeller=own, factor=1, ipc=1))  # nothing to pad


def test_what_does_not_fit_is_refused(images: Path, weights: Callable[..., Path]) -> None:
    one = weights(0)
    for changes, message in (
        ({"size": None}, "--size: missing"),
        ({"size": 15}, "--factor 2: expected a divisor of --size, found 15 px.*--size 14"),
        ({"factor": 0}, "--factor: expected at least 1, found 0"),
        ({"crops": 0}, "--crops: expected at least 1, found 0"),
        ({"pool": 7}, "--pool 7: expected at least 8 images"),
        ({"pool": 12, "ipc": 3}, "expected at least 12 images of the pool in each class, found fewer in ant .11.,"),
        (
            {"teacher": (), "weights": (), "teacher_args": (), "mean": None, "std": None, "batch": None},
            "--weights: missing",
        ),
    ):
        with pytest.raises(InputError, match=message):
            make_rded(setting(flags(images, one, **changes)))
    with closing(make_rded(setting(flags(images, one, pool=12, ipc=3, allow_fewer=True)))) as method:
        assert [len(job.targets) for job in method.jobs] == [2, 2, 2]
    with closing(make_rded(setting(flags(images, one), targets=np.array([0, 2])))) as method:
        assert [job.name for job in method.jobs] == ["class ant", "class cat"]


def test_small_images_are_warned_of(
    images: Path, weights: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    path = images.parent / "large.safetensors"
    save_weights(build_network("convnet-d2", ARGS, classes=3, size=96).state_dict(), path)
    make_rded(setting(flags(images, path, size=96), console=Console())).close()
    assert "images of the pool are smaller than a crop of 48 px" in capsys.readouterr().err


def test_parameters_and_teacher_name_what_decides(images: Path, weights: Callable[..., Path]) -> None:
    config = flags(images, weights(0), factor=None)
    with closing(make_rded(setting(config))) as method:
        assert method.parameters["factor"] == 1  # below 128 px
        assert "padded_to" not in (method.teacher or {})
    with closing(make_rded(setting(flags(images, weights(0))))) as method:
        assert method.teacher is not None
        assert (method.teacher["size"], method.teacher["padded_to"]) == (SIZE // 2, SIZE)
        assert method.teacher["engine"] == dict(method.scorer.engine if method.scorer else {})
        method.make(method.jobs[0], working())
        assert 0 < method.pace.share(32) <= 1


def test_passing_crops_have_the_same_pixels_and_keep_to_the_budget(images: Path) -> None:
    """Of a renderer on a CPU, and of a GPU's, which keeps images in one tensor."""
    manifest, spec, budget = scan(images), PlanSpec(size=8), 20_000
    plan = Plan(spec, manifest.heights, manifest.widths)
    sizes = 3 * manifest.heights.astype(int) * manifest.widths
    with (
        closing(CropRenderer(manifest, spec, 1, 2**30)) as plain,
        closing(CropRenderer(manifest, spec, 1, budget)) as on_cpu,
        closing(DeviceRenderer(manifest, spec, torch.device("cpu"), "cpu", 1, budget)) as on_gpu,
    ):
        for _ in range(2):
            for start in range(0, plan.images, 3):
                here = np.arange(start, min(start + 3, plan.images))
                rows = plan.unmixed(0, np.repeat(here, 2))
                expected = plain.render(rows)
                for inner in (on_cpu, on_gpu):
                    passing = in_passing(inner)
                    assert passing.id == inner.id
                    assert torch.equal(passing.render(rows), expected)
                assert sizes[[*on_cpu._images._kept]].sum() <= budget
                assert on_gpu._kept.data.numel() <= budget
                if sizes[here].sum() <= budget:
                    assert {*here} <= {*on_cpu._images._kept}
                    assert (on_gpu._kept.starts[here] >= 0).all()
