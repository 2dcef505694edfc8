"""Flow matching (SiT, arXiv:2401.08740; the paper's appendix E), as pure functions over tensors.

Time t runs from 0 (noise) to 1 (data), in everything here and in what the network is shown:

    x_t = α(t) · latents + σ(t) · noise                        SiT eq. 3
    v   = α'(t) · latents + σ'(t) · noise = r x_t + w · score   SiT eqs. 7 and 9, r = α'/α, w = rσ² − σσ'
    score = −E[noise | x_t] / σ                                SiT eq. 8
    L_v = |v_θ − v|²,  L_ε = λ |ε_θ − noise|²,  L_s = λ |σ s_θ + noise|²
    λ = 1; w²/σ² ("velocity": L_s is then L_v of the same network, SiT eq. 11) or w/σ² ("likelihood", arXiv:2101.09258)

The paths are in `fcdm_keras.diffusion.paths`.
"""

import numpy as np
from keras import ops

from fcdm_keras.arguments import FLOW_PATHS, FLOW_PREDICTIONS, FLOW_TIMES, FLOW_WEIGHTINGS
from fcdm_keras.diffusion import randomness
from fcdm_keras.diffusion.paths import PATHS, Interpolant, per_sample

NEAR = 1e-3  # how close to an end a time may come at which a conversion divides by zero


