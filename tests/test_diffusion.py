"""Closed forms; agreement with the reference implementation is in test_golden.py."""

import numpy as np
import pytest
import scipy.stats
from helpers import gradient_of, to_numpy
from keras import ops

from fcdm_keras.diffusion.gaussian import (
    GaussianDiffusion,
    discretized_gaussian_log_likelihood,
    normal_kl,
    respaced_timesteps,
)

pytestmark = pytest.mark.quick


def arrays(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype="float32")


def test_noised_data_has_the_stated_mean_and_variance():
    diffusion, x_0 = GaussianDiffusion(), np.full((20_000, 1, 1, 1), 0.7, "float32")
    x_t = to_numpy(diffusion.q_sample(x_0, np.full(20_000, 300), arrays(*x_0.shape)))
    alpha_bar = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:301])
    assert x_t.mean() == pytest.approx(np.sqrt(alpha_bar) * 0.7, abs=0.03)
    assert x_t.var() == pytest.approx(1 - alpha_bar, rel=0.05)


def test_noise_and_latents_are_inverse_to_each_other():
    diffusion, t = GaussianDiffusion(), np.array([0, 500, 999])
    x_0, noise = arrays(3, 4, 4, 2), arrays(3, 4, 4, 2, seed=1)
    x_t = diffusion.q_sample(x_0, t, noise)
    # At t = 999 latents are the small difference of large numbers: α̂ is 4e-5.
    np.testing.assert_allclose(to_numpy(diffusion.predict_latents(x_t, t, noise)), x_0, atol=2e-4)
    np.testing.assert_allclose(to_numpy(diffusion.predict_noise(x_t, t, x_0)), noise, atol=2e-4)


@pytest.mark.parametrize(("v", "table"), [(1.0, "betas"), (-1.0, "posterior_variance")])
def test_v_moves_the_variance_between_its_bounds(v, table):
    diffusion, t = GaussianDiffusion(), np.array([1, 400])
    output = np.concatenate([arrays(2, 4, 4, 3), np.full((2, 4, 4, 3), v, "float32")], axis=-1)
    variance = to_numpy(diffusion.p_mean_variance(output, arrays(2, 4, 4, 3), t)["variance"])
    expected = np.broadcast_to(getattr(diffusion, table)[t][:, None, None, None], variance.shape)
    np.testing.assert_allclose(variance, expected, rtol=1e-4)


def test_a_perfect_model_has_no_loss():
    """With the true noise and v = −1 the model's distribution is the true posterior."""
    diffusion, t = GaussianDiffusion(), np.array([1, 500, 999])
    noise = arrays(3, 4, 4, 2)
    output = np.concatenate([noise, -np.ones_like(noise)], axis=-1)
    losses = diffusion.training_losses(output, arrays(3, 4, 4, 2, seed=1), noise, t)
    np.testing.assert_array_equal(to_numpy(losses["mse"]), 0.0)
    np.testing.assert_allclose(to_numpy(losses["vb"]), 0.0, atol=1e-5)


def test_kl_of_normals_against_numerical_integration():
    x = np.linspace(-30, 30, 200_001)
    p, q = scipy.stats.norm(0.3, np.exp(0.2)), scipy.stats.norm(-0.5, np.exp(0.5))
    expected = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
    ours = normal_kl(*(ops.convert_to_tensor(v, "float32") for v in (0.3, 0.4, -0.5, 1.0)))
    assert float(to_numpy(ours)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("log_scale", [-4.8, -3.0, 0.0])
def test_discretized_likelihood_against_float64(log_scale):
    """The same formula in float64, where nothing cancels; includes both open ends and far tails."""
    levels = np.concatenate([np.arange(256) / 127.5 - 1.0, [-0.9995, 0.9995]])
    means = levels[:, None] + np.linspace(-0.3, 0.3, 13)

    def cdf(u):
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))

    centered, scale = levels[:, None] - means, np.exp(log_scale)
    upper, lower = cdf((centered + 1 / 255) / scale), cdf((centered - 1 / 255) / scale)
    probability = np.where(levels[:, None] < -0.999, upper, np.where(levels[:, None] > 0.999, 1 - lower, upper - lower))
    ours = discretized_gaussian_log_likelihood(
        ops.convert_to_tensor(np.broadcast_to(levels[:, None], means.shape), "float32"),
        ops.convert_to_tensor(means, "float32"),
        ops.convert_to_tensor(np.full_like(means, log_scale), "float32"),
    )
    trusted = probability > 1e-9  # below, float64's own difference of numbers near 1 has lost its digits
    np.testing.assert_allclose(to_numpy(ours)[trusted], np.log(probability[trusted]), rtol=1e-3, atol=1e-3)
    assert to_numpy(ours).min() >= np.log(1e-12) - 1e-3


def test_mean_is_detached_in_the_variational_bound():
    """The gradient of vb reaches v and not the predicted noise."""
    diffusion, t = GaussianDiffusion(), np.array([0, 500])
    x_0, noise, output = arrays(2, 4, 4, 1), arrays(2, 4, 4, 1, seed=1), arrays(2, 4, 4, 2, seed=2)

    def vb(value):
        return ops.sum(diffusion.training_losses(value, x_0, noise, t)["vb"])

    gradient = gradient_of(vb, output)
    assert not gradient[..., 0].any()
    assert gradient[..., 1].any()


@pytest.mark.parametrize("count", [1, 2, 7, 50, 250, 999, 1000])
def test_respacing_keeps_the_noise_levels_of_the_kept_steps(count):
    full, spaced = GaussianDiffusion(), GaussianDiffusion(str(count))
    assert spaced.num_timesteps == len(set(spaced.timesteps)) == count
    assert spaced.timesteps[-1] == 999 and (count == 1 or spaced.timesteps[0] == 0)
    np.testing.assert_allclose(spaced.alphas_cumprod, full.alphas_cumprod[spaced.timesteps], rtol=1e-11)
    for table in (spaced.betas, spaced.posterior_mean_coef1, spaced.posterior_log_variance_clipped):
        assert np.isfinite(table).all()


def test_a_last_section_of_one_step_keeps_the_last_timestep():
    assert [respaced_timesteps(text).tolist() for text in (1, "1", "ddim1", "2,1")] == [[999]] * 3 + [[0, 499, 999]]


@pytest.mark.parametrize("text", ["0", "1001", "-5", "ten", "10,", "600,600", "ddim999", "ddim10,20", "4.5"])
def test_respacings_that_cannot_be_met_are_refused(text):
    with pytest.raises(ValueError, match="steps|stride|respacing"):
        respaced_timesteps(text)


def test_output_without_variance_channels_is_refused():
    with pytest.raises(ValueError, match="must give 4 channels .* Received: 2"):
        GaussianDiffusion().p_mean_variance(arrays(1, 4, 4, 2), arrays(1, 4, 4, 2), np.array([0]))
