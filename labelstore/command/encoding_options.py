"""The flags that choose an encoding, shared by every command that makes a store."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from labelstore.command.flags import Choices
from labelstore.encoding_table import ENCODINGS
from labelstore.errors import InputError
from labelstore.spec import Json

EncodingName: TypeAlias = Annotated[str, Choices(ENCODINGS)]
CodecName = Literal["raw", "zstd", "pcodec"]


def encoding_parameters(
    name: str,
    *,
    codec: str | None = None,
    fidelity: float | None = None,
    step: float | None = None,
    mean_steps: int | None = None,
    keep_top1: bool = False,
) -> dict[str, Json]:
    """The arguments of ``make_encoding``, from --encoding and the flags of `CodeOptions` that are given.

    Raises:
        InputError: when the flags do not go together, or a number is out of its range.
    """
    numbers = {flag: value for flag, value in (("fidelity", fidelity), ("step", step)) if value is not None}
    if len(numbers) == 2:
        raise InputError("--fidelity and --step: expected one of them, found both; a step has the fidelity that it has")
    for flag, value in numbers.items():
        if name != "transform":
            raise InputError(f"--{flag}: belongs to --encoding transform; {name} has no choice of it, leave it out")
        if not (math.isfinite(value) and value > 0 and (value < 1 or flag == "step")):
            raise InputError(
                f"--{flag}: expected a number above 0{' and below 1' * (flag == 'fidelity')}, found {value}"
            )
    if mean_steps is not None and name != "transform":
        raise InputError(f"--mean-steps: belongs to --encoding transform; {name} has no means, leave it out")
    if keep_top1 and name != "transform":
        raise InputError(f"--keep-top1: belongs to --encoding transform; {name} is nearly exact, leave it out")
    others = {key: value for key, value in (("codec", codec), ("mean_steps", mean_steps)) if value is not None}
    return {"name": name, **others, **({"keep_top1": True} if keep_top1 else {}), **numbers}


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeOptions:
    """Options of an encoding's codes and their compression; None for the encoding's default."""

    codec: CodecName | None = None
    """Compression of the stored codes: zstd, or the encoding's default, which is pcodec of transform and raw (none) of
    the others."""
    fidelity: float | None = None
    """transform: fidelity to reach, between 0 and 1 (0.98): mean cosine between the GIFT targets of the exact and of
    the stored labels."""
    step: float | None = None
    """transform: quantisation step in logits, instead of --fidelity."""
    mean_steps: int | None = None
    """transform: how many times finer than labels the mean labels of images are quantised (2); 8 makes labels smaller,
    and the calibration larger."""
    keep_top1: bool = False
    """transform: keep the teacher's first choice of every label, and most of its lead, for about 0.3 bytes a label."""

    def parameters(self, name: str) -> dict[str, Json]:
        """The arguments of ``make_encoding`` for the encoding of that name.

        Raises:
            InputError: when the flags do not go together, or a number is out of its range.
        """
        return encoding_parameters(
            name,
            codec=self.codec,
            fidelity=self.fidelity,
            step=self.step,
            mean_steps=self.mean_steps,
            keep_top1=self.keep_top1,
        )

    @property
    def implied_encoding(self) -> str | None:
        """The encoding that these flags belong to; None if they leave the choice."""
        asked = any(each is not None for each in (self.fidelity, self.step, self.mean_steps))
        if self.codec == "pcodec" or asked or self.keep_top1:
            return "transform"
        return "int8" if self.codec == "raw" else None
