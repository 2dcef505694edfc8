"""Scores from given features: ADM's suite, closed forms, streaming and merging."""

import multiprocessing
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial

from fcdm_keras.evaluation import neighbors
from fcdm_keras.evaluation.metrics import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_distances,
    mean_and_covariance,
    precision_recall,
)

pytestmark = [pytest.mark.no_backend, pytest.mark.quick]


def fid(reference, samples):
    return frechet_distance(*mean_and_covariance(samples), *mean_and_covariance(reference))


def test_fid_of_adms_features(golden):
    data = golden("adm/features")
    for side in ("ref", "sample"):
        mu, sigma = mean_and_covariance(data[f"{side}_pool"])
        np.testing.assert_allclose(mu, data[f"mu_{side}"], rtol=1e-5)
        np.testing.assert_allclose(sigma, data[f"sigma_{side}"], rtol=1e-9, atol=1e-8)
    value = fid(data["ref_pool"], data["sample_pool"])
    assert value == pytest.approx(data["fid"], rel=1e-6)
    assert value == pytest.approx(data["fid_f64_acts"], rel=1e-9)
    assert value == pytest.approx(data["fid_closed_form_f64"], rel=1e-9)
    assert fid(data["sample_pool"], data["ref_pool"]) == pytest.approx(data["fid_swapped"], rel=1e-6)
    assert abs(fid(data["ref_pool"], data["ref_pool"])) < 1e-9
    given = (data["mu_sample"], data["sigma_sample"], data["mu_ref"], data["sigma_ref"])
    assert frechet_distance(*given) == pytest.approx(data["fid"], rel=1e-6)


def test_fid_of_singular_covariances(golden):
    data = golden("adm/features_2048")
    for side in ("ref", "sample"):
        mu, sigma = mean_and_covariance(data[f"{side}_pool"])
        np.testing.assert_allclose(mu, data[f"mu_{side}"], rtol=1e-5)
        assert np.trace(sigma) == pytest.approx(data[f"trace_sigma_{side}"], rel=1e-9)
    value = fid(data["ref_pool"], data["sample_pool"])
    assert value == pytest.approx(data["fid_closed_form_f64"], rel=1e-9)
    assert value == pytest.approx(data["fid_evaluator"], abs=2e-3)
    dead = golden("adm/features_dead")
    assert fid(dead["ref_pool"], dead["sample_pool"]) == pytest.approx(dead["fid"], rel=1e-6)
    assert fid(dead["ref_pool"], dead["sample_pool"]) == pytest.approx(dead["fid_closed_form_f64"], rel=1e-9)


def test_sfid_and_given_statistics(golden):
    pool, spatial, stats = golden("adm/features"), golden("adm/spatial"), golden("adm/stats_keys")
    reference, samples = (spatial[f"{side}_spatial"][..., :7].reshape(-1, 175) for side in ("ref", "sample"))
    assert fid(reference, samples) == pytest.approx(spatial["sfid_closed_form_f64"], rel=1e-9)
    assert fid(reference, samples) == pytest.approx(spatial["sfid"], rel=1e-6)
    for features, mu, sigma, expected in (
        (pool["sample_pool"], "mu", "sigma", "fid_vs_features_sample"),
        (samples, "mu_s", "sigma_s", "sfid_vs_spatial_sample"),
    ):
        value = frechet_distance(*mean_and_covariance(features), stats[mu], stats[sigma])
        assert value == pytest.approx(stats[expected], rel=1e-6)


def test_matrix_root_against_scipys():
    generator = np.random.default_rng(0)
    a, b = (mean_and_covariance(generator.standard_normal((200, 64)) ** 3) for _ in range(2))
    root = scipy.linalg.sqrtm(a[1] @ b[1]).real
    expected = ((a[0] - b[0]) ** 2).sum() + np.trace(a[1] + b[1] - 2 * root)
    assert frechet_distance(*a, *b) == pytest.approx(expected, rel=1e-10)


