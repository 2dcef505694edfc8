"""Images as they are on disk, to the square uint8 arrays that are encoded or trained on. Pillow and NumPy only."""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageOps


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded; the message is one sentence without the file's name."""


def decode_image(encoded):
    """Decodes an image file to RGB as a viewer shows it.

    EXIF rotation is applied, transparency is laid over white, gray is repeated, CMYK is converted, 16-bit samples are
    reduced to 8 bits. Of an animation the first frame is used.

    Args:
        encoded: the file's bytes.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        UnreadableImageError: truncated, damaged, or no image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()  # a truncated file fails here
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # Pillow raises many kinds, down to SyntaxError and struct.error
        reason = "it is no image of a known format" if "cannot identify" in str(error) else str(error)
        raise UnreadableImageError(reason) from None


def _to_rgb(image):
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits, which Pillow would clip and not scale
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(values / 257.0 + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


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
    picture = picture.resize([round(side * factor) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in picture.size)
    return np.asarray(picture)[top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled image: the file's bytes, or uint8 `(H, W, 3)`."""

    image: bytes | np.ndarray
    label: int
    key: str

    def decoded(self):
        """uint8 `(H, W, 3)`. Raises UnreadableImageError."""
        return decode_image(self.image) if isinstance(self.image, bytes) else self.image

    def cropped(self, size):
        """ADM's centre crop, uint8 `(size, size, 3)`, and whether the image was enlarged for it."""
        image = self.decoded()
        return center_crop(image, size), min(image.shape[:2]) < size
