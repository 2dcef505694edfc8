"""Scores of pictures against the scenes that were asked for."""

import itertools

import numpy as np

from t2i.shapes.reading import place_of, read

ATTRIBUTES = ("size", "colour", "shape")
SCORES = (*ATTRIBUTES, "position", "count", "caption")


def judge(image, scene):
    """Compares what a picture shows with a scene.

    Args:
        image: uint8 `(H, W, 3)`.
        scene: a `Scene`.

    Returns:
        Dict of floats in [0, 1] with the keys `SCORES`: `size`, `colour` and `shape`, the shares of the scene's items
        that have it right; `position`, whether place or relation are right; `count`, whether the number of items is;
        and `caption`, whether all of these are. With another number of items than asked for only the parts of the items
        that are there count, and `position` and `caption` are 0.
    """
    readings = read(image)
    expected = scene.items
    best = dict.fromkeys((*ATTRIBUTES, "position"), 0.0)
    pairs = min(len(readings), len(expected))
    for chosen in itertools.permutations(readings[:4], pairs):
        for items in itertools.combinations(range(len(expected)), pairs):
            found = _compare(chosen, [expected[i] for i in items], scene, len(image), len(readings))
            best = max(best, found, key=lambda parts: sum(parts.values()))
    count = float(len(readings) == len(expected))
    caption = float(count and all(value == 1.0 for value in best.values()))
    return {**best, "count": count, "caption": caption}


def _compare(readings, items, scene, side, num_read):
    parts = {
        name: sum(getattr(r, name) == getattr(i, name) for r, i in zip(readings, items)) / len(scene.items)
        for name in ATTRIBUTES
    }
    whole = len(readings) == len(scene.items) == num_read
    return {**parts, "position": float(whole and place_of(readings, side) == scene.place)}


def score(images, scenes):
    """Mean scores of pictures against scenes.

    Args:
        images: uint8 `(N, H, W, 3)`.
        scenes: N `Scene`s.

    Returns:
        Dict of floats with the keys `SCORES`, see `judge`.

    Raises:
        ValueError: there is not one scene to each of at least one picture.
    """
    if len(images) != len(scenes) or not len(images):
        raise ValueError(f"Give one scene to each picture. Received: {len(images)} pictures, {len(scenes)} scenes")
    judged = [judge(image, scene) for image, scene in zip(images, scenes)]
    return {name: float(np.mean([j[name] for j in judged])) for name in judged[0]}
