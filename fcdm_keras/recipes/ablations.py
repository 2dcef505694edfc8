"""The table of ablations of FCDM (paper, tables 6, 10 and 12 to 15). Nothing heavy is imported."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from fcdm_keras.arguments import one_of


class Depths(NamedTuple):
    """How a variant deals blocks out.

    Args:
        of: the depths of a size of FCDM → the variant's.
        holds: whether depths are the variant's.
        text: what they must do, in words.
        levels: how many they are.
    """

    of: Callable = lambda depths: depths
    holds: Callable = lambda depths: True
    text: str = ""
    levels: int = 5


_ASYMMETRIC = Depths(
    lambda depths: (depths[0], depths[1] - 1, depths[2], depths[3] + 1, depths[4]),
    lambda depths: sum(depths[:2]) < sum(depths[3:]),
    "have more blocks in the decoder than in the encoder",
)
_UNIFORM = Depths(
    lambda depths: (max(1, round(sum(depths) / 5)),) * 5,
    lambda depths: len(set(depths)) == 1,
    "be equal on all levels",
)
_ISOTROPIC = Depths(lambda depths: (sum(depths),), levels=1)


@dataclasses.dataclass(frozen=True)
class Variant:
    """An ablation of FCDM: what stands in place of a part of it. What a row does not name is FCDM's.

    Args:
        block: in `fcdm_keras.network.variants.BLOCKS`.
        network: in `fcdm_keras.network.backbones.BACKBONES`.
        kernel_size: of the depthwise or dense convolution, or the side of the window of attention.
        expansion_ratio: r of the blocks.
        scale: the paper's width over that of the size of FCDM that costs about as much.
        multiple: what widths are divisible by.
        depths: how many blocks are where.
        smallest_side: height and width that x_t must have.
    """

    block: str = "fcdm"
    network: str = "fcdm"
    kernel_size: int = 7
    expansion_ratio: int = 3
    scale: float = 1.0
    multiple: int = 2
    depths: Depths = Depths()
    smallest_side: int = 1


# fmt: off
VARIANTS = {
    "kernel3":                    Variant(kernel_size=3),
    "kernel5":                    Variant(kernel_size=5),
    "kernel9":                    Variant(kernel_size=9),
    "kernel11":                   Variant(kernel_size=11),
    "cca":                        Variant("cca", scale=510 / 512),
    "feedforward":                Variant("feedforward", scale=424 / 512),
    "cca_feedforward":            Variant("cca_feedforward", scale=424 / 512),
    "no_inverted_bottleneck":     Variant(expansion_ratio=1, scale=688 / 512),
    "cca_no_inverted_bottleneck": Variant("cca", expansion_ratio=1, scale=688 / 512),
    "resnet":                     Variant("resnet", kernel_size=3, expansion_ratio=1, scale=336 / 512),
    "neighborhood":               Variant("neighborhood", scale=416 / 512, multiple=32, smallest_side=28),
    "asymmetric":                 Variant(depths=_ASYMMETRIC),
    "uniform":                    Variant(scale=600 / 512, depths=_UNIFORM),
    "isotropic":                  Variant(network="isotropic", scale=576 / 256, depths=_ISOTROPIC),
}
# fmt: on


def variant_of(name):
    """The row of a variant's name, of FCDM itself for none. Raises ValueError, which offers the nearest names."""
    return VARIANTS[one_of("variant", name, VARIANTS)] if name else Variant()


def sized(size, variant):
    """The `ModelSize` of a variant that stands beside one of FCDM; beside L, and B of `isotropic`, it is the paper's.

    Raises:
        ValueError: for an unknown variant, and for a size of another network.
    """
    if not variant:
        return size
    row = variant_of(variant)
    if size.network != "fcdm":
        raise ValueError(f"The variants are FCDM's; leave out variant {variant!r}. Received: a model of {size.network}")
    width = row.multiple * max(1, round(row.scale * size.hidden_channels / row.multiple))
    sizes = {"hidden_channels": width, "depths": row.depths.of(size.depths), "network": row.network}
    return dataclasses.replace(size, **sizes, variant=variant, parameters=None, gmacs_256=None, gmacs_512=None)
