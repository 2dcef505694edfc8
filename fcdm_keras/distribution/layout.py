"""Which axis of each variable is cut over the devices of a model-parallel group: the tables of all backbones, as a map.

A backbone class has its own table, `layout`. Averages of the weights are laid out as the weights (their names have `_`
where the weights' have `/`); AdamW's moments follow by themselves.
"""

import keras

from fcdm_keras.backend.hub import default_name
from fcdm_keras.network.backbones import BACKBONES


def layout_map(mesh):
    """The `keras.distribution.LayoutMap` of all backbones on a mesh with an axis named `model`."""
    layouts = keras.distribution.LayoutMap(mesh)
    for pattern, axes in patterns():
        layouts[pattern] = axes
    return layouts


def patterns():
    """Pairs of a pattern, which matches whole variable paths, of weights and of their averages, and the axes."""
    for backbone in BACKBONES.values():
        for variable, axes in backbone.layout:
            yield rf"(.*/)?{default_name(backbone)}(_\d+)?/{variable}".replace("/", "[/_]"), axes
