"""Interpolants between noise and data: x_t = α(t) · latents + σ(t) · noise (SiT, arXiv:2401.08740, section 2.2).

Time t runs from 0 (noise) to 1 (data). A path is a function `path(times, xp)` → α, σ and their derivatives α', σ' at
`times`, in the library `xp`: `keras.ops` for tensors, NumPy for tables.

    linear    α = t,            σ = 1 − t                                        SiT eq. 4
    gvp       α = sin(πt/2),    σ = cos(πt/2)                                    SiT eq. 5
    vp        α = exp(−(1−t)²(β₁−β₀)/4 − (1−t)β₀/2), σ = √(1 − α²)              score SDE (arXiv:2011.13456), eq. 33
"""

import math

import numpy as np
from keras import ops

BETA_MIN, BETA_MAX = 0.1, 20.0  # β₀ and β₁ of `vp`


def linear(times, xp=ops):
    one = xp.ones_like(times)
    return times, 1.0 - times, one, -one


def gvp(times, xp=ops):
    angle, speed = times * (math.pi / 2), math.pi / 2
    alpha, sigma = xp.sin(angle), xp.cos(angle)
    return alpha, sigma, speed * sigma, -speed * alpha


def vp(times, xp=ops):
    left, slope = 1.0 - times, BETA_MAX - BETA_MIN
    log_alpha = -0.25 * slope * left**2 - 0.5 * BETA_MIN * left
    rate = 0.5 * slope * left + 0.5 * BETA_MIN  # α'/α
    alpha, sigma = xp.exp(log_alpha), xp.sqrt(-xp.expm1(2.0 * log_alpha))
    return alpha, sigma, alpha * rate, -rate * alpha**2 / xp.maximum(sigma, 1e-12)


PATHS = {"linear": linear, "gvp": gvp, "vp": vp}


class Interpolant:
    """What follows from a path alone; base of what has `coefficients(times, xp)`, a path of its own.

    Tensors are `(B, H, W, C)`, times `(B,)`; results are float32.
    """

    def rates(self, times, xp=ops):
        """r = α'/α and w = rσ² − σσ': velocity = r·x_t + w·score (SiT eq. 9)."""
        alpha, sigma, d_alpha, d_sigma = self.coefficients(times, xp)
        ratio = d_alpha / alpha
        return ratio, ratio * sigma**2 - sigma * d_sigma

    def mix(self, latents, noise, times):
        """x_t = α · latents + σ · noise."""
        alpha, sigma, _, _ = self.coefficients(per_sample(times))
        return alpha * ops.cast(latents, "float32") + sigma * ops.cast(noise, "float32")

    def true_velocity(self, latents, noise, times):
        """dx_t/dt = α' · latents + σ' · noise."""
        _, _, d_alpha, d_sigma = self.coefficients(per_sample(times))
        return d_alpha * ops.cast(latents, "float32") + d_sigma * ops.cast(noise, "float32")

    def log_snr(self, times):
        """λ = log(α/σ) in float64, from infinity to infinity."""
        alpha, sigma, _, _ = self.coefficients(np.asarray(times, np.float64), np)
        with np.errstate(divide="ignore"):
            return np.log(alpha) - np.log(sigma)

    def latents_of(self, noise, x_t, times):
        """x̂_0 from x_t and the noise in it."""
        alpha, sigma, _, _ = self.coefficients(per_sample(times))
        return (x_t - sigma * noise) / alpha

    def velocity_of(self, score, x_t, times):
        """Velocity of the probability flow from x_t and its score."""
        ratio, rate = self.rates(per_sample(times))
        return ratio * x_t + rate * score


def per_sample(times):
    """Times `(B,)` as float32 `(B, 1, 1, 1)`."""
    return ops.reshape(ops.cast(times, "float32"), (-1, 1, 1, 1))
