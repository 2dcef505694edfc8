"""Samplers on data whose exact denoiser is known; the reference's chains are in test_golden.py."""

import numpy as np
import pytest
from helpers import in_one_graph, to_numpy
from keras import ops

from fcdm_keras.diffusion import guidance, samplers
from fcdm_keras.diffusion.gaussian import GaussianDiffusion, gather

pytestmark = pytest.mark.quick

MEAN, STD = 1.5, 0.4


def gaussian_denoiser(v):
    """The exact E[ε | x_t] for data N(MEAN, STD²), with a constant v."""
    full = GaussianDiffusion()

    def predict(x_t, timesteps):
        alpha_bar = gather(full.alphas_cumprod, timesteps)
        noise = ops.sqrt(1 - alpha_bar) * (x_t - ops.sqrt(alpha_bar) * MEAN) / (alpha_bar * STD**2 + 1 - alpha_bar)
        return ops.concatenate([noise, ops.full_like(x_t, v)], axis=-1)

    return predict


def noise(*shape, seed=0):
    return ops.convert_to_tensor(np.random.default_rng(seed).standard_normal(shape, dtype="float32"))


def test_ddim_maps_noise_to_data_by_the_exact_flow():
    """For Gaussian data the probability flow is linear: z → MEAN + STD · z."""
    z = noise(64, 4, 4, 1)
    sample = in_one_graph(samplers.ddim, gaussian_denoiser(0.0), z, GaussianDiffusion("250"))
    np.testing.assert_allclose(to_numpy(sample), MEAN + STD * to_numpy(z), atol=0.05)


def test_ancestral_samples_have_the_data_distribution():
    step_noise = noise(1000, 512, 4, 4, 1, seed=1)
    z, diffusion = noise(512, 4, 4, 1), GaussianDiffusion()
    sample = to_numpy(in_one_graph(samplers.ddpm, gaussian_denoiser(-1.0), z, diffusion, step_noise))
    assert sample.mean() == pytest.approx(MEAN, abs=0.02)
    assert sample.std() == pytest.approx(STD, rel=0.04)


def test_ddim_at_eta_one_is_the_ancestral_sampler_with_the_posterior_variance():
    z, diffusion, step_noise = noise(2, 4, 4, 2), GaussianDiffusion("20"), noise(20, 2, 4, 4, 2, seed=1)
    ddim = samplers.ddim(gaussian_denoiser(0.0), z, diffusion, step_noise, eta=1.0)
    ddpm = samplers.ddpm(gaussian_denoiser(-1.0), z, diffusion, step_noise)
    np.testing.assert_allclose(to_numpy(ddim), to_numpy(ddpm), atol=1e-4)


@pytest.mark.parametrize("sampler", [samplers.ddpm, lambda *a, **k: samplers.ddim(*a, eta=0.5, **k)])
def test_drawn_noise_belongs_to_the_image_and_not_to_the_batch(sampler):
    z, diffusion = noise(4, 4, 4, 1), GaussianDiffusion("10")
    together = to_numpy(sampler(gaussian_denoiser(0.0), z, diffusion, seed=(5, 0)))
    alone = sampler(gaussian_denoiser(0.0), z[2:3], diffusion, seed=(5, 0), indices=ops.convert_to_tensor([2], "int32"))
    np.testing.assert_allclose(to_numpy(alone)[0], together[2], atol=1e-5)
    other = to_numpy(sampler(gaussian_denoiser(0.0), z, diffusion, seed=(6, 0)))
    assert np.abs(other - together).max() > 0.01


def test_clipping_keeps_predicted_latents_in_range():
    z = noise(8, 4, 4, 1)
    sample = to_numpy(samplers.ddim(gaussian_denoiser(0.0), z, GaussianDiffusion("50"), clip_denoised=True))
    assert np.abs(sample).max() <= 1.0 + 1e-5  # unclipped, it would be about MEAN = 1.5


@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.ddim])
def test_one_step_goes_from_the_last_timestep_to_the_expected_data(sampler):
    """E[x_0 | x_T] of Gaussian data, in closed form; from timestep 0 it would be the noise."""
    z, diffusion = noise(4, 4, 4, 1), GaussianDiffusion(1)
    sample = to_numpy(sampler(gaussian_denoiser(0.0), z, diffusion))
    alpha_bar = np.prod(1 - np.linspace(1e-4, 0.02, 1000))
    gain = np.sqrt(alpha_bar) * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
    expected = MEAN + gain * (to_numpy(z) - np.sqrt(alpha_bar) * MEAN)
    np.testing.assert_allclose(sample, expected, atol=1e-3)


def test_an_overflow_is_not_clipped_to_an_image():
    def overflowing(x_t, timesteps):
        return ops.full((*x_t.shape[:3], 2), float("inf"))

    sample = to_numpy(samplers.ddim(overflowing, noise(1, 4, 4, 1), GaussianDiffusion("3"), clip_denoised=True))
    assert not np.isfinite(sample).any()


def conditional(calls):
    """A "network" that returns its condition in every channel, and counts its passes."""

    def denoise(x_t, timesteps, condition):
        calls.append(tuple(x_t.shape))
        both = ops.concatenate([x_t, x_t], axis=-1)
        return ops.zeros_like(both) + ops.reshape(condition, (-1, 1, 1, 1))

    return denoise


@pytest.mark.parametrize(
    ("scale", "channels", "guided", "passes"),
    [
        (1.0, "all", [3.0] * 4, (2, 4, 4, 4)),  # one pass of the batch itself
        (0.0, "all", [1.0] * 4, (4, 4, 4, 4)),  # the null condition alone
        (2.5, "all", [1 + 2.5 * 2] * 4, (4, 4, 4, 4)),
        (2.5, "first_three", [1 + 2.5 * 2] * 3 + [3.0], (4, 4, 4, 4)),
    ],
)
def test_guidance(scale, channels, guided, passes):
    calls = []
    predict = guidance.guide(conditional(calls), ops.full((2,), 3.0), ops.full((2,), 1.0), scale, channels)
    output = to_numpy(predict(noise(2, 4, 4, 4), ops.zeros((2,), "int32")))
    np.testing.assert_allclose(output[0, 0, 0], [*guided, *[3.0] * 4], rtol=1e-6)  # v is the conditional pass's
    assert calls == [passes]


@pytest.mark.parametrize("channels", [1, 2])
def test_the_first_three_channels_of_fewer_are_all_of_them(channels):
    guided = [1 + 2.5 * 2] * channels + [3.0] * channels  # v is left as it is
    predict = guidance.guide(conditional([]), ops.full((2,), 3.0), ops.full((2,), 1.0), 2.5, "first_three")
    output = to_numpy(predict(noise(2, 4, 4, channels), ops.zeros((2,), "int32")))
    np.testing.assert_allclose(output[0, 0, 0], guided, rtol=1e-6)


@pytest.mark.parametrize(
    ("scale", "channels", "message"),
    [
        (-0.1, "all", "at least 0"),
        (2.0, "some", "must be"),
        (float("nan"), "all", "at least 0"),
        (float("inf"), "all", "finite in float32. Received: inf"),
        (1e39, "all", "finite in float32"),
        (10**400, "all", "finite in float32"),
    ],
)
def test_guidance_refuses(scale, channels, message):
    with pytest.raises(ValueError, match=message):
        guidance.guide(conditional([]), ops.ones((1,)), ops.ones((1,)), scale, channels)
