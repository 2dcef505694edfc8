"""Training batches of captioned scenes, drawn as they are read."""

import dataclasses

import numpy as np

from t2i.shapes.drawing import draw_all
from t2i.shapes.scenes import captions, random_scene


class ShapesSource:
    """Scenes of the training split with their captions' embeddings, as a source of `fcdm_keras.data.batches`.

    Sample i has the attributes, place and phrasing of caption i; every read moves and scales the items anew, as a
    function of (seed, place in the data). So the pictures never end, while each caption is encoded once.

    Args:
        encode: a list of N distinct strings → float32 embeddings `(N, D)`.
        num_captions: number of samples; some captions of single items come several times.
        seed: integer in [0, 2⁶⁴).
        share_of_two: share of scenes with two items.

    Attributes:
        captions: the samples' captions, a list of strings.
        embeddings: float32 `(num_captions, D)`.
    """

    def __init__(self, encode, num_captions=4000, seed=0, share_of_two=0.5):
        if not num_captions >= 1:
            raise ValueError(f"num_captions must be at least 1. Received: {num_captions}")
        if not 0 <= share_of_two <= 1:
            raise ValueError(f"share_of_two must lie in [0, 1]. Received: {share_of_two}")
        self.seed = seed
        self._counts = np.diff(np.floor(np.arange(num_captions + 1) * share_of_two)).astype(int) + 1  # 1 or 2 items
        scenes = [self.scene(index) for index in range(num_captions)]
        self.captions = [phrasing(scene, index) for index, scene in enumerate(scenes)]
        distinct, places = np.unique(self.captions, return_inverse=True)
        self.embeddings = np.asarray(encode(distinct.tolist()), np.float32)[places]

    def __len__(self):
        return len(self._counts)

    def scene(self, index, variant=0):
        """Sample `index` as a `Scene`."""
        return random_scene(self.seed, int(index), "train", int(self._counts[index]), int(variant))

    def take(self, samples, places):
        """`images` uint8 `(B, 32, 32, 3)` of the samples, and `text_embeddings` float32 `(B, D)`."""
        scenes = [self.scene(sample, variant=place) for sample, place in zip(samples, places)]
        return {"images": draw_all(scenes), "text_embeddings": self.embeddings[samples]}


def phrasing(scene, index):
    """The caption of a scene that stands at `index`: all phrasings in turn."""
    return captions(scene)[index % len(captions(scene))]


@dataclasses.dataclass(frozen=True)
class Probe:
    """Scenes to ask a model for, with one caption each."""

    scenes: list
    captions: list


def probe(seed, count, split, num_items):
    """`count` scenes of a split with `num_items` items; `seed` should not be the training's."""
    scenes = [random_scene(seed, index, split, num_items) for index in range(count)]
    return Probe(scenes, [phrasing(scene, index) for index, scene in enumerate(scenes)])