class FlowMatching(Interpolant):
    """The flow matching objective; its contract is in `fcdm_keras.diffusion.objectives`.

    Args:
        path: `"linear"`, `"gvp"` or `"vp"`.
        prediction: what the network gives: `"velocity"`, `"noise"` or `"score"`.
        weighting: of the losses of noise and score: `None`, `"velocity"` or `"likelihood"`.
        times: how training draws them: `"uniform"`, or `"logit_normal"`, the sigmoid of a standard normal number
            (arXiv:2403.03206, eq. 19), which favours the middle.

    Raises:
        ValueError: for other values, and for a weighting of velocities, which would have no effect.

    Example:

    ```python
    flow = FlowMatching()
    x_t = flow.corrupt(latents, noise, times)
    losses = flow.training_losses(model_output, latents, noise, times)
    ```
    """

    loss_names = ("loss",)
    sampler = "euler_maruyama"

    def __init__(self, path="linear", prediction="velocity", weighting=None, *, times="uniform"):
        for name, value, allowed in (
            ("path", path, FLOW_PATHS),
            ("prediction", prediction, FLOW_PREDICTIONS),
            ("weighting", weighting, (None, *FLOW_WEIGHTINGS[1:])),
            ("times", times, FLOW_TIMES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}. Received: {value!r}")
        if weighting and prediction == "velocity":
            raise ValueError(f"weighting={weighting!r} has no effect: velocities are not weighted; leave it out.")
        self.path, self.prediction, self.weighting, self.times = path, prediction, weighting, times

    def get_config(self):
        return {"path": self.path, "prediction": self.prediction, "weighting": self.weighting, "times": self.times}

    def coefficients(self, times, xp=ops):
        """α, σ, α', σ' at `times`."""
        return PATHS[self.path](times, xp)

    def out_channels(self, channels):
        """The prediction alone."""
        return channels

    def draw(self, batch, keys):
        """Times over the interval of training, standard normal noise."""
        drawn = dict(batch)
        if "timesteps" not in batch:
            start, end = self.interval(training=True)
            if self.times == "uniform":
                share = randomness.uniform(keys("timesteps"))
            else:
                share = ops.sigmoid(randomness.normal(keys("timesteps"), ()))
            drawn["timesteps"] = start + (end - start) * share
        if "noise" not in batch:
            drawn["noise"] = randomness.normal(keys("noise"), ops.shape(batch["latents"])[1:])
        return drawn

    def interval(self, training=False, noisy=False):
        """First and last time at which the network is asked, as SiT has them.

        Velocities are asked for at all times. Where a score or noise is converted by division, or where VP's σ' is
        infinite, an end is left out.

        Args:
            training: of the times drawn in training, which come closer to data where the path is VP.
            noisy: of a process whose drift divides by α at noise.
        """
        if self.path == "vp":
            return 0.0, 1.0 - (1e-5 if training else NEAR)
        if self.prediction != "velocity":
            return NEAR, 1.0 - NEAR
        return (NEAR if noisy else 0.0), 1.0

    @property
    def span(self):
        """The first time that a multistep solver asks for, where α is not 0, and data's time."""
        return (0.0 if self.path == "vp" else NEAR), 1.0

    def check_timesteps(self, timesteps):
        """They are floating-point `(B,)` in [0, 1]."""
        if timesteps.ndim != 1 or timesteps.dtype.kind != "f":
            raise ValueError(
                f"times must be floating-point numbers (N,). Received: {timesteps.dtype}, {timesteps.shape}"
            )
        if not (timesteps.min() >= 0 and timesteps.max() <= 1):
            raise ValueError(
                f"times must lie in [0, 1], 0 is noise and 1 is data. Received: values from {timesteps.min()} to "
                f"{timesteps.max()}"
            )

    def corrupt(self, latents, noise, times):
        """x_t, float32 `(B, H, W, C)`.

        Args:
            latents: data, `(B, H, W, C)`.
            noise: standard normal, like `latents`.
            times: float32 `(B,)` in [0, 1]; 0 is noise and 1 is data.

        Raises:
            ValueError: for times on the host that lie outside.
        """
        self._check(times)
        return self.mix(latents, noise, times)

    def training_losses(self, model_output, latents, noise, times):
        """The loss per sample.

        Args:
            model_output: `(B, H, W, C)`, the network's output at x_t.
            latents, noise, times: as in `corrupt`.

        Returns:
            Dict of `loss`, float32 `(B,)`.

        Raises:
            ValueError: for times on the host that lie outside of [0, 1], or an output of other channels.
        """
        self._check(times)
        output = self._own(model_output, latents)
        if self.prediction == "velocity":
            error = output - self.true_velocity(latents, noise, times)
            return {"loss": ops.mean(ops.square(error), axis=(1, 2, 3))}
        times = per_sample(times)
        _, sigma, _, _ = self.coefficients(times)
        _, rate = self.rates(times)
        noise = ops.cast(noise, "float32")
        error = output - noise if self.prediction == "noise" else sigma * output + noise
        weight = {None: 1.0, "velocity": (rate / sigma) ** 2, "likelihood": rate / sigma**2}[self.weighting]
        return {"loss": ops.mean(weight * ops.square(error), axis=(1, 2, 3))}

    def inputs(self, batch):
        """x_t of a batch, and its times."""
        return self.mix(batch["latents"], batch["noise"], batch["timesteps"]), batch["timesteps"]

    def losses(self, output, batch):
        """`training_losses` of a batch."""
        return self.training_losses(output, batch["latents"], batch["noise"], batch["timesteps"])

    def velocity(self, output, x_t, times):
        """dx/dt of the probability flow."""
        output = self._own(output, x_t)
        if self.prediction == "velocity":
            return output
        return self.velocity_of(self.score(output, x_t, times), x_t, times)

    def noise(self, output, x_t, times):
        """ε̂, the noise in x_t."""
        output = self._own(output, x_t)
        if self.prediction == "noise":
            return output
        alpha, sigma, d_alpha, d_sigma = self.coefficients(per_sample(times))
        if self.prediction == "score":
            return -sigma * output
        return (alpha * output - d_alpha * x_t) / (alpha * d_sigma - sigma * d_alpha)

    def latents(self, output, x_t, times):
        """x̂_0, the data in x_t."""
        if self.prediction != "velocity":
            return self.latents_of(self.noise(output, x_t, times), x_t, times)
        alpha, sigma, d_alpha, d_sigma = self.coefficients(per_sample(times))
        return (d_sigma * x_t - sigma * self._own(output, x_t)) / (alpha * d_sigma - sigma * d_alpha)

    def score(self, output, x_t, times):
        """∇ log p_t(x_t)."""
        if self.prediction == "score":
            return self._own(output, x_t)
        _, sigma, _, _ = self.coefficients(per_sample(times))
        return -self.noise(output, x_t, times) / sigma

    def _check(self, times):
        if not ops.is_tensor(times):
            self.check_timesteps(np.asarray(times, "float32"))

    def _own(self, output, x_t):
        if output.shape[-1] != x_t.shape[-1]:
            raise ValueError(
                f"The model must give {x_t.shape[-1]} channels ({self.prediction}). Received: {output.shape[-1]}"
            )
        return ops.cast(output, "float32")
