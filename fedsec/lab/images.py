"""Pictures and test images, as a network takes them."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fedsec.errors import InputError
from fedsec.learning.data import load_mnist, pixels

SIDE = 28
"""Pixels of an MNIST image, each way."""

_LARGEST_SIDE = 4096
"""Larger pictures are refused before they are decoded."""

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error)
"""What Pillow raises for files that are cut off or altered; which one depends on format and place."""

Images = npt.NDArray[np.float32]


def read_pictures(paths: Sequence[Path]) -> Images:
    """Read pictures of digits: square, one light digit on dark ground as in MNIST.

    Args:
        paths: Files that Pillow can read. Colours become grey, other sizes are scaled to 28 x 28.

    Returns:
        Shape [N, 28, 28, 1], float32 in [0, 1].

    Raises:
        InputError: If a file is missing, is no picture, or is not square.
    """
    return pixels(np.stack([_read(path) for path in paths]))


def read_test_images(indices: Sequence[int]) -> Images:
    """Return MNIST test images by number, shape [N, 28, 28, 1], float32 in [0, 1].

    Raises:
        InputError: If there is no such image.
        DataError: If MNIST could not be had.
    """
    images = load_mnist().test_images
    wrong = [index for index in indices if not 0 <= index < len(images)]
    if wrong:
        raise InputError(f"MNIST has test images 0 to {len(images) - 1}, got {wrong[0]}")
    return pixels(images[list(indices)])


def _read(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            # Pillow only warns of pictures made to fill the memory; the size check below refuses them.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = picture.size
            if width != height or not SIDE // 2 <= width <= _LARGEST_SIDE:
                raise InputError(
                    f"{path} has {width} x {height} pixels, expected a square of {SIDE // 2} to"
                    f" {_LARGEST_SIDE}, best {SIDE} x {SIDE}: one light digit on dark ground"
                )
            grey = picture.convert("L")
            return np.asarray(grey if width == SIDE else grey.resize((SIDE, SIDE)), dtype=np.uint8)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture that can be read; PNG and JPEG are") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise InputError(f"{path} cannot be read as a picture: {reason or type(error).__name__}") from error
