"""What tensors the reference's checkpoints of FCDM and of its ablations hold, and what sizes their shapes tell."""

from operator import attrgetter

from fcdm_keras.network.torch_layouts import CONV, DEPTHWISE, LINEAR, PER_CHANNEL, POINTWISE, Parameters
from fcdm_keras.recipes.ablations import VARIANTS, variant_of

_PATCH = (lambda w: w.reshape(len(w), -1).T, lambda w: w.T.reshape(w.shape[1], -1, 2, 2))  # (out, in, 2, 2)

# Parts of a block: reference name, where the layer or variable is in ours, layout.
_ADALN = ("adaLN_modulation.1", "adaln", LINEAR)
_DWCONV = ("dwconv", "dwconv", DEPTHWISE)
_LINEARS = (("pwconv1", "pwconv1", POINTWISE), ("pwconv2", "pwconv2", POINTWISE), _ADALN)
_GRN = (("grn.gamma", "grn.gamma", PER_CHANNEL), ("grn.beta", "grn.beta", PER_CHANNEL))
_CCA = ("ca.1", "grn.linear", POINTWISE)
_FEEDFORWARD = (("conv4", "conv4", POINTWISE), ("conv5", "conv5", POINTWISE))
_DENSE = (("conv1", "conv1", CONV), ("conv2", "conv2", CONV), _ADALN)
_ATTENTION = (("dwconv.qkv", "dwconv.qkv", LINEAR), ("dwconv.proj", "dwconv.proj", LINEAR))
_BLOCKS = {  # of the kinds in `fcdm_keras.network.variants.BLOCKS`
    "fcdm": (_DWCONV, *_LINEARS, *_GRN),
    "cca": (_DWCONV, *_LINEARS, _CCA),
    "feedforward": (_DWCONV, *_LINEARS, *_GRN, *_FEEDFORWARD),
    "cca_feedforward": (_DWCONV, *_LINEARS, _CCA, *_FEEDFORWARD),
    "resnet": _DENSE,
    "neighborhood": (*_ATTENTION, *_LINEARS, *_GRN),
}
_MARKS = {"ca.1": "cca", "conv4": "feedforward", "conv1": "resnet", "dwconv.qkv": "neighborhood"}  # of other kinds

_LEVELS = {  # of blocks: reference name → attribute, by network
    "fcdm": {
        "encoder_level_1": "encoder_1",
        "encoder_level_2": "encoder_2",
        "latent": "middle",
        "decoder_level_2": "decoder_2",
        "decoder_level_1": "decoder_1",
    },
    "isotropic": {"blocks": "middle"},
}
_FINAL_ADALN = ("final_layer.adaLN_modulation.1", "final_layer.adaln", LINEAR)
_OTHERS = {
    "fcdm": (
        ("x_embedder", "x_embedder", CONV),
        ("down1_2.conv.0", "down_1.conv", CONV),
        ("down2_3.conv.0", "down_2.conv", CONV),
        ("up3_2.conv.0", "up_2.conv", CONV),
        ("up2_1.conv.0", "up_1.conv", CONV),
        ("reduce_chans_2", "merge_2", POINTWISE),
        ("reduce_chans_1", "merge_1", POINTWISE),
        ("output_layer", "output_layer", CONV),
        ("final_layer.conv", "final_layer.conv", CONV),
    ),
    "isotropic": (("x_embedder", "x_embedder", _PATCH), ("final_layer.linear", "final_layer.linear", LINEAR)),
}


def parameters(backbone):
    """Of an `FCDMBackbone`, of any variant."""
    row, found = variant_of(backbone.variant), Parameters()

    def add(name, owner, place, layout):
        part = attrgetter(place)(owner)
        (found.add if hasattr(part, "kernel") else found.add_variable)(name, part, layout)

    for i, (time, table) in enumerate(zip(backbone.time_embeddings, backbone.conditioning.tables, strict=True), 1):
        place = f"_{i}" if row.network == "fcdm" else ""
        found.add_time(f"t_embedder{place}", time)
        found.add_variable(f"y_embedder{place}.embedding_table.weight", table)
    for level, attribute in _LEVELS[row.network].items():
        for i, block in enumerate(getattr(backbone, attribute)):
            for name, place, layout in _BLOCKS[row.block]:
                add(f"{level}.{i}.{name}", block, place, layout)
    for name, place, layout in (*_OTHERS[row.network], _FINAL_ADALN):
        add(name, backbone, place, layout)
    return found


def sizes(shape):
    """Arguments of an `FCDMBackbone` but `num_classes`, and the rows of its label tables.

    A `variant` is among them where tensors tell one: ablations that differ from FCDM in sizes alone, they do not.
    """
    network = "isotropic" if shape.count("blocks") else "fcdm"
    kind = "_".join(kind for mark, kind in _MARKS.items() if shape.has(f".0.{mark}.weight")) or "fcdm"
    depths = [shape.count(level) for level in _LEVELS[network]]
    block = next((f"{level}.0" for level, depth in zip(_LEVELS[network], depths) if depth), "latent.0")
    hidden, in_channels = shape("x_embedder.weight", 4)[:2]
    found = {"hidden_channels": hidden, "depths": depths, "in_channels": in_channels}
    if kind != "resnet":
        wide, narrow = shape(f"{block}.pwconv1.weight", 4)[:2]
        found["expansion_ratio"] = wide / narrow if wide % narrow else wide // narrow
    if kind != "neighborhood":
        found["kernel_size"] = shape(f"{block}.{'conv1' if kind == 'resnet' else 'dwconv'}.weight", 4)[-1]
    if network == "isotropic":
        found["out_channels"] = shape("final_layer.linear.weight", 2)[0] // 4
    else:
        found["out_channels"] = shape("final_layer.conv.weight", 4)[0]
    found["variant"] = _named(network, kind, found, shape.what)
    return found, shape(f"y_embedder{'' if network == 'isotropic' else '_1'}.embedding_table.weight", 2)[0]


def _named(network, kind, found, what):
    """The name of the variant whose network and blocks these are; `None` for FCDM's."""
    if (network, kind) == ("fcdm", "fcdm"):
        return None
    names = _alike(network, kind)
    if not names:
        raise ValueError(f"{what}: its blocks have parts that no variant has together.")
    fitting = [name for name in names if VARIANTS[name].expansion_ratio == found.get("expansion_ratio", 1)]
    return (fitting or names)[0]


def _alike(network, kind):
    return [name for name, row in VARIANTS.items() if (row.network, row.block) == (network, kind)]


def with_variant(told, given, path):
    """The arguments that tensors tell, with the variant and the head's width that are given.

    Raises:
        ValueError: the tensors are of another variant.
    """
    name = given.get("variant") or told["variant"]
    row, other = variant_of(name), variant_of(told["variant"])
    what = f"{path} is no checkpoint of the variant {name}"
    if (row.network, row.block) != (other.network, other.block):
        looks = f"the variant {' or '.join(_alike(other.network, other.block))}" if told["variant"] else "FCDM"
        raise ValueError(f"{what}: by its tensors it is one of {looks}.")
    for size in ("kernel_size", "expansion_ratio"):
        if name and told.get(size, getattr(row, size)) != getattr(row, size):
            raise ValueError(f"{what}: its {size} is {told[size]}, and the variant's is {getattr(row, size)}.")
    return {**told, "variant": name, "head_width": given.get("head_width")}
