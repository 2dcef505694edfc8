"""Nothing that is not finite becomes a picture."""

import numpy as np
from keras import ops

from fcdm_keras import distribution


def check_finite(task, latents, images, weights, guidance_scale):
    """Raises FloatingPointError, which names what is to blame, for a batch with a number that is not finite.

    Costs one look at each of the two; the weights are looked at where it fails.

    Args:
        task: the `ImageTask` that drew.
        latents: what the sampler gave, `(B, h, w, c)`.
        images: what the autoencoder made of them, `(B, H, W, channels)`.
        weights: the values of the backbone's variables that were used.
        guidance_scale: the one drawn with.
    """
    finite = [ops.all(ops.isfinite(part)) for part in (latents, images)]
    if ops.convert_to_numpy(ops.logical_and(*finite)):
        return
    if ops.convert_to_numpy(finite[0]):
        part, what, advice = task.autoencoder, "The autoencoder gives images", "use another autoencoder"
    else:
        part, what, advice = task.backbone, "The network gives latents", f"{guidance_scale=}, try a smaller one"
    if distribution.job().process_count == 1:  # else other processes may be computing
        check_weights(part.variables, weights if part is task.backbone else None)
    if getattr(part, "compute_dtype", "") == "float16":
        advice = "float16 overflows, load the model in float32 or bfloat16"
    raise FloatingPointError(f"{what} that are not finite: {advice}.")


def check_weights(variables, values=None):
    """Raises FloatingPointError for the first variable that holds, or whose value in `values` holds, inf or nan."""
    for variable, value in zip(variables, variables if values is None else values):
        array = value if isinstance(value, np.ndarray) else distribution.host_arrays([value])[0]
        if array.dtype.kind not in "biu" and not np.isfinite(array).all():
            raise FloatingPointError(
                f"The weights {variable.path} hold numbers that are not finite: the checkpoint is damaged, or its "
                "training diverged; use an earlier one."
            )
