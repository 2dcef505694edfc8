"""Makes `results.npz` and `names.json.xz`, with diffusers and with latent-diffusion's own modules, on float64.

    PYTHONPATH=tests python tests/golden/vae_layouts/make.py vae.py

`vae.py` is `models/vae.py` of https://github.com/LTH14/mar: latent-diffusion's modules without losses. Both programs
must agree on the same weights to 1e-10, else nothing is written.
"""

import importlib.util
import json
import lzma
import re
import sys
from pathlib import Path

import numpy as np
import torch
import vae_layouts
from diffusers import AutoencoderKL

HERE = Path(__file__).parent


def latent_diffusion_name(name, levels):
    """latent-diffusion's name for a tensor of diffusers'; the values show whether it is the right one."""
    if match := re.match(r"(.*)\.up_blocks\.(\d+)\.(.*)", name):
        name = f"{match[1]}.up.{levels - 1 - int(match[2])}.{match[3]}"
    for ours, theirs in (
        ("down_blocks", "down"),
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("resnets", "block"),
        ("attentions", "attn"),
        ("group_norm", "norm"),
        ("to_out.0", "proj_out"),
        ("to_", ""),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ):
        name = name.replace(ours, theirs)
    return name


def original(module, config, weights):
    """encode and decode of latent-diffusion's modules with the weights by its names."""
    widths = config["block_out_channels"]
    options = {
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "z_channels": config["latent_channels"],
    }
    last = 256 // 2 ** (len(widths) - 1)
    attention = [[last] * any("Attn" in one for one in config[name]) for name in ("down_block_types", "up_block_types")]
    parts = torch.nn.ModuleDict(
        {
            "encoder": module.Encoder(
                attn_resolutions=attention[0], num_res_blocks=config["layers_per_block"], **options
            ),
            "decoder": module.Decoder(
                attn_resolutions=attention[1], num_res_blocks=config["layers_per_block"], **options
            ),
        }
    )
    if config.get("use_quant_conv", True):
        channels = config["latent_channels"]
        parts["quant_conv"] = torch.nn.Conv2d(2 * channels, 2 * channels, 1)
        parts["post_quant_conv"] = torch.nn.Conv2d(channels, channels, 1)
    parts = parts.double().eval()
    shapes = {name: value.shape for name, value in parts.state_dict().items()}
    parts.load_state_dict({name: value.reshape(shapes[name]) for name, value in weights.items()})
    quantized = "quant_conv" in parts

    def encode(images):
        return parts["quant_conv"](parts["encoder"](images)) if quantized else parts["encoder"](images)

    def decode(latents):
        return parts["decoder"](parts["post_quant_conv"](latents) if quantized else latents)

    return encode, decode, shapes


def main(path):
    spec = importlib.util.spec_from_file_location("ldm_vae", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names, results = {}, {}
    for row, config in vae_layouts.CONFIGS.items():
        model = AutoencoderKL.from_config(config).double().eval()
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        weights = {name: torch.tensor(value).double() for name, value in vae_layouts.weights(row, shapes).items()}
        model.load_state_dict(weights)
        theirs = {name: latent_diffusion_name(name, len(config["block_out_channels"])) for name in shapes}
        encode, decode, original_shapes = original(module, config, {theirs[n]: value for n, value in weights.items()})
        images, latents = (torch.tensor(a).double() for a in (vae_layouts.images(), vae_layouts.latents(config)))
        moments, decoded = model.encode(images).latent_dist.parameters, model.decode(latents).sample
        torch.testing.assert_close(moments, encode(images), rtol=0, atol=1e-10)
        torch.testing.assert_close(decoded, decode(latents), rtol=0, atol=1e-10)
        results |= {f"{row}: moments": moments.numpy(), f"{row}: images": decoded.numpy()}
        names[row] = [[n, theirs[n], list(shapes[n]), list(original_shapes[theirs[n]])] for n in sorted(shapes)]
        print(row, sum(v.numel() for v in weights.values()), moments.std().item(), decoded.std().item())
    text = json.dumps(names, separators=(",", ":"))
    (HERE / "names.json.xz").write_bytes(lzma.compress(text.encode(), preset=9))
    np.savez_compressed(HERE / "results.npz", **{name: value.astype(np.float32) for name, value in results.items()})


with torch.no_grad():
    main(sys.argv[1])
