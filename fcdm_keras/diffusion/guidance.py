"""Classifier-free guidance (Ho and Salimans, arXiv:2207.12598): ε = ε_null + s · (ε_cond − ε_null)."""

from keras import ops

from fcdm_keras.arguments import check_number


def guide(denoise, condition, null_condition, guidance_scale=1.0, channels="all"):
    """Wraps a conditional network as the `predict(x_t, t)` that samplers take.

    Args:
        denoise: `denoise(x_t, timesteps, condition)` → `(B, H, W, C)` or, with v, `(B, H, W, 2C)`.
        condition: tensor with a leading batch axis.
        null_condition: like `condition`, meaning "none".
        guidance_scale: s ≥ 0. The float 1.0 costs one forward pass instead of two. May be a scalar tensor, which is
            always guided.
        channels: `"all"` guides every noise channel; `"first_three"` guides channels 0–2 only, as the reference does
            (all, where there are fewer). Scales are related by `s_all = 1 + 0.75 (s_first_three − 1)` for 4-channel
            latents. All other output channels are those of the conditional pass.

    Returns:
        `predict(x_t, timesteps)`.

    Raises:
        ValueError: for a scale that `check_scale` refuses or another value of `channels`.
    """
    if channels not in ("all", "first_three"):
        raise ValueError(f'channels must be "all" or "first_three". Received: {channels!r}')
    if isinstance(guidance_scale, (int, float)):
        check_scale(guidance_scale)
        if guidance_scale == 1:
            return lambda x_t, timesteps: denoise(x_t, timesteps, condition)

    def predict(x_t, timesteps):
        both = denoise(*(ops.concatenate([part, part]) for part in (x_t, timesteps)), conditions)
        conditional, unconditional = ops.split(both, 2, axis=0)
        guided = min(3, x_t.shape[-1]) if channels == "first_three" else x_t.shape[-1]
        base, rest = unconditional[..., :guided], conditional[..., guided:]
        return ops.concatenate([base + guidance_scale * (conditional[..., :guided] - base), rest], axis=-1)

    conditions = ops.concatenate([condition, null_condition])
    return predict


def check_scale(guidance_scale):
    """Raises ValueError unless `guidance_scale` is a number of at least 0 that float32 holds. Returns it."""
    text = "be at least 0 (1 is no guidance) and finite in float32"
    return check_number("guidance_scale", guidance_scale, text=text)
