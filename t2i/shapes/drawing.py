"""Drawing of scenes: each item's signed distance function gives smooth edges one pixel wide."""

import numpy as np

IMAGE_SIZE = 32
BACKGROUND = (255, 255, 255)
PALETTE = {
    "red": (255, 0, 0),
    "yellow": (255, 225, 0),
    "green": (0, 190, 0),
    "cyan": (0, 215, 255),
    "blue": (0, 0, 255),
    "magenta": (255, 0, 255),
}


def _box(u, v, width, height):
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


# Signed distances at offsets (u, v) from the centre, negative inside; each shape fills a square of side 2r.
DISTANCES = {
    "circle": lambda u, v, r: np.hypot(u, v) - r,
    "square": lambda u, v, r: _box(u, v, r, r),
    "triangle": lambda u, v, r: np.maximum(v - r, (2 * np.abs(u) - v - r) / np.sqrt(5, dtype=np.float32)),
    "cross": lambda u, v, r: np.minimum(_box(u, v, r / 3, r), _box(u, v, r, r / 3)),
}


def draw(scene):
    """A scene as a picture, uint8 `(32, 32, 3)`."""
    return draw_all([scene])[0]


def draw_all(scenes):
    """Scenes as pictures, uint8 `(N, 32, 32, 3)`."""
    canvas = np.tile(np.array(BACKGROUND, np.float32), (len(scenes), IMAGE_SIZE, IMAGE_SIZE, 1))
    numbered = [(number, item) for number, scene in enumerate(scenes) for item in scene.items]
    for shape, distance in DISTANCES.items():
        chosen = [(number, item) for number, item in numbered if item.shape == shape]
        # Two items of a scene never touch, so that their order does not matter; they go in turn for the indexing.
        for turn in _without_repeats(chosen):
            _paint(canvas, turn, distance)
    return (canvas + 0.5).astype(np.uint8)


def _without_repeats(chosen):
    """`(number, item)` pairs in at most two lists, none with two items of one scene."""
    first = dict(reversed(chosen))
    seconds = [(number, item) for number, item in chosen if item is not first[number]]
    return [turn for turn in (list(first.items()), seconds) if turn]


def _paint(canvas, chosen, distance):
    """Blends items of one shape, each of another scene, into the canvas."""
    numbers = [number for number, _ in chosen]
    x, y, radius = np.array([(i.x, i.y, i.radius) for _, i in chosen], np.float32).T[..., None, None]
    colours = np.array([PALETTE[item.colour] for _, item in chosen], np.float32)[:, None, None]
    pixels = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    inside = distance(pixels[None, None, :] - x, pixels[None, :, None] - y, radius)
    coverage = np.clip(0.5 - inside, 0, 1)[..., None]
    canvas[numbers] += coverage * (colours - canvas[numbers])
