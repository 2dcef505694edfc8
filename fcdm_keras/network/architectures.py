"""The networks whose published checkpoints can be read: how each is told, and what its tensors mean."""

import dataclasses
from collections.abc import Callable

from fcdm_keras.network import torch_names
from fcdm_keras.network.rivals import torch_names as rivals
from fcdm_keras.recipes import MODEL_SIZES


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network as its published code stores it.

    Attributes:
        title: its name in messages.
        sign: part of a name that it has and those after it in the table have not.
        sizes: of `torch_layouts.Shapes`, the backbone's arguments but `num_classes` and `asked`, and the rows of the
            label tables.
        parameters: of a backbone, its `torch_layouts.Parameters`.
        constants: of a backbone, name → tensor of what a file holds beside them, which must be so.
        asked: arguments that tensors cannot tell.
        optional: arguments that may be given too.
        joined: of the arguments that tensors tell, those given, and the path, all together; raises ValueError if they
            do not go together.
    """

    title: str
    sign: str
    sizes: Callable
    parameters: Callable
    constants: Callable = lambda backbone: {}
    asked: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    joined: Callable = lambda told, given, path: {**told, **given}


# By the names in `fcdm_keras.network.backbones.BACKBONES`; the first whose sign is there counts.
ARCHITECTURES = {
    "fcdm": Architecture(
        "FCDM",
        "x_embedder.weight",
        torch_names.sizes,
        torch_names.parameters,
        optional=("variant", "head_width"),
        joined=torch_names.with_variant,
    ),
    "dico": Architecture("DiCo", "reduce_chan_level", rivals.dico_sizes, rivals.dico_parameters),
    "dic": Architecture("DiC", "lat_blocks.", rivals.dic_sizes, rivals.dic_parameters),
    "dig": Architecture("DiG", ".attn.gk_proj.", rivals.dig_sizes, rivals.dig_parameters, rivals.positions),
    "uvit": Architecture("U-ViT", "patch_embed.", rivals.uvit_sizes, rivals.uvit_parameters, asked=("num_heads",)),
    "dit": Architecture("DiT", "pos_embed", rivals.dit_sizes, rivals.dit_parameters, rivals.positions, ("num_heads",)),
    "sit": Architecture("SiT", "pos_embed", rivals.sit_sizes, rivals.dit_parameters, rivals.positions, ("num_heads",)),
}


def told(state, is_flow):
    """The name of the architecture that a network's tensors are of; `None` if of none here.

    Args:
        state: name → tensor.
        is_flow: whether the file's settings are SiT's, whose tensors are DiT's.
    """
    for name, architecture in ARCHITECTURES.items():
        if any(architecture.sign in tensor for tensor in state):
            return "sit" if is_flow and name == "dit" else name
    return None


def arguments_of(name, sizes, given, path):
    """All arguments of a backbone: `sizes`, which tensors tell, and `given`.

    Raises:
        ValueError: one is missing, there are others, or they do not fit.
    """
    architecture = ARCHITECTURES[name]
    if unknown := sorted(given.keys() - {*architecture.asked, *architecture.optional}):
        takes = " and ".join((*architecture.asked, *architecture.optional)) or "none"
        raise ValueError(
            f"{path} holds {architecture.title}, whose tensors tell all arguments but {takes}. Received: {unknown[0]}"
        )
    if missing := [argument for argument in architecture.asked if argument not in given]:
        hidden, depths = sizes["hidden_channels"], tuple(sizes["depths"])
        known = [
            f"; {size} has {row.options[missing[0]]}"
            for size, row in MODEL_SIZES.items()
            if (row.network, row.hidden_channels, row.depths) == (name, hidden, depths)
        ]
        raise ValueError(
            f"{path} holds {architecture.title}, whose tensors do not tell {missing[0]}: give {missing[0]}=… "
            f"(--{missing[0].replace('_', '-')}){''.join(known[:1])}."
        )
    return architecture.joined(sizes, given, path)
