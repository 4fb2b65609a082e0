"""Resolve the flags of `evaluate`, with the record in the weights; nothing is guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labelstore.command.names import same_form
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from labelstore.operations.projector import is_projector
from labelstore.storage_table import scheme_of
from pipeline.config import json_object
from pipeline.images.manifest import Manifest, scan, with_classes
from pipeline.images.manifest_cache import cache_in
from pipeline.images.opening import open_images
from pipeline.images.source_table import ImageOptions
from pipeline.networks.normalisation import require_normalisation
from pipeline.networks.pretrained import is_distributed
from pipeline.networks.settling import differences, normalisation, require_network
from pipeline.networks.trained import Trained, recorded_in, trained_with
from pipeline.networks.weights import require_file
from pipeline.plan.plan import PlanSpec
from pipeline.teacher.engine.spec import DTypeName, Member, TeacherSpec
from trainer.evaluate_config import EvaluateConfig
from trainer.file_names import CONFIG
from trainer.run_folder import described_in, test_images_of, test_source_of, trained_as


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The network that is measured, the test images, and how they are cropped and normalised.

    Attributes:
        config: the flags.
        member: the network and its weights.
        images: the test images.
        plan: plan of their crops.
        mean: channel means of the normalisation.
        std: channel standard deviations of the normalisation.
        trained: record of the weights, if they have one.
        dtype: precision of the network: of the flag, else of the run, else float32.
        notes: lines to print about all of this.
        warnings: where flags differ from the record of the weights.
    """

    config: EvaluateConfig
    member: Member
    images: Path
    plan: PlanSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    trained: Trained | None
    dtype: DTypeName
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        """Side of the network's input."""
        return self.plan.size

    def scan(self) -> Manifest:
        """List the test images; if their classes are those of the network, in its order."""
        order, root, options = self.config.class_order, self.images, self.config.source
        cache = cache_in(self.config.cache_dir, root) if self.config.cache_dir else None
        if cache and not scheme_of(root):
            raise InputError(f"--cache-dir: caches the index of images at an address, found {root}; leave it out")
        known = self.trained.classes if self.trained else None
        if known and order == "auto":
            source = open_images(root, "bytes", options=options, cache=cache)
            if {*map(same_form, source.listing.classes)} == {*map(same_form, known)}:
                return with_classes(known, scan(source, cache=cache, digests=False))
        return scan(root, class_order=order, options=options, cache=cache, digests=False)

    def spec(self, classes: Sequence[str]) -> TeacherSpec:
        """The network as a teacher: it runs exactly as a teacher does.

        Args:
            classes: of the test images.
        """
        config, trained, selection = self.config, self.trained, self.config.classes
        if selection is None and trained and trained.class_columns and tuple(classes) == trained.classes:
            selection = ",".join(map(str, trained.class_columns))
        return TeacherSpec(
            members=(self.member,),
            classes=selection,
            mean=self.mean,
            std=self.std,
            dtype=self.dtype,
            batch=config.batch,
            device=config.render.device,
            threads=config.render.threads,
        )


def settle(config: EvaluateConfig) -> Subject:
    """Resolve flags that are left out, from the run, from the weights, or from the network's library.

    Raises:
        InputError: when a value is unknown (names the flags to give), or a flag names another network.
    """
    require_normalisation(config.mean or (), config.std or ())
    if config.run and config.images is None and config.source == ImageOptions():
        config = replace(config, source=test_source_of(config.run))
    weights, trained, own_dtype = _of_run(config.run) if config.run else (config.weights[0], None, None)
    images = config.images or (test_images_of(config.run) if config.run else None)
    if not is_distributed(weights):
        require_file(Path(weights))
    args = None if config.student_args is None else json_object("--student-args", config.student_args)
    trained = trained or trained_with(config.student, args or {}, weights)
    size = config.size or (trained.size if trained else None)
    found = normalisation({"mean": config.mean, "std": config.std}, [trained])
    network = config.student or (trained.network if trained else None)
    wanted = {"--student": network, "--size": size, "--mean": found.mean, "--std": found.std, "--images": images}
    missing = [flag for flag, value in wanted.items() if value is None]
    if network is None or size is None or found.mean is None or found.std is None or images is None:
        unrecorded = [flag for flag in missing if flag != "--images"]
        why = f"{weights} has no record of its training, and nothing is guessed; " if unrecorded else ""
        raise InputError(f"{', '.join(missing)}: {why}give {' and '.join(missing)}")
    if config.csv:
        require_apart({"--csv": config.csv}, {"--images": images})
    network, args = require_network(trained, network, args, ("--student", "--student-args"))
    plan = _plan(config, trained, size)
    how = f"{plan.size} px, cut from short side {plan.resize or plan.size}, {plan.interpolation}"
    notes = [f"network: {network}{f' {dict(args)}' if args else ''} of {weights}, {how}", found.text]
    if config.run and not config.images:
        notes.append(f"images: {images}, as the run tested")
    if own_dtype not in (None, "float32") and config.dtype is None:
        notes.append(f"precision: {own_dtype}, as the run tested")
    warnings = [*found.warnings]
    if trained and (other := differences(trained, plan.size, plan.interpolation, plan.resize or plan.size)):
        if trained.network:
            warnings.append(other)
        else:
            notes.append(f"note: {other}")
    return Subject(
        config=config,
        member=Member(name=network, weights=weights, args=args, key=config.weights_key),
        images=images,
        plan=plan,
        mean=found.mean,
        std=found.std,
        trained=trained,
        dtype=config.dtype or own_dtype or "float32",
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def _plan(config: EvaluateConfig, trained: Trained | None, size: int) -> PlanSpec:
    """The plan of the test images: that of the run's tests, unless flags differ."""
    resize, interpolation = config.resize, config.interpolation
    if trained and trained.network:
        resize = resize or (trained.resize if size == trained.size else None)
        interpolation = interpolation or ("bicubic" if trained.interpolation == "bicubic" else "bilinear")
    return PlanSpec(size=size, crop="center", resize=resize, interpolation=interpolation or "bilinear", flip=0)


def _of_run(folder: Path) -> tuple[str, Trained, DTypeName]:
    """The last weights of a run, their record, and their precision."""
    made = described_in(folder / CONFIG)
    if made is None:
        found = f"expected the folder of a run, found no {CONFIG}" if folder.exists() else "no such folder"
        raise InputError(f"--run {folder}: {found}; give a folder that `train --run` made, or --weights")
    weights = folder if is_projector(folder) else folder / "last.safetensors"
    if not weights.exists():
        raise InputError(
            f"{weights}: is written when a run ends; continue it, or give --weights {folder / 'best.safetensors'}"
        )
    trained = recorded_in(str(weights)) or trained_as(made, str(folder / CONFIG))
    return str(weights), trained, made["run"].get("dtype", "float32")
