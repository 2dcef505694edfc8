"""What a draw may be asked for besides its conditions, and which of it cannot be."""

import dataclasses
from typing import Any

from fcdm_keras import backend
from fcdm_keras.arguments import (
    DIFFUSION_FORMS,
    GRIDS,
    LAST_STEP_SIZE,
    LAST_STEPS,
    LEAST_STEPS,
    TOLERANCE,
    check_integer,
    check_number,
    check_sampler,
)
from fcdm_keras.diffusion import guidance
from fcdm_keras.diffusion.samplers import SAMPLERS, taken
from fcdm_keras.machine import memory


def _one_of(allowed):
    def check(name, value):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}. Received: {value!r}")

    return check


def _within(lowest, highest):
    return lambda name, value: check_number(name, value, lowest, highest)


SOLVER_OPTIONS = {  # what samplers have beside their steps, and the check of each
    "eta": _within(0, 1),
    "diffusion_form": _one_of(DIFFUSION_FORMS),
    "last_step": _one_of(LAST_STEPS),
    "last_step_size": _within(*LAST_STEP_SIZE),
    "grid": _one_of(GRIDS),
    "order": lambda name, value: check_integer(name, value, 1, 3),
    "rtol": _within(*TOLERANCE),
    "atol": _within(*TOLERANCE),
}


@dataclasses.dataclass(frozen=True)
class DrawOptions:
    """Options of `ImageTask.draw`, and so of `generate` and `predict`.

    Args:
        null_conditions: like `conditions`, what guidance leads away from; default the module's null.
        eta: η of DDIM, 0 … 1; other samplers have none.
        diffusion_form, last_step, last_step_size: of the SDE samplers, see `fcdm_keras.diffusion.stochastic`; default
            theirs, `"sigma"`, `"mean"` and 0.04.
        rtol, atol: tolerances of `"ode_dopri5"`; default 1e-3.
        grid: times of the multistep solvers, see `fcdm_keras.diffusion.grids`; default `"uniform"`.
        order: of `"unipc"`, 1 to 3; default 2.
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
    diffusion_form: str | None = None
    last_step: str | None = None
    last_step_size: float | None = None
    grid: str | None = None
    order: int | None = None
    rtol: float | None = None
    atol: float | None = None
    guidance_channels: str = "all"
    batch_size: int = 64
    image_size: int | tuple[int, int] | None = None
    first_index: int = 0
    weights: list | dict | None = None
    verbose: bool = False

    def check(self, num_steps, guidance_scale, sampler, objective):
        """Raises ValueError for values out of range, and for those without effect.

        Returns:
            The guidance scale, and the options of the sampler as pairs.
        """
        scale = guidance.check_scale(guidance_scale)
        check_integer("num_steps", num_steps, 1, 1000)
        if not isinstance(sampler, str) or sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}. Received: {sampler!r}")
        check_sampler(sampler, objective if isinstance(objective, str) else objective["name"])
        check_integer("batch_size", self.batch_size)
        solver = self._solver(num_steps, sampler)
        unguided = {"Negative prompts (null_conditions) have": self.null_conditions is not None}
        unguided["guidance_channels has"] = self.guidance_channels != "all"
        for what, given in unguided.items():
            if given and scale == 1:
                raise ValueError(f"{what} no effect: guidance_scale is 1, which is no guidance; leave it out.")
        return scale, solver

    def _solver(self, num_steps, sampler):
        """The sampler's own options that are given, as pairs."""
        check_number("eta", self.eta, 0, 1)
        given = {name: getattr(self, name) for name in SOLVER_OPTIONS}
        given = {name: value for name, value in given.items() if value not in (None, 0)}
        for name, value in given.items():
            if not taken(sampler, **{name: value}):
                raise ValueError(f"{name}={value} has no effect: the sampler {sampler} takes none; leave it out.")
            SOLVER_OPTIONS[name](name, value)
        least = given.get("order", LEAST_STEPS.get(sampler, 1))
        check_integer(f"num_steps of the sampler {sampler}", num_steps, least, 1000)
        return tuple(sorted(given.items()))

    def check_indices(self, count):
        """Raises ValueError unless `count` images from `first_index` on have numbers in int32."""
        check_integer("first_index", self.first_index, 0)
        check_integer("first_index + the number of images", self.first_index + count, 0)


def check_memory(task, count, batch_size, image_size=None):
    """Raises ValueError, with both numbers, unless the images of a draw, and one batch on its way, fit into memory.

    Args:
        task: an `ImageTask`.
        count: images that are drawn, which are there together in the end, uint8.
        batch_size: images drawn at once. Their decoded numbers come to the host; where that computes too, so do the
            network's feature maps, of which at least one block's are counted.
        image_size: (height, width) in pixels; default the task's own.
    """
    height, width = image_size or task.image_size
    decoded = height * width * task.autoencoder.in_channels
    width_of_maps = 8 * getattr(task.backbone, "hidden_channels", 0) if "cpu" in backend.devices()[0].lower() else 0
    maps = height * width // task.autoencoder.downsampling_factor**2 * width_of_maps
    memory.check(
        count * decoded + batch_size * (5 * decoded + 4 * maps),
        f"Drawing {count:,} images of {height}×{width} pixels, {batch_size:,} at once,",
        "use a smaller image size, a smaller batch size, or fewer images",
    )
