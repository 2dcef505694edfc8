"""Scores of a model that draws scenes: on captions it was trained with, and on combinations that it never saw."""

import collections
import dataclasses

import numpy as np

from t2i.grid import captioned_grid
from t2i.shapes.data import Probe, probe
from t2i.shapes.drawing import draw_all
from t2i.shapes.reading import place_of, read
from t2i.shapes.scoring import SCORES, score

PROBE_SEED = 2**32  # beside the training's, so that other scenes are asked for
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
TITLES = {"seen": "seen", "heldout": "held out", "seen_two": "two, seen", "heldout_two": "two, held out"}
SHOWN = 8  # pictures of each kind in the grid


def held_out_probe(seed, count):
    """Scenes of one item with a combination of colour and shape that training never shows."""
    return probe((seed + PROBE_SEED) % 2**64, count, "held_out", 1)


def seen_probe(source, count, num_items=1):
    """Captions of a `ShapesSource`, spread over those with so many items."""
    fitting = [index for index in range(len(source)) if len(source.scene(index).items) == num_items]
    chosen = [fitting[i] for i in np.linspace(0, len(fitting) - 1, min(count, len(fitting))).round().astype(int)]
    return Probe([source.scene(index) for index in chosen], [source.captions[index] for index in chosen])


def probes(source, count):
    """What a model is asked for: `count` scenes of each of the kinds in `TITLES`."""
    return {
        "seen": seen_probe(source, count),
        "heldout": held_out_probe(source.seed, count),
        "seen_two": seen_probe(source, count, num_items=2),
        "heldout_two": probe((source.seed + PROBE_SEED) % 2**64, count, "held_out", 2),
    }


def score_model(draw, source, guidance_scale, *, count=200, scales=SCALES, curve_count=64):
    """Asks a model for scenes of each kind and reads its pictures back.

    Args:
        draw: `draw(captions, guidance_scale)` → uint8 images `(N, 32, 32, 3)`; the empty caption is "no prompt".
        source: the `ShapesSource` that the model was trained on.
        guidance_scale: of the scores.
        count: pictures of each kind.
        scales: guidance scales of the curve.
        curve_count: pictures of each kind and scale of the curve.

    Returns:
        The scores and a PIL image, a grid of pictures of each kind and without prompt.

        Scores are a dict of floats in [0, 1]: `{name}_accuracy_{kind}` for the names in `SCORES` (`caption` is that all
        is right) and the kinds `seen` and `heldout` (one item), `seen_two` and `heldout_two`;
        `checker_accuracy_real`, the share of real scenes that are read right; `null_scenes` and `null_distance`, see
        `compare_null`; and `guidance`, the curve: a list of dicts of `scale` and `caption_accuracy_{kind}`.
    """
    asked = probes(source, count)
    drawn = {kind: draw(part.captions, guidance_scale) for kind, part in asked.items()}
    scores = {
        f"{name}_accuracy_{kind}": value
        for kind, part in asked.items()
        for name, value in score(drawn[kind], part.scenes).items()
    }
    real = [scene for part in asked.values() for scene in part.scenes]
    scores["checker_accuracy_real"] = score(draw_all(real), real)["caption"]
    without = draw([""] * count, 1.0)
    scores |= compare_null(without, draw_all([source.scene(index) for index in range(min(1000, len(source)))]))
    scores["guidance"] = guidance_curve(draw, source, scales, curve_count)
    shown = [*(drawn[kind][:SHOWN] for kind in asked), without[:SHOWN]]
    captions = [caption for part in asked.values() for caption in part.captions[:SHOWN]]
    captions += ["(no prompt)"] * len(without[:SHOWN])
    return scores, captioned_grid(np.concatenate(shown), captions, SHOWN)


def guidance_curve(draw, source, scales=SCALES, count=64):
    """Caption accuracy of each kind at each guidance scale: a list of dicts, one per scale."""
    asked = probes(source, count)
    captions = [caption for part in asked.values() for caption in part.captions]
    ends = np.cumsum([len(part.captions) for part in asked.values()])[:-1]
    curve = []
    for scale in scales:
        parts = zip(asked.items(), np.split(draw(captions, scale), ends))
        right = {f"caption_accuracy_{kind}": score(drawn, part.scenes)["caption"] for (kind, part), drawn in parts}
        curve.append({"scale": float(scale), **right})
    return curve


def compare_null(drawn, real):
    """Whether pictures drawn without a prompt look like the whole set.

    Args:
        drawn, real: uint8 `(N, 32, 32, 3)`.

    Returns:
        Dict of `null_scenes`, the share of drawn pictures that show one or two items of known colour and shape in a
        known place, and `null_distance`, the largest total variation distance, over number of items, size, colour and
        shape, between the values' frequencies in drawn and in real pictures; both in [0, 1].
    """
    (whole, counts), (_, real_counts) = _frequencies(drawn), _frequencies(real)
    distances = []
    for name, frequencies in real_counts.items():
        values = frequencies.keys() | counts[name].keys()
        shares = [[c[value] / max(1, c.total()) for value in values] for c in (frequencies, counts[name])]
        distances.append(float(np.abs(np.subtract(*shares)).sum() / 2))
    return {"null_scenes": whole, "null_distance": max(distances)}


def _frequencies(images):
    """Share of pictures that show a whole scene, and how often each value of each attribute is read."""
    counts = collections.defaultdict(collections.Counter)
    whole = 0
    for image in images:
        readings = read(image)
        known = all(None not in dataclasses.astuple(reading) for reading in readings)
        whole += known and place_of(readings, len(image)) is not None
        counts["items"][len(readings)] += 1
        for reading in readings:
            for name in ("size", "colour", "shape"):
                counts[name][getattr(reading, name)] += 1
    return whole / len(images), counts


def describe(scores):
    """The scores as a table for the terminal."""
    kinds = {kind: title for kind, title in TITLES.items() if f"caption_accuracy_{kind}" in scores}
    lines = [f"{'right, %':14}" + "".join(f"{title:>15}" for title in kinds.values())]
    for name in SCORES:
        lines.append(_row(name, [scores[f"{name}_accuracy_{kind}"] for kind in kinds]))
    for point in scores.get("guidance", ()):
        lines.append(_row(f"  guidance {point['scale']:g}", [point[f"caption_accuracy_{kind}"] for kind in kinds]))
    lines.append(f"real scenes read right: {scores['checker_accuracy_real']:.1%}")
    if "null_scenes" in scores:
        lines.append(
            f"without prompt: {scores['null_scenes']:.1%} are scenes; attributes are as frequent as in the set up to "
            f"{scores['null_distance']:.1%}"
        )
    return "\n".join(lines)


def _row(name, values):
    return f"{name:14}" + "".join(f"{100 * value:15.1f}" for value in values)
