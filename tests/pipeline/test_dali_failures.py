"""What DALI raises: a file's own failure leaves that file to Pillow; anything else ends the work in one line."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from labelstore.errors import GiftwrapError, InputError
from pipeline.images.headers import Header, read_header
from pipeline.images.manifest import Manifest, scan
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import dali, make_renderer
from pipeline.render.cache import Data, Images
from pipeline.render.dali import DEPTH, DaliDecoder
from pipeline.render.dali_errors import RefusedFileError, explained
from pipeline.render.device import DeviceRenderer
from tests.pipeline.test_render import picture
from tests.pipeline.test_render_files import JPEG, PNG

GPU = torch.device("cuda", 0)
needs_dali = pytest.mark.skipif(dali.load() is None, reason="needs DALI")


def raised(words: str) -> str:
    """A message as DALI 2.4 writes it when an operator fails."""
    return (
        "Critical error in pipeline:\nError in mixed operator `nvidia.dali.fn.decoders.image`,\nwhich was used in the "
        'pipeline definition with the following traceback:\n\n  File "dali.py", line 13, in pipe\n    images = '
        f"fn.decoders.image(files)\n\nencountered:\n\n{words}\nCurrent pipeline object is no longer valid."
    )


OWN = ["Failed to decode sample #7 : ", *(f"nvImageCodec failure: '#{code}'" for code in (3, 4, 17))]
OTHERS = {
    "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory": "give a lower --cache-gib",
    "nvImageCodec failure: '#5'": "give a lower --cache-gib",
    "nvImageCodec failure: '#21'": "give --decoder cpu",
    "CUDA driver version is insufficient for CUDA runtime version": "update the driver",
    'Assert on "cuInitChecked()" failed: while CUDA is not available.': "update the driver",
    "CUDA runtime API error cudaErrorIllegalAddress (700)": "give --decoder cpu",
}


@pytest.mark.parametrize("words", OWN)
def test_a_samples_own_failure_is_the_files(words: str) -> None:
    with pytest.raises(RefusedFileError), explained(GPU, of_files=True):
        raise RuntimeError(raised(words))


@pytest.mark.parametrize("words", OTHERS)
def test_any_other_failure_ends_the_work_in_one_line(words: str) -> None:
    with (
        pytest.raises(GiftwrapError, match="^DALI on cuda:0: .*" + OTHERS[words]) as found,
        explained(GPU, of_files=True),
    ):
        raise RuntimeError(raised(words))
    assert "\n" not in str(found.value)
    assert "traceback" not in str(found.value)
    with pytest.raises(GiftwrapError, match=r"MemoryError.*--cache-gib"), explained(GPU, of_files=True):
        raise MemoryError
    with pytest.raises(RefusedFileError), explained(torch.device("cpu"), of_files=True):  # the same pixels by Pillow
        raise RuntimeError(raised(words))


class FakePipeline:
    """A pipeline of a GPU, which decodes on a CPU.

    Like nvImageCodec's it gives as many files to its hardware as its first batch had; the others' pixels differ.
    """

    def __init__(self, real: Any, batches: list[int], fail: Callable[[int], str | None]) -> None:
        self.real, self.batches, self.fail, self.share = real, batches, fail, 0

    def build(self) -> None:
        if words := self.fail(-1):
            raise RuntimeError(words)
        self.real.build()

    def feed_input(self, name: str, files: Sequence[Any]) -> None:
        self.batches.append(len(files))
        self.share = self.share or len(files)
        self.real.feed_input(name, files)

    def schedule_run(self) -> None:
        self.real.schedule_run()

    def share_outputs(self) -> list[list[Tensor]]:
        if words := self.fail(len(self.batches)):
            raise RuntimeError(raised(words))
        images = [from_dlpack(image).clone() for image in self.real.share_outputs()[0]]
        return [[image ^ 1 if at >= self.share else image for at, image in enumerate(images)]]

    def release_outputs(self) -> None:
        self.real.release_outputs()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Pipelines of a GPU that decode on a CPU: the sizes of their batches, and what fails (by their number)."""
    state = SimpleNamespace(batches=[], fail=lambda _batch: None, made=0)
    original = dali._whole

    def make(settings: dict[str, Any], where: dict[str, Any]) -> Any:
        assert where["device"] == "mixed"
        state.made += 1
        real = original({**settings, "device_id": None}, {"device": "cpu"})
        return FakePipeline(real, state.batches, lambda batch: state.fail(batch))

    monkeypatch.setattr(dali, "_whole", make)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(synchronize=lambda: None))
    return state


def headers_of(files: Sequence[bytes]) -> list[Header]:
    return [read_header(io.BytesIO(file)) for file in files]


@needs_dali
def test_what_was_decoded_before_does_not_change_the_share_of_the_hardware(faults: SimpleNamespace) -> None:
    files = [JPEG] * 6
    many, after_one = (DaliDecoder(GPU, 1, 6) for _ in range(2))
    assert faults.batches == [6] * 2 * DEPTH, "each begins with full batches as it is made"
    expected = many.whole(files, headers_of(files))
    after_one.whole(files[:1], headers_of(files[:1]))
    after_one.drop()  # as after a file that does not decode
    after_one.whole(files[:1], headers_of(files[:1]))
    for image, first in zip(after_one.whole(files, headers_of(files)), expected, strict=True):
        assert image is not None
        assert first is not None
        assert torch.equal(image, first)


