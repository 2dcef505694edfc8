"""Which axis of each variable of a backbone is cut over the devices of a model-parallel group.

The two linears of a block are cut along its hidden width (tensor parallelism; Shoeybi et al., arXiv:1909.08053, section
3), with the GRN between them; adaLN, the conditioning's maps and tables, and the convolutions between levels are cut
along their outputs. The rest is small, and whole on every device. Averages of the weights are laid out as the weights
(their names have `_` where the weights' have `/`); AdamW's moments follow by themselves.
"""

import keras

MODEL = "model"

# Pattern of a variable's name behind the backbone's, and the axis of the mesh for each of its axes.
AXES = (
    (r"conditioning/.*(table_\d|kernel)", (None, MODEL)),
    (r"conditioning/.*(bias|mean|std|null_embedding)", ()),
    (r"time_embedding_\d/hidden/kernel", (None, MODEL)),
    (r"time_embedding_\d/hidden/bias", (MODEL,)),
    (r"time_embedding_\d/out/kernel", (MODEL, None)),
    (r"time_embedding_\d/out/bias", ()),
    (r".*_block_\d+/(adaln|pwconv1)/kernel", (None, MODEL)),
    (r".*_block_\d+/(adaln|pwconv1)/bias", (MODEL,)),
    (r".*_block_\d+/grn/(gamma|beta)", (MODEL,)),
    (r".*_block_\d+/pwconv2/kernel", (MODEL, None)),
    (r".*_block_\d+/pwconv2/bias", ()),
    (r".*_block_\d+/dwconv/(kernel|bias)", ()),
    (r"(down|up)_\d/conv/kernel", (None, None, None, MODEL)),
    (r"merge_\d/kernel", (None, MODEL)),
    (r"merge_\d/bias", (MODEL,)),
    (r"output_layer/kernel", (None, None, None, MODEL)),
    (r"output_layer/bias", (MODEL,)),
    (r"x_embedder/(kernel|bias)", ()),
    (r"final_layer/(conv|adaln)/(kernel|bias)", ()),
)


def layout_map(mesh):
    """The `keras.distribution.LayoutMap` of FCDM on a mesh with an axis named `model`."""
    layouts = keras.distribution.LayoutMap(mesh)
    for name, axes in AXES:
        layouts[pattern(name)] = axes
    return layouts


def pattern(name):
    """The pattern that `keras.distribution` matches with whole variable paths, of weights and of their averages."""
    return r"(.*/)?fcdm_backbone(_\d+)?/".replace("/", "[/_]") + name.replace("/", "[/_]")
