"""Precision and recall from nearest neighbours (Kynkäänniemi et al., arXiv:1904.06991), in bounded memory."""

import numpy as np

from fcdm_keras.evaluation.statistics import check_features
from fcdm_keras.formats.numbers import on_host

ROWS, COLUMNS = 2_500, 10_000  # of one block of distances, 100 MB


def precision_recall(reference_features, sample_features, k=3):
    """Share of samples within the real manifold, and of real images within the samples' (improved precision, recall).

    As in ADM's suite a set's manifold is the union of balls around its points, each reaching to the point's k-th
    nearest neighbour in its own set (itself not counted); the edge belongs to the ball.

    Distances are computed in blocks in float32, of features centred on the reference's mean, so that no digits cancel.
    (ADM's suite rounds features and distances to float16, so single images of its result may differ.)

    Args:
        reference_features: `(N, D)`.
        sample_features: `(M, D)`.
        k: neighbours, at least 1.

    Returns:
        Precision and recall, floats in [0, 1].

    Raises:
        ValueError: fewer than k + 1 rows, shapes that do not fit, or values that are not finite.
    """
    real, drawn = _centred(reference_features, sample_features, k)
    in_real, in_drawn = manifold_flags(real, neighbor_radii(real, k), drawn, neighbor_radii(drawn, k))
    return float(in_real.mean()), float(in_drawn.mean())


def neighbor_radii(features, k=3):
    """Squared distance of each row of `(N, D)` to its k-th nearest other row, float32 `(N,)`."""
    features = np.asarray(features, np.float32)
    radii = np.empty(len(features), np.float32)
    for rows in _slices(len(features), ROWS):
        nearest = np.empty((rows.stop - rows.start, 0), np.float32)
        for columns in _slices(len(features), COLUMNS):
            block = squared_distances(features[rows], features[columns])
            if block.shape[1] > k + 1:
                block = np.partition(block, k, axis=1)[:, : k + 1]
            nearest = np.concatenate([nearest, block], axis=1)
        radii[rows] = np.partition(nearest, k, axis=1)[:, k]  # the nearest is the row itself
    return radii


def manifold_flags(real, real_radii, drawn, drawn_radii):
    """Which `drawn` rows lie in a ball around a `real` row, bool `(M,)`, and the reverse, bool `(N,)`."""
    in_real, in_drawn = np.zeros(len(drawn), bool), np.zeros(len(real), bool)
    for rows in _slices(len(real), ROWS):
        for columns in _slices(len(drawn), COLUMNS):
            distances = squared_distances(real[rows], drawn[columns])
            in_real[columns] |= (distances <= real_radii[rows, None]).any(axis=0)
            in_drawn[rows] |= (distances <= drawn_radii[None, columns]).any(axis=1)
    return in_real, in_drawn


def squared_distances(a, b):
    """`(N, M)` squared Euclidean distances of float32 rows, at least 0."""
    block = a @ b.T
    block *= -2.0
    block += np.einsum("nd,nd->n", a, a)[:, None]
    block += np.einsum("nd,nd->n", b, b)[None]
    return np.maximum(block, 0.0, out=block)


def _centred(reference, samples, k):
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k must be a positive integer. Received: {k!r}")
    reference, samples = on_host(reference, "The features"), on_host(samples, "The features")
    check_features(reference, name="reference features")
    check_features(samples, reference.shape[1], name="sample features")
    for name, features in (("reference", reference), ("sample", samples)):
        if len(features) <= k:
            raise ValueError(
                f"Precision and recall with k={k} need at least {k + 1} images. Received: {len(features)} {name} images"
            )
    centre = reference.mean(axis=0, dtype=np.float64)
    return [_shifted(features, centre) for features in (reference, samples)]


def _shifted(features, centre):
    """`features − centre`, float32, without a float64 copy of all."""
    result = np.empty(features.shape, np.float32)
    for rows in _slices(len(features), ROWS):
        result[rows] = features[rows] - centre
    return result


def _slices(count, size):
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
