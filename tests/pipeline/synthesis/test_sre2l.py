"""SRe2L: its loss against plain transcriptions, what it makes of images, and that stopping it changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from pipeline.config import EngineOptions, TeacherOptions
from pipeline.device.faults import DeviceMemoryError
from pipeline.images.manifest import scan
from pipeline.networks import build_network
from pipeline.networks.weights import save_weights
from pipeline.ranks import Ranks
from pipeline.synthesis import gradients, recovering
from pipeline.synthesis.config import Sre2lOptions, SynthesizeConfig
from pipeline.synthesis.method import Job, Made, Progress, Setting, StopRequestedError, Working
from pipeline.synthesis.random import make_random
from pipeline.synthesis.sre2l import Sre2l, make_sre2l
from pipeline.synthesis.statistics import Measured, distance, moments, pooled
from pipeline.synthesis.views import Views, draw_views, resizing, show
from pipeline.teacher.engine.compiling import CompileError
from tests.journeys.world import CLASSES, draw_images

SIDE, WIDTH = 16, 8
MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)
ANYTHING = Proof("what this test wrote", lambda _path: True)


def convnet(norm: str = "batch") -> nn.Module:
    """A ConvNet of two blocks with random weights."""
    torch.manual_seed(1)
    return build_network("convnet-d2", {"width": WIDTH, "norm": norm}, classes=len(CLASSES), size=SIDE)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes, whose class sets the colour."""
    return draw_images(tmp_path_factory.mktemp("sre2l") / "images")