def test_inception_score_of_adms_probabilities(golden):
    data = golden("adm/inception_score")
    for i, size in enumerate(data["split_sizes"]):
        score = inception_score(data["probs"], int(size))
        assert score == pytest.approx(data["is_f32"][i], rel=1e-5)
        assert score == pytest.approx(data["is_f64"][i], rel=1e-9)
    score = inception_score(data["probs_long"])
    assert score == pytest.approx(data["is_long_default_f64"], rel=1e-9)
    assert score == pytest.approx(data["is_long_default_f32"], rel=1e-5)
    assert score == pytest.approx(data["is_long_per_split_f64"].mean(), rel=1e-9)
    assert inception_score(data["probs_long"], 10_000) == pytest.approx(data["is_long_one_split_f64"], rel=1e-9)
    with pytest.warns(RuntimeWarning, match="image 4 is exactly 0"):
        assert np.isnan(inception_score(data["probs_with_zero"])) and np.isnan(data["is_with_zero"])


def by_class(count=4000, classes=50):
    """Probabilities 0.9 of classes in turn, and the score of all images at once: exp(log classes − entropy)."""
    p = np.full((count, classes), 0.1 / (classes - 1))
    p[np.arange(count), np.arange(count) % classes] = 0.9
    return p, classes * np.exp((p[0] * np.log(p[0])).sum())


@pytest.mark.parametrize(
    "order",
    [
        lambda classes: classes,
        lambda classes: -classes,
        lambda classes: classes >= 25,  # the first half of the classes first, each in turn
        lambda classes: np.where(np.arange(len(classes)) < 2000, classes, 0),  # half of the images
    ],
)
def test_inception_score_of_images_in_order_of_their_classes(order):
    p, whole = by_class()
    ordered = p[np.argsort(order(np.arange(len(p)) % 50), kind="stable")]
    with pytest.warns(UserWarning, match="^The images are in order of their classes: consecutive splits of 1,000"):
        assert inception_score(ordered, 1000) == pytest.approx(whole, rel=0.03)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inception_score(p, 1000) == pytest.approx(whole, rel=1e-9)
        assert inception_score(ordered, 4000) == pytest.approx(whole, rel=1e-9)


def test_chance_is_no_order():
    """Splits of a few images differ much, and are ADM's still: each is the score of its rows."""
    generator = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count, size, classes in (*((24, 8, 10), (100, 50, 3)) * 20, (3000, 1000, 1008)):
            p = generator.dirichlet(np.full(classes, 0.1), count) + 1e-9
            p /= p.sum(1, keepdims=True)
            splits = [inception_score(p[start : start + size], size) for start in range(0, count, size)]
            assert inception_score(p, size) == pytest.approx(np.mean(splits), rel=1e-12)


@pytest.mark.parametrize("name", ["features", "features_times256", "features_2048"])
def test_precision_and_recall_of_adms_features(golden, name):
    data = golden(f"adm/{name}")
    source = golden("adm/features") if "factor" in data else data
    reference, samples = (data.get("factor", 1.0) * source[f"{side}_pool"] for side in ("ref", "sample"))
    radii = [neighbors.neighbor_radii(features - reference.mean(0)) for features in (reference, samples)]
    for ours, side in zip(radii, ("ref", "sample"), strict=True):
        np.testing.assert_allclose(ours, data[f"radii_{side}"][:, 0], rtol=1e-5 if "factor" in data else 0.03)
    flags = neighbors.manifold_flags(reference, radii[0], samples, radii[1])
    np.testing.assert_array_equal(flags[0], data["sample_in_ref_manifold"])
    np.testing.assert_array_equal(flags[1], data["ref_in_sample_manifold"])
    assert precision_recall(reference, samples) == (data["precision"], data["recall"])


def test_precision_and_recall_for_each_k(golden):
    data = golden("adm/features")
    for i, k in enumerate(data["k_list"]):
        precision, recall = precision_recall(data["ref_pool"], data["sample_pool"], k=int(k))
        assert (precision, recall) == (data["precision_k_f64"][i], data["recall_k_f64"][i])


