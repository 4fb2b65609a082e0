"""Settings of a network: from flags, else from the record of its weights; differences are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.networks.normalisation import exchanged
from pipeline.networks.trained import Trained, close, numbers, same_network, without_places

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Mean and deviation, and where they come from.

    Attributes:
        mean: channel means; None where neither a flag nor the weights give them.
        std: channel standard deviations, likewise.
        sources: origin of both, as text.
        warnings: what differs from what the weights were trained with.
    """

    mean: Triple | None
    std: Triple | None
    sources: tuple[str, str]
    warnings: tuple[str, ...]

    def or_else(self, mean: Triple, std: Triple, source: str) -> Normalisation:
        """This, with what is missing taken from elsewhere."""
        sources = (self.sources[0] or source, self.sources[1] or source)
        return replace(self, mean=self.mean or mean, std=self.std or std, sources=sources)

    @property
    def text(self) -> str:
        """One line of text."""
        mean, std = (numbers(values or ()) for values in (self.mean, self.std))
        of_mean, of_std = self.sources
        if of_mean == of_std:
            return f"normalisation: mean {mean}, std {std} ({of_mean})"
        return f"normalisation: mean {mean} ({of_mean}), std {std} ({of_std})"


def normalisation(given: Mapping[str, Sequence[float] | None], trained: Sequence[Trained | None]) -> Normalisation:
    """Mean and deviation of a network, or of several that share them.

    Args:
        given: ``mean`` and ``std`` by flags; None where left out.
        trained: what each network was trained with.

    Raises:
        InputError: when several networks were trained with different ones, and no flag chooses one.
    """
    taken: dict[str, Triple | None] = {}
    sources: list[str] = []
    warnings: list[str] = []
    for name in ("mean", "std"):
        known = [(each.source, values) for each in trained if each and (values := getattr(each, name))]
        flag = given[name]
        if flag is not None:
            others = [f"{source} has {numbers(values)}" for source, values in known if not close(flag, values)]
            if others:
                warnings.append(f"--{name} {numbers(flag)}: {'; '.join(others)}; the flag is taken")
            values, source = flag, f"--{name}"
        elif known:
            source, values = known[0]
            if unrecorded := len(trained) - len(known):
                warnings.append(
                    f"--{name} {numbers(values)} of {source} is taken for all networks; {unrecorded} of {len(trained)} "
                    f"weights do not record theirs"
                )
            for other, theirs in known[1:]:
                if not close(values, theirs):
                    raise InputError(
                        f"--{name}: expected one for all networks of the teacher, found {numbers(values)} in {source} "
                        f"and {numbers(theirs)} in {other}; give --mean and --std, or label with one of them"
                    )
        else:
            taken[name] = None
            sources.append("")
            continue
        taken[name] = (float(values[0]), float(values[1]), float(values[2]))
        sources.append(source)
    if taken["mean"] and taken["std"] and (doubt := exchanged(taken["mean"], taken["std"])):
        warnings.append(f"--mean, --std: {doubt}")
    return Normalisation(
        mean=taken["mean"], std=taken["std"], sources=(sources[0], sources[1]), warnings=tuple(warnings)
    )


def require_network(
    trained: Trained | None, name: str | None, args: Mapping[str, Json] | None, flags: tuple[str, str]
) -> tuple[str, Mapping[str, Json]]:
    """The network and its arguments: those that are given, or those that the weights were trained as.

    Args:
        trained: what the weights were trained with, as their files record it.
        name: the network that is given, if any.
        args: the arguments that are given, if any.
        flags: those of name and arguments, for messages.

    Raises:
        InputError: when what is given is another network than the weights are of, or neither names one.
    """
    recorded = trained.network if trained else None
    if name is None:
        if recorded is None:
            raise InputError(f"{flags[0]}: the weights do not name their network; give {flags[0]}")
        name = recorded
    if trained is None or recorded is None:
        return name, args or {}
    if not same_network(name, recorded):
        raise InputError(
            f"{flags[0]} {name}: the weights {trained.source} are of {recorded}; give that, or other weights"
        )
    known = trained.args or {}
    if args is not None and without_places(name, args) != dict(known):
        raise InputError(
            f"{flags[1]} {dict(args)}: the weights {trained.source} are of {recorded} with {dict(known)}; leave "
            f"{flags[1]} out, or give other weights"
        )
    return name, {**known, **(args or {})}


def differences(trained: Trained, size: int, interpolation: str, resize: int | None = None) -> str | None:
    """How images differ from those that a network was trained on, as text; None if they do not.

    Args:
        trained: what it was trained with.
        size: side of its input in pixels.
        interpolation: filter of the resize.
        resize: short side of a test image before the central crop, where that matters.
    """
    notes = [
        f"{name} {ours} instead of {theirs}"
        for name, ours, theirs in (
            ("--size", size, trained.size),
            ("--resize", resize, trained.resize),
            ("--interpolation", interpolation, trained.interpolation),
        )
        if None not in (ours, theirs) and ours != theirs
    ]
    return f"{', '.join(notes)} of {trained.source}" if notes else None
