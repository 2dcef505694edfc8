"""Training objectives: what a network learns from noised latents, and how its output is read when sampling.

An objective knows no network. It is an object with

- `loss_names`: names of its per-sample losses; `loss`, which is minimised, is among them;
- `out_channels(channels)`: how many channels the network gives for latents with `channels`;
- `draw(batch, keys)`: the batch with all that is random about it: `timesteps` `(B,)`, the objective's times, and
  `noise` like `latents`, each kept if it is there; `keys("timesteps")` and `keys("noise")` are the samples'
  `randomness.sample_keys`;
- `inputs(batch)`: x_t `(B, H, W, C)` of a batch from `draw`, and the times `(B,)` as the network takes them;
- `losses(output, batch)`: dict of float32 `(B,)`, by `loss_names`, from the network's output at that x_t;
- `check_timesteps(timesteps)`, if it likes: raises ValueError for those of a batch, a NumPy array, that cannot be;
- `get_config()`, if it has options: these as a dict for JSON, the arguments of its class.

What samplers need of it: `sampler`, the name of the one that it is drawn with if none is named; and

- `process(num_steps)`: the respaced process of `ddpm` and `ddim`, which give timesteps as integers; or
- `coefficients(times, xp)`: α, σ, α', σ' of x_t = α · x_0 + σ · ε, in `keras.ops` or NumPy, at times `(B,)`; `span`,
  the first time that a multistep solver asks for, and data's time; and `latents`, `noise` and
  `score(output, x_t, times)`: x̂_0, ε̂ and ∇ log p_t; of flows also `velocity`, dx/dt, and `interval`.

A new one is a class here and a line in `OBJECTIVES`.
"""

import numpy as np
from keras import ops

from fcdm_keras.diffusion import randomness
from fcdm_keras.diffusion.flow import FlowMatching
from fcdm_keras.diffusion.gaussian import GaussianDiffusion, split_output
from fcdm_keras.diffusion.paths import Interpolant, per_sample


class IDDPM(Interpolant):
    """Noise and a learned variance: iDDPM's hybrid loss (arXiv:2102.09672, eq. 16; see `gaussian.py`).

    Args:
        diffusion: a `GaussianDiffusion`; default the 1000-step process.
    """

    loss_names = ("loss", "mse", "vb")
    sampler = "ddpm"

    def __init__(self, diffusion=None):
        self.diffusion = diffusion or GaussianDiffusion()

    def out_channels(self, channels):
        """Predicted noise and v."""
        return 2 * channels

    def draw(self, batch, keys):
        """Timesteps evenly over the process, standard normal noise."""
        drawn = dict(batch)
        if "timesteps" not in batch:
            drawn["timesteps"] = randomness.integers(keys("timesteps"), self.diffusion.num_timesteps)
        if "noise" not in batch:
            drawn["noise"] = randomness.normal(keys("noise"), ops.shape(batch["latents"])[1:])
        return drawn

    def check_timesteps(self, timesteps):
        """They are integers `(B,)` in [0, num_timesteps)."""
        steps = self.diffusion.num_timesteps
        if timesteps.ndim != 1 or timesteps.dtype.kind not in "iu":
            raise ValueError(f"timesteps must be integers (N,). Received: {timesteps.dtype}, {timesteps.shape}")
        if not 0 <= timesteps.min() <= timesteps.max() < steps:
            raise ValueError(
                f"timesteps must lie in [0, {steps - 1}]. Received: values from {timesteps.min()} to {timesteps.max()}"
            )

    def inputs(self, batch):
        """x_t of q(x_t | x_0), and the timesteps' original indices."""
        x_t = self.diffusion.q_sample(batch["latents"], batch["timesteps"], batch["noise"])
        return x_t, ops.take(ops.convert_to_tensor(self.diffusion.timesteps, "int32"), batch["timesteps"], axis=0)

    def losses(self, output, batch):
        """`mse`, `vb` in bits per dimension, and their sum `loss`."""
        return self.diffusion.training_losses(output, batch["latents"], batch["noise"], batch["timesteps"])

    def process(self, num_steps):
        """The respaced `GaussianDiffusion`."""
        return GaussianDiffusion(num_steps)

    def coefficients(self, times, xp=ops):
        """α, σ, α', σ' at timesteps in [0, T − 1] of the 1000-step process, log α linear in between."""
        table = 0.5 * np.log(FULL.alphas_cumprod)
        below = xp.clip(xp.floor(times), 0, len(table) - 2)
        first = xp.cast(below, "int32") if xp is ops else below.astype(int)
        slopes = np.diff(table)
        if xp is ops:
            table, slopes = (ops.convert_to_tensor(values, "float32") for values in (table, slopes))
        slope = xp.take(slopes, first)
        log_alpha = xp.take(table, first) + (times - below) * slope
        alpha, sigma = xp.exp(log_alpha), xp.sqrt(-xp.expm1(2.0 * log_alpha))
        return alpha, sigma, alpha * slope, -slope * alpha**2 / sigma

    @property
    def span(self):
        """The first time that a multistep solver asks for, and data's time, x_{−1}."""
        return len(FULL.timesteps) - 1.0, -1.0

    def noise(self, output, x_t, times):
        """ε̂."""
        return split_output(output, x_t)[0]

    def latents(self, output, x_t, times):
        """x̂_0."""
        return self.latents_of(self.noise(output, x_t, times), x_t, times)

    def score(self, output, x_t, times):
        """∇ log p_t(x_t)."""
        _, sigma, _, _ = self.coefficients(per_sample(times))
        return -self.noise(output, x_t, times) / sigma


FULL = GaussianDiffusion()
OBJECTIVES = {"iddpm": IDDPM, "flow": FlowMatching}


def as_objective(given):
    """An objective from its name, from what `described` gave, or as it is.

    Raises:
        ValueError: for another name, or options that it has not.
    """
    if not isinstance(given, (str, dict)):
        return given
    options = dict(given) if isinstance(given, dict) else {"name": given}
    name = options.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}. Received: {given!r}")
    try:
        return OBJECTIVES[name](**options)
    except TypeError as error:
        raise ValueError(f"The objective {name} cannot be made of {options}: {error}") from None


def described(objective):
    """An objective for JSON: its name in `OBJECTIVES`, or a dict of `name` and its options; its class's if none."""
    name = next((name for name, kind in OBJECTIVES.items() if type(objective) is kind), type(objective).__name__)
    config = objective.get_config() if hasattr(objective, "get_config") else {}
    return {"name": name, **config} if config else name


def check_channels(objective, backbone):
    """Raises ValueError unless a network gives as many channels as its objective takes."""
    channels = objective.out_channels(backbone.in_channels)
    if backbone.out_channels != channels:
        raise ValueError(
            f"The objective takes a backbone with {channels} output channels for {backbone.in_channels}. "
            f"Received: one with {backbone.out_channels}"
        )
