"""Gaussian diffusion with learned variance (iDDPM), as pure functions over tensors.

Time runs from t = 0 (almost data) to t = T − 1 (almost noise); x_{-1} stands for the data itself.

    q(x_t | x_0)          = N(√ᾱ_t x_0, (1 − ᾱ_t) I)                       DDPM eq. 4, paper eq. 2
    q(x_{t−1} | x_t, x_0) = N(posterior mean, β̃_t I)                       DDPM eqs. 6 and 7
    p(x_{t−1} | x_t)      = N(μ(x_t, ε), σ² I)                             DDPM eq. 11
    log σ²                = (v+1)/2 · log β_t + (1 − (v+1)/2) · log β̃_t    iDDPM eq. 15, paper eq. 5
    L                     = |ε − ε_θ|² + L_vb, ε_θ detached in L_vb        iDDPM eqs. 16 and 17

DDPM is arXiv:2006.11239, iDDPM arXiv:2102.09672. Tables are float64 NumPy, tensors float32.
"""

import math

import numpy as np
from keras import ops

TRAIN_STEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02


class GaussianDiffusion:
    """The 1000-step linear process, or a respaced one.

    Args:
        respacing: which timesteps to keep. `""` keeps all; 250 or `"250"` spreads 250 evenly; `"10,15,20"` cuts the
            process into equal sections and takes that many from each; `"ddim50"` takes 50 with a constant integer
            stride. As in ADM, but for a last section of one step: it keeps its last timestep, where ADM keeps its
            first. Sampling in one step so starts from t = T − 1; from t = 0, as in ADM, it would return the noise.

    Attributes:
        num_timesteps: length of the (respaced) process, T.
        timesteps: int array `(T,)`, the original index of each step, which is what the network sees.
        betas, alphas_cumprod, alphas_cumprod_prev, posterior_variance, …: float64 tables `(T,)`.

    Raises:
        ValueError: for a respacing that cannot be met.

    Example:

    ```python
    diffusion = GaussianDiffusion()
    x_t = diffusion.q_sample(latents, timesteps, noise)
    losses = diffusion.training_losses(model_output, latents, noise, timesteps)
    ```
    """

    def __init__(self, respacing=""):
        self.respacing = respacing
        self.timesteps = respaced_timesteps(self.respacing)
        self.num_timesteps = len(self.timesteps)
        kept = np.cumprod(1.0 - np.linspace(BETA_START, BETA_END, TRAIN_STEPS, dtype=np.float64))[self.timesteps]
        self._set_tables(1.0 - kept / np.append(1.0, kept[:-1]))  # the betas that keep ᾱ at the kept timesteps

    def _set_tables(self, betas):
        self.betas = betas
        alphas = 1.0 - betas
        self.alphas_cumprod = np.cumprod(alphas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.alphas_cumprod_next = np.append(self.alphas_cumprod[1:], 0.0)
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1.0 - self.alphas_cumprod)
        self.log_one_minus_alphas_cumprod = np.log(1.0 - self.alphas_cumprod)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1.0)
        self.posterior_variance = betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)
        # β̃_0 is zero, so its logarithm is taken from the next step (from β_0 where there is none).
        next_variance = self.posterior_variance[1] if len(betas) > 1 else betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(next_variance, self.posterior_variance[1:]))
        self.posterior_mean_coef1 = betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1.0 - self.alphas_cumprod_prev) * np.sqrt(alphas) / (1.0 - self.alphas_cumprod)

    def q_sample(self, latents, timesteps, noise):
        """Draws x_t given x_0: √ᾱ_t · latents + √(1 − ᾱ_t) · noise (paper eq. 2).

        Args:
            latents: x_0, `(B, H, W, C)`.
            timesteps: int `(B,)` in [0, T).
            noise: standard normal, like `latents`.
        """
        latents, noise = ops.cast(latents, "float32"), ops.cast(noise, "float32")
        signal = gather(self.sqrt_alphas_cumprod, timesteps)
        return signal * latents + gather(self.sqrt_one_minus_alphas_cumprod, timesteps) * noise

    def q_posterior(self, latents, x_t, timesteps):
        """Mean of q(x_{t−1} | x_t, x_0), `(B, H, W, C)`, and its clipped log-variance, `(B, 1, 1, 1)`."""
        mean = (
            gather(self.posterior_mean_coef1, timesteps) * latents + gather(self.posterior_mean_coef2, timesteps) * x_t
        )
        return mean, gather(self.posterior_log_variance_clipped, timesteps)

    def predict_latents(self, x_t, timesteps, noise):
        """x̂_0 from x_t and predicted noise, DDPM eq. 4 solved for x_0."""
        return (
            gather(self.sqrt_recip_alphas_cumprod, timesteps) * x_t
            - gather(self.sqrt_recipm1_alphas_cumprod, timesteps) * noise
        )

    def predict_noise(self, x_t, timesteps, latents):
        """ε from x_t and x̂_0, the inverse of `predict_latents`."""
        return (gather(self.sqrt_recip_alphas_cumprod, timesteps) * x_t - latents) / gather(
            self.sqrt_recipm1_alphas_cumprod, timesteps
        )

    def p_mean_variance(self, model_output, x_t, timesteps, clip_denoised=False):
        """The network's p(x_{t−1} | x_t).

        Args:
            model_output: `(B, H, W, 2C)`, predicted noise and v.
            x_t: `(B, H, W, C)`.
            timesteps: int `(B,)` in [0, T), indices of this (respaced) process.
            clip_denoised: clip x̂_0 to [−1, 1] (for pixels, not for latents).

        Returns:
            Dict of `mean`, `variance`, `log_variance` and `pred_latents` (x̂_0), each `(B, H, W, C)`.
        """
        x_t = ops.cast(x_t, "float32")
        noise, v = split_output(model_output, x_t)
        fraction = (v + 1.0) / 2.0
        smallest = gather(self.posterior_log_variance_clipped, timesteps)
        log_variance = fraction * gather(np.log(self.betas), timesteps) + (1.0 - fraction) * smallest
        pred_latents = self.predict_latents(x_t, timesteps, noise)
        if clip_denoised:  # an overflow stays one: clipped, it would look like an image
            pred_latents = ops.where(ops.isfinite(pred_latents), ops.clip(pred_latents, -1.0, 1.0), pred_latents)
        mean, _ = self.q_posterior(pred_latents, x_t, timesteps)
        return {
            "mean": mean,
            "variance": ops.exp(log_variance),
            "log_variance": log_variance,
            "pred_latents": pred_latents,
        }

    def training_losses(self, model_output, latents, noise, timesteps):
        """The iDDPM loss, per sample.

        Args:
            model_output: `(B, H, W, 2C)`, the network's output at x_t.
            latents: x_0, `(B, H, W, C)`.
            noise: the noise in x_t, like `latents`.
            timesteps: int `(B,)` in [0, T).

        Returns:
            Dict of float32 `(B,)`: `mse`; `vb`, in bits per dimension, without gradient to the predicted noise; and
            `loss`, their sum.
        """
        latents, noise = ops.cast(latents, "float32"), ops.cast(noise, "float32")
        predicted, v = split_output(model_output, latents)
        x_t = self.q_sample(latents, timesteps, noise)
        frozen_mean = ops.concatenate([ops.stop_gradient(predicted), v], axis=-1)
        mse = _mean_over_pixels(ops.square(noise - predicted))
        vb = self.variational_bound(frozen_mean, latents, x_t, timesteps)
        return {"mse": mse, "vb": vb, "loss": mse + vb}

    def variational_bound(self, model_output, latents, x_t, timesteps):
        """One term of the bound (iDDPM eq. 3), bits per dimension `(B,)`: a KL, or the decoder's NLL at t = 0."""
        true_mean, true_log_variance = self.q_posterior(latents, x_t, timesteps)
        model = self.p_mean_variance(model_output, x_t, timesteps)
        kl = _mean_over_pixels(normal_kl(true_mean, true_log_variance, model["mean"], model["log_variance"]))
        nll = _mean_over_pixels(
            -discretized_gaussian_log_likelihood(latents, model["mean"], 0.5 * model["log_variance"])
        )
        return ops.where(ops.equal(ops.cast(timesteps, "int32"), 0), nll, kl) / math.log(2.0)


