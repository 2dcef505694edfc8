"""All scores of a set of images against a reference, computed in a stream, as ADM's evaluation suite does."""

import dataclasses
import os
import warnings
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fcdm_keras.data.npz import NpzWriter, array_names, load_small
from fcdm_keras.evaluation import metrics
from fcdm_keras.evaluation.image_sets import ArrayImages, ImageFile, open_images

# Metric → what an extractor must give for it. `pool` is kept per image for those in PER_IMAGE.
METRICS = {
    "fid": "pool",
    "sfid": "spatial",
    "inception_score": "probabilities",
    "precision": "pool",
    "recall": "pool",
    "kid": "pool",
}
PER_IMAGE = {"precision", "recall", "kid"}
STATISTICS = {"fid": ("mu", "sigma"), "sfid": ("mu_s", "sigma_s")}  # names in reference files
FEATURES_KEY = "features"  # names the extractor in reference files of ours
NEIGHBORS = 3


@dataclasses.dataclass
class ImageSet:
    """Images, statistics that replace those of the images, or both: one side of a comparison.

    Attributes:
        name: for messages.
        images: one of `fcdm_keras.evaluation.image_sets`, or `None`.
        given: metric → (mu, sigma) from the file.
        extractor: name of the extractor that made `given`, or `None` if the file does not say.
    """

    name: str
    images: object = None
    given: dict = dataclasses.field(default_factory=dict)
    extractor: str | None = None


@dataclasses.dataclass
class Collected:
    """What the scores need of one side: `statistics` metric → (mu, sigma), and features per image."""

    statistics: dict
    pool: np.ndarray | None = None
    probabilities: np.ndarray | None = None


def open_set(path):
    """An `ImageSet` from a folder or an `.npz` file with `arr_0`, `mu` and `sigma`, `mu_s` and `sigma_s`, or all.

    Of a folder that holds a `samples.npz`, as `python -m fcdm_keras.sample` writes it, that file is read.

    Raises:
        ValueError: the file holds neither images nor statistics, or damaged ones.
        OSError: it cannot be read.
    """
    if (Path(path) / "samples.npz").exists():
        path = Path(path) / "samples.npz"
    if Path(path).suffix != ".npz" or not Path(path).exists():  # which says what was expected
        return ImageSet(str(path), open_images(path))
    names = array_names(path)
    given = {
        metric: tuple(load_small(path, name) for name in pair)
        for metric, pair in STATISTICS.items()
        if set(pair) <= set(names)
    }
    for metric, (mu, sigma) in given.items():
        if mu.ndim != 1 or sigma.shape != 2 * mu.shape or mu.dtype.kind != "f" or not np.isfinite(sigma).all():
            raise ValueError(
                f"{' and '.join(STATISTICS[metric])} of {path} must be finite, (D,) and (D, D). "
                f"Received: shapes {mu.shape} and {sigma.shape}"
            )
    if "arr_0" not in names and not given:
        raise ValueError(
            f"{path} must hold images (arr_0, uint8, (N, H, W, 3)) or statistics (mu and sigma). "
            f"Received: {', '.join(names) or 'no arrays'}"
        )
    extractor = str(load_small(path, FEATURES_KEY)) if FEATURES_KEY in names else None
    return ImageSet(str(path), ImageFile(path) if "arr_0" in names else None, given, extractor)


def available_metrics(extractor):
    """Names of the metrics that an extractor's features allow."""
    return [metric for metric, needed in METRICS.items() if needed in extractor.gives]


def check(samples, reference, extractor, chosen, count):
    """Raises ValueError, in one sentence, if the chosen metrics cannot be computed. Warns of a poor comparison."""
    for metric in chosen:
        if METRICS[metric] not in extractor.gives:
            raise ValueError(
                f"{metric} needs {METRICS[metric]} features, which {extractor.name} does not give; choose --metrics "
                f"{','.join(available_metrics(extractor))}."
            )
    for side, role in ((samples, "samples"), (reference, "reference")):
        _check_side(side, role, extractor, chosen, count if role == "samples" else None)
    sizes = [side.images.shape[:2] for side in (samples, reference) if side.images]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        warnings.warn(
            f"The samples are {sizes[0][0]}×{sizes[0][1]} pixels and the reference images {sizes[1][0]}×{sizes[1][1]}: "
            "scores at different resolutions do not compare.",
            stacklevel=2,
        )


