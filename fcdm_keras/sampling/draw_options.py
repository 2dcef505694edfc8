"""What a draw may be asked for besides its conditions, and which of it cannot be."""

import dataclasses
from typing import Any

import numpy as np

from fcdm_keras.diffusion import guidance
from fcdm_keras.diffusion.samplers import SAMPLERS, taken


@dataclasses.dataclass(frozen=True)
class DrawOptions:
    """Options of `ImageTask.draw`, and so of `generate` and `predict`.

    Args:
        null_conditions: like `conditions`, what guidance leads away from; default the module's null.
        eta: η of DDIM, 0 … 1; samplers without it leave it aside, with a warning.
        guidance_channels: `"all"` or `"first_three"`, see `fcdm_keras.diffusion.guidance`.
        batch_size: images drawn at once.
        image_size: side in pixels, or (height, width), if not the task's own; the network is fully convolutional.
        first_index: index of the first image.
        weights: values to use in place of the backbone's own: `EMA.values()`, whatever is frozen; a dict by path,
            such as `x_embedder/kernel`; or a list in the order of its trainable weights.
        verbose: show a progress bar.
    """

    null_conditions: Any = None
    eta: float = 0.0
    guidance_channels: str = "all"
    batch_size: int = 64
    image_size: int | tuple[int, int] | None = None
    first_index: int = 0
    weights: list | dict | None = None
    verbose: bool = False

    def check(self, num_steps, guidance_scale, sampler):
        """Raises ValueError for values out of range."""
        guidance.check_scale(guidance_scale)
        if isinstance(num_steps, bool) or not isinstance(num_steps, (int, np.integer)) or not 1 <= num_steps <= 1000:
            raise ValueError(f"num_steps must be an integer in [1, 1000]. Received: {num_steps!r}")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}. Received: {sampler!r}")
        if not isinstance(self.batch_size, (int, np.integer)) or self.batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer. Received: {self.batch_size!r}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]. Received: {self.eta}")

    def without_effect(self, guidance_scale, sampler):
        """A sentence for each option that was given and changes nothing."""
        if self.null_conditions is not None and guidance_scale == 1:
            yield "Negative prompts (null_conditions) have no effect: guidance_scale is 1, which is no guidance."
        if self.eta and not taken(sampler, eta=self.eta):
            yield f"eta={self.eta} has no effect: the sampler {sampler} takes none, ddim does."
