"""Layouts of published autoencoders, scaled down to widths of 32 and more, and the random weights that fill them.

Used by `test_autoencoder_layouts.py`, and by `golden/vae_layouts/make.py`, which knows no Keras.
"""

import math

import numpy as np

_PLAIN, _ATTENTION = "DownEncoderBlock2D", "AttnDownEncoderBlock2D"
_UP = {_PLAIN: "UpDecoderBlock2D", _ATTENTION: "AttnUpDecoderBlock2D"}


def _config(*widths, encoder=(), decoder=(), **fields):
    """A `config.json` of diffusers; `encoder` and `decoder` are the levels with attention."""
    levels = range(len(widths))
    up = [_UP[_ATTENTION if i in decoder else _PLAIN] for i in levels]
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": list(widths),
        "down_block_types": [_ATTENTION if i in encoder else _PLAIN for i in levels],
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": up[::-1],
        **fields,
    }


_F8, _F16 = (32, 64, 96, 96), (32, 32, 64, 64, 96)
_NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False, "latents_mean": None, "latents_std": None}
_SDXL = {"_name_or_path": "../sdxl-vae/", "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
_SD3 = {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "force_upcast": True, **_NO_QUANT}
_FLUX = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "mid_block_add_attention": True}

# As published, but for the widths; those that diffusers does not publish as it would.
CONFIGS = {
    "Stable Diffusion 1.5": _config(*_F8),
    "Stable Diffusion XL": _config(*_F8, **_SDXL),
    "Stable Diffusion 3": _config(*_F8, **_SD3),
    "FLUX": _config(*_F8, **{**_SD3, **_FLUX}),
    "kl-f4": _config(32, 64, 96, latent_channels=3, scaling_factor=1.0),
    "kl-f8": _config(*_F8),
    "kl-f16": _config(*_F16, encoder=[4], decoder=[4], latent_channels=16, scaling_factor=1.0),
    "MAR": _config(*_F16, encoder=[4], latent_channels=16, scaling_factor=0.2325),
    "VA-VAE": _config(*_F16, encoder=[4], decoder=[4], latent_channels=32, scaling_factor=1.0),
    "EQ-VAE": _config(*_F8, shift_factor=None),
    "a lone `.fp16` variant": _config(*_F8, **{**_SDXL, "force_upcast": False, "act_fn": "swish"}),
    "sharded": _config(*_F8, layers_per_block=1),
}
HALF = {"FLUX": "bfloat16", "a lone `.fp16` variant": "float16"}  # the others are float32


def _uniform(bits, shape):
    """float32 in [−1, 1) from raw bits, so that they are the same with every version of NumPy."""
    return (bits.random_raw(math.prod(shape)) >> np.uint64(40)).astype(np.float32).reshape(shape) / 2**23 - 1


def weights(row, shapes):
    """A row's weights, float32 by diffusers' names, none of them 0; `shapes` are its tensors' by name."""
    bits, filled = np.random.PCG64(list(CONFIGS).index(row)), {}
    for name in sorted(shapes):
        value = _uniform(bits, shapes[name])
        if value.ndim > 1:
            value *= np.float32(math.sqrt(3 / math.prod(value.shape[1:])))
        else:
            value = value * np.float32(0.2) + (1 if "norm" in name and name.endswith("weight") else 0)
        filled[name] = rounded(value, HALF.get(row, "float32"))
    return filled


def rounded(value, dtype):
    """float32 rounded to float32, float16 or bfloat16 (here towards 0), and still float32."""
    if dtype == "bfloat16":
        return (value.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return value.astype(dtype).astype(np.float32)


def images():
    """One image, float32 `(1, 3, 32, 48)` in [−1, 1)."""
    return _uniform(np.random.PCG64(100), (1, 3, 32, 48))


def latents(config):
    """Latents of unit variance, float32 `(1, C, h, w)`, that `config` decodes to an image of that size."""
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    shape = (1, config["latent_channels"], 32 // factor, 48 // factor)
    return _uniform(np.random.PCG64(101), shape) * np.float32(math.sqrt(3))
