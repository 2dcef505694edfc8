"""How tensors of reference checkpoints are named and laid out, and which variable of a backbone each is."""

from operator import attrgetter

from fcdm_keras.recipes.ablations import variant_of

# How a tensor is laid out in PyTorch and in Keras: (from torch, to torch).
_VECTOR = (lambda w: w, lambda w: w)
_LINEAR = (lambda w: w.T, lambda w: w.T)  # (out, in)
_POINTWISE = (lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])  # (out, in, 1, 1)
_CONV = (lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))  # (out, in, k, k)
_DEPTHWISE = (lambda w: w.transpose(2, 3, 0, 1), lambda w: w.transpose(2, 3, 0, 1))  # (C, 1, k, k)
_PER_CHANNEL = (lambda w: w.reshape(-1), lambda w: w[None, :, None, None])  # (1, C, 1, 1)
_PATCH = (lambda w: w.reshape(len(w), -1).T, lambda w: w.T.reshape(w.shape[1], -1, 2, 2))  # (out, in, 2, 2)

# Parts of a block: reference name, where the layer or variable is in ours, layout.
_ADALN = ("adaLN_modulation.1", "adaln", _LINEAR)
_DWCONV = ("dwconv", "dwconv", _DEPTHWISE)
_LINEARS = (("pwconv1", "pwconv1", _POINTWISE), ("pwconv2", "pwconv2", _POINTWISE), _ADALN)
_GRN = (("grn.gamma", "grn.gamma", _PER_CHANNEL), ("grn.beta", "grn.beta", _PER_CHANNEL))
_CCA = ("ca.1", "grn.linear", _POINTWISE)
_FEEDFORWARD = (("conv4", "conv4", _POINTWISE), ("conv5", "conv5", _POINTWISE))
_DENSE = (("conv1", "conv1", _CONV), ("conv2", "conv2", _CONV), _ADALN)
_ATTENTION = (("dwconv.qkv", "dwconv.qkv", _LINEAR), ("dwconv.proj", "dwconv.proj", _LINEAR))
_BLOCKS = {  # of the kinds in `fcdm_keras.network.variants.BLOCKS`
    "fcdm": (_DWCONV, *_LINEARS, *_GRN),
    "cca": (_DWCONV, *_LINEARS, _CCA),
    "feedforward": (_DWCONV, *_LINEARS, *_GRN, *_FEEDFORWARD),
    "cca_feedforward": (_DWCONV, *_LINEARS, _CCA, *_FEEDFORWARD),
    "resnet": _DENSE,
    "neighborhood": (*_ATTENTION, *_LINEARS, *_GRN),
}
_MARKS = {"ca.1": "cca", "conv4": "feedforward", "conv1": "resnet", "dwconv.qkv": "neighborhood"}  # of other kinds

LEVELS = {  # of blocks: reference name → attribute, by network
    "fcdm": {
        "encoder_level_1": "encoder_1",
        "encoder_level_2": "encoder_2",
        "latent": "middle",
        "decoder_level_2": "decoder_2",
        "decoder_level_1": "decoder_1",
    },
    "isotropic": {"blocks": "middle"},
}
_FINAL_ADALN = ("final_layer.adaLN_modulation.1", "final_layer.adaln", _LINEAR)
_OTHERS = {
    "fcdm": (
        ("x_embedder", "x_embedder", _CONV),
        ("down1_2.conv.0", "down_1.conv", _CONV),
        ("down2_3.conv.0", "down_2.conv", _CONV),
        ("up3_2.conv.0", "up_2.conv", _CONV),
        ("up2_1.conv.0", "up_1.conv", _CONV),
        ("reduce_chans_2", "merge_2", _POINTWISE),
        ("reduce_chans_1", "merge_1", _POINTWISE),
        ("output_layer", "output_layer", _CONV),
        ("final_layer.conv", "final_layer.conv", _CONV),
    ),
    "isotropic": (("x_embedder", "x_embedder", _PATCH), ("final_layer.linear", "final_layer.linear", _LINEAR)),
}


def parameters(backbone):
    """Reference name → (variable, from torch, to torch) for every weight of an `FCDMBackbone`."""
    row, found = variant_of(backbone.variant), {}

    def add(name, owner, place, layout):
        part = attrgetter(place)(owner)
        if not hasattr(part, "kernel"):
            found[name] = (part, *layout)
            return
        found[f"{name}.weight"] = (part.kernel, *layout)
        if part.bias is not None:
            found[f"{name}.bias"] = (part.bias, *_VECTOR)

    for i, (time, table) in enumerate(zip(backbone.time_embeddings, backbone.conditioning.tables, strict=True), 1):
        place = f"_{i}" if row.network == "fcdm" else ""
        add(f"t_embedder{place}.mlp.0", time, "hidden", _LINEAR)
        add(f"t_embedder{place}.mlp.2", time, "out", _LINEAR)
        found[f"y_embedder{place}.embedding_table.weight"] = (table, *_VECTOR)
    for level, attribute in LEVELS[row.network].items():
        for i, block in enumerate(getattr(backbone, attribute)):
            for name, place, layout in _BLOCKS[row.block]:
                add(f"{level}.{i}.{name}", block, place, layout)
    for name, place, layout in (*_OTHERS[row.network], _FINAL_ADALN):
        add(name, backbone, place, layout)
    return found


def told(names):
    """The network, in `LEVELS`, and the kind of block that tensors of these reference names are of."""
    network = "isotropic" if any(name.startswith("blocks.") for name in names) else "fcdm"
    marks = [kind for mark, kind in _MARKS.items() if any(f".0.{mark}.weight" in name for name in names)]
    return network, "_".join(marks) or "fcdm"
