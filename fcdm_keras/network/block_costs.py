"""What FCDM's blocks and those of its ablations cost, part by part. Standard library only.

A part adds to a sum of costs (`add`, see `fcdm_keras.network.costs`) what it costs in a block of width d at each of
`pixels` positions, and returns how many feature maps of width d the backward pass keeps of it.
"""

from typing import NamedTuple


class Block(NamedTuple):
    """Sizes of one block."""

    d: int
    pixels: int
    expansion_ratio: float = 3
    kernel_size: int = 7

    @property
    def hidden(self):
        return self.expansion_ratio * self.d


def _adaln(total, block, vectors=3):
    total.add(vectors * block.d**2, vectors * block.d, 1)
    return 0


def _six_vectors(total, block):
    return _adaln(total, block, 6)


def _depthwise(total, block):
    """With the norm and the modulation behind it."""
    total.add(block.kernel_size**2 * block.d, block.d, block.pixels, products=block.d)
    return 3


def _attention(total, block):
    """As `_depthwise`; the products of queries, keys and values are a kernel's, which torchprofile does not see."""
    d, window = block.d, block.kernel_size**2
    total.add(3 * d * d, 3 * d, block.pixels, products=d, unseen=2 * window * d)  # scaled queries
    total.add(d * d, d, block.pixels, products=d)
    return 3 + 4


def _widen(total, block):
    """With the GELU."""
    total.add(block.d * block.hidden, block.hidden, block.pixels)
    return 2 * block.expansion_ratio


def _grn(total, block):
    total.add(0, 2 * block.hidden, block.pixels, products=2 * block.hidden)
    total.add(0, 0, 1, products=1)  # the mean, of which torchprofile counts each result
    return block.expansion_ratio


def _cca(total, block):
    total.add(block.hidden**2, block.hidden, 1, products=block.hidden)  # the mean
    total.add(0, 0, block.pixels, products=block.hidden)
    return block.expansion_ratio


def _narrow(total, block):
    total.add(block.hidden * block.d, block.d, block.pixels)
    return 1


def _feedforward(total, block):
    """Input, norm, modulation, the inner width 2d before and after the GELU, and the second linear."""
    total.add(2 * block.d**2, 2 * block.d, block.pixels, products=block.d)
    total.add(2 * block.d**2, block.d, block.pixels, products=block.d)  # the gate
    return 3 + 2 * 2 + 1


def _dense(total, block):
    """Two convolutions; norm, modulation and GELU between them."""
    for products in (block.d, 0):
        total.add(block.kernel_size**2 * block.d**2, block.d, block.pixels, products=products)
    return 5


PARTS = {  # of the blocks in `fcdm_keras.network.variants.BLOCKS`
    "fcdm": (_adaln, _depthwise, _widen, _grn, _narrow),
    "cca": (_adaln, _depthwise, _widen, _cca, _narrow),
    "feedforward": (_six_vectors, _depthwise, _widen, _grn, _narrow, _feedforward),
    "cca_feedforward": (_six_vectors, _depthwise, _widen, _cca, _narrow, _feedforward),
    "resnet": (_adaln, _dense),
    "neighborhood": (_adaln, _attention, _widen, _grn, _narrow),
}


def add(total, kind, block):
    """Adds what a block of a kind in `PARTS` costs; returns its feature maps that are kept, in units of d."""
    return 1 + sum(part(total, block) for part in PARTS[kind])
