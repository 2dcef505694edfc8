"""Solvers on data whose exact score is known: what they reach, and how fast their error falls."""

import numpy as np
import pytest
from helpers import in_one_graph, to_numpy
from keras import ops

from fcdm_keras.diffusion import FlowMatching, ode, samplers
from fcdm_keras.diffusion.objectives import IDDPM
from fcdm_keras.diffusion.paths import per_sample

pytestmark = pytest.mark.quick
MEAN, STD = 1.5, 0.4
MEANS, SHARE = (-1.2, 0.9), 0.3  # a mixture: 30 % lie around the first
OBJECTIVES = {
    "linear": FlowMatching(),
    "gvp noise": FlowMatching("gvp", "noise"),
    "vp score": FlowMatching("vp", "score"),
    "iddpm": IDDPM(),
}


def noise(*shape, seed=0):
    return ops.convert_to_tensor(np.random.default_rng(seed).standard_normal(shape, dtype="float32"))


def exact(objective, components):
    """A perfect network for data from a mixture of Gaussians, (share, mean, std) each."""

    def predict(x, times):
        alpha, sigma, d_alpha, d_sigma = objective.coefficients(per_sample(times))
        logits, expected = [], []
        for share, mean, std in components:
            variance = (alpha * std) ** 2 + sigma**2
            logits.append(np.log(share) - 0.5 * ops.log(variance) - 0.5 * (x - alpha * mean) ** 2 / variance)
            expected.append(sigma * (x - alpha * mean) / variance)  # E[noise | x_t]
        weights = ops.exp(ops.stack(logits) - ops.logsumexp(ops.stack(logits), axis=0))
        epsilon = ops.sum(weights * ops.stack(expected), axis=0)
        if isinstance(objective, IDDPM):
            return ops.concatenate([epsilon, ops.zeros_like(epsilon)], axis=-1)
        if objective.prediction == "velocity":  # from E[x_0 | x_t], without dividing by α
            latents = [mean + alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * (x - alpha * mean)
                       for _, mean, std in components]  # fmt: skip
            return d_alpha * ops.sum(weights * ops.stack(latents), axis=0) + d_sigma * epsilon
        return epsilon if objective.prediction == "noise" else -epsilon / sigma

    return predict


GAUSSIAN = ((1.0, MEAN, STD),)
MIXTURE = ((SHARE, MEANS[0], 0.3), (1 - SHARE, MEANS[1], 0.5))


def solved(name, objective, components, z, num_steps, **options):
    predict = exact(objective, components)
    return to_numpy(in_one_graph(samplers.SAMPLERS[name], predict, z, objective, num_steps, **options))


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
@pytest.mark.parametrize("name", ["ode_euler", "ode_heun", "ode_dopri5"])
def test_the_flow_of_a_gaussian_is_a_scaling(path, name):
    z = noise(16, 4, 4, 1)
    steps = {"ode_euler": 500, "ode_heun": 100, "ode_dopri5": 10}[name]
    options = {"rtol": 1e-4, "atol": 1e-4} if name == "ode_dopri5" else {}
    sample = solved(name, FlowMatching(path), GAUSSIAN, z, steps, **options)
    np.testing.assert_allclose(sample, MEAN + STD * to_numpy(z), atol=0.03 if path == "vp" else 0.01)


GRIDS = ("uniform", "quadratic", "karras", "logsnr")


@pytest.mark.parametrize(
    ("name", "objective", "grid"),
    [
        *(("dpmpp_2m", name, grid) for name in ("linear", "iddpm") for grid in GRIDS),
        *(("unipc", name, "uniform") for name in OBJECTIVES),
    ],
)
def test_multistep_solvers_reach_data(name, objective, grid):
    z = noise(16, 4, 4, 1)
    sample = solved(name, OBJECTIVES[objective], GAUSSIAN, z, 40, grid=grid)
    np.testing.assert_allclose(sample, MEAN + STD * to_numpy(z), atol=0.03)


