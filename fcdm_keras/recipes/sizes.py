"""The table of model sizes: FCDM's, and those of the networks that it is compared with. Standard library only."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """Sizes of one model: C, blocks per level, and the figures that `python -m fcdm_keras.model_table` recomputes."""

    hidden_channels: int
    depths: tuple[int, ...]
    parameters: int | None = None  # exact, 1000 classes and 4 latent channels
    gmacs_256: float | None = None  # the paper's "FLOPs (G)" at 256 px (tables 2 and 3)
    gmacs_512: float | None = None  # the paper's "FLOPs (G)" at 512 px (table 5)
    network: str = "fcdm"  # in `fcdm_keras.network.backbones.BACKBONES`
    variant: str = ""  # in `fcdm_keras.recipes.ablations.VARIANTS`; FCDM itself without
    options: dict = dataclasses.field(default_factory=dict, hash=False)  # more arguments of the backbone


# fmt: off
MODEL_SIZES = {
    "XS": ModelSize( 32, (1, 2,  2, 2, 1)),                            # ours, for small images
    "S":  ModelSize(128, (2, 4,  8, 4, 2),  32_699_912,  3.1),
    "B":  ModelSize(256, (2, 4,  8, 4, 2), 127_675_400, 12.2),
    "L":  ModelSize(512, (2, 4,  8, 4, 2), 504_453_128, 48.3),
    "XL": ModelSize(512, (3, 6, 12, 6, 3), 698_754_056, 64.6, 257.7),
}
# fmt: on
_VIT = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}  # width, blocks, heads
MODEL_SIZES |= {
    f"{network}-{name}/{patch}": ModelSize(
        width,
        (blocks,),
        network=network,
        options={"num_heads": 18 if (network, name) == ("dig", "xl") else heads, "patch_size": patch},
    )
    for network, patches in (("dit", (2, 4, 8)), ("sit", (2, 4, 8)), ("dig", (2,)))
    for name, (width, blocks, heads) in _VIT.items()
    for patch in patches
}
# fmt: off
MODEL_SIZES |= {
    "uvit-l/2": ModelSize(1024, (20,), network="uvit", options={"num_heads": 16}),
    "uvit-h/2": ModelSize(1152, (28,), network="uvit", options={"num_heads": 16, "final_conv": False}),
    "uvit-m/4": ModelSize( 768, (16,), network="uvit", options={"num_heads": 12, "patch_size": 4, "input_size": 64}),
    "uvit-l/4": ModelSize(1024, (20,), network="uvit", options={"num_heads": 16, "patch_size": 4, "input_size": 64}),
    "uvit-h/4": ModelSize(1152, (28,), network="uvit",
                          options={"num_heads": 16, "patch_size": 4, "input_size": 64, "final_conv": False}),
    "dico-s":   ModelSize( 128, ( 5,  4,  4,  4,  4), network="dico"),
    "dico-b":   ModelSize( 256, ( 5,  4,  4,  4,  4), network="dico"),
    "dico-l":   ModelSize( 352, ( 9,  8,  9,  8,  9), network="dico"),
    "dico-xl":  ModelSize( 416, ( 9,  9, 10,  9,  9), network="dico"),
    "dico-h":   ModelSize( 416, (14, 12, 10, 12, 14), network="dico", options={"mlp_ratio": 4.0}),
    "dic-s":    ModelSize(  96, ( 6,  6,  5,  6,  6), network="dic"),
    "dic-b":    ModelSize( 192, ( 6,  6,  5,  6,  6), network="dic"),
    "dic-xl":   ModelSize( 384, ( 7,  7,  8,  7,  7), network="dic"),
    "dic-h":    ModelSize( 384, (14, 14, 10, 14, 14), network="dic"),
}
# fmt: on