def _check_side(side, role, extractor, chosen, count):
    if side.extractor not in (None, extractor.name) and side.given:
        raise ValueError(
            f"The statistics of {side.name} are of {side.extractor} features. Received: {extractor.name}; choose the "
            "same --features for both."
        )
    needing = [
        metric
        for metric in chosen
        if metric not in side.given and not (metric == "inception_score" and role == "reference")
    ]
    if side.images is None:
        if needing:
            others = [metric for metric in chosen if metric not in needing]
            advice = f"; choose --metrics {','.join(others)}" if others else ""
            raise ValueError(f"{', '.join(needing)} need images, but {side.name} holds no arr_0{advice}.")
        return
    received = side.images.count if count is None else count
    least = {"inception_score": 1, "precision": NEIGHBORS + 1, "recall": NEIGHBORS + 1}
    for metric in needing:
        if received < least.get(metric, 2):
            raise ValueError(
                f"{metric} needs at least {least.get(metric, 2)} images of each. Received: {received} {role}"
                f" ({side.name})"
            )
    if received > side.images.count:
        raise ValueError(f"{side.name} holds {side.images.count} images. Received: {received} asked for")


def collect(side, extractor, chosen, count=None, batch_size=64, role="samples"):
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
    total = side.images.count if count is None else count
    done = 0
    with _progress(total, role) as bar:
        for images in side.images.batches(batch_size, total):
            features = extractor.extract(images)
            for metric, statistics in streamed.items():
                statistics.update(features[METRICS[metric]])
            for name in kept:
                if getattr(collected, name) is None:
                    setattr(collected, name, np.empty((total, features[name].shape[1]), np.float32))
                getattr(collected, name)[done : done + len(images)] = features[name]
            done += len(images)
            bar.update(len(images))
    collected.statistics.update({metric: statistics.result() for metric, statistics in streamed.items()})
    return collected


def _progress(total, role):
    interval = 0.2 if os.isatty(2) else 15
    return tqdm(total=total, desc=f"features of the {role}", unit="image", mininterval=interval)


def scores(samples, reference, chosen):
    """The chosen metrics of two `Collected`, a dict of floats."""
    result = {}
    for metric in STATISTICS:
        if metric in chosen:
            ours, theirs = samples.statistics[metric], reference.statistics[metric]
            if ours[0].shape != theirs[0].shape:
                raise ValueError(
                    f"The reference's statistics for {metric} must have {len(ours[0])} features. "
                    f"Received: {len(theirs[0])}; it was made with another network or at another size"
                )
            result[metric] = metrics.frechet_distance(*ours, *theirs)
    if "inception_score" in chosen:
        result["inception_score"] = metrics.inception_score(samples.probabilities)
    if {"precision", "recall"} & set(chosen):
        both = metrics.precision_recall(reference.pool, samples.pool, NEIGHBORS)
        result.update({name: value for name, value in zip(("precision", "recall"), both) if name in chosen})
    if "kid" in chosen:
        result["kid"] = metrics.kernel_distance(reference.pool, samples.pool)
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
        ValueError: fewer than 2 images, or features that are not finite.
    """
    if images.count < 2:
        raise ValueError(f"A reference needs at least 2 images. Received: {images.count} ({images.name})")
    chosen = [metric for metric in STATISTICS if METRICS[metric] in extractor.gives]
    streamed = {metric: metrics.FeatureStatistics() for metric in chosen}
    num_images = min(num_images, images.count)
    wanted = np.arange(num_images) * images.count // max(num_images, 1)
    with NpzWriter(path, (num_images, *images.shape)) as writer, _progress(images.count, "reference") as bar:
        done = 0
        for batch in images.batches(batch_size):
            features = extractor.extract(batch)
            for metric, statistics in streamed.items():
                statistics.update(features[METRICS[metric]])
            writer.append(batch[wanted[(wanted >= done) & (wanted < done + len(batch))] - done])
            done += len(batch)
            bar.update(len(batch))
        arrays = {FEATURES_KEY: np.array(extractor.name)}
        for metric, statistics in streamed.items():
            arrays.update(zip(STATISTICS[metric], statistics.result()))
        writer.finish(**arrays)


class Judge:
    """Scores arrays of images against one reference, whose features are computed once; for scores while training.

    Args:
        reference: path of a reference, see `open_set`.
        extractor: see `fcdm_keras.evaluation.features`.
        chosen: metrics; default all that the extractor allows.

    Attributes:
        metrics: names of the scores.

    Raises:
        ValueError: the reference does not hold what the metrics need.
    """

    def __init__(self, reference, extractor, chosen=None):
        self._extractor = extractor
        self.metrics = chosen or available_metrics(extractor)
        self._reference = open_set(reference)
        check(self._reference, self._reference, extractor, self.metrics, None)
        self._collected = collect(self._reference, extractor, self.metrics, role="reference")

    def __call__(self, images, labels=None):
        """Scores of uint8 images `(N, H, W, channels)`, a dict of floats."""
        samples = ImageSet("the samples", ArrayImages(images))
        check(samples, self._reference, self._extractor, self.metrics, None)
        return scores(collect(samples, self._extractor, self.metrics), self._collected, self.metrics)
