"""The noise schedule of diffusion models. Does not import torch or numpy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from labelstore.errors import InputError
from labelstore.spec import Json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Noise = Literal["scaled-linear", "linear"]
Prediction = Literal["epsilon", "v"]
Sampler = Literal["dpm", "ddim"]
Floats: TypeAlias = "npt.NDArray[np.float64]"


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionSpec:
    """How noise is added to images or latents, and what the network predicts of it."""

    noise: Noise = "scaled-linear"
    """Noise schedule: linear, in the variance of each step; scaled-linear, in its square root, as for Stable
    Diffusion."""
    beta_start: float = 0.00085
    """Variance of the noise of the first step."""
    beta_end: float = 0.012
    """Variance of the noise of the last step."""
    noise_steps: int = 1000
    """Number of noise steps of the diffusion."""
    prediction: Prediction = "epsilon"
    """What the network predicts: epsilon, the noise, or v = alpha noise - sigma image."""

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        for name, known in (("noise", get_args(Noise)), ("prediction", get_args(Prediction))):
            if getattr(self, name) not in known:
                raise InputError(f"--{name}: expected one of {', '.join(known)}, found {getattr(self, name)!r}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(
                f"--beta-start, --beta-end: expected 0 < start <= end < 1, found {self.beta_start}, {self.beta_end}"
            )
        if not 1 <= self.noise_steps <= 1000:
            raise InputError(f"--noise-steps: expected 1 to 1,000, found {self.noise_steps}")

    def to_json(self) -> dict[str, Json]:
        """Every number in effect."""
        return asdict(self)

    def kept(self) -> Floats:
        """Share of the image's variance left after each step (alpha-bar), float64 ``[noise_steps]``."""
        import numpy as np

        count = self.noise_steps
        if self.noise == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, count)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        return np.cumprod(1 - betas).astype(np.float64)

    def levels(self) -> tuple[Floats, Floats]:
        """Factors of the image and of the noise after each step (alpha, sigma), float64 ``[noise_steps]`` each."""
        import numpy as np

        kept = self.kept()
        return np.sqrt(kept), np.sqrt(1 - kept)

    def times(self, steps: int) -> npt.NDArray[np.int64]:
        """The times at which the network is called, descending, int64 ``[steps]``.

        Evenly spaced from the last one, as diffusers' ``timestep_spacing="linspace"`` of DPM-Solver has them.

        Raises:
            InputError: when there are more than steps of noise.
        """
        if not 1 <= steps <= self.noise_steps:
            raise InputError(
                f"--steps: expected 1 to {self.noise_steps}, the steps of noise that the model was trained with, found "
                f"{steps}"
            )
        import numpy as np

        spaced = np.linspace(0, self.noise_steps - 1, steps + 1).round().astype(np.int64)
        return spaced[:0:-1]
