import numpy as np
import pytest
import scipy.linalg
from helpers import to_numpy

from fcdm_keras.autoencoders import to_uint8
from fcdm_keras.data.embedded import load_digits
from fcdm_keras.evaluation.digits import score_digits
from fcdm_keras.evaluation.metrics import frechet_distance, mean_and_covariance

pytestmark = pytest.mark.no_backend


def gaussian(rank, size=6, seed=0):
    generator = np.random.default_rng(seed)
    return mean_and_covariance(generator.standard_normal((50, rank)) @ generator.standard_normal((rank, size)))


def test_frechet_distance_against_scipys_matrix_root():
    (mu_a, sigma_a), (mu_b, sigma_b) = gaussian(6), gaussian(6, seed=1)
    root = scipy.linalg.sqrtm(sigma_a @ sigma_b).real
    expected = ((mu_a - mu_b) ** 2).sum() + np.trace(sigma_a + sigma_b - 2 * root)
    assert frechet_distance(mu_a, sigma_a, mu_b, sigma_b) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_commuting_covariances():
    a, b = np.array([4.0, 9.0, 0.0]), np.array([1.0, 1.0, 25.0])
    expected = 3.0 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(np.zeros(3), np.diag(a), np.ones(3), np.diag(b)) == pytest.approx(expected)


def test_frechet_distance_of_singular_covariances():
    """tr √(Σ_a Σ_b) is the sum of the singular values of X Yᵀ, for centred rows over √(N − 1)."""
    generator = np.random.default_rng(2)
    x, y = (generator.standard_normal((20, 2)) @ generator.standard_normal((2, 6)) for _ in range(2))
    rooted = [(z - z.mean(0)) / np.sqrt(19) for z in (x, y)]
    trace = np.linalg.svd(rooted[0] @ rooted[1].T, compute_uv=False).sum()
    (mu_a, sigma_a), (mu_b, sigma_b) = mean_and_covariance(x), mean_and_covariance(y)
    expected = ((mu_a - mu_b) ** 2).sum() + np.trace(sigma_a + sigma_b) - 2 * trace
    assert frechet_distance(mu_a, sigma_a, mu_b, sigma_b) == pytest.approx(expected, abs=1e-6)


def test_frechet_distance_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="shapes"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.zeros(2), np.eye(2), np.array([0.0, np.nan]), np.eye(2))


def test_splits_of_the_digits_are_disjoint_and_whole():
    (train, train_labels), (held_out, _) = load_digits("train"), load_digits("held_out")
    assert train.shape == (1297, 8, 8, 1) and held_out.shape == (500, 8, 8, 1)
    assert train.min() == -1.0 and train.max() == 1.0
    assert set(train_labels) == set(range(10))
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in held_out}
    with pytest.raises(ValueError, match="split"):
        load_digits("test")


def digits(split):
    images, labels = load_digits(split)
    return to_numpy(to_uint8(images)), labels


def test_real_digits_score_as_real():
    scores = score_digits(*digits("held_out"))
    assert scores["agreement"] == scores["classifier_accuracy"] > 0.98
    assert scores["frechet"] < 1e-4 < scores["frechet_real"]
    assert scores["nearest_train"] == pytest.approx(scores["nearest_train_real"], rel=0.01)
    assert scores["copies"] == 0.0


def test_copies_noise_and_wrong_labels_are_found_out():
    copies, labels = digits("train")
    assert score_digits(copies[:300], labels[:300])["copies"] == 1.0
    assert score_digits(copies[:300], (labels[:300] + 1) % 10)["agreement"] < 0.05
    noise = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1)).astype("uint8")
    scores = score_digits(noise, np.arange(300) % 10)
    assert scores["frechet"] > 10 * scores["frechet_real"] and scores["agreement"] < 0.3