def test_distances_are_not_rounded_to_float16(golden):
    data = golden("adm/features_float16_effect")
    assert precision_recall(data["ref_pool"], data["sample_pool"]) == (data["precision_f64"], data["recall_f64"])


def test_the_edge_of_a_ball_belongs_to_it():
    """Every point of one set lies exactly as far from one of the other as that one's neighbour does."""
    ends, beside = np.array([[0], [2], [10], [12]], "float32"), np.array([[4], [14]], "float32")
    assert precision_recall(ends, beside, k=1)[0] == 1.0
    assert precision_recall(beside, ends, k=1)[1] == 1.0
    assert precision_recall(ends, beside + 0.25, k=1)[0] == 0.0


def test_blocks_do_not_change_precision_and_recall(golden, monkeypatch):
    """Blocks far smaller than the sets, with sides that do not divide them, against scipy's whole matrix."""
    data = golden("adm/features")
    whole = precision_recall(data["ref_pool"], data["sample_pool"])
    monkeypatch.setattr(neighbors, "ROWS", 37)
    monkeypatch.setattr(neighbors, "COLUMNS", 3)
    assert precision_recall(data["ref_pool"], data["sample_pool"]) == whole
    distances = scipy.spatial.distance.cdist(data["ref_pool"], data["ref_pool"], "sqeuclidean")
    np.testing.assert_allclose(neighbors.neighbor_radii(data["ref_pool"]), np.sort(distances)[:, 3], rtol=1e-4)


def test_no_block_of_distances_is_larger_than_promised(monkeypatch):
    shapes = []
    monkeypatch.setattr(neighbors, "ROWS", 64)
    monkeypatch.setattr(neighbors, "COLUMNS", 100)
    real = neighbors.squared_distances
    monkeypatch.setattr(neighbors, "squared_distances", lambda a, b: shapes.append((len(a), len(b))) or real(a, b))
    generator = np.random.default_rng(0)
    precision_recall(generator.standard_normal((500, 4)), generator.standard_normal((300, 4)))
    assert max(rows for rows, _ in shapes) == 64 and max(columns for _, columns in shapes) == 100


FEATURES = (
    np.random.default_rng(3).standard_normal((5000, 24)) @ np.random.default_rng(4).standard_normal((24, 24)) + 50
)


@pytest.mark.parametrize("batch", [1, 7, 64, 1024, 3000])
def test_streaming_in_any_batch_size_is_bit_for_bit_the_same(batch):
    streamed = FeatureStatistics()
    for start in range(0, len(FEATURES), batch):
        streamed.update(FEATURES[start : start + batch])
    mu, sigma = streamed.result()
    np.testing.assert_array_equal(mu, mean_and_covariance(FEATURES)[0])
    np.testing.assert_array_equal(sigma, mean_and_covariance(FEATURES)[1])
    np.testing.assert_allclose(mu, FEATURES.mean(0), rtol=1e-13)
    np.testing.assert_allclose(sigma, np.cov(FEATURES, rowvar=False), rtol=1e-10, atol=1e-10)
    assert streamed.count == 5000


def statistics_of(rows):
    return FeatureStatistics().update(FEATURES[rows])


def test_merging_from_four_processes_is_all_at_once():
    edges = [0, 3, 1700, 4000, 5000]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        parts = pool.map(statistics_of, [slice(*pair) for pair in zip(edges, edges[1:])])
    merged = FeatureStatistics()
    for part in parts:
        merged.merge(part)
    assert [part.count for part in parts] == [3, 1697, 2300, 1000] and merged.count == 5000
    np.testing.assert_allclose(merged.result()[0], FEATURES.mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged.result()[1], np.cov(FEATURES, rowvar=False), rtol=1e-10, atol=1e-10)


def test_covariance_of_features_far_from_zero():
    """A sum of squares would lose all digits here."""
    features = FEATURES + 1e7
    np.testing.assert_allclose(mean_and_covariance(features)[1], np.cov(features, rowvar=False), rtol=1e-6, atol=1e-6)


