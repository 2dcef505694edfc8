"""Multistep solvers of the diffusion ODE and SDE, for any objective: each is a table of weights.

With λ = log(α/σ) and h = λ_t − λ_s the ODE from s to t is (DPM-Solver++, arXiv:2211.01095, eq. 8)

    x_t = (σ_t/σ_s) x_s + α_t ∫ exp(λ − λ_t) x̂_0(x_λ, λ) dλ   over λ_s … λ_t

and its SDE (the same, eq. 14) has exp(−h) σ_t/σ_s in front of x_s, exp(2(λ − λ_t)) · 2 in the integral, and the noise
σ_t √(1 − exp(−2h)). A solver puts a polynomial through earlier x̂_0 in place of x̂_0:

    dpmpp_2m, dpmpp_2m_sde    x̂_0 + (h/2h') (x̂_0 − x̂_0')                 arXiv:2211.01095, algorithm 2
    unipc                     as many as its order, then corrected by one more: the x̂_0 found at t itself, from which
                              the next step begins at no cost (arXiv:2302.04867, algorithms 5 and 6). Its coefficients
                              solve the paper's eq. 6 for any B(h): they integrate the polynomial exactly

The first steps, which have no predecessors, and the last one, to σ = 0, are of lower order.
"""

import numpy as np
from keras import ops

from fcdm_keras.arguments import check_integer
from fcdm_keras.diffusion import grids, randomness
from fcdm_keras.diffusion.stochastic import spread

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def dpmpp_2m(predict, noise, objective, num_steps, *, grid="uniform", clip_denoised=False):
    """DPM-Solver++(2M): `num_steps` network evaluations, order 2.

    Args:
        predict: `predict(x_t, times)` → the network's output, times float32 `(B,)`, the objective's.
        noise: x at the first time, standard normal `(B, H, W, C)`.
        objective: see `fcdm_keras.diffusion.objectives`.
        num_steps: at least 2.
        grid: see `fcdm_keras.diffusion.grids`.
        clip_denoised: clip x̂_0 to [−1, 1] at each step (for pixels, not for latents).

    Returns:
        Data, float32 `(B, H, W, C)`; x at the last time, where the grid ends before.

    Raises:
        ValueError: for a step count or a grid that it cannot take.
    """
    times, plan = _plan(objective, num_steps, grid, 2)
    tables = {"keep": plan["keep"], "weights": _midpoint(plan, 1)}
    return _march(_reader(predict, objective, clip_denoised), noise, times, tables)


def dpmpp_2m_sde(
    predict,
    noise,
    objective,
    num_steps,
    step_noise=None,
    *,
    grid="uniform",
    clip_denoised=False,
    seed=(0, 0),
    indices=None,
):
    """SDE-DPM-Solver++(2M): `num_steps` network evaluations.

    Args:
        predict, noise, objective, num_steps, grid, clip_denoised: as in `dpmpp_2m`.
        step_noise: `(num_steps, B, H, W, C)` in the order used, in place of drawn noise. A last step to data adds none.
        seed, indices: as in `fcdm_keras.diffusion.stochastic.euler_maruyama`.

    Returns:
        Data, float32 `(B, H, W, C)`.

    Raises:
        ValueError: as `dpmpp_2m`.
    """
    times, plan = _plan(objective, num_steps, grid, 2)
    tables = {
        "keep": plan["keep"] * np.exp(-plan["h"]),
        "weights": _midpoint(plan, 2),
        "noise": plan["sigma"] * np.sqrt(-np.expm1(-2 * plan["h"])),
    }
    draw = randomness.step_noise(step_noise, noise, seed, indices)
    return _march(_reader(predict, objective, clip_denoised), noise, times, tables, draw)


def unipc(predict, noise, objective, num_steps, *, order=2, grid="uniform", clip_denoised=False):
    """UniPC: `num_steps` network evaluations; with its corrector, of order `order` + 1.

    Args:
        predict, noise, objective, num_steps, grid, clip_denoised: as in `dpmpp_2m`.
        order: of the predictor, 1 to 3; at most `num_steps`.

    Returns:
        Data, float32 `(B, H, W, C)`; x at the last time, where the grid ends before.

    Raises:
        ValueError: as `dpmpp_2m`.
    """
    check_integer("order", order, 1, 3)
    times, plan = _plan(objective, num_steps, grid, order)
    predictor, corrector = np.zeros((num_steps, order)), np.zeros((num_steps, order + 1))
    for k in range(num_steps):
        used = 1 if np.isinf(plan["h"][k]) else min(order, k + 1)
        earlier = [plan["lambda"][k - j] - plan["lambda"][k] for j in range(used)]
        predictor[k, :used] = plan["alpha"][k] * _integrals(earlier, plan["h"][k])
        if np.isfinite(plan["h"][k]):
            corrector[k, : used + 1] = plan["alpha"][k] * _integrals([plan["h"][k], *earlier], plan["h"][k])
    tables = {"keep": plan["keep"], "weights": predictor, "corrector": corrector}
    return _march(_reader(predict, objective, clip_denoised), noise, times, tables)


