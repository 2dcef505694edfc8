"""Reading of pictures: which items a scene shows, by classical image analysis.

1. A pixel belongs to an item where its chroma (largest minus smallest channel) is above half of what a saturated colour
   has; items are the connected regions of such pixels, specks left out.
2. Colour: the sector of 60° of the hue circle in which at least 80 % of the inner pixels lie.
3. Size: the mean of width and height against the picture's side.
4. Shape: area against bounding box, and the centroid's height in it; then the region must overlap the ideal shape.

Nothing is taken from the drawing code.
"""

import dataclasses

import numpy as np
from scipy import ndimage

HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")  # at 0°, 60°, 120° …
MIN_CHROMA = 110
MIN_AREA = 6  # pixels; smaller regions are specks of noise
LARGE = 5 / 16  # of the picture's side
MIN_OVERLAP = 0.72  # intersection over union with the ideal shape
MIN_PURITY = 0.8


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is read of one item; an attribute that fits nothing is `None`. Centre, width and height are in pixels."""

    size: str
    colour: str | None
    shape: str | None
    x: float
    y: float
    width: float
    height: float


def read(image):
    """The items of a picture.

    Args:
        image: uint8 `(H, W, 3)`.

    Returns:
        A list of `Reading`s, from left to right.

    Raises:
        ValueError: for another dtype or shape.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"An image must be uint8 (H, W, 3). Received: {image.dtype} {image.shape}")
    values = image.astype(np.float32)
    chroma = np.ptp(values, axis=-1)
    regions, count = ndimage.label(chroma > MIN_CHROMA)
    areas = np.bincount(regions.ravel(), minlength=count + 1)
    found = [_item(values, chroma, regions == n) for n in range(1, count + 1) if areas[n] >= MIN_AREA]
    return sorted(found, key=lambda reading: reading.x)


def place_of(readings, side):
    """Where items are: a place for one, the relation of the first to the second for two, `None` where it is unclear.

    Args:
        readings: one or two `Reading`s.
        side: side of the picture, pixels.
    """
    if len(readings) == 1:
        x, y = readings[0].x / side, readings[0].y / side
        if max(abs(x - 0.5), abs(y - 0.5)) < 0.125:
            return "middle"
        if min(abs(x - 0.5), abs(y - 0.5)) < 0.125:
            return None
        return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"
    if len(readings) != 2:
        return None
    dx, dy = readings[1].x - readings[0].x, readings[1].y - readings[0].y
    if max(abs(dx), abs(dy)) < side / 8 or abs(abs(dx) - abs(dy)) < side / 32:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def _item(values, chroma, region):
    near = ndimage.binary_dilation(region, np.ones((3, 3)))
    coverage = np.where(near, np.clip(chroma / np.median(chroma[region]), 0, 1), 0)
    coverage[coverage < 0.15] = 0  # what noise leaves around an item
    left, width = _extent(coverage.max(axis=0))
    top, height = _extent(coverage.max(axis=1))
    size = "large" if (width + height) / 2 > LARGE * len(values) else "small"
    shape = _shape(coverage, left, top, width, height)
    return Reading(size, _colour(values, region), shape, left + width / 2, top + height / 2, width, height)


def _extent(profile):
    """Start and length of an item along one axis, in parts of a pixel, from its largest coverage in each line."""
    lines = np.flatnonzero(profile >= 0.5)
    first, last = lines[0], lines[-1]
    before = profile[first - 1] if first else 0.0
    after = profile[last + 1] if last + 1 < len(profile) else 0.0
    start = first + 1 - profile[first] - before
    return start, last + profile[last] + after - start


def _colour(values, region):
    inner = ndimage.binary_erosion(region, np.ones((3, 3)))
    r, g, b = values[inner if inner.sum() >= MIN_AREA else region].T
    hue = np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b))
    shares = np.bincount(np.round(hue / 60).astype(int) % 6, minlength=6) / len(hue)
    return HUES[shares.argmax()] if shares.max() >= MIN_PURITY else None


def _shape(coverage, left, top, width, height):
    if not 0.7 < width / height < 1.4:
        return None
    area = coverage.sum()
    fill = area / (width * height)
    rows = np.arange(len(coverage)) + 0.5
    centroid = ((coverage.sum(axis=1) * rows).sum() / area - top) / height  # 0 is the top of the box, 1 its bottom
    if fill > 0.89:
        name = "square"
    elif fill > 0.68:
        name = "circle"
    else:
        name = "triangle" if centroid > 0.575 else "cross"
    ideal = _ideal(name, coverage.shape, left, top, width, height)
    overlap = np.minimum(coverage, ideal).sum() / np.maximum(coverage, ideal).sum()
    return name if overlap >= MIN_OVERLAP else None


def _ideal(name, shape, left, top, width, height, samples=4):
    """Coverage of the shape that fills a box, each pixel sampled at 4×4 points."""
    y, x = ((np.arange(side * samples) + 0.5) / samples for side in shape)
    u, v = np.meshgrid(2 * (x - left) / width - 1, 2 * (y - top) / height - 1)  # −1 … 1 in the box
    in_box = (abs(u) <= 1) & (abs(v) <= 1)
    inside = (
        in_box
        & {
            "square": in_box,
            "circle": u**2 + v**2 <= 1,
            "triangle": 2 * abs(u) <= v + 1,
            "cross": np.minimum(abs(u), abs(v)) <= 1 / 3,
        }[name]
    )
    return inside.reshape(shape[0], samples, shape[1], samples).mean(axis=(1, 3))
