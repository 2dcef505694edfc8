"""Samplers of a flow that add noise: the reverse SDE dx = (v + w·score) dt + √(2w) dW (SiT, arXiv:2401.08740, eq. 10).

Any w(t) ≥ 0, the diffusion form, leaves the marginals as they are. Time runs from 0 (noise) to 1 (data).

    constant    w = 1                     linear                  w = 1 − t
    sbdm        w = rσ² − σσ'             decreasing              w = (cos(πt) + 1)² / 4
    sigma       w = σ                     increasing_decreasing   w = sin²(πt)

As in SiT, `num_steps` times are spread evenly over [0, 1 − last_step_size]: `num_steps` − 1 noisy steps lead to
1 − last_step_size, and one without noise, the last step, to data.
"""

import math

import numpy as np
from keras import ops

from fcdm_keras.arguments import DIFFUSION_FORMS, LAST_STEPS, check_integer, check_number
from fcdm_keras.diffusion import randomness

_FORMS = {
    "constant": lambda objective, times: ops.ones_like(times),
    "sbdm": lambda objective, times: objective.rates(times)[1],
    "sigma": lambda objective, times: objective.coefficients(times)[1],
    "linear": lambda objective, times: 1.0 - times,
    "decreasing": lambda objective, times: 0.25 * (ops.cos(math.pi * times) + 1.0) ** 2,
    "increasing_decreasing": lambda objective, times: ops.sin(math.pi * times) ** 2,
}


def euler_maruyama(
    predict,
    noise,
    objective,
    num_steps,
    step_noise=None,
    *,
    diffusion_form="sigma",
    last_step="mean",
    last_step_size=0.04,
    seed=(0, 0),
    indices=None,
):
    """The Euler–Maruyama method: `num_steps` network evaluations, the last of them the last step's.

    Args:
        predict: `predict(x_t, times)` → the network's output, times float32 `(B,)`.
        noise: x at t = 0, standard normal `(B, H, W, C)`.
        objective: a `FlowMatching`.
        num_steps: at least 2.
        step_noise: `(num_steps − 1, B, H, W, C)` in the order used, in place of drawn noise.
        diffusion_form: w(t), see this module. The paper's is `"sigma"`, 1 − t on the linear path.
        last_step: `"mean"`, a step of the SDE's drift; `"tweedie"`, x̂_0 by Tweedie's formula; `"euler"`, a step of
            the probability flow.
        last_step_size: what is left to t = 1, above 0 and below 1.
        seed: words of `randomness.seed_words`, for drawn noise.
        indices: int `(B,)`, the images' indices: image i gets the same noise in any batch. Default 0 … B − 1.

    Returns:
        Data, float32 `(B, H, W, C)`.

    Raises:
        ValueError: for an objective that is no flow, or arguments out of range.
    """
    drift, form, times, dt = _process(predict, objective, num_steps, diffusion_form, last_step, last_step_size)
    draw = randomness.step_noise(step_noise, noise, seed, indices)

    def step(k, x):
        t = ops.take(times, k)
        return x + dt * drift(x, t) + ops.sqrt(2.0 * dt * form(t)) * draw(k)

    x = ops.fori_loop(0, num_steps - 1, step, ops.cast(noise, "float32"))
    return _finished(predict, x, objective, drift, last_step, last_step_size)


def stochastic_heun(
    predict,
    noise,
    objective,
    num_steps,
    step_noise=None,
    *,
    diffusion_form="sigma",
    last_step="mean",
    last_step_size=0.04,
    seed=(0, 0),
    indices=None,
):
    """Heun's method after adding each step's noise: 2 · `num_steps` − 1 network evaluations.

    Args:
        predict, noise, objective, num_steps, step_noise, …: as in `euler_maruyama`.

    Returns:
        Data, float32 `(B, H, W, C)`.

    Raises:
        ValueError: as `euler_maruyama`.
    """
    drift, form, times, dt = _process(predict, objective, num_steps, diffusion_form, last_step, last_step_size)
    draw = randomness.step_noise(step_noise, noise, seed, indices)

    def step(k, x):
        t = ops.take(times, k)
        noisy = x + ops.sqrt(2.0 * dt * form(t)) * draw(k)
        first = drift(noisy, t)
        return noisy + 0.5 * dt * (first + drift(noisy + dt * first, t + dt))

    x = ops.fori_loop(0, num_steps - 1, step, ops.cast(noise, "float32"))
    return _finished(predict, x, objective, drift, last_step, last_step_size)


def flow_only(objective, sampler):
    """Raises ValueError unless an objective is a flow."""
    if not hasattr(objective, "velocity"):
        raise ValueError(
            f"{sampler} samples a flow: give a FlowMatching objective. Received: {type(objective).__name__}"
        )


def spread(x, time):
    """A scalar time for each sample of `x`, `(B,)`."""
    return ops.broadcast_to(ops.cast(time, "float32"), (ops.shape(x)[0],))


def _process(predict, objective, num_steps, diffusion_form, last_step, last_step_size):
    """`drift(x, t)`, `w(t)`, the times as a table, and their distance."""
    flow_only(objective, "An SDE sampler")
    check_integer("num_steps", num_steps, 2)
    for name, value, allowed in (
        ("diffusion_form", diffusion_form, DIFFUSION_FORMS),
        ("last_step", last_step, LAST_STEPS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}. Received: {value!r}")
    start, end = objective.interval(noisy=diffusion_form == "sbdm")
    check_number("last_step_size", last_step_size, 1 - end or 1e-6, 0.999)
    times = np.linspace(start, 1.0 - last_step_size, num_steps)

    def form(t):
        return _FORMS[diffusion_form](objective, t)

    def drift(x, t):
        t = spread(x, t)
        output = predict(x, t)
        rate = ops.reshape(form(t), (-1, 1, 1, 1))
        return objective.velocity(output, x, t) + rate * objective.score(output, x, t)

    return drift, form, ops.convert_to_tensor(times, "float32"), float(times[1] - times[0])


def _finished(predict, x, objective, drift, last_step, last_step_size):
    time = 1.0 - last_step_size
    if last_step == "mean":
        return x + last_step_size * drift(x, time)
    t = spread(x, time)
    output = predict(x, t)
    if last_step == "euler":
        return x + last_step_size * objective.velocity(output, x, t)
    return objective.latents(output, x, t)
