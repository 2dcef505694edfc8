"""Training objectives: what a network learns from noised latents, and how its output is read when sampling.

An objective knows no network. It is an object with

- `loss_names`: names of its per-sample losses; `loss`, which is minimised, is among them;
- `out_channels(channels)`: how many channels the network gives for latents with `channels`;
- `draw(batch, keys)`: the batch with all that is random about it: `timesteps` `(B,)` and `noise` like `latents`, each
  kept if it is there; `keys("timesteps")` and `keys("noise")` are the samples' `randomness.sample_keys`;
- `corrupt(batch)`: x_t `(B, H, W, C)` of a batch from `draw`, and the times `(B,)` as the network takes them;
- `losses(output, batch)`: dict of float32 `(B,)`, by `loss_names`, from the network's output at that x_t;
- `process(num_steps)`: what samplers need to read the network's output in so many steps;
- `check_timesteps(timesteps)`, if it likes: raises ValueError for those of a batch, a NumPy array, that cannot be.

A new one is a class here and a line in `OBJECTIVES`.
"""

from keras import ops

from fcdm_keras.diffusion import randomness
from fcdm_keras.diffusion.gaussian import GaussianDiffusion


class IDDPM:
    """Noise and a learned variance: iDDPM's hybrid loss (arXiv:2102.09672, eq. 16; see `gaussian.py`).

    Args:
        diffusion: a `GaussianDiffusion`; default the 1000-step process.
    """

    loss_names = ("loss", "mse", "vb")

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

    def corrupt(self, batch):
        """x_t of q(x_t | x_0), and the timesteps' original indices."""
        x_t = self.diffusion.q_sample(batch["latents"], batch["timesteps"], batch["noise"])
        return x_t, ops.take(ops.convert_to_tensor(self.diffusion.timesteps, "int32"), batch["timesteps"], axis=0)

    def losses(self, output, batch):
        """`mse`, `vb` in bits per dimension, and their sum `loss`."""
        return self.diffusion.training_losses(output, batch["latents"], batch["noise"], batch["timesteps"])

    def process(self, num_steps):
        """The respaced `GaussianDiffusion`."""
        return GaussianDiffusion(num_steps)


OBJECTIVES = {"iddpm": IDDPM}
