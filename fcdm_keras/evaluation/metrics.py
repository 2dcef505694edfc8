"""Scores from features and probabilities, in NumPy: FID, sFID, Inception score, precision and recall, KID.

FID and sFID are `frechet_distance` of Inception's pooled and spatial features (see `fcdm_keras.evaluation.features`).
"""

import warnings

import numpy as np
from scipy.linalg.lapack import dpstrf

from fcdm_keras.evaluation.neighbors import precision_recall
from fcdm_keras.evaluation.statistics import FeatureStatistics, check_features
from fcdm_keras.formats.numbers import on_host

SHUFFLES = 10  # that tell how much splits differ by chance

__all__ = [
    "FeatureStatistics",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "kernel_distances",
    "mean_and_covariance",
    "precision_recall",
]


def frechet_distance(mu_a, sigma_a, mu_b, sigma_b):
    """Squared Fréchet distance of two Gaussians: |μ_a − μ_b|² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½ (arXiv:1706.08500).

    With Σ = R Rᵀ, the last trace is the sum of the singular values of R_aᵀ R_b. It is real and finite, and exact to
    rounding for singular covariances too; nothing is added to their diagonals.

    Args:
        mu_a, mu_b: means `(D,)`.
        sigma_a, sigma_b: covariances `(D, D)`.

    Returns:
        A float, at least 0: what rounding leaves below it is 0.

    Raises:
        ValueError: for shapes that do not fit or values that are not finite.
    """
    mu_a, sigma_a, mu_b, sigma_b = (
        on_host(x, "Means and covariances").astype(np.float64) for x in (mu_a, sigma_a, mu_b, sigma_b)
    )
    size = mu_a.shape[0] if mu_a.ndim == 1 else None
    shapes = (mu_a.shape, sigma_a.shape, mu_b.shape, sigma_b.shape)
    if size is None or shapes != ((size,), (size, size), (size,), (size, size)):
        raise ValueError(f"Means must be (D,) and covariances (D, D) with one D. Received: shapes {shapes}")
    if not all(np.isfinite(x).all() for x in (mu_a, sigma_a, mu_b, sigma_b)):
        raise ValueError("Means and covariances must be finite. Received: NaN or infinity")
    trace_root = np.linalg.svd(_factor(sigma_a).T @ _factor(sigma_b), compute_uv=False).sum()
    difference = mu_a - mu_b
    with np.errstate(over="ignore"):
        distance = difference @ difference + np.trace(sigma_a) + np.trace(sigma_b) - 2.0 * trace_root
    if not np.isfinite(distance):
        raise ValueError("The distance of these means and covariances is too large for a number.")
    return max(0.0, float(distance))


