"""What tensors the published checkpoints of the other networks hold, and what sizes their shapes tell."""

import math

from fcdm_keras.network.torch_layouts import Parameters, patches


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