def respaced_timesteps(respacing, train_steps=TRAIN_STEPS):
    """Original indices kept by a respacing string, ascending int array; see `GaussianDiffusion`."""
    if respacing == "":
        return np.arange(train_steps)
    sections, strided = _parsed(respacing)
    if min(sections) < 1 or sum(sections) > train_steps:
        raise ValueError(f"The number of steps must lie in [1, {train_steps}]. Received: {respacing!r}")
    if strided and sections != [1]:
        return _strided(sections[0], train_steps)
    return np.concatenate(list(_sections(sections, train_steps)))


def _parsed(respacing):
    """Steps of each section, and whether one stride is meant."""
    if isinstance(respacing, (int, np.integer)) and not isinstance(respacing, bool):
        return [int(respacing)], False
    text = str(respacing).removeprefix("ddim")
    try:
        sections = [int(part) for part in text.split(",")]
    except ValueError:
        sections = []
    if not sections or (respacing != text and len(sections) != 1):
        raise ValueError(
            f'respacing must be "" for all steps, or look like 250, "10,15,20" or "ddim50". Received: {respacing!r}'
        )
    return sections, respacing != text


def _strided(count, train_steps):
    for stride in range(1, train_steps + 1):
        if len(range(0, train_steps, stride)) == count:
            return np.arange(0, train_steps, stride)
    raise ValueError(f'No integer stride gives exactly {count} of {train_steps} steps. Use "{count}" without "ddim".')