def test_kernel_distance_is_the_squared_distance_of_cubic_moments():
    """(x·y/D + 1)³ for D = 1 is an inner product of (1, √3 x, √3 x², x³), so MMD² has a closed form."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 1)), generator.standard_normal((40, 1)) + 0.5

    def moments(z):
        return np.concatenate([np.ones_like(z), np.sqrt(3) * z, np.sqrt(3) * z**2, z**3], axis=1)

    def unbiased(phi):
        return (np.square(phi.sum(0)).sum() - np.square(phi).sum()) / (len(phi) * (len(phi) - 1))

    a, b = moments(x), moments(y)
    expected = unbiased(a) + unbiased(b) - 2 * a.mean(0) @ b.mean(0)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(x[:30], y) == pytest.approx(expected, abs=1.0)  # subsets
    assert kernel_distance(x[:30], y) == kernel_distance(x[:30], y)


def test_kernel_distance_is_unbiased():
    generator = np.random.default_rng(1)
    x, y = generator.standard_normal((600, 8)), generator.standard_normal((500, 8))
    assert abs(kernel_distance(x, y, subset_size=200)) < 0.02 < kernel_distance(x, y + 0.3, subset_size=200)


def test_kernel_distance_is_the_mean_over_subsets_whose_spread_is_told():
    generator = np.random.default_rng(2)
    x, y = generator.standard_normal((400, 4)), generator.standard_normal((300, 4)) + 0.2
    estimates = kernel_distances(x, y, subset_size=50)
    assert estimates.shape == (100,) and kernel_distance(x, y, subset_size=50) == estimates.mean()
    apart = [kernel_distance(x, y, num_subsets=1, subset_size=50, seed=seed) for seed in range(100)]
    assert estimates.std() == pytest.approx(np.std(apart), rel=0.3)
    assert estimates.mean() == pytest.approx(np.mean(apart), abs=3 * np.std(apart) / 10)
    assert kernel_distances(x, x).shape == (1,) and kernel_distance(x, x) < 0  # unbiased, and on the same images


def test_no_distance_is_below_zero():
    for seed in range(50):
        features = np.random.default_rng(seed).standard_normal((30, 12)) * 10.0 ** (seed % 7)
        assert fid(features, features) >= 0 and np.copysign(1, fid(features, features)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: precision_recall(np.zeros((3, 2)), np.zeros((9, 2))), "at least 4 images. Received: 3 reference"),
        (lambda: precision_recall(np.zeros((9, 2)), np.zeros((9, 3))), r"shape \(N, 2\). Received: shape \(9, 3\)"),
        (lambda: precision_recall(np.zeros((9, 2)), np.zeros((9, 2)), k=0), "k must be a positive integer"),
        (lambda: mean_and_covariance(np.zeros((1, 2))), "at least 2 samples. Received: 1"),
        (lambda: mean_and_covariance(np.array([[1.0], [np.nan]])), "infinity in row 1"),
        (lambda: FeatureStatistics(2).update(np.zeros((1, 3))), r"shape \(N, 2\)"),
        (lambda: FeatureStatistics().update(np.zeros((4, 2))).update(np.full((2, 2), np.inf)), "row 4"),
        (lambda: FeatureStatistics(2).update(np.zeros((1024, 2))).merge(
            FeatureStatistics(3).update(np.zeros((1024, 3)))), "2 and 3 features cannot be merged"),
        (lambda: inception_score(np.ones((3, 4))), "sum to 1"),
        (lambda: inception_score(np.zeros((0, 4))), "at least 1 image"),
        (lambda: inception_score(np.full((3, 4), 0.25), split_size=0), "split_size"),
        (lambda: frechet_distance(np.full(2, 1e200), np.eye(2), np.zeros(2), np.eye(2)), "too large for a number"),
        (lambda: kernel_distance(np.zeros((1, 2)), np.zeros((9, 2))), "at least 2 images"),
        (lambda: kernel_distance(np.full((5, 2), np.nan), np.zeros((9, 2))), "finite"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("error")
        call()
