"""Captioned scenes of one or two flat shapes, 32×32: drawn, described, read back and scored.

    scene = random_scene(seed=0, index=7)     # a pure function of (seed, index)
    captions(scene)                           # "a small red circle left of a large blue square", …
    image = draw(scene)                       # uint8 (32, 32, 3)
    read(image)                               # what is to be seen, by classical image analysis

`read` knows nothing of `draw`: it finds connected regions of colour and measures them.
"""

from t2i.shapes.drawing import IMAGE_SIZE, draw, draw_all
from t2i.shapes.reading import Reading, read
from t2i.shapes.scenes import COLOURS, HELD_OUT, PLACES, RELATIONS, SHAPES, SIZES, Item, Scene, captions, random_scene
from t2i.shapes.scoring import score

__all__ = [
    "COLOURS",
    "HELD_OUT",
    "IMAGE_SIZE",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "Item",
    "Reading",
    "Scene",
    "captions",
    "draw",
    "draw_all",
    "random_scene",
    "read",
    "score",
]