def _plan(objective, num_steps, grid, order):
    """Times of all evaluations, and of each step: σ_t/σ_s, α_t, σ_t, h, and λ_s."""
    if check_integer("num_steps", num_steps) < order:
        raise ValueError(f"A multistep solver of order {order} takes {order} steps or more. Received: {num_steps}")
    times = grids.times(objective, num_steps, grid)
    ended = times[-1] == objective.span[1]
    alpha, sigma = objective.coefficients(times[:-1] if ended else times, np)[:2]
    if ended:
        alpha, sigma = np.append(alpha, 1.0), np.append(sigma, 0.0)
    with np.errstate(divide="ignore"):
        ratios = np.log(alpha) - np.log(sigma)
    plan = {"keep": sigma[1:] / sigma[:-1], "alpha": alpha[1:], "sigma": sigma[1:], "h": np.diff(ratios)}
    return times[:-1], {**plan, "lambda": ratios[:-1]}


def _midpoint(plan, factor):
    """Weights of x̂_0 and of the one before for a step of 2M, of the ODE (`factor` 1) or the SDE (2), `(steps, 2)`."""
    h = plan["h"]
    extrapolated = np.zeros(len(h))
    extrapolated[1:] = np.where(np.isfinite(h[1:]), h[1:], 0.0) / (2 * h[:-1])
    whole = plan["alpha"] * -np.expm1(-factor * h)
    return np.stack([whole * (1 + extrapolated), -whole * extrapolated], axis=1)


def _integrals(nodes, h):
    """∫ exp(τ − h) ℓ_j(τ) dτ over 0 … h of the Lagrange polynomials of some nodes τ_j, by Gauss and Legendre."""
    if np.isinf(h):
        return np.ones(1)
    points, result = 0.5 * h * (_NODES + 1), []
    for j, node in enumerate(nodes):
        others = [other for i, other in enumerate(nodes) if i != j]
        polynomial = np.prod([(points - other) / (node - other) for other in others], axis=0)
        result.append(0.5 * h * np.sum(_WEIGHTS * np.exp(points - h) * polynomial))
    return np.array(result)


def _reader(predict, objective, clip_denoised):
    """`read(x, t)` → x̂_0 at a scalar time."""

    def read(x, time):
        t = spread(x, time)
        latents = objective.latents(predict(x, t), x, t)
        if not clip_denoised:
            return latents
        return ops.where(ops.isfinite(latents), ops.clip(latents, -1.0, 1.0), latents)  # an overflow stays one

    return read


def _march(read, noise, times, tables, draw=None):
    """Steps through a table of weights, in one loop that compiles to one loop."""
    x, steps = ops.cast(noise, "float32"), len(times)
    times = ops.convert_to_tensor(times, "float32")
    tables = {name: ops.convert_to_tensor(table, "float32") for name, table in tables.items()}
    order = tables["weights"].shape[1]

    def weighed(name, k, known):
        return ops.sum(ops.reshape(ops.take(tables[name], k, axis=0), (-1, 1, 1, 1, 1)) * known, axis=0)

    def step(k, x, begun, known):
        """`known`: the newest x̂_0 first; `begun`: where the step to x began."""
        newest = read(x, ops.take(times, k))
        if "corrector" in tables:
            before = ops.maximum(k - 1, 0)
            all_known = ops.concatenate([newest[None], known])
            corrected = ops.take(tables["keep"], before) * begun + weighed("corrector", before, all_known)
            x = ops.where(k > 0, corrected, x)
        known = ops.concatenate([newest[None], known])[:order]
        after = ops.take(tables["keep"], k) * x + weighed("weights", k, known)
        if draw is not None:
            after = after + ops.take(tables["noise"], k) * draw(k)
        return after, x, known

    known = ops.repeat(ops.zeros_like(x)[None], order, axis=0)
    return ops.fori_loop(0, steps, lambda k, state: step(k, *state), (x, x, known))[0]
