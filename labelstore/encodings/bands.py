"""Limits for the quality of labels: corresponding values of fidelity, KL and top-1 agreement.

A requested fidelity limits how far logits may move on average. Real teachers' labels of that fidelity have a KL
divergence and a top-1 agreement that go with it; labels that are far worse in these hide something from the cosine,
such as a common offset. So the step of a transform is the coarsest that keeps all four, and what a store has measured
is compared with all four.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from labelstore.encodings import ENCODINGS
from labelstore.encodings.base import Bands
from labelstore.encodings.transform import DEFAULT_FIDELITY, LEAST_FIDELITY, MOST_FIDELITY
from labelstore.spec import Json

# By how much measured labels may miss a band before a warning, as a fraction of it: the step was chosen by other
# labels, and the mean of a few differs by chance.
SLACK = 0.1
CHANCE = 2.0  # over the root of their number, in addition


def bands_of(fidelity: float) -> Bands:
    """The bands that go with a fidelity: labels of real teachers keep them, of up to four times the measured spread.

    Measured for MobileNetV2's 1,000 columns (standard deviation of a logit 1.3), resized crops of 1,000 photographs,
    5,000 labels each, unmixed and CutMix, and the worse with all logits times four, spread as far as those of
    CIFAR-10's ResNets: KL at T = 1, at T = 20, top-1 agreement.

        fidelity    unmixed                   CutMix                    times four       band
        0.99        0.0122  4.1e-5  0.951     0.0163  4.5e-5  0.925                      0.063  1e-3  0.874
        0.98        0.0288  8.1e-5  0.924     0.0378  8.9e-5  0.888     0.122  1.4e-3    0.150  2e-3  0.809
        0.95        0.0994  2.0e-4  0.872     0.125   2.2e-4  0.806     0.354  3.7e-3    0.473  5e-3  0.669
        0.92        0.196   3.2e-4  0.825     0.229   3.5e-4  0.748     0.604  5.9e-3    0.851  8e-3  0.561
        0.90        0.260   4.0e-4  0.793     0.298   4.3e-4  0.708                      1.125  1e-2  0.498
    """
    away = 1 - fidelity
    return Bands(fidelity, 20 * away**1.25, away / 10, max(1 - 2 * away**0.6, 0.0))


def missed(encoding: Mapping[str, Json], measured: Json) -> list[str]:
    """In words, which bands the measured labels of a store miss, and what to do; empty when they keep them.

    Args:
        encoding: name and parameters, as the store's identity has them.
        measured: by kind of label, as the store's ``fidelity``; what format 1 did not measure misses nothing.
    """
    kinds: Any = measured or {}
    name = encoding["name"]
    advice = ENCODINGS[str(name)].advice
    found = []
    for kind, values in kinds.items():
        if values and (texts := _misses(_bands_for(encoding, values["mean"]), values)):
            found.append(f"{kind} labels, as {name} keeps them: {', '.join(texts)}; {advice}")
    return found


def _bands_for(encoding: Mapping[str, Any], reached: float) -> Bands:
    """The bands of an encoding; where a step was chosen, those of the fidelity that was reached."""
    if fixed := ENCODINGS[encoding["name"]].bands:
        return fixed
    own = min(max(reached, LEAST_FIDELITY), MOST_FIDELITY)
    return bands_of(own if "step" in encoding else encoding.get("fidelity", DEFAULT_FIDELITY))


def _misses(bands: Bands, values: Mapping[str, Any]) -> list[str]:
    """The bands that labels of one kind miss by more than the slack."""
    found = []
    if values["mean"] < bands.fidelity - SLACK * (1 - bands.fidelity):
        found.append(f"fidelity {values['mean']:.5g} (expected {bands.fidelity:g})")
    slack = 1 + SLACK + CHANCE / math.sqrt(values["rows"])
    for name, temperature, limit in (("kl_1", 1, bands.kl_1), ("kl_20", 20, bands.kl_20)):
        if values.get(name, 0) > slack * limit:
            found.append(f"KL {values[name]:.3g} at T = {temperature} (at most {limit:.3g})")
    if 1 - values.get("top1", 1) > max(slack * (1 - bands.top1), 1 / values["rows"]):
        found.append(f"top-1 agreement {values['top1']:.3f} (at least {bands.top1:.3f})")
    return found
