"""The whole sampling loop of a task for one set of options, as one compiled function."""

import dataclasses
from typing import Any

from fcdm_keras import backend
from fcdm_keras.diffusion import guidance, randomness
from fcdm_keras.diffusion.samplers import SAMPLERS, taken


@dataclasses.dataclass(frozen=True)
class Loop:
    """What a loop is compiled for.

    Args:
        num_steps: sampling steps.
        sampler: a name in `SAMPLERS`.
        solver: pairs of the sampler's own options and their values.
        guided: whether two passes are combined by a guidance scale.
        guidance_channels: see `fcdm_keras.diffusion.guidance`.
        shape: `(h, w, C)` of the latents.
    """

    num_steps: int
    sampler: str
    solver: tuple[tuple[str, Any], ...]
    guided: bool
    guidance_channels: str
    shape: tuple[int, int, int]


def compiled(loop, backbone, objective, clip_denoised):
    """`run(weights, condition, null, indices, guidance_scale, *seed)` → latents, float32 `(B, h, w, C)`."""
    options = taken(loop.sampler, clip_denoised=clip_denoised, num_steps=loop.num_steps, **dict(loop.solver))
    process = objective if "num_steps" in options else objective.process(loop.num_steps)
    name = backbone.conditioning.input_name

    def denoise(x_t, times, condition):
        return backbone({"x_t": x_t, "timesteps": times, name: condition}, training=False)

    def sample(condition, null, indices, guidance_scale, *seed):
        noise = randomness.normal(randomness.sample_keys(seed, randomness.INITIAL_NOISE, 0, indices), loop.shape)
        scale = guidance_scale if loop.guided else 1.0
        predict = guidance.guide(denoise, condition, null, scale, loop.guidance_channels)
        drawn = taken(loop.sampler, seed=seed, indices=indices)
        return SAMPLERS[loop.sampler](predict, noise, process, **drawn, **options)

    return backend.compiled(sample, backbone.variables, (0, 1, 2))
