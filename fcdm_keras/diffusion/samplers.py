"""Samplers: from noise to latents, each one function that knows the network only as `predict(x_t, times)`.

Those here take a `GaussianDiffusion`: `predict` gets x_t `(B, H, W, C)` and the *original* timesteps, int32 `(B,)`, and
returns `(B, H, W, 2C)`: noise and v. Time runs from T − 1 down to 0. Those of `stochastic`, `ode` and `multistep`
take an objective and `num_steps`; their times are the objective's. `SAMPLERS` names all.
"""

import functools
import inspect

from keras import ops

from fcdm_keras.arguments import check_number
from fcdm_keras.diffusion import randomness
from fcdm_keras.diffusion.gaussian import gather
from fcdm_keras.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from fcdm_keras.diffusion.ode import ode
from fcdm_keras.diffusion.stochastic import euler_maruyama, stochastic_heun


def ddpm(predict, noise, diffusion, step_noise=None, *, clip_denoised=False, seed=(0, 0), indices=None):
    """Ancestral sampling (DDPM algorithm 2, with iDDPM's learned variance).

    Args:
        predict: the network, see above.
        noise: x_T, standard normal `(B, H, W, C)`.
        diffusion: a `GaussianDiffusion`; its `num_timesteps` is the number of steps.
        step_noise: `(steps, B, H, W, C)` in the order used, in place of drawn noise. The last step adds none.
        clip_denoised: clip x̂_0 to [−1, 1] at each step (for pixels, not for latents).
        seed: words of `randomness.seed_words`, for drawn noise.
        indices: int `(B,)`, the images' indices: image i gets the same noise in any batch. Default 0 … B − 1.

    Returns:
        x_0, float32 `(B, H, W, C)`.
    """
    draw = randomness.step_noise(step_noise, noise, seed, indices)

    def step(x_t, timesteps, k):
        output = predict(x_t, original_timesteps(diffusion, timesteps))
        p = diffusion.p_mean_variance(output, x_t, timesteps, clip_denoised)
        noisy = ops.cast(k < diffusion.num_timesteps - 1, "float32")
        return p["mean"] + noisy * ops.exp(0.5 * p["log_variance"]) * draw(k)

    return _descend(step, noise, diffusion)


def ddim(predict, noise, diffusion, step_noise=None, *, eta=0.0, clip_denoised=False, seed=(0, 0), indices=None):
    """DDIM (Song et al., arXiv:2010.02502, eq. 12).

    Args:
        predict, noise, diffusion, step_noise, clip_denoised, seed, indices: as in `ddpm`.
        eta: η of eq. 16. 0 is deterministic, 1 is as noisy as the ancestral sampler.

    Returns:
        x_0, float32 `(B, H, W, C)`.

    Raises:
        ValueError: for an η outside of [0, 1], where the noise would be of no variance.
    """
    eta = check_number("eta", eta, 0, 1)
    draw = randomness.step_noise(step_noise, noise, seed, indices) if eta else None

    def step(x_t, timesteps, k):
        output = predict(x_t, original_timesteps(diffusion, timesteps))
        latents = diffusion.p_mean_variance(output, x_t, timesteps, clip_denoised)["pred_latents"]
        epsilon = diffusion.predict_noise(x_t, timesteps, latents)
        alpha_bar = gather(diffusion.alphas_cumprod, timesteps)
        alpha_bar_prev = gather(diffusion.alphas_cumprod_prev, timesteps)
        sigma = eta * ops.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
        mean = ops.sqrt(alpha_bar_prev) * latents + ops.sqrt(1 - alpha_bar_prev - sigma**2) * epsilon
        return mean + sigma * draw(k) if eta else mean  # ᾱ_prev = 1 at the last step, so σ = 0 there

    return _descend(step, noise, diffusion)


def _fixed(method):
    return lambda predict, noise, objective, num_steps: ode(predict, noise, objective, num_steps, method)


SAMPLERS = {  # a new one is a function with the first three arguments of these, and a line here
    "ddpm": ddpm,
    "ddim": ddim,
    "euler_maruyama": euler_maruyama,
    "stochastic_heun": stochastic_heun,
    "ode_euler": _fixed("euler"),
    "ode_heun": _fixed("heun"),
    "ode_dopri5": functools.partial(ode, method="dopri5"),
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}


def taken(sampler, **options):
    """Those of `options` that the sampler of this name has arguments for."""
    arguments = inspect.signature(SAMPLERS[sampler]).parameters
    return {name: value for name, value in options.items() if name in arguments}


def original_timesteps(diffusion, timesteps):
    """Indices of the respaced process to those that the network was trained with, int32 `(B,)`."""
    return ops.take(ops.convert_to_tensor(diffusion.timesteps, "int32"), timesteps, axis=0)


def _descend(step, noise, diffusion):
    """Runs `step(x_t, timesteps, k)` for k = 0 … T − 1 in one loop that compiles to one loop."""
    steps = diffusion.num_timesteps
    batch = ops.shape(noise)[0]

    def body(k, x_t):
        timesteps = ops.broadcast_to(ops.cast(steps - 1 - k, "int32"), (batch,))
        return step(x_t, timesteps, k)

    return ops.fori_loop(0, steps, body, ops.cast(noise, "float32"))
