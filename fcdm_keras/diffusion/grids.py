"""The times at which a multistep solver asks the network, from noise to data, in float64.

    uniform      equal steps of time
    quadratic    the distance from data falls as a square: finer near data
    karras       (σ/α)^(1/7) in equal steps (EDM, arXiv:2206.00364, eq. 5, ρ = 7)
    logsnr       λ = log(α/σ) in equal steps (DPM-Solver, arXiv:2206.00927, section 3.1)

The last step, to data itself, comes from the last of these times; of the two last grids that is where λ = 4.6.
"""

import numpy as np

from fcdm_keras.arguments import GRIDS, check_integer

LARGEST_LOG_SNR = 4.6  # where noise is 1 % of the data: iDDPM's first timestep
_RHO = 7.0


def times(objective, num_steps, grid="uniform"):
    """Times `(num_steps + 1,)`, the last of them data's.

    Args:
        objective: has `span`, the first time asked and data's time, and `log_snr(times)`.
        num_steps: at least 1.
        grid: one of this module's; or these times themselves, whose last may come before data.

    Raises:
        ValueError: for another grid, or times that do not lead from noise towards data.
    """
    check_integer("num_steps", num_steps, 1)
    first, data = objective.span
    if not isinstance(grid, str):
        return _given(np.asarray(grid, np.float64), num_steps, first, data)
    if grid not in GRIDS:
        raise ValueError(f"grid must be one of {', '.join(GRIDS)}. Received: {grid!r}")
    left = np.linspace(1.0, 0.0, num_steps + 1)
    if grid == "uniform":
        return data + (first - data) * left
    if grid == "quadratic":
        return data + (first - data) * left**2
    share = np.linspace(0.0, 1.0, num_steps) if num_steps > 1 else np.zeros(1)
    noisiest, cleanest = objective.log_snr(np.array([first]))[0], LARGEST_LOG_SNR
    if grid == "logsnr":
        ratios = noisiest + (cleanest - noisiest) * share
    else:
        largest, smallest = np.exp(-noisiest / _RHO), np.exp(-cleanest / _RHO)
        ratios = -_RHO * np.log(largest + (smallest - largest) * share)
    return np.append(_time_of(objective, ratios), data)


def _given(grid, num_steps, first, data):
    towards = np.sign(data - first) * np.diff(grid)
    if grid.shape != (num_steps + 1,) or not (towards > 0).all() or not (abs(grid - data) <= abs(first - data)).all():
        raise ValueError(
            f"grid must be {num_steps + 1} times that lead from {first:g} (noise) towards {data:g} (data). "
            f"Received: shape {grid.shape}, {grid[:8]}"
        )
    return grid


def _time_of(objective, ratios):
    """Times at which λ is `ratios`, by halving."""
    low, high = (np.full(len(ratios), time) for time in objective.span)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = objective.log_snr(middle) < ratios
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low
