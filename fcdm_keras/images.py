"""Pictures on disk: single PNGs and grids."""

import numpy as np
from PIL import Image


def to_pil(image):
    """A uint8 `(H, W, 1 or 3)` array as a PIL image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def grid(images, columns, padding=2, min_side=32):
    """Images side by side on white, small ones enlarged by whole factors.

    Args:
        images: uint8 `(N, H, W, 1 or 3)`.
        columns: images per row.
        padding: pixels between images.
        min_side: an image shorter than this is enlarged to at least it.

    Returns:
        A PIL image.
    """
    factor = max(1, -(-min_side // min(images.shape[1:3])))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + padding) + padding, columns * (width + padding) + padding, channels), 255, "uint8"
    )
    for i, image in enumerate(images):
        top, left = (padding + place * (side + padding) for place, side in zip(divmod(i, columns), (height, width)))
        canvas[top : top + height, left : left + width] = image
    return to_pil(canvas)
