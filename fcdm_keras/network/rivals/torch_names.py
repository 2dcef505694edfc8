"""What tensors the published checkpoints of the other networks hold, and what sizes their shapes tell."""

import math

from fcdm_keras.network.torch_layouts import CONV, DEPTHWISE, LEADING, POINTWISE, Parameters, patches


def dit_sizes(shape):
    """Arguments of a `DiTBackbone` but `num_classes` and `num_heads`, and the rows of its label table."""
    sizes, rows, channels = _patch_sizes(shape)
    hidden = sizes["hidden_channels"]
    inner = shape("blocks.0.mlp.fc1.weight", 2)[0]
    return {**sizes, "out_channels": channels, "mlp_ratio": inner / hidden}, rows


def sit_sizes(shape):
    """As `dit_sizes`, of a `SiTBackbone`, which predicts as many channels as it takes."""
    sizes, rows = dit_sizes(shape)
    computed, channels = sizes["out_channels"], sizes["in_channels"]
    return {**sizes, "out_channels": channels, "learn_sigma": computed == 2 * channels}, rows


def _patch_sizes(shape):
    """What DiT and DiG have in common: arguments, rows of the label table, and channels of the last linear."""
    hidden, in_channels, patch_size, _ = shape("x_embedder.proj.weight", 4)
    side = math.isqrt(shape("pos_embed", 3)[1])
    sizes = {
        "hidden_channels": hidden,
        "depths": [shape.count("blocks")],
        "in_channels": in_channels,
        "patch_size": patch_size,
        "input_size": side * patch_size,
    }
    channels = shape("final_layer.linear.weight", 2)[0] // patch_size**2
    return sizes, shape("y_embedder.embedding_table.weight", 2)[0], channels


def dit_parameters(backbone):
    """Of a `DiTBackbone` or `SiTBackbone`."""
    parameters = _patch_parameters(backbone)
    for i, block in enumerate(backbone.blocks):
        parameters.add(f"blocks.{i}.attn.qkv", block.attention.qkv)
        parameters.add(f"blocks.{i}.attn.proj", block.attention.projection)
        parameters.add(f"blocks.{i}.mlp.fc1", block.mlp.fc1)
        parameters.add(f"blocks.{i}.mlp.fc2", block.mlp.fc2)
    return parameters


def _patch_parameters(backbone):
    parameters = Parameters()
    parameters.add("x_embedder.proj", backbone.x_embedder, patches(backbone.patch_size))
    parameters.add_time("t_embedder", backbone.time_embedding)
    parameters.add_variable("y_embedder.embedding_table.weight", backbone.conditioning.tables[0])
    for i, block in enumerate(backbone.blocks):
        parameters.add(f"blocks.{i}.adaLN_modulation.1", block.adaln)
    parameters.add("final_layer.linear", backbone.final_layer.linear)
    parameters.add("final_layer.adaLN_modulation.1", backbone.final_layer.adaln)
    return parameters


def positions(backbone):
    """What a checkpoint of DiT or DiG holds beside its parameters: the fixed embedding of the positions."""
    side = backbone.input_size // backbone.patch_size
    return {"pos_embed": backbone.positions(side, side)}


def dig_sizes(shape):
    """Arguments of a `DiGBackbone` but `num_classes`, and the rows of its label table."""
    sizes, rows, channels = _patch_sizes(shape)
    head = shape("blocks.0.attn.g_norm_swish_gate.weight", 1)[0]
    return {**sizes, "out_channels": channels, "num_heads": sizes["hidden_channels"] // head}, rows


def dig_parameters(backbone):
    """Of a `DiGBackbone`."""
    parameters = _patch_parameters(backbone)
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "g_proj": "gate", "o_proj": "out", "gk_proj.0": "decay_in"}
    for i, block in enumerate(backbone.blocks):
        for name, layer in names.items():
            parameters.add(f"blocks.{i}.attn.{name}", getattr(block.attention, layer))
        parameters.add(f"blocks.{i}.attn.gk_proj.1", block.attention.decay_out)
        parameters.add_variable(f"blocks.{i}.attn.g_norm_swish_gate.weight", block.attention.scale)
        parameters.add(f"blocks.{i}.mlp.gate_proj", block.mlp.fc1)
        parameters.add(f"blocks.{i}.mlp.down_proj", block.mlp.fc2)
        parameters.add(f"blocks.{i}.dw_conv", block.dwconv, DEPTHWISE)
    return parameters


def uvit_sizes(shape):
    """Arguments of a `UViTBackbone` but `num_classes` and `num_heads`, and the rows of its label table."""
    hidden, in_channels, patch_size, _ = shape("patch_embed.proj.weight", 4)
    sizes = {
        "hidden_channels": hidden,
        "depths": [2 * shape.count("in_blocks")],
        "in_channels": in_channels,
        "out_channels": shape("decoder_pred.weight", 2)[0] // patch_size**2,
        "patch_size": patch_size,
        "input_size": math.isqrt(shape("pos_embed", 3)[1] - 2) * patch_size,
        "mlp_ratio": shape("mid_block.mlp.fc1.weight", 2)[0] / hidden,
        "final_conv": "final_layer.weight" in shape.state,
    }
    return sizes, shape("label_emb.weight", 2)[0]


