"""The engine: from the pixels of a batch to its logits, the same bits every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from labelstore.errors import InputError, reason
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.device.faults import DeviceMemoryError, lacks_memory
from pipeline.plan.augment import drawn_inputs, inputs_of
from pipeline.render.normalise import network_input, normalise
from pipeline.teacher.engine.batches import find_batch
from pipeline.teacher.engine.compiling import CompileError, compile_function, compilers
from pipeline.teacher.engine.device import DTYPES, describe_engine
from pipeline.teacher.engine.graphs import CudaGraph
from pipeline.teacher.engine.precision import Precision, precision
from pipeline.teacher.engine.spec import MAX_RELATIVE_ERROR, TeacherSpec

Step: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Engine:
    """The engine of a teacher; made by ``make_engine``.

    Attributes:
        prepare: pixels, uint8 ``[n, S, S, 3]``, to images ``[n, 3, S, S]``.
        augment: the same with the rows of crops that are augmented after that.
        network: images to logits ``[n, columns]``.
        device: where.
        batch: crops a batch.
        products: precision of float32 products.
        description: what makes the bytes (P4).
        warnings: what was requested and is not available here.
    """

    prepare: Step
    augment: Callable[[Tensor, CropRows], Tensor]
    network: Step
    device: torch.device
    batch: int
    products: Precision
    description: Mapping[str, Json]
    warnings: tuple[str, ...] = ()

    def logits(self, pixels: Tensor, rows: CropRows | None = None) -> Tensor:
        """Logits, float32 ``[n, columns]`` on the device, of uint8 ``[n, S, S, 3]``."""
        with exact(self.device, self.products):
            there = pixels.to(self.device, non_blocking=True).contiguous()
            augmented = rows is not None and inputs_of(rows.names)
            return self.network(self.augment(there, rows) if rows and augmented else self.prepare(there)).float()


@contextmanager
def exact(device: torch.device, products: Precision) -> Iterator[None]:
    """Inference without anything that gives other bits in another run, whatever a network's code has set before."""
    with torch.inference_mode(), precision(products):
        if device.type == "cuda":
            with torch.cuda.device(device):
                yield
        else:
            yield


@contextmanager
def enough_memory(batch: int) -> Iterator[None]:
    """Turn an allocation failure into an error with a remedy."""
    try:
        yield
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        raise DeviceMemoryError(
            f"out of memory with a batch of {batch} crops ({reason(error)}); what is stored is kept: free memory and "
            f"run the same command again, or begin another store with a smaller --batch"
        ) from error


def eager(network: nn.Module, spec: TeacherSpec, device: torch.device, batch: int) -> Engine:
    """An uncompiled network, which takes any number of crops."""
    dtype = DTYPES[spec.dtype]
    how: dict[str, Any] = {"mean": spec.mean, "std": spec.std, "dtype": dtype, "channels_last": spec.channels_last}
    prepare, augment = partial(normalise, **how), partial(network_input, **how, size=spec.plan_size, plan=spec.plan)
    return Engine(
        prepare=prepare,
        augment=augment,
        network=network,
        device=device,
        batch=batch,
        products=spec.products,
        description={},
    )


def make_engine(
    network: nn.Module,
    spec: TeacherSpec,
    device: torch.device,
    *,
    size: int,
    folded: bool,
    crop_columns: Sequence[str] = (),
    block: int | None = None,
) -> Engine:
    """Construct the engine for a network and its spec.

    Args:
        network: in eval mode, on its device, in its dtype and layout.
        spec: of the teacher.
        device: of the network.
        size: side S of the crops in pixels.
        folded: whether any of its batch norms was folded.
        crop_columns: names of the columns of the crops' rows.
        block: crops of a full block; None: any number.

    Raises:
        InputError: when it cannot be run so.
    """

    def label_black(count: int) -> Tensor:
        crops = torch.zeros(count, size, size, 3, dtype=torch.uint8, device=device)
        return plain.logits(crops, drawn_inputs(crop_columns, spec.plan_size or size, count))

    plain = eager(network, spec, device, spec.batch or 1)
    if spec.batch is None:
        plain = replace(plain, batch=find_batch(label_black, device, block))
    engine, versions, warnings = _compile_if_requested(plain, spec, size)
    if spec.cuda_graph:
        engine = _capture(engine, plain, spec, _probe(plain, size))
    return replace(
        engine,
        description=describe_engine(spec, device, plain.batch, folded=folded, compilers=versions),
        warnings=warnings,
    )


def _probe(plain: Engine, size: int) -> Tensor:
    """A batch of random crops."""
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (plain.batch, size, size, 3), dtype=torch.uint8, generator=generator)
    return crops.to(plain.device)


def _compile_if_requested(
    plain: Engine, spec: TeacherSpec, size: int
) -> tuple[Engine, Mapping[str, Json] | None, tuple[str, ...]]:
    """The engine, the versions of its compilers when it is compiled, and a warning where that failed.

    Raises:
        CompileError: when it fails and nothing else will do.
    """
    if spec.compile == "off":
        return plain, None, ()
    try:
        versions = compilers(plain.device)
        return _compile(plain, spec, _probe(plain, size)), versions, ()
    except CompileError as error:
        if spec.compile == "on":
            return plain, None, (f"--compile on: the teacher runs uncompiled, which is slower: {error}",)
        raise CompileError(
            f"{error}. A compiled teacher is required, by --compile require or because the store was started with one; "
            f"fix that, or start another store with --compile off"
        ) from error


def _compile(plain: Engine, spec: TeacherSpec, probe: Tensor) -> Engine:
    """The engine with its steps compiled, compared with the uncompiled one."""
    with exact(plain.device, plain.products):
        images = plain.prepare(probe)
        # on a GPU it is one pass already
        prepare = plain.prepare
        if not probe.is_cuda:
            prepare = compile_function(plain.prepare, probe, name="the normalisation of crops")
        network = compile_function(plain.network, images, name=f"the network {spec.name}")
        if not torch.equal(prepare(probe), images):
            raise CompileError("the compiled normalisation of crops gives other images")
    fast = replace(plain, prepare=prepare, network=network)
    _require_alike(fast, plain, spec, probe, "the compiled network", CompileError)
    return fast


def _capture(engine: Engine, plain: Engine, spec: TeacherSpec, probe: Tensor) -> Engine:
    """The engine with its network as a CUDA graph, compared with the plain one."""
    with exact(engine.device, engine.products):
        try:
            network = CudaGraph(engine.network, engine.prepare(probe))
        except RuntimeError as error:
            if lacks_memory(error):
                raise
            why = reason(error)
            raise InputError(f"--cuda-graph: {spec.name} cannot be captured ({why}); leave it out") from error
    graph = replace(engine, network=network)
    _require_alike(graph, plain, spec, probe, "the CUDA graph", InputError)
    return graph


def _require_alike(
    fast: Engine, plain: Engine, spec: TeacherSpec, probe: Tensor, what: str, error: type[InputError]
) -> None:
    """Refuse an engine whose logits differ by more than another order of summation explains."""
    expected, found = plain.logits(probe).double(), fast.logits(probe).double()
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    band = MAX_RELATIVE_ERROR[spec.dtype]
    if not difference <= band and bool(expected.isfinite().all()):
        raise error(f"{what} gives other logits: they differ by {difference:.1e} of the largest (at most {band:.0e})")