def _factor(sigma):
    """R `(D, rank)` with R Rᵀ = Σ: Cholesky's with pivots, which ends where what is left is rounding."""
    lower, pivots, rank, _ = dpstrf(sigma, lower=1)
    factor = np.empty((len(sigma), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


def mean_and_covariance(features):
    """Mean `(D,)` and unbiased covariance `(D, D)` of features `(N, D)`, float64; N is at least 2."""
    return FeatureStatistics().update(features).result()


def inception_score(probabilities, split_size=5000):
    """Inception score (arXiv:1606.03498): mean over splits of exp(mean over rows of KL(p(y|x) ‖ p(y))).

    As in ADM's suite, rows are cut into consecutive splits of `split_size` images, a short last one counts as much as
    the others, and an exact zero among the probabilities makes the score NaN (with a warning).

    Images in order of their classes would give splits of few classes, and a score far too low. If the splits differ
    more than those of shuffled images could, the images are shuffled, from a fixed seed, and a warning says so.

    Args:
        probabilities: `(N, classes)`, rows that sum to 1.
        split_size: images per split.

    Returns:
        A float in [1, classes].

    Raises:
        ValueError: for an empty or another shape, values that are no probabilities, or a split size below 1.
    """
    probabilities = on_host(probabilities, "The probabilities")
    check_features(probabilities, name="probabilities")
    if not isinstance(split_size, (int, np.integer)) or split_size < 1:
        raise ValueError(f"split_size must be a positive integer. Received: {split_size!r}")
    if not len(probabilities):
        raise ValueError("The Inception score needs at least 1 image. Received: 0")
    if probabilities.min() < 0 or abs(probabilities.sum(axis=1, dtype=np.float64) - 1.0).max() > 1e-3:
        raise ValueError(
            "Each row of probabilities must be at least 0 and sum to 1. Received: "
            f"values from {probabilities.min():.3g}, sums up to {probabilities.sum(axis=1).max():.3g}; apply a softmax"
        )
    if not probabilities.all():
        row = int(np.argmin(probabilities.all(axis=1)))
        warnings.warn(
            f"The Inception score is NaN, as in ADM's suite, because a probability of image {row} is exactly 0.",
            RuntimeWarning,
            stacklevel=2,
        )
        return float("nan")
    order = _order(probabilities, split_size)
    splits = (order[start : start + split_size] for start in range(0, len(order), split_size))
    return float(np.mean([_split_score(probabilities[split].astype(np.float64)) for split in splits]))


def _order(probabilities, split_size):
    """Indices of the rows as they are to be cut: as they came, or shuffled if their order shows in the splits."""
    count = len(probabilities)
    order = np.arange(count)
    if count <= split_size:
        return order
    generator = np.random.default_rng(0)
    shuffled = [generator.permutation(count) for _ in range(SHUFFLES)]
    usual = [_information(probabilities, np.argsort(places) // split_size) for places in shuffled]
    found = _information(probabilities, order // split_size)
    if found <= np.mean(usual) + 10 * np.std(usual) + 0.02:
        return order
    warnings.warn(
        f"The images are in order of their classes: consecutive splits of {split_size:,}, as ADM's suite takes them, "
        "hold few classes each, so they were shuffled for the Inception score.",
        stacklevel=3,
    )
    return shuffled[0]


def _information(p, splits):
    """What the number of a row's split says about its class, in nats: by that the splits lower the score's logarithm.

    Args:
        p: probabilities `(N, classes)`.
        splits: number of each row's split, `(N,)`.
    """
    members = (splits == np.arange(splits.max() + 1)[:, None]).astype(p.dtype)
    marginals = (members @ p).astype(np.float64) / members.sum(axis=1, dtype=np.float64)[:, None]
    weights = members.mean(axis=1, dtype=np.float64)
    return weights @ np.sum(marginals * (np.log(marginals) - np.log(weights @ marginals)), axis=1)


def _split_score(p):
    return np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(axis=0))), axis=1)))


def kernel_distance(reference_features, sample_features, num_subsets=100, subset_size=1000, seed=0):
    """Kernel Inception distance (arXiv:1801.01401): unbiased MMD² with the kernel (x·y / D + 1)³, mean over subsets.

    Args:
        reference_features: `(N, D)`.
        sample_features: `(M, D)`.
        num_subsets: subsets drawn from both without replacement; a single one if it holds all images of both.
        subset_size: images per subset, at most N and M.
        seed: seed of the subsets.

    Returns:
        A float, about 0 for equal distributions; it may be negative, as the estimator is unbiased.

    Raises:
        ValueError: see `kernel_distances`.
    """
    return float(kernel_distances(reference_features, sample_features, num_subsets, subset_size, seed).mean())


def kernel_distances(reference_features, sample_features, num_subsets=100, subset_size=1000, seed=0):
    """The estimates of `kernel_distance`, with the same arguments, for each subset: float64 `(num_subsets,)`.

    Their standard deviation (divided by their number, not by one less) is what torch-fidelity reports beside the mean;
    it is that of a subset, ten times that of the mean of 100. A single subset, of all images, has none: it is 0.

    Raises:
        ValueError: fewer than 2 rows, shapes that do not fit, or values that are not finite.
    """
    reference, samples = (on_host(x, "The features") for x in (reference_features, sample_features))
    check_features(reference, name="reference features")
    check_features(samples, reference.shape[1], name="sample features")
    size = min(subset_size, len(reference), len(samples))
    if size < 2:
        raise ValueError(
            f"KID needs at least 2 images of each. Received: {len(reference)} reference images and {len(samples)} "
            f"samples, subset_size={subset_size}"
        )
    generator = np.random.default_rng(seed)
    whole = size == len(reference) == len(samples)
    estimates = [
        _mmd2(*(features[generator.choice(len(features), size, replace=False)] for features in (reference, samples)))
        for _ in range(1 if whole else num_subsets)
    ]
    return np.asarray(estimates)


def _mmd2(x, y):
    """Unbiased squared maximum mean discrepancy of two equally large sets of rows."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    count, size = x.shape

    def kernel(a, b):
        return (a @ b.T / size + 1.0) ** 3

    k_xx, k_yy = kernel(x, x), kernel(y, y)
    within = (k_xx.sum() - np.trace(k_xx) + k_yy.sum() - np.trace(k_yy)) / (count * (count - 1))
    return within - 2.0 * kernel(x, y).mean()