@needs_dali
def test_a_file_that_does_not_decode_is_left_to_pillow_and_the_others_are_not(faults: SimpleNamespace) -> None:
    broken = PNG[:900] + bytes([PNG[900] ^ 255]) + PNG[901:]
    files = [JPEG, broken, JPEG]
    decoder = DaliDecoder(GPU, 1, 4)
    images = decoder.whole(files, headers_of(files))
    assert [image is None for image in images] == [False, True, False]
    assert DEPTH * faults.made == faults.batches.count(4), "full batches first, whenever one is made"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "a").mkdir()
    for index in range(5):
        picture(40, 50 + index, index).save(tmp_path / "a" / f"{index}.jpg")
    return scan(tmp_path, digests=False)


@needs_dali
@pytest.mark.parametrize("words", OTHERS)
def test_a_device_that_fails_never_gives_pillows_pixels(
    manifest: Manifest, faults: SimpleNamespace, words: str
) -> None:
    decoder = DaliDecoder(GPU, 1, 8)
    with ThreadPoolExecutor(1) as pool:
        images = Images(manifest, decoder.whole, pool, 0)
        assert len(images.decode(images.read([0, 1]))) == 2
        faults.fail = lambda _batch: words
        with pytest.raises(GiftwrapError, match="^DALI on cuda:0: .*" + OTHERS[words]):
            images.decode(images.read([0, 1, 2]))
        assert images.decode(images.read([])) == []


@needs_dali
def test_a_gpu_on_which_dali_cannot_start_is_refused_when_the_renderer_is_made(faults: SimpleNamespace) -> None:
    faults.fail = lambda batch: "CUDA driver version is insufficient for CUDA runtime version" if batch < 0 else None
    with pytest.raises(InputError, match=r"DALI on cuda:0: CUDA driver version is insufficient.*update the driver"):
        DaliDecoder(GPU, 1, 8)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'nvidia'"), "DALI is not installed; install"),
        (OSError("libcuda.so.1: cannot open shared object file"), "cannot be imported .libcuda.so.1"),
    ],
)
def test_a_gpu_without_dali_is_refused(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_name: str) -> None:
        raise error

    monkeypatch.setattr(dali, "load", lambda: None)
    monkeypatch.setattr(dali, "import_module", absent)
    with pytest.raises(InputError, match=f"decoding on a GPU: .*{words}.*or give --decoder cpu"):
        DaliDecoder(GPU, 1, 8)


@needs_dali
def test_a_decoder_whose_pixels_depend_on_their_company_is_refused(manifest: Manifest) -> None:
    with closing(DeviceRenderer(manifest, PlanSpec(size=16), torch.device("cpu"), "cpu", 1, 0)) as renderer:
        renderer._require_steady("gpu")
        decode = renderer._images._decode
        assert decode is not None

        def unsteady(files: Sequence[Data], headers: Sequence[Header]) -> list[Tensor | None]:
            return [None if image is None else image ^ int(len(files) > 1) for image in decode(files, headers)]

        renderer._images._decode = unsteady
        with pytest.raises(GiftwrapError, match=r"decoder gpu-hw: expected the same pixels of .*jpg alone and with"):
            renderer._require_steady("gpu-hw")


@needs_dali
@pytest.mark.parametrize("augment", [(), ("patch-shuffle=2",)])
@pytest.mark.parametrize("error", [KeyboardInterrupt, GiftwrapError])
def test_a_stop_between_chunks_leaves_no_batch_in_flight(
    manifest: Manifest, augment: tuple[str, ...], error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regions, or whole images: the crops of one chunk are made while the next is decoded."""
    spec = PlanSpec(size=16, augment=augment)
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, len(manifest))
    with closing(make_renderer(manifest, spec, threads=1)) as reference:
        expected = reference.render(rows)
    with closing(DeviceRenderer(manifest, spec, torch.device("cpu"), "cpu", 1, 0)) as renderer:
        renderer._chunk = 1
        with monkeypatch.context() as patch:

            def stop(*_arguments: object) -> None:
                raise error("stop")

            patch.setattr("pipeline.render.device.resize_all", stop)
            with pytest.raises(error):
                renderer.render(rows)
        assert renderer._decoder._whole.begun == renderer._decoder._region.begun == 0
        assert torch.equal(renderer.render(rows), expected)


@needs_dali
def test_an_image_that_is_gone_is_named_while_others_are_in_flight(manifest: Manifest) -> None:
    for augment in ((), ("patch-shuffle=2",)):
        spec = PlanSpec(size=16, augment=augment)
        rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, len(manifest))
        with closing(DeviceRenderer(manifest, spec, torch.device("cpu"), "cpu", 1, 0)) as renderer:
            renderer._chunk = 1
            expected = renderer.render(rows)
            path = Path(manifest.place(int(rows.image[3])))
            data = path.read_bytes()
            path.unlink()
            with pytest.raises(InputError, match=path.name):
                renderer.render(rows)
            path.write_bytes(data)
            assert np.array_equal(renderer.render(rows), expected)
