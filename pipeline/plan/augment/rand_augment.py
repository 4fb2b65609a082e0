"""RandAugment (Cubuk et al. 2020) as torchvision's: operators drawn with one magnitude, on the pixels of a crop.

`rand-augment=N,M` applies N operators, each one of `OPERATORS` with equal probability, of magnitude M of 31 (0 to 30),
one after the other, to the crop that is resized and flipped and not yet mixed. Those that have a sign get each sign
with probability 1/2. torchvision's defaults are 2, 9. DELT takes timm's RandAugment instead (rand-m6-n2-mstd1.0), on
the whole image before its crop: its table and its magnitudes are others, and it is not this.

Pixels are those that `torchvision.transforms.RandAugment` makes of Pillow images: Pillow's operators, nearest
neighbour, black outside. At another side than the rows were drawn for, translations are a share of that side.

The column of an operator is its number, plus 16 where its sign is negative, plus 32 times its magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from labelstore.errors import InputError
from pipeline.plan import draws

if TYPE_CHECKING:
    from PIL.Image import Image

# The operators import Pillow when they run, so that a plan is drawn without it.
prefix = "rand_augment_"
MAX_OPERATORS, BINS = 16, 31
NEGATIVE, LEVELS = 16, 32  # places of sign and magnitude in a column

Pixels: TypeAlias = npt.NDArray[np.uint8]
Operator: TypeAlias = Callable[["Image", int], "Image"]
"""Called with an image and a level: the magnitude, 0 to 30, with its sign."""


def check(numbers: tuple[int, ...]) -> None:
    """Raise InputError unless these are how many operators, and their magnitude."""
    if len(numbers) != 2 or not (1 <= numbers[0] <= MAX_OPERATORS and numbers[1] < BINS):
        raise InputError(
            f"augment rand-augment: expected N,M with 1 to {MAX_OPERATORS} operators and a magnitude of 0 to "
            f"{BINS - 1}, such as rand-augment=2,9, found {','.join(map(str, numbers)) or 'no numbers'}"
        )


def columns(numbers: tuple[int, ...]) -> tuple[str, ...]:
    """One column an operator, in the order in which they are applied."""
    return tuple(f"{prefix}{place}" for place in range(1, numbers[0] + 1))


def draw(numbers: tuple[int, ...], seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """The columns of the crop of each image ``[n]`` of a view, int64 ``[N, n]``."""
    count, magnitude = numbers
    key, counters = draws.key("rand augment", seed, view), images.astype(np.int64)
    signed = np.array([has_sign for has_sign, _ in OPERATORS.values()])
    drawn = []
    for place in range(count):
        words = draws.philox(key, counters, place)
        operator = draws.integers(words[0], len(OPERATORS)).astype(np.int64)
        negative = draws.integers(words[1], 2).astype(np.int64) * signed[operator]
        drawn.append(operator + NEGATIVE * negative + LEVELS * magnitude)
    return np.stack(drawn)


def change(pixels: Pixels, values: tuple[int, ...]) -> Pixels:
    """The changed crop.

    Args:
        pixels: uint8 ``[S, S, 3]``, not modified.
        values: the values of the crop's `columns`.
    """
    from PIL import Image

    image, known = Image.fromarray(pixels), tuple(OPERATORS.values())
    for value in values:
        level, rest = divmod(value, LEVELS)
        negative, operator = divmod(rest, NEGATIVE)
        image = known[operator][1](image, -level if negative else level)
    return np.asarray(image)


def _moved(image: Image, matrix: tuple[float, float, float, float, float, float]) -> Image:
    """The image whose pixel (x, y) is that of the old one at ``matrix (x, y, 1)``; black where there was none."""
    from PIL import Image

    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0)


def _pixels(level: int, side: int) -> int:
    """A translation: up to 150/331 of the side, whole pixels towards 0."""
    pixels = 5 * abs(level) * side // 331
    return -pixels if level < 0 else pixels


def _factor(level: int) -> float:
    """1 and up to 0.9 more or less, by steps of 0.03 in float32 as torch.linspace rounds them: enhancers truncate."""
    step, place = float(np.float32(0.9) / np.float32(BINS - 1)), abs(level)
    half = place < BINS // 2
    magnitude = np.float32(step * place if half else float(np.float32(0.9)) - step * (BINS - 1 - place))
    return 1.0 + float(-magnitude if level < 0 else magnitude)


def _enhanced(name: str) -> Operator:
    def enhance(image: Image, level: int) -> Image:
        from PIL import ImageEnhance

        made: Image = getattr(ImageEnhance, name)(image).enhance(_factor(level))
        return made

    return enhance


def _posterize(image: Image, level: int) -> Image:
    from PIL import ImageOps

    return ImageOps.posterize(image, 8 - round(level * 4 / (BINS - 1)))


def _solarize(image: Image, level: int) -> Image:
    from PIL import ImageOps

    return ImageOps.solarize(image, 255 - 8.5 * level)  # type: ignore[arg-type]  # a threshold between two values


def _stretched(image: Image, level: int) -> Image:
    from PIL import ImageOps

    del level
    return ImageOps.autocontrast(image)


def _equalized(image: Image, level: int) -> Image:
    from PIL import ImageOps

    del level
    return ImageOps.equalize(image)


# By torchvision's names, in torchvision's order: whether they have a sign, and what they do.
OPERATORS: dict[str, tuple[bool, Operator]] = {
    "Identity": (False, lambda image, _: image),
    "ShearX": (True, lambda image, level: _moved(image, (1, 0.01 * level, 0, 0, 1, 0))),
    "ShearY": (True, lambda image, level: _moved(image, (1, 0, 0, 0.01 * level, 1, 0))),
    "TranslateX": (True, lambda image, level: _moved(image, (1, 0, -_pixels(level, image.width), 0, 1, 0))),
    "TranslateY": (True, lambda image, level: _moved(image, (1, 0, 0, 0, 1, -_pixels(level, image.height)))),
    "Rotate": (True, lambda image, level: image.rotate(level)),
    "Brightness": (True, _enhanced("Brightness")),
    "Color": (True, _enhanced("Color")),
    "Contrast": (True, _enhanced("Contrast")),
    "Sharpness": (True, _enhanced("Sharpness")),
    "Posterize": (False, _posterize),
    "Solarize": (False, _solarize),
    "AutoContrast": (False, _stretched),
    "Equalize": (False, _equalized),
}