def _sections(counts, train_steps):
    """Splits the process into `len(counts)` sections and spreads `counts[i]` steps over section i, ends included."""
    size, extra = divmod(train_steps, len(counts))
    start = 0
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if count > length:
            raise ValueError(f"A section of {length} steps cannot be spread over {count}. Received: {counts}")
        if count == 1 and i == len(counts) - 1:
            yield np.array([start + length - 1])
            return
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # The stride is added up, not multiplied, which decides the rounding of ties as ADM's code does.
        yield start + np.round(np.cumsum([0.0] + [stride] * (count - 1))).astype(int)
        start += length


def gather(table, timesteps):
    """Entries of a `(T,)` table at `timesteps` `(B,)`, float32 `(B, 1, 1, 1)`."""
    values = ops.take(ops.convert_to_tensor(table, "float32"), ops.cast(timesteps, "int32"), axis=0)
    return ops.reshape(values, (-1, 1, 1, 1))


def split_output(model_output, x_t):
    """Float32 predicted noise and v, each like `x_t`, from `(B, H, W, 2C)`."""
    channels = x_t.shape[-1]
    if model_output.shape[-1] != 2 * channels:
        raise ValueError(
            f"The model must give {2 * channels} channels (noise and variance) for {channels}. "
            f"Received: {model_output.shape[-1]}"
        )
    return ops.split(ops.cast(model_output, "float32"), 2, axis=-1)


def normal_kl(mean_1, log_variance_1, mean_2, log_variance_2):
    """KL(N(mean_1, var_1) ‖ N(mean_2, var_2)) in nats, elementwise."""
    return 0.5 * (
        -1.0
        + log_variance_2
        - log_variance_1
        + ops.exp(log_variance_1 - log_variance_2)
        + ops.square(mean_1 - mean_2) * ops.exp(-log_variance_2)
    )


def discretized_gaussian_log_likelihood(x, mean, log_scale):
    """Log-probability in nats, elementwise, of 8-bit data `x` in [−1, 1] under a Gaussian.

    Bins are 2/255 wide, the outermost ones open; probabilities are at least 1e-12. The normal CDF is the usual tanh
    approximation Φ(u) ≈ σ(2·√(2/π)·(u + 0.044715·u³)).

    Φ(a) − Φ(b) of two numbers near 1 loses all digits in float32. Since Φ(a) − Φ(b) = Φ(−b) − Φ(−a), the difference is
    taken on the negative side, where floats are dense.
    """
    centered = x - mean
    inverse_scale = ops.exp(-log_scale)
    upper, lower = (centered + 1.0 / 255.0) * inverse_scale, (centered - 1.0 / 255.0) * inverse_scale
    upper, lower = ops.where(centered > 0, -lower, upper), ops.where(centered > 0, -upper, lower)
    inside = _normal_cdf(upper) - _normal_cdf(lower)
    below = _normal_cdf((centered + 1.0 / 255.0) * inverse_scale)  # x is the lowest bin
    above = _normal_cdf(-(centered - 1.0 / 255.0) * inverse_scale)  # x is the highest bin
    probability = ops.where(x < -0.999, below, ops.where(x > 0.999, above, inside))
    return ops.log(ops.maximum(probability, 1e-12))


def _normal_cdf(u):
    return ops.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (u + 0.044715 * u * u * u))


def _mean_over_pixels(x):
    return ops.mean(x, axis=(1, 2, 3))
