"""The flags that choose an encoding, shared by every command that makes a store."""

from __future__ import annotations

import math
from typing import Literal

from labelstore.errors import InputError
from labelstore.spec import Json

EncodingName = Literal["int8", "float16", "transform"]
CodecName = Literal["raw", "zstd", "pcodec"]


def encoding_parameters(
    name: str, *, codec: str | None = None, fidelity: float | None = None, step: float | None = None
) -> dict[str, Json]:
    """What ``make_encoding`` takes, from --encoding, --codec, --fidelity and --step; what is None is left out.

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
    return {"name": name, **({"codec": codec} if codec is not None else {}), **numbers}