def uvit_parameters(backbone):
    """Of a `UViTBackbone`."""
    parameters = Parameters()
    parameters.add("patch_embed.proj", backbone.x_embedder, patches(backbone.patch_size))
    parameters.add_variable("label_emb.weight", backbone.conditioning.tables[0])
    parameters.add_variable("pos_embed", backbone.positions, LEADING)
    half = len(backbone.in_blocks)
    names = [f"in_blocks.{i}" for i in range(half)] + ["mid_block"] + [f"out_blocks.{i}" for i in range(half)]
    for name, block in zip(names, backbone.blocks, strict=True):
        parameters.add_norm(f"{name}.norm1", block.norm1)
        parameters.add(f"{name}.attn.qkv", block.attention.qkv)
        parameters.add(f"{name}.attn.proj", block.attention.projection)
        parameters.add_norm(f"{name}.norm2", block.norm2)
        parameters.add(f"{name}.mlp.fc1", block.mlp.fc1)
        parameters.add(f"{name}.mlp.fc2", block.mlp.fc2)
        if block.skip:
            parameters.add(f"{name}.skip_linear", block.skip_linear)
    parameters.add_norm("norm", backbone.norm)
    parameters.add("decoder_pred", backbone.decoder)
    if backbone.final_conv:
        parameters.add("final_layer", backbone.final, CONV)
    return parameters


_DICO = {
    "encoder_level_1": "encoder_1",
    "encoder_level_2": "encoder_2",
    "latent": "middle",
    "decoder_level_2": "decoder_2",
    "decoder_level_1": "decoder_1",
}
_DIC = {
    "enc_blocks.0": "encoder_1",
    "enc_blocks.1": "encoder_2",
    "lat_blocks.0": "middle",
    "dec_blocks.0": "decoder_2",
    "dec_blocks.1": "decoder_1",
}


def _unet_sizes(shape, levels):
    """Arguments that DiCo and DiC have in common."""
    hidden, in_channels = shape("x_embedder.proj.weight", 4)[:2]
    return {
        "hidden_channels": hidden,
        "depths": [shape.count(level) for level in levels],
        "in_channels": in_channels,
        "out_channels": shape("final_layer.out_proj.weight", 4)[0],
    }


def _unet_parameters(backbone):
    parameters = Parameters()
    parameters.add("x_embedder.proj", backbone.x_embedder, CONV)
    parameters.add("final_layer.out_proj", backbone.final_layer.conv, CONV)
    parameters.add("final_layer.adaLN_modulation.1", backbone.final_layer.adaln)
    return parameters


def dico_sizes(shape):
    """Arguments of a `DiCoBackbone` but `num_classes`, and the rows of its label tables."""
    sizes = _unet_sizes(shape, _DICO)
    level = next((level for level, depth in zip(_DICO, sizes["depths"]) if depth), "latent")
    inner, width = shape(f"{level}.0.conv4.weight", 4)[:2]
    return {**sizes, "mlp_ratio": inner / width}, shape("y_embedder.embedding_table_0.weight", 2)[0]


def dico_parameters(backbone):
    """Of a `DiCoBackbone`."""
    parameters = _unet_parameters(backbone)
    for i, (time, table) in enumerate(zip(backbone.time_embeddings, backbone.conditioning.tables, strict=True)):
        parameters.add_time(f"t_embedder_{i + 1}", time)
        parameters.add_variable(f"y_embedder.embedding_table_{i}.weight", table)
    for level, blocks in _DICO.items():
        for i, block in enumerate(getattr(backbone, blocks)):
            parameters.add(f"{level}.{i}.adaLN_modulation.1", block.adaln)
            parameters.add(f"{level}.{i}.conv2", block.conv2, DEPTHWISE)
            parameters.add(f"{level}.{i}.ca.1", block.attention, POINTWISE)
            for name in ("conv1", "conv3", "conv4", "conv5"):
                parameters.add(f"{level}.{i}.{name}", getattr(block, name), POINTWISE)
    for name, layer in {"down1_2": "down_1", "down2_3": "down_2", "up3_2": "up_2", "up2_1": "up_1"}.items():
        parameters.add(f"{name}.body.0", getattr(backbone, layer).conv, CONV)
    parameters.add("reduce_chan_level2", backbone.merge_2, POINTWISE)
    parameters.add("reduce_chan_level1", backbone.merge_1, POINTWISE)
    return parameters


def dic_sizes(shape):
    """Arguments of a `DiCBackbone` but `num_classes`, and the rows of its label tables."""
    return _unet_sizes(shape, _DIC), shape("y_embedder_ls.0.embedding_table.weight", 2)[0]


def dic_parameters(backbone):
    """Of a `DiCBackbone`."""
    parameters = _unet_parameters(backbone)
    for i, (time, table) in enumerate(zip(backbone.time_embeddings, backbone.conditioning.tables, strict=True)):
        parameters.add_time(f"t_embedder_ls.{i}", time)
        parameters.add_variable(f"y_embedder_ls.{i}.embedding_table.weight", table)
    for level, blocks in _DIC.items():
        for i, block in enumerate(getattr(backbone, blocks)):
            name = f"{level}.{i}.conv"
            parameters.add_norm(f"{name}.norm0", block.norm0)
            parameters.add(f"{name}.conv0", block.conv0, CONV)
            parameters.add(f"{name}.affine.1", block.adaln)
            parameters.add_norm(f"{name}.norm1", block.norm1)
            parameters.add(f"{name}.conv1", block.conv1, CONV)
            if block.skip is not None:
                parameters.add(f"{name}.skip", block.skip, POINTWISE)
    for name, layer in {"downs.0": "down_1", "downs.1": "down_2", "ups.0": "up_2", "ups.1": "up_1"}.items():
        parameters.add(f"{name}.body.0", getattr(backbone, layer).conv, CONV)
    parameters.add("output", backbone.output_layer, CONV)
    return parameters
