"""Pixels to the square uint8 arrays that are encoded or trained on. Pillow and NumPy only."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from fcdm_keras.data.pictures import UnreadableImageError, decode_image

__all__ = ["Example", "UnreadableImageError", "center_crop", "decode_image"]


def center_crop(image, size):
    """ADM's centre crop, as ImageNet models are trained on (Dhariwal and Nichol, arXiv:2105.05233).

    The image is halved with a box filter while its short side is at least twice `size`, resized bicubically until the
    short side is `size` (a smaller image is enlarged), and cut in the middle.

    Args:
        image: uint8 `(H, W, 3)`.
        size: side of the result, pixels.

    Returns:
        uint8 `(size, size, 3)`.

    Raises:
        ValueError: for another dtype or shape, or a size below 1.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image must be uint8 of shape (H, W, 3). Received: {image.dtype} {image.shape}")
    if size < 1:
        raise ValueError(f"size must be at least 1. Received: {size}")
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize([side // 2 for side in picture.size], Image.Resampling.BOX)
    factor = size / min(picture.size)
    sides = [round(side * factor) for side in picture.size]
    left, top = ((side - size) // 2 for side in sides)
    if max(sides) > 4 * size:  # of a strip only the middle is resized: the whole may not fit into memory
        scales = [old / new for old, new in zip(picture.size, sides)]
        box = [place * scale for place, scale in zip((left, top, left + size, top + size), 2 * scales)]
        return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))
    picture = picture.resize(sides, Image.Resampling.BICUBIC)
    return np.asarray(picture)[top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled image: the file's path or bytes, or uint8 `(H, W, 3)`."""

    image: Path | bytes | np.ndarray
    label: int
    key: str

    def decoded(self, side=None):
        """uint8 `(H, W, 3)`; `side` as `decode_image` takes it. Raises UnreadableImageError."""
        return self.image if isinstance(self.image, np.ndarray) else decode_image(self.image, side)

    def cropped(self, size):
        """ADM's centre crop, uint8 `(size, size, 3)`, and whether the image was enlarged for it."""
        image = self.decoded(size)
        return center_crop(image, size), min(image.shape[:2]) < size
