"""Text to image with FCDM: the same backbone, conditioned on the pooled embedding of a CLIP text encoder (appendix H).

Names are imported on first use, so that `import t2i` and every `--help` are quick.
"""

import importlib

from fcdm_keras import moved, registry

_HOMES = {
    "OpenCLIPTextEncoder": "text_encoder",
    "TextConditioning": "conditioning",
    "TextToImage": "tasks",
    "RECIPES": "recipes",
}
__all__ = [*_HOMES]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f"t2i.{_HOMES[name]}"), name)
    try:
        return importlib.import_module(f"t2i.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"t2i.{name}":
            raise
        raise AttributeError(f"module 't2i' has no attribute {name!r}") from None


def __dir__():
    return sorted(__all__)


moved.keep({"t2i.presets": ("t2i.recipes",), "t2i.runs": ("t2i.load", "t2i.data")})

_SERIALIZABLE = {"conditioning": ("TextConditioning",), "tasks": ("TextToImage",)}
registry.offer("t2i", _SERIALIZABLE)