@pytest.mark.parametrize(
    ("name", "objective", "options"),
    [
        ("euler_maruyama", "linear", {}),
        ("euler_maruyama", "linear", {"diffusion_form": "sbdm", "last_step": "tweedie", "last_step_size": 0.01}),
        ("euler_maruyama", "gvp noise", {"diffusion_form": "constant", "last_step_size": 0.01}),
        ("euler_maruyama", "vp score", {"diffusion_form": "increasing_decreasing", "last_step": "tweedie"}),
        ("stochastic_heun", "linear", {"diffusion_form": "decreasing", "last_step": "euler"}),
        ("dpmpp_2m_sde", "linear", {}),
        ("dpmpp_2m_sde", "iddpm", {}),
    ],
)
def test_stochastic_solvers_reach_mean_covariance_and_shares(name, objective, options):
    """Of a mixture of two: its mean, variance, and the share of each part; neighbours are independent."""
    z, drawn = noise(400, 4, 4, 1), noise(60, 400, 4, 4, 1, seed=1)
    sample = solved(name, OBJECTIVES[objective], MIXTURE, z, 60, step_noise=drawn, **options).reshape(400, 16)
    mean = sum(share * m for share, m, _ in MIXTURE)
    variance = sum(share * (s**2 + m**2) for share, m, s in MIXTURE) - mean**2
    assert sample.mean() == pytest.approx(mean, abs=0.05)
    assert sample.var() == pytest.approx(variance, rel=0.08)
    assert (sample < -0.3).mean() == pytest.approx(SHARE, abs=0.05)
    covariance = np.cov(sample.T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.25


def test_the_last_steps_differ_as_they_should():
    """From the same state at 1 − h: Tweedie's mean is data's, of less variance than a step of the flow."""
    z = noise(100, 4, 4, 1)
    options = {"last_step_size": 0.3, "step_noise": noise(79, 100, 4, 4, 1, seed=1)}
    spread = {}
    for last in ("mean", "tweedie", "euler"):
        sample = solved("euler_maruyama", FlowMatching(), GAUSSIAN, z, 80, last_step=last, **options)
        spread[last] = sample.std()
    # State: N(0.7·m, (0.7·0.4)² + 0.3²); E[data | state] has the standard deviation 0.4² · 0.7 / that.
    assert spread["tweedie"] == pytest.approx(0.7 * STD**2 / np.hypot(0.7 * STD, 0.3), rel=0.05)
    # The velocity is a·x + const with a = (0.7·0.4² − 0.3) / that²; the SDE's drift has −0.3 / that² more.
    variance = (0.7 * STD) ** 2 + 0.3**2
    gain = 1 + 0.3 * (0.7 * STD**2 - 0.3) / variance
    assert spread["euler"] == pytest.approx(gain * variance**0.5, rel=0.06)
    assert spread["mean"] == pytest.approx(abs(gain - 0.3 * 0.3 / variance) * variance**0.5, rel=0.06, abs=0.01)


def slope(name, objective, start, end, counts, **options):
    """The order of a solver: by how much the error falls as steps double, against the exact flow of a mixture."""
    z = noise(8, 2, 2, 1)
    grid = options.pop("by_grid", False)
    errors = []
    reference = None
    for count in (counts[-1] * 8, *counts):
        own = {"grid": np.linspace(start, end, count + 1)} if grid else {}
        sample = solved(name, objective, MIXTURE, z, count, **own, **options)
        if reference is None:
            reference = sample
        else:
            errors.append(np.abs(sample - reference).mean())
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("name", "order", "counts", "options"),
    [
        ("ode_euler", 1, (20, 40, 80), {}),
        ("ode_heun", 2, (10, 20, 40), {}),
        ("dpmpp_2m", 2, (16, 32, 64), {"by_grid": True}),
        ("unipc", 3, (12, 24, 48), {"by_grid": True}),
        ("unipc", 2, (16, 32, 64), {"by_grid": True, "order": 1}),
    ],
)
def test_orders(name, order, counts, options):
    measured = slope(name, FlowMatching(), 0.1, 0.7, counts, **options)
    print(f"{name} {options}: order {measured:.2f}")
    assert measured == pytest.approx(order, abs=0.35)


def test_dopri5_keeps_to_its_tolerance_and_counts_its_evaluations():
    z = noise(8, 4, 4, 1)
    expected = MEAN + STD * to_numpy(z)
    found = []
    for tolerance in (1e-2, 1e-3, 1e-5):
        sample, counts = in_one_graph(
            samplers.ode, exact(FlowMatching(), GAUSSIAN), z, FlowMatching(), 10, "dopri5", rtol=tolerance,
            atol=tolerance, counted=True,
        )  # fmt: skip
        error = np.abs(to_numpy(sample) - expected).max()
        assert error < 10 * tolerance, tolerance
        found.append(to_numpy(counts).mean())
    assert found[0] < found[1] < found[2] < 200


