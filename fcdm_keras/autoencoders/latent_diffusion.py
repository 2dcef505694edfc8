"""Autoencoders under latent-diffusion's own names (Rombach et al., 2022): kl-f4, kl-f8, kl-f16, what was trained with
that code since (MAR, VA-VAE, EQ-VAE), and the first stage inside a whole checkpoint of Stable Diffusion.

Such files have no `config.json`: the sizes are read from the tensors' shapes. What shapes cannot tell, `factors` does.
"""

import re

from fcdm_keras.autoencoders.tensor_files import MARK, is_average

_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

# Checkpoints of whole models, by the beginning of names that only they have: scale and shift of their latents.
_MODELS = {
    "model.diffusion_model.joint_blocks.": (1.5305, 0.0609),  # Stable Diffusion 3
    "model.diffusion_model.double_blocks.": (0.3611, 0.1159),  # FLUX
    "conditioner.embedders.": (0.13025, 0.0),  # Stable Diffusion XL
    "cond_stage_model.": (0.18215, 0.0),  # Stable Diffusion 1 and 2
}


def own_tensors(tensors, source):
    """Those of a file's tensors that are the autoencoder's.

    Args:
        tensors: name → anything.
        source: what to call the file in errors.

    Returns:
        The autoencoder's, by diffusers' names, and whether they had latent-diffusion's.

    Raises:
        ValueError: there are several autoencoders, or one that is no KL autoencoder.
    """
    prefixes = {name.removesuffix(MARK) for name in tensors if name.endswith(f".{MARK}") or name == MARK}
    known = [prefix for prefix in ("", "first_stage_model.", "vae.") if prefix in prefixes]
    known += sorted(filter(is_average, prefixes))
    if len(prefixes) > 1 and not known:
        raise ValueError(f"{source} holds several autoencoders: names begin with {' or '.join(sorted(prefixes))}.")
    prefix = (known or sorted(prefixes) or [""])[0]
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if vector := next((name for name in own if re.match(r"quantizer?\.", name)), None):
        raise ValueError(
            f"{source} holds an autoencoder with a codebook ({prefix}{vector}); only KL ones are supported."
        )
    if not any(name.startswith(("encoder.down.", "encoder.mid.")) for name in own):
        return own, False
    own = {name: value for name, value in own.items() if name.startswith(_PARTS)}
    levels = 1 + max((int(match[1]) for name in own if (match := re.match(r"decoder\.up\.(\d+)\.", name))), default=0)
    return {_published(name, levels): value for name, value in own.items()}, True


def _published(name, levels):
    """diffusers' name for one of latent-diffusion's; what is none stays, and is unknown later."""
    name = re.sub(r"\.up\.(\d+)\.", lambda match: f".up_blocks.{levels - 1 - int(match[1])}.", name)
    name = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", name)
    name = re.sub(r"\.(down|up)sample\.", r".\1samplers.0.", name)
    name = re.sub(r"\.block\.(\d+)\.", r".resnets.\1.", name)
    name = re.sub(r"\.mid\.block_(\d)\.", lambda match: f".mid_block.resnets.{int(match[1]) - 1}.", name)
    name = re.sub(r"\.attn\.(\d+)\.", r".attentions.\1.", name.replace(".mid.attn_1.", ".mid_block.attentions.0."))
    name = re.sub(r"(\.attentions\.\d+\.)(\w+)", lambda match: match[1] + _ATTENTION.get(match[2], match[2]), name)
    return name.replace("nin_shortcut", "conv_shortcut").replace("coder.norm_out.", "coder.conv_norm_out.")


def sizes(tensors, source):
    """`KLAutoencoder`'s sizes and switches from arrays by diffusers' names.

    Raises:
        ValueError: the shapes are those of another kind of network.
    """

    def shape(name):
        found = tensors[name].shape if name in tensors else ()
        if len(found) != 4:
            raise ValueError(f"{source} holds no KL autoencoder for images: {name} has the shape {tuple(found)}.")
        return found

    def count(pattern):
        return len({match[0] for name in tensors if (match := re.match(pattern, name))})

    def with_attention(blocks):
        return {int(match[1]) for name in tensors if (match := re.match(rf"{blocks}\.(\d+)\.attentions\.", name))}

    levels = count(r"encoder\.down_blocks\.\d+\.")
    latents, moments = shape("decoder.conv_in.weight")[1], shape("encoder.conv_out.weight")[0]
    if moments != 2 * latents:
        raise ValueError(
            f"{source} holds no KL autoencoder: its encoder gives {moments} channels, which is not twice the {latents} "
            "that its decoder takes."
        )
    if "quant_conv.weight" in tensors and shape("quant_conv.weight")[0] != moments:
        raise ValueError(
            f"{source}: its quant_conv changes the number of channels ({moments}), which is not supported."
        )
    if shape("encoder.conv_in.weight")[1] != shape("decoder.conv_out.weight")[0]:
        raise ValueError(f"{source} takes images of other channels than it gives, which is not supported.")
    return {
        "block_out_channels": [shape(f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)],
        "layers_per_block": count(r"encoder\.down_blocks\.0\.resnets\.\d+\."),
        "latent_channels": latents,
        "in_channels": shape("encoder.conv_in.weight")[1],
        "encoder_attention": sorted(with_attention(r"encoder\.down_blocks")),
        "decoder_attention": sorted(levels - 1 - i for i in with_attention(r"decoder\.up_blocks")),
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in tensors,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }


def factors(tensors, source):
    """Scale and shift of the latents, where a checkpoint tells them; else `None`.

    Args:
        tensors: all of the file: name → function that reads it.
        source: what to call the file in errors.

    Raises:
        ValueError: each channel has a scale of its own.
    """
    if "edm_mean" in tensors:
        raise ValueError(
            f"{source} scales each channel of the latents by itself (edm_mean, edm_std); only one scale is supported."
        )
    if "scale_factor" in tensors:  # measured by latent-diffusion's code, on its first batch
        return tensors["scale_factor"]().item(), 0.0
    return next((known for start, known in _MODELS.items() if any(name.startswith(start) for name in tensors)), None)