def recognising(images: Path) -> Path:
    """Weights of a ConvNet that tells the classes of a folder apart."""
    files = sorted(images.glob("*/*"))
    pictures = [np.asarray(Image.open(file).convert("RGB").resize((SIDE, SIDE))) for file in files]
    inputs = (torch.from_numpy(np.stack(pictures)) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    targets = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    network = convnet().train()
    adam = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        adam.zero_grad()
        cross_entropy(network(inputs.permute(0, 3, 1, 2)), targets).backward()
        adam.step()
    path = images.parent / "weights.safetensors"
    save_weights(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def weights(images: Path) -> Path:
    return recognising(images)


def teacher_of(path: Path, /, **others: Any) -> TeacherOptions:
    """The flags of a ConvNet."""
    args = f'{{"width": {WIDTH}, "norm": "batch"}}'
    given: dict[str, Any] = {"names": ("convnet-d2",), "weights": (str(path),), "args": (args,)}
    return TeacherOptions(**{**given, "mean": MEAN, "std": STD, **others})


def setting_of(images: Path, teacher: TeacherOptions, batch: int | None = None, **others: Any) -> Setting:
    """What the method is made with; ``others`` are flags of its own, but ``ipc`` and ``engine``."""
    ipc = others.pop("ipc", 2)
    engine = others.pop("engine", EngineOptions(batch=batch))
    own = Sre2lOptions(**{"iterations": 5, **others})
    config = SynthesizeConfig(
        method="sre2l", out=images.parent / "set", images=images, ipc=ipc, size=SIDE, sre2l=own, teacher=teacher,
        engine=engine,
    )  # fmt: skip
    return Setting(
        config=config, manifest=scan(images), targets=np.arange(3), console=Console(silent=True), ranks=Ranks()
    )


def sre2l(images: Path, teacher: TeacherOptions, batch: int | None = None, **others: Any) -> Sre2l:
    """The method."""
    method = make_sre2l(setting_of(images, teacher, batch, **others))
    assert isinstance(method, Sre2l)
    return method


def make(
    method: Sre2l,
    job: int = 0,
    file: Path = Path("/nowhere"),
    progress: Progress = lambda *_args: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Made:
    """The images of a job."""
    return method.make(method.jobs[job], Working(file, ANYTHING, progress, stopping))


def by_hand(network: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor, nn.BatchNorm2d]]:
    """Mean and variance of the input of each batch norm of a ConvNet, layer by layer in float64, and the batch norm."""
    found, values = [], images.double()
    features: Any = network.features
    for layer in features.double():
        if isinstance(layer, nn.BatchNorm2d):
            flat = values.transpose(0, 1).flatten(1)
            mean = flat.mean(1)
            found.append((mean, ((flat - mean[:, None]) ** 2).mean(1), layer))
        values = layer(values)
    features.float()
    return found


def test_the_distance_of_statistics_is_the_papers() -> None:
    network = convnet().eval().requires_grad_(False)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    measured = Measured("net", network, torch.zeros(2, 3, SIDE, SIDE))
    images = torch.randn(5, 3, SIDE, SIDE)
    found = measured(images)[1]
    expected = torch.zeros((), dtype=torch.float64)
    for (mean, variance), (own_mean, own_variance, layer), first in zip(
        found, by_hand(network, images), (10.0, 1.0), strict=True
    ):
        torch.testing.assert_close(mean.double(), own_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(variance.double(), own_variance, rtol=1e-5, atol=1e-6)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        norms = (own_mean - layer.running_mean).norm() + (own_variance - layer.running_var).norm()
        expected += first * norms
    torch.testing.assert_close(distance(found, measured.running, 10.0).double(), expected, rtol=1e-5, atol=0)


class NormAndReLU(nn.BatchNorm2d):
    """A batch norm that does something besides, as timm's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as torch names it
        return super().forward(input).relu()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, NormAndReLU])
@pytest.mark.parametrize("affine", [True, False])
def test_measuring_changes_no_logits(norm: type[nn.BatchNorm2d], affine: bool) -> None:
    torch.manual_seed(2)
    layers = nn.Conv2d(3, 4, 3), norm(4, affine=affine), nn.ReLU(), nn.Conv2d(4, 2, 3), norm(2, eps=0.1)
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 3))
    network(torch.randn(8, 3, SIDE, SIDE))  # moves the running statistics
    network.eval().requires_grad_(False)
    images = torch.randn(5, 3, SIDE, SIDE).requires_grad_()
    logits = network(images)
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    found, statistics = Measured("net", network, torch.zeros(2, 3, SIDE, SIDE))(images)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), images)[0], gradient, rtol=1e-4, atol=1e-6)
    assert [len(mean) for mean, _ in statistics] == [4, 2]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_have_the_gradients_of_mean_and_variance(layout: torch.memory_format, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, 5, 6, generator=generator).mul_(2).add_(1)
    values[:, 1] = 0.5  # a channel without variance
    values = values.to(dtype, memory_format=layout).requires_grad_()
    weights = torch.randn(2, 4, generator=generator)
    mean, variance = moments(values)
    (weights[0] * mean + weights[1] * variance).sum().backward()
    exact = values.detach().double().requires_grad_()
    own_mean, own_variance = exact.mean((0, 2, 3)), exact.var((0, 2, 3), correction=0)
    (weights[0] * own_mean + weights[1] * own_variance).sum().backward()
    torch.testing.assert_close(mean.double(), own_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance.double(), own_variance, rtol=1e-5, atol=1e-6)
    assert values.grad is not None
    assert exact.grad is not None
    rounding = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(values.grad.double(), exact.grad, rtol=rounding, atol=rounding * 0.01)


def test_statistics_of_batches_are_those_of_all_together() -> None:
    values = torch.randn(11, 4, 3, 3) * 3 + 1
    parts = [(len(part), [moments(part)]) for part in values.split([4, 4, 3])]
    ((mean, variance),) = pooled(parts)
    torch.testing.assert_close(mean, values.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance, values.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)


def test_a_view_is_a_crop_resized_flipped_and_rolled() -> None:
    views = draw_views("a batch", seed=3, steps=40, size=SIDE, scale=(0.08, 1.0), jitter=5)
    images = torch.randn(2, 3, SIDE, SIDE)
    for step in range(40):
        top, left, height, width = views.boxes[step].tolist()
        expected = interpolate(images[..., top : top + height, left : left + width], size=(SIDE, SIDE), mode="bilinear")
        if views.flips[step]:
            expected = expected.flip(-1)
        expected = expected.roll(views.shifts[step].tolist(), dims=(2, 3))
        torch.testing.assert_close(show(images, torch.from_numpy(views.matrices(step))), expected, rtol=0, atol=1e-5)
    assert {*views.flips.tolist()} == {False, True}
    assert {*views.shifts.flatten().tolist()} == set(range(6))


def test_a_whole_view_without_shifts_changes_nothing() -> None:
    views = draw_views("a batch", seed=3, steps=9, size=SIDE, scale=(1.0, 1.0), jitter=0)
    images = torch.randn(2, 3, SIDE, SIDE)
    for step, flip in enumerate(views.flips):
        seen = show(images, torch.from_numpy(views.matrices(step)))
        assert torch.equal(seen, images.flip(-1) if flip else images)


def test_the_rows_of_a_resizing_sum_to_one() -> None:
    for start, length in ((0, 1), (3, 7), (SIDE - 2, 2), (0, SIDE)):
        matrix = resizing(start, length, SIDE)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
        assert not matrix[:, :start].any()
        assert not matrix[:, start + length :].any()


def test_views_of_one_step_do_not_depend_on_how_many_there_are() -> None:
    def fields(views: Views, steps: int) -> list[Any]:
        return [each[:steps].tolist() for each in (views.boxes, views.flips, views.shifts)]

    few, many = (draw_views("a", 0, steps, SIDE, (0.1, 1.0), 3) for steps in (4, 30))
    assert fields(few, 4) == fields(many, 4)
    assert fields(few, 4) != fields(draw_views("b", 0, 4, SIDE, (0.1, 1.0), 3), 4)


@pytest.mark.parametrize("start", ["noise", "real"])
def test_images_come_to_be_recognised(start: str, images: Path, weights: Path) -> None:
    begun = make(sre2l(images, teacher_of(weights), ipc=4, iterations=1, lr=1e-6)).pieces
    assert abs(float(np.mean(np.asarray(begun["agreements"], float))) - 1 / 3) < 0.35  # noise: by chance
    method = sre2l(images, teacher_of(weights), ipc=4, iterations=100, start=start)
    made = make(method)
    assert np.stack([np.asarray(image) for image in made.images]).shape == (12, SIDE, SIDE, 3)
    assert float(np.min(made.pieces["confidences"])) > 0.9
    assert np.all(made.pieces["agreements"])
    assert float(made.pieces["bn_losses"][0]) < float(begun["bn_losses"][0])
    scores, confidences = (np.asarray(made.pieces[name], float) for name in ("scores", "confidences"))
    np.testing.assert_allclose(scores[:, 0], -np.log(confidences), rtol=1e-6)


def test_statistics_are_matched_better_with_more_weight(images: Path, weights: Path) -> None:
    light, heavy = (
        make(sre2l(images, teacher_of(weights), ipc=4, iterations=40, lr=0.1, bn_weight=weight)).pieces["bn_losses"][0]
        for weight in (0.0, 1.0)
    )
    assert heavy < 0.8 * light


def test_the_loss_is_the_sum_of_its_parts(images: Path, weights: Path) -> None:
    """One step with all weights, against plain torch: its gradient moves pixels by Adam's first step, lr x sign."""
    flags: dict[str, Any] = {
        "bn_weight": 0.5,
        "first_bn": 3.0,
        "tv_weight": 0.01,
        "l2_weight": 0.02,
        "lr": 1e-3,
        "jitter": 0,
    }
    method = sre2l(images, teacher_of(weights), ipc=2, iterations=1, crop_scale=(1.0, 1.0), **flags)
    networks = method._networks  # the network as loaded
    assert networks is not None
    job = method.jobs[0]
    begun, _ = method._begin(job, networks)
    fit = method._fit(job, networks)
    exact = begun.clone().requires_grad_()
    network = convnet().eval()
    network.load_state_dict(_tensors(weights))
    total = cross_entropy(network(exact), torch.from_numpy(job.targets))
    values = exact
    features: Any = network.features
    for layer in features:
        if isinstance(layer, nn.BatchNorm2d):
            weight = 0.5 * (3.0 if layer is features[1] else 1.0)
            mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            total = total + weight * ((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())
        values = layer(values)
    for across, down in ((1, 0), (0, 1), (1, -1), (1, 1)):
        other = exact.roll((-down, -across), (2, 3)) - exact
        rows = slice(1, None) if down < 0 else slice(0, SIDE - down)
        total = total + 0.01 * other[:, :, rows, : SIDE - across].norm()
    total = total + 0.02 * exact.flatten(1).norm(dim=1).mean()
    ours = begun.clone().requires_grad_()
    loss = fit.loss(ours)
    loss.backward()
    total.backward()
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-3, atol=1e-6)


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("stopped_by", ["signal", "kill"])
def test_continued_to_the_same_images(
    stopped_by: str, images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {"ipc": 2, "iterations": 12, "start": "real", "statistics": "class", "tv_weight": 1e-3}
    whole = make(sre2l(images, teacher_of(weights), **flags))
    monkeypatch.setattr(recovering, "SAVE_SECONDS", -1.0)
    file = tmp_path / "job"
    reached = 0

    def progress(done: int, _total: int, _binding: str = "") -> None:
        nonlocal reached
        reached = done

    class KilledError(Exception):
        pass

    def killed(done: int, _total: int, _binding: str = "") -> None:
        if done == 9:
            raise KilledError

    stops = iter([7, 3])  # of the first call after seven steps, of the second after three more
    method = sre2l(images, teacher_of(weights), **flags)
    if stopped_by == "signal":
        for after in stops:
            left = iter([False] * after + [True])
            with pytest.raises(StopRequestedError):
                make(method, file=file, progress=progress, stopping=lambda left=left: next(left))  # type: ignore[misc]
        assert reached == 10
    else:
        with pytest.raises(KilledError):
            make(method, file=file, progress=killed)
    with np.load(file) as kept:
        assert kept["step"] == (10 if stopped_by == "signal" else 8)
    again = make(sre2l(images, teacher_of(weights), **flags), file=file)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(again.images, whole.images, strict=True))
    assert again.pieces.keys() == whole.pieces.keys()
    assert all(np.array_equal(again.pieces[name], whole.pieces[name]) for name in whole.pieces)


def test_another_file_is_no_work_of_this_job(images: Path, weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "job"
    file.write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read"):
        make(sre2l(images, teacher_of(weights)), file=file)
    shape = (1, 3, SIDE, SIDE)
    with file.open("wb") as to:
        np.savez(to, step=2, images=np.zeros(shape), exp_avg=np.zeros(shape), exp_avg_sq=np.zeros(shape))
    with pytest.raises(InputError, match="at one of 5 steps"):
        make(sre2l(images, teacher_of(weights)), file=file)


def test_pixels_that_are_no_numbers_are_refused(images: Path, weights: Path) -> None:
    with pytest.raises(InputError, match="found NaN"):
        make(sre2l(images, teacher_of(weights), bn_weight=1e38, first_bn=1e38))


@pytest.mark.parametrize("start", ["noise", "real"])
def test_images_that_are_black_and_white_alone_are_refused(start: str, images: Path, weights: Path) -> None:
    with pytest.raises(InputError, match="after 30 steps, found 100 % of them at these limits; give a smaller --lr"):
        make(sre2l(images, teacher_of(weights), iterations=30, lr=1e30, start=start))


def test_a_loss_that_does_not_fall_is_warned_of_once(
    images: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def warned(**flags: Any) -> str:
        setting = setting_of(images, teacher_of(weights), batch=3, ipc=2, iterations=3, **flags)
        method = make_sre2l(replace(setting, console=Console()))
        assert isinstance(method, Sre2l)
        capsys.readouterr()
        for job in range(len(method.jobs)):
            make(method, job)
        return capsys.readouterr().err

    assert not warned(lr=0.1)
    found = warned(lr=500.0)
    assert found.count("the loss has not fallen") == 1
    assert re.fullmatch(r"warning: batch [12] of 2: .*; give another --lr, or more --iterations\n", found)


def test_too_little_memory_names_the_flag(images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(_images: Tensor, _matrices: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    method = sre2l(images, teacher_of(weights))
    monkeypatch.setattr("pipeline.synthesis.sre2l.show", too_much)
    with pytest.raises(DeviceMemoryError, match="a smaller --batch"):
        make(method)


def test_batches_take_classes_in_turn(images: Path, weights: Path) -> None:
    jobs = sre2l(images, teacher_of(weights), batch=4, ipc=3).jobs
    assert [job.targets.tolist() for job in jobs] == [[0, 1, 2, 0], [1, 2, 0, 1], [2]]
    assert [job.numbers.tolist() for job in jobs] == [[0, 0, 0, 1], [1, 1, 2, 2], [2]]
    more = sre2l(images, teacher_of(weights), batch=4, ipc=5).jobs
    assert [job.targets.tolist() for job in more[:2]] == [job.targets.tolist() for job in jobs[:2]]
    assert [job.name for job in jobs] == ["batch 1 of 3", "batch 2 of 3", "batch 3 of 3"]


def test_batches_of_one_class(images: Path, weights: Path) -> None:
    jobs = sre2l(images, teacher_of(weights), batch=2, ipc=3, statistics="class").jobs
    assert [job.targets.tolist() for job in jobs] == [[0, 0], [0], [1, 1], [1], [2, 2], [2]]
    assert [job.numbers.tolist() for job in jobs] == [[0, 1], [2]] * 3
    assert {job.name for job in jobs} == {"class ant", "class bee", "class cat"}


def test_a_job_depends_on_nothing_of_the_others(images: Path, weights: Path) -> None:
    few, many = (sre2l(images, teacher_of(weights), batch=3, ipc=ipc, iterations=3) for ipc in (2, 3))
    first, last = make(few, 1), make(many, 1)
    assert all(np.array_equal(a, b) for a, b in zip(first.images, last.images, strict=True))


def test_statistics_of_a_class(images: Path, weights: Path) -> None:
    method = sre2l(images, teacher_of(weights), batch=3, statistics="class", crop_scale=(0.5, 1.0))
    networks, real = method._networks, method._real
    assert networks is not None
    assert real is not None
    network = convnet().eval().requires_grad_(False)
    network.load_state_dict(_tensors(weights))
    for job in (method.jobs[0], method.jobs[1]):
        (found,) = method._wanted(job, networks)
        crops = torch.cat([*real.crops(int(job.targets[0]), 100)])
        assert len(crops) == 8
        expected = by_hand(network, networks.images(crops))
        for (mean, variance), (own_mean, own_variance, _) in zip(found, expected, strict=True):
            torch.testing.assert_close(mean.double(), own_mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(variance.double(), own_variance, rtol=1e-4, atol=1e-6)


def test_real_images_are_those_that_random_takes(images: Path, weights: Path) -> None:
    method = sre2l(images, teacher_of(weights), ipc=3, start="real", iterations=1, lr=1e-9)
    made = make(method)
    setting = setting_of(images, teacher_of(weights), ipc=3)
    flags = replace(setting.config, method="random", teacher=TeacherOptions(), size=None, sre2l=Sre2lOptions())
    taken = replace(setting, config=flags)
    control = make_random(taken)
    drawn = [
        control.make(job, Working(Path("/nowhere"), ANYTHING, lambda *_: None, lambda: False)) for job in control.jobs
    ]
    expected = {
        (int(job.targets[0]), n): each
        for job, m in zip(control.jobs, drawn, strict=True)
        for n, each in enumerate(m.images)
    }
    job = method.jobs[0]
    places = zip(job.targets.tolist(), job.numbers.tolist(), strict=True)
    assert made.pieces["sources"][:, 0].tolist() == [expected[place] for place in places]
    sides = np.minimum(setting.manifest.heights, setting.manifest.widths)[made.pieces["sources"][:, 0]]
    assert made.pieces["boxes"].shape == (9, 1, 4)
    assert made.pieces["boxes"][:, 0, 2].tolist() == sides.tolist()


def test_more_real_images_than_there_are(images: Path, weights: Path) -> None:
    with pytest.raises(InputError, match="at least 9 images"):
        sre2l(images, teacher_of(weights), ipc=9, start="real")
    assert sum(len(job.targets) for job in sre2l(images, teacher_of(weights), ipc=9).jobs) == 27


def test_several_teachers_are_a_mean(images: Path, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    torch.manual_seed(7)
    network = build_network("convnet-d2", {"width": WIDTH, "norm": "batch"}, classes=3, size=SIDE)
    save_weights(network.state_dict(), other)
    both = teacher_of(weights, names=("convnet-d2",) * 2, weights=(str(weights), str(other)), shares=(3.0, 1.0))
    losses = []
    for teacher in (teacher_of(weights), teacher_of(other), both):
        method = sre2l(images, teacher)
        assert method._networks is not None
        begun, _ = method._begin(method.jobs[0], method._networks)
        losses.append(float(method._fit(method.jobs[0], method._networks).loss(begun)))
    assert losses[2] == pytest.approx(0.75 * losses[0] + 0.25 * losses[1], rel=1e-5)
    assert len(make(sre2l(images, both)).images) == 6


@pytest.mark.parametrize("how", ["classes", "class_columns"])
def test_columns_of_a_wider_teacher(how: str, images: Path, weights: Path, tmp_path: Path) -> None:
    tensors = _tensors(weights)
    order = [1, 3, 0, 4, 2]  # of the rows of the wider head: its columns 2, 0, 4 are the classes
    for name in ("classifier.weight", "classifier.bias"):
        value = torch.cat([tensors[name], torch.zeros_like(tensors[name][:2])])
        tensors[name] = value[order].contiguous()
    wide = tmp_path / "wide.safetensors"
    save_weights(tensors, wide)
    method = sre2l(images, teacher_of(wide, **{how: "2,0,4"}), ipc=4, iterations=60)
    made = make(method)
    assert float(np.min(made.pieces["confidences"])) > 0.9
    judged = make(sre2l(images, teacher_of(weights), ipc=4, iterations=1, lr=1e-9))
    narrow = sre2l(images, teacher_of(weights), ipc=4)
    assert narrow._networks is not None
    pixels = np.stack([np.asarray(image) for image in made.images])
    report = narrow._fit(narrow.jobs[0], narrow._networks).report(pixels)
    assert np.all(report["agreements"])
    assert not np.all(judged.pieces["agreements"])


@pytest.mark.parametrize(
    ("teacher", "engine", "message"),
    [
        ({"args": (f'{{"width": {WIDTH}, "norm": "instance"}}',)}, {}, "expected a teacher with batch norms"),
        ({}, {"fold": True}, "--fold"),
        ({}, {"dtype": "float16"}, "--dtype float16"),
        ({"names": (), "weights": (), "args": ()}, {}, "--teacher and --weights: missing"),
        ({"names": (), "weights": (), "args": (), "labeller": "a:b"}, {}, "--labeller a:b"),
    ],
)
def test_teachers_that_give_no_gradients_or_statistics(
    teacher: dict[str, Any], engine: dict[str, Any], message: str, images: Path, weights: Path, tmp_path: Path
) -> None:
    if "instance" in str(teacher):
        weights = tmp_path / "instance.safetensors"
        save_weights(convnet("instance").state_dict(), weights)
    with pytest.raises(InputError, match=message):
        sre2l(images, teacher_of(weights, **teacher), engine=EngineOptions(**engine))


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_networks(dtype: Any, images: Path, weights: Path) -> None:
    engine = EngineOptions(batch=4, compile="require", dtype=dtype)
    method = sre2l(images, teacher_of(weights), engine=engine, iterations=30)
    assert method.teacher is not None
    described: Any = method.teacher["engine"]
    assert (described["compile"], described["dtype"]) == ("inductor", dtype)
    for job in range(len(method.jobs)):  # the last batch is smaller
        assert float(np.mean(np.asarray(make(method, job).pieces["confidences"], float))) > 0.9


def test_bfloat16_by_autocast(images: Path, weights: Path) -> None:
    made = make(sre2l(images, teacher_of(weights), engine=EngineOptions(dtype="bfloat16"), iterations=60))
    assert float(np.min(np.asarray(made.pieces["confidences"], float))) > 0.9


def test_compiled_networks_that_lie_are_not_used(images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(network: nn.Module, _example: Tensor, *, name: str) -> Callable[[Tensor], Any]:
        def run(images: Tensor) -> Any:
            logits, statistics = network(images)
            return logits, [(mean + 1, variance) for mean, variance in statistics]

        assert name == "the network convnet-d2"
        return run

    monkeypatch.setattr(gradients, "compilers", lambda _device: {"c++": "1"})
    monkeypatch.setattr(gradients, "compiled_with_gradients", wrong)
    with pytest.raises(CompileError, match="gives other logits or statistics"):
        sre2l(images, teacher_of(weights), engine=EngineOptions(compile="require"))
    method = sre2l(images, teacher_of(weights), engine=EngineOptions(compile="on"))
    assert method.teacher is not None
    described: Any = method.teacher["engine"]
    assert described["compile"] == "none"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("iterations", 0),
        ("lr", 0.0),
        ("betas", (0.5, 1.0)),
        ("bn_weight", -1.0),
        ("crop_scale", (0.5, 0.2)),
        ("jitter", -1),
    ],
)
def test_numbers_that_make_no_sense(flag: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"--{flag.replace('_', '-')}: expected"):
        Sre2lOptions(**{flag: value})


def test_a_shift_is_less_than_the_side(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"method": "sre2l", "images": tmp_path / "a", "out": tmp_path / "b", "ipc": 1, "size": 16}
    assert from_flags(SynthesizeConfig, jitter=15, **flags).sre2l.jitter == 15
    with pytest.raises(InputError, match="--jitter 16: expected less than --size 16"):
        from_flags(SynthesizeConfig, jitter=16, **flags)


def test_published_numbers() -> None:
    own = Sre2lOptions()
    assert (own.lr, own.betas, own.bn_weight, own.first_bn) == (0.25, (0.5, 0.9), 0.01, 10.0)
    assert (own.tv_weight, own.l2_weight) == (0.0, 0.0)


def test_a_set_that_is_checked_needs_no_teacher(images: Path) -> None:
    setting = replace(setting_of(images, TeacherOptions()), checking=True)
    method = make_sre2l(setting)
    assert method.teacher is None
    assert method.again({"scores": np.zeros((1, 1))}) is None
    with pytest.raises(InputError, match="expected a teacher"):
        method.make(Job("", np.zeros(1, np.int64), np.zeros(1, np.int64)), Working(Path(), ANYTHING, print, bool))
    method.close()
