"""Distances between sets of features, in float64 NumPy."""

import numpy as np


def frechet_distance(mu_a, sigma_a, mu_b, sigma_b):
    """Squared Fréchet distance of two Gaussians: |μ_a − μ_b|² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½ (arXiv:1706.08500).

    The last trace is the sum of the square roots of the eigenvalues of the symmetric Σ_a^½ Σ_b Σ_a^½, which is real and
    finite for singular covariances too.

    Args:
        mu_a, mu_b: means `(D,)`.
        sigma_a, sigma_b: covariances `(D, D)`.

    Returns:
        A float, at least about 0.

    Raises:
        ValueError: for shapes that do not fit or values that are not finite.
    """
    mu_a, sigma_a, mu_b, sigma_b = (np.asarray(x, np.float64) for x in (mu_a, sigma_a, mu_b, sigma_b))
    size = mu_a.shape[0] if mu_a.ndim == 1 else None
    shapes = (mu_a.shape, sigma_a.shape, mu_b.shape, sigma_b.shape)
    if size is None or shapes != ((size,), (size, size), (size,), (size, size)):
        raise ValueError(f"Means must be (D,) and covariances (D, D) with one D. Received: shapes {shapes}")
    if not all(np.isfinite(x).all() for x in (mu_a, sigma_a, mu_b, sigma_b)):
        raise ValueError("Means and covariances must be finite. Received: NaN or infinity")
    values, vectors = np.linalg.eigh(sigma_a)
    root_a = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root_a @ sigma_b @ root_a)
    trace_root = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
    difference = mu_a - mu_b
    return float(difference @ difference + np.trace(sigma_a) + np.trace(sigma_b) - 2.0 * trace_root)


def mean_and_covariance(features):
    """Mean `(D,)` and unbiased covariance `(D, D)` of features `(N, D)`, float64."""
    features = np.asarray(features, np.float64)
    return features.mean(axis=0), np.cov(features, rowvar=False)
