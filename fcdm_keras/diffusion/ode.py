"""Samplers of a flow without noise: dx/dt = v(x, t) from t = 0 (noise) to t = 1 (data), SiT (arXiv:2401.08740) eq. 2.

euler    x + h v(x, t)                                     one evaluation a step, order 1
heun     x + h (v(x, t) + v(x + h v(x, t), t + h)) / 2     two, order 2
dopri5   Dormand and Prince, J. Comput. Appl. Math. 6 (1980), table 2: six, order 5, each sample with steps of its
         own, which its error estimate chooses (Hairer, Nørsett and Wanner, "Solving ODEs I", eqs. II.4.11 to 4.13)
"""

import numpy as np
from keras import ops

from fcdm_keras.arguments import check_integer, check_number
from fcdm_keras.diffusion.stochastic import flow_only, spread

METHODS = ("euler", "heun", "dopri5")
MOST_STEPS = 1000  # of dopri5; a sample that is not there by then is NaN
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
_FIFTH = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
# Fifth minus embedded fourth order; the last is of the velocity at the end of the step.
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def ode(predict, noise, objective, num_steps, method="euler", *, rtol=1e-3, atol=1e-3, counted=False):
    """Follows the probability flow.

    Args:
        predict: `predict(x_t, times)` → the network's output, times float32 `(B,)`.
        noise: x at t = 0, standard normal `(B, H, W, C)`.
        objective: a `FlowMatching`.
        num_steps: equal steps, at least 1; of `"dopri5"` only the first has this size.
        method: `"euler"`, `"heun"` or `"dopri5"`.
        rtol, atol: relative and absolute error of a step of `"dopri5"`, above 0.
        counted: also return the number of network evaluations of each sample, int32 `(B,)`.

    Returns:
        Data, float32 `(B, H, W, C)`.

    Raises:
        ValueError: for an objective that is no flow, or arguments out of range.
    """
    flow_only(objective, "ode")
    check_integer("num_steps", num_steps, 1)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}. Received: {method!r}")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        check_number(name, tolerance, 1e-7, 1.0)
    start, end = objective.interval()

    def velocity(x, t):
        return objective.velocity(predict(x, t), x, t)

    x = ops.cast(noise, "float32")
    if method == "dopri5":
        x, evaluations = _dopri5(velocity, x, start, end, (end - start) / num_steps, rtol, atol)
    else:
        x = _fixed(velocity, x, np.linspace(start, end, num_steps + 1), method == "heun")
        evaluations = spread(x, num_steps * (2 if method == "heun" else 1))
    return (x, ops.cast(evaluations, "int32")) if counted else x


def _fixed(velocity, x, grid, second_order):
    times, sizes = (ops.convert_to_tensor(table, "float32") for table in (grid, np.diff(grid)))

    def step(k, x):
        h, first = ops.take(sizes, k), velocity(x, spread(x, ops.take(times, k)))
        if not second_order:
            return x + h * first
        return x + 0.5 * h * (first + velocity(x + h * first, spread(x, ops.take(times, k + 1))))

    return ops.fori_loop(0, len(grid) - 1, step, x)


def _dopri5(velocity, x, start, end, size, rtol, atol):
    """The state at `end`, and the evaluations that it took; times and steps are each sample's own."""

    def scaled(h, value):
        return ops.reshape(h, (-1, 1, 1, 1)) * value

    def step(count, x, t, h, slope, evaluations):
        h = ops.minimum(h, end - t)  # 0 for samples that are there
        slopes = [slope]
        for node, row in zip(_NODES[1:], _STAGES[1:]):
            slopes.append(velocity(x + scaled(h, _weighted(row, slopes)), t + node * h))
        new = x + scaled(h, _weighted(_FIFTH, slopes))
        slopes.append(velocity(new, t + h))
        error = scaled(h, _weighted(_ERROR, slopes)) / (atol + rtol * ops.maximum(ops.abs(x), ops.abs(new)))
        norm = ops.sqrt(ops.mean(ops.square(error), axis=(1, 2, 3)))
        there, accepted = t >= end, norm <= 1.0
        evaluations = evaluations + ops.where(there, 0.0, 6.0)
        factor = ops.clip(0.9 * ops.maximum(norm, 1e-10) ** -0.2, 0.2, 10.0)
        keep = ops.reshape(accepted, (-1, 1, 1, 1))
        x, slope = ops.where(keep, new, x), ops.where(keep, slopes[-1], slope)
        t = ops.where(accepted, ops.where(end - t - h < 1e-6, end, t + h), t)
        return count + 1, x, t, h * factor, slope, evaluations

    def going(count, x, t, h, slope, evaluations):
        return ops.logical_and(ops.any(t < end), count < MOST_STEPS)

    t = spread(x, start)
    first = (ops.convert_to_tensor(0, "int32"), x, t, spread(x, size), velocity(x, t), spread(x, 1.0))
    _, x, t, _, _, evaluations = ops.while_loop(going, step, first)
    return ops.where(ops.reshape(t < end, (-1, 1, 1, 1)), float("nan"), x), evaluations


def _weighted(weights, slopes):
    return sum(weight * slope for weight, slope in zip(weights, slopes) if weight)