def test_dopri5_of_a_sample_does_not_depend_on_the_batch():
    z = noise(4, 4, 4, 1)
    together = solved("ode_dopri5", FlowMatching(), MIXTURE, z, 4)
    alone = solved("ode_dopri5", FlowMatching(), MIXTURE, z[2:3], 4)
    np.testing.assert_allclose(alone[0], together[2], atol=1e-5)


def test_a_flow_that_never_ends_is_not_finite(monkeypatch):
    monkeypatch.setattr(ode, "MOST_STEPS", 40)

    def stiff(x, times):
        return 1e30 * ops.sin(1e9 * x)

    assert np.isnan(to_numpy(in_one_graph(samplers.ode, stiff, noise(1, 4, 4, 1), FlowMatching(), 2, "dopri5"))).any()


@pytest.mark.parametrize("name", ["euler_maruyama", "stochastic_heun", "dpmpp_2m_sde"])
def test_noise_belongs_to_the_image_and_not_to_the_batch(name):
    z, objective = noise(4, 4, 4, 1), FlowMatching()
    together = solved(name, objective, MIXTURE, z, 6, seed=(5, 0))
    own = {"indices": ops.convert_to_tensor([2], "int32")}
    np.testing.assert_allclose(
        solved(name, objective, MIXTURE, z[2:3], 6, seed=(5, 0), **own)[0], together[2], atol=1e-4
    )
    assert np.abs(together[0] - together[1]).max() > 0.01


@pytest.mark.parametrize("objective", ["linear", "iddpm"])
def test_one_step_of_an_exponential_solver_is_the_expected_data(objective):
    objective = OBJECTIVES[objective]
    z = noise(4, 4, 4, 1)
    alpha, sigma = (float(part[0]) for part in objective.coefficients(np.array([objective.span[0]]), np)[:2])
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    sample = solved("unipc", objective, GAUSSIAN, z, 1, order=1)
    np.testing.assert_allclose(sample, MEAN + gain * (to_numpy(z) - alpha * MEAN), atol=1e-3)


FLOW, Z = FlowMatching(), np.zeros((1, 4, 4, 1), "float32")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: samplers.ode(p, Z, IDDPM(), 4), "ode samples a flow: give a FlowMatching .* Received: IDDPM"),
        (lambda p: samplers.euler_maruyama(p, Z, IDDPM(), 4), "samples a flow: .* Received: IDDPM"),
        (lambda p: samplers.euler_maruyama(p, Z, FLOW, 1), "num_steps must be an integer of at least 2"),
        (lambda p: samplers.euler_maruyama(p, Z, FLOW, 4, diffusion_form="cubic"), "diffusion_form must be one of"),
        (lambda p: samplers.stochastic_heun(p, Z, FLOW, 4, last_step="none"), "last_step must be one of mean"),
        (lambda p: samplers.stochastic_heun(p, Z, FLOW, 4, last_step_size=0.0), "last_step_size must lie in"),
        (lambda p: samplers.ode(p, Z, FLOW, 4, "rk4"), "method must be one of euler, heun, dopri5. Received: 'rk4'"),
        (lambda p: samplers.ode(p, Z, FLOW, 4, "dopri5", rtol=0.0), "rtol must lie in"),
        (lambda p: samplers.ode(p, Z, FLOW, 4, "dopri5", atol=0), "atol must lie in"),
        (lambda p: samplers.dpmpp_2m(p, Z, FLOW, 1), "of order 2 takes 2 steps or more. Received: 1"),
        (lambda p: samplers.unipc(p, Z, FLOW, 2, order=3), "of order 3 takes 3 steps or more. Received: 2"),
        (lambda p: samplers.unipc(p, Z, FLOW, 4, order=4), "order must be an integer in"),
        (lambda p: samplers.unipc(p, Z, FLOW, 4, grid="cosine"), "grid must be one of uniform, quadratic"),
        (lambda p: samplers.unipc(p, Z, FLOW, 2, grid=[1.0, 0.5, 0.1]), "3 times that lead from .*noise"),
        (lambda p: samplers.unipc(p, Z, IDDPM(), 3, grid=[900.0, 500.0]), "4 times that lead from 999"),
    ],
)
def test_what_solvers_cannot_take_is_refused(call, message):
    def never(x, times):
        raise AssertionError("nothing is computed")

    with pytest.raises(ValueError, match=message):
        call(never)
