"""What there is to draw: scenes of one or two items, and the captions that describe them.

Coordinates are pixels of a 32×32 picture, x to the right and y down, with the picture's corner at (0, 0).
"""

import dataclasses

import numpy as np

SIZES = ("small", "large")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("top left", "top right", "middle", "bottom left", "bottom right")  # of a single item
RELATIONS = ("left of", "right of", "above", "below")  # of the first of two items to the second
# Colours and shapes that training never shows together, of any size, alone or in a pair.
HELD_OUT = frozenset({("red", "cross"), ("blue", "triangle"), ("yellow", "circle"), ("green", "square")})
SPLITS = ("train", "held_out")

RADII = {"small": (3.5, 4.25), "large": (5.75, 6.5)}  # half the width, pixels
CENTRES = {
    "top left": (8, 8),
    "top right": (24, 8),
    "middle": (16, 16),
    "bottom left": (8, 24),
    "bottom right": (24, 24),
}
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_LAYOUT, _GEOMETRY = 1, 2  # random streams


@dataclasses.dataclass(frozen=True)
class Item:
    """One flat shape: its attributes, the centre of its bounding square, and half that square's side, in pixels."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """One item and its place (of `PLACES`), or two and the relation (of `RELATIONS`) of the first to the second."""

    items: tuple[Item, ...]
    place: str


def random_scene(seed, index, split="train", num_items=None, variant=0):
    """Scene `index` of an endless sequence: a pure function of the arguments.

    Args:
        seed: integer in [0, 2⁶⁴).
        index: integer in [0, 2⁶⁴).
        split: `"train"` has no held-out combination of colour and shape; in `"held_out"` the single item, or at least
            one of the two, is one.
        num_items: 1 or 2; `None` draws one or the other with equal probability.
        variant: integer; other variants show the same attributes and place elsewhere by some pixels, in other radii.

    Returns:
        A `Scene`.

    Raises:
        ValueError: for another split or number of items.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}. Received: {split!r}")
    if num_items not in (None, 1, 2):
        raise ValueError(f"num_items must be 1, 2 or None. Received: {num_items!r}")
    layout = _generator(seed, _LAYOUT, index)
    count = num_items or int(layout.integers(1, 3))
    looks = _looks(layout, count, split)
    place = str(layout.choice(PLACES if count == 1 else RELATIONS))
    return Scene(_placed(looks, place, _generator(seed, _GEOMETRY, index, variant)), place)


def captions(scene):
    """All phrasings of a scene, a tuple of distinct strings; the first is the plainest."""
    first, *others = (f"a {item.size} {item.colour} {item.shape}" for item in scene.items)
    if not others:
        where = f"in the {scene.place}"
        return (
            f"{first} {where}",
            f"{where}, {first}",
            f"there is {first} {where}",
            f"a picture of {first} {where}",
        )
    second = others[0]
    return (
        f"{first} {scene.place} {second}",
        f"{second} {OPPOSITE[scene.place]} {first}",
        f"there is {first} {scene.place} {second}",
        f"a picture of {second} {OPPOSITE[scene.place]} {first}",
    )


def is_held_out(scene):
    """Whether a scene shows a combination that training never does."""
    return any((item.colour, item.shape) in HELD_OUT for item in scene.items)


def _looks(generator, count, split):
    """Attributes of `count` items that differ and belong to the split."""
    while True:
        looks = [
            tuple(values[generator.integers(len(values))] for values in (SIZES, COLOURS, SHAPES)) for _ in range(count)
        ]
        held_out = any(look[1:] in HELD_OUT for look in looks)
        if held_out == (split == "held_out") and len(set(looks)) == count:
            return looks


def _placed(looks, place, generator):
    """Items somewhere near where their place or relation wants them; two of them are at least 2 pixels apart."""
    if len(looks) == 1:
        centres = np.array([CENTRES[place]], float) + generator.uniform(-1.25, 1.25, (1, 2))
    else:
        direction = np.array(DIRECTIONS[place], float)
        across = direction[::-1] ** 2
        centres = 16 + np.outer((8, -8), direction) + generator.uniform(-0.75, 0.75, (2, 2))
        centres += across * generator.uniform(-4, 4, (2, 1))
    return tuple(
        Item(*look, float(x), float(y), float(generator.uniform(*RADII[look[0]])))
        for look, (x, y) in zip(looks, centres, strict=True)
    )


def _generator(seed, stream, index, variant=0):
    key = np.array([seed, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, variant, index], np.uint64)))
