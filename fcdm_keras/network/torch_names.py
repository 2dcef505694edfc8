"""What tensors the reference's checkpoints of FCDM hold, and what sizes their shapes tell."""

from fcdm_keras.network.torch_layouts import CONV, DEPTHWISE, PER_CHANNEL, POINTWISE, Parameters

_LEVELS = {
    "encoder_level_1": "encoder_1",
    "encoder_level_2": "encoder_2",
    "latent": "middle",
    "decoder_level_2": "decoder_2",
    "decoder_level_1": "decoder_1",
}


def sizes(shape):
    """Arguments of an `FCDMBackbone` but `num_classes`, and the rows of its label tables."""
    depths = [shape.count(level) for level in _LEVELS]
    block = next((f"{level}.0" for level, depth in zip(_LEVELS, depths) if depth), "latent.0")
    hidden, in_channels = shape("x_embedder.weight", 4)[:2]
    wide, narrow = shape(f"{block}.pwconv1.weight", 4)[:2]
    found = {
        "hidden_channels": hidden,
        "depths": depths,
        "in_channels": in_channels,
        "out_channels": shape("final_layer.conv.weight", 4)[0],
        "expansion_ratio": wide / narrow if wide % narrow else wide // narrow,
        "kernel_size": shape(f"{block}.dwconv.weight", 4)[-1],
    }
    return found, shape("y_embedder_1.embedding_table.weight", 2)[0]


def parameters(backbone):
    """Of an `FCDMBackbone`."""
    found = Parameters()
    found.add("x_embedder", backbone.x_embedder, CONV)
    for i, (time, table) in enumerate(zip(backbone.time_embeddings, backbone.conditioning.tables, strict=True), 1):
        found.add_time(f"t_embedder_{i}", time)
        found.add_variable(f"y_embedder_{i}.embedding_table.weight", table)
    for level, blocks in _LEVELS.items():
        for i, block in enumerate(getattr(backbone, blocks)):
            found.add(f"{level}.{i}.dwconv", block.dwconv, DEPTHWISE)
            found.add(f"{level}.{i}.pwconv1", block.pwconv1, POINTWISE)
            found.add(f"{level}.{i}.pwconv2", block.pwconv2, POINTWISE)
            found.add(f"{level}.{i}.adaLN_modulation.1", block.adaln)
            found.add_variable(f"{level}.{i}.grn.gamma", block.grn.gamma, PER_CHANNEL)
            found.add_variable(f"{level}.{i}.grn.beta", block.grn.beta, PER_CHANNEL)
    found.add("down1_2.conv.0", backbone.down_1.conv, CONV)
    found.add("down2_3.conv.0", backbone.down_2.conv, CONV)
    found.add("up3_2.conv.0", backbone.up_2.conv, CONV)
    found.add("up2_1.conv.0", backbone.up_1.conv, CONV)
    found.add("reduce_chans_2", backbone.merge_2, POINTWISE)
    found.add("reduce_chans_1", backbone.merge_1, POINTWISE)
    found.add("output_layer", backbone.output_layer, CONV)
    found.add("final_layer.adaLN_modulation.1", backbone.final_layer.adaln)
    found.add("final_layer.conv", backbone.final_layer.conv, CONV)
    return found
