"""All scores of a set of images against a reference, computed in a stream, as ADM's evaluation suite does."""

import dataclasses
import os

import numpy as np
from tqdm import tqdm

from fcdm_keras.evaluation import metrics
from fcdm_keras.evaluation.arrays import spaced
from fcdm_keras.evaluation.checks import NEIGHBORS, available_metrics, check, check_memory, warn
from fcdm_keras.evaluation.image_sets import ArrayImages
from fcdm_keras.evaluation.sides import FEATURES_KEY, METRICS, PER_IMAGE, STATISTICS, ImageSet, open_set
from fcdm_keras.formats.npz import NpzWriter


@dataclasses.dataclass
class Collected:
    """What the scores need of one side: `statistics` metric → (mu, sigma), and features per image."""

    statistics: dict
    pool: np.ndarray | None = None
    probabilities: np.ndarray | None = None


def collect(side, extractor, chosen, batch_size=64, role="samples"):
    """Runs an `ImageSet` through an extractor and keeps what the chosen metrics need.

    Memory is that of the statistics, and for precision, recall and KID the pooled features `(N, D)`, for the Inception
    score the probabilities, in float32.
    """
    streamed = {m: metrics.FeatureStatistics() for m in STATISTICS if m in chosen and m not in side.given}
    kept = {"pool"} if PER_IMAGE & set(chosen) else set()
    if role == "samples" and "inception_score" in chosen:
        kept.add("probabilities")
    collected = Collected({metric: pair for metric, pair in side.given.items() if metric in chosen})
    if not streamed and not kept:
        return collected
    for first, images, features in _features(side.images, extractor, batch_size, role):
        for metric, statistics in streamed.items():
            statistics.update(features[METRICS[metric]])
        for name in kept:
            if getattr(collected, name) is None:
                setattr(collected, name, np.empty((side.images.count, features[name].shape[1]), np.float32))
            getattr(collected, name)[first : first + len(images)] = features[name]
    collected.statistics.update({metric: statistics.result() for metric, statistics in streamed.items()})
    return collected


def _features(images, extractor, batch_size, role):
    """Yields, batch by batch, the number of its first image, the images and their features."""
    first, interval = 0, 0.2 if os.isatty(2) else 15
    with tqdm(total=images.count, desc=f"features of the {role}", unit="image", mininterval=interval) as bar:
        for batch in images.batches(batch_size):
            yield first, batch, extractor.extract(batch, first)
            first += len(batch)
            bar.update(len(batch))
    if first != images.count:
        raise ValueError(f"{images.name} must give {images.count} images. Received: {first}; did it change meanwhile?")


def scores(samples, reference, chosen):
    """The chosen metrics of two `Collected`, a dict of floats; KID is followed by `kid_std`, over its subsets."""
    result = {}
    for metric in STATISTICS:
        if metric in chosen:
            result[metric] = metrics.frechet_distance(*samples.statistics[metric], *reference.statistics[metric])
    if "inception_score" in chosen:
        result["inception_score"] = metrics.inception_score(samples.probabilities)
    if {"precision", "recall"} & set(chosen):
        both = metrics.precision_recall(reference.pool, samples.pool, NEIGHBORS)
        result.update({name: value for name, value in zip(("precision", "recall"), both) if name in chosen})
    if "kid" in chosen:
        distances = metrics.kernel_distances(reference.pool, samples.pool)
        result["kid"], result["kid_std"] = float(distances.mean()), float(distances.std())
    return result


def write_reference(path, images, extractor, num_images=10_000, batch_size=64):
    """Writes a reference file in ADM's layout: `mu, sigma` (and `mu_s, sigma_s`) of all images, and some as `arr_0`.

    Args:
        path: the `.npz` file.
        images: one of `fcdm_keras.evaluation.image_sets`.
        extractor: see `fcdm_keras.evaluation.features`; its name is kept as `features`.
        num_images: images kept for precision, recall and KID, evenly spaced among all.
        batch_size: images read at once.

    Raises:
        ValueError: fewer than 2 images, too many features for the memory, or features that are not finite.
    """
    if images.count < 2:
        raise ValueError(f"A reference needs at least 2 images. Received: {images.count} ({images.name})")
    chosen = [metric for metric in STATISTICS if METRICS[metric] in extractor.gives]
    widths = extractor.widths(images.shape)
    check_memory({metric: widths[METRICS[metric]] for metric in chosen}, chosen)
    streamed = {metric: metrics.FeatureStatistics() for metric in chosen}
    wanted = spaced(images.count, min(num_images, images.count))
    with NpzWriter(path, (len(wanted), *images.shape)) as writer:
        for first, batch, features in _features(images, extractor, batch_size, "reference"):
            for metric, statistics in streamed.items():
                statistics.update(features[METRICS[metric]])
            writer.append(batch[wanted[(wanted >= first) & (wanted < first + len(batch))] - first])
        arrays = {FEATURES_KEY: np.array(extractor.name)}
        for metric, statistics in streamed.items():
            arrays.update(zip(STATISTICS[metric], statistics.result()))
        writer.finish(**arrays)


class Judge:
    """Scores arrays of images against one reference, whose features are computed once; for scores while training.

    What cannot be scored, a reference of another width above all, is found out when it is made.

    Args:
        reference: path of a reference, see `open_set`.
        extractor: see `fcdm_keras.evaluation.features`.
        chosen: metrics; default all that the extractor allows.
        expected: shape of the images that are going to be scored, `(N, H, W, channels)`; default any.

    Attributes:
        metrics: names of the scores.

    Raises:
        ValueError: the reference does not hold what the metrics need, or does not fit what is expected.
    """

    def __init__(self, reference, extractor, chosen=None, expected=None):
        self._extractor = extractor
        self.metrics = chosen or available_metrics(extractor)
        self._reference = open_set(reference)
        self._warned = bool(expected)
        if expected:
            samples = ImageSet("the samples", ArrayImages(np.broadcast_to(np.uint8(0), expected)))
            check(samples, self._reference, extractor, self.metrics)
            warn(samples, self._reference, extractor, self.metrics)
        else:
            check(self._reference, self._reference, extractor, self.metrics)
        self._collected = collect(self._reference, extractor, self.metrics, role="reference")

    def __call__(self, images, labels=None):
        """Scores of uint8 images `(N, H, W, channels)`, a dict of floats."""
        samples = ImageSet("the samples", ArrayImages(images))
        check(samples, self._reference, self._extractor, self.metrics)
        if not self._warned:
            self._warned = True
            warn(samples, self._reference, self._extractor, self.metrics)
        result = scores(collect(samples, self._extractor, self.metrics), self._collected, self.metrics)
        return {metric: result[metric] for metric in self.metrics}  # columns of a log: without KID's deviation
