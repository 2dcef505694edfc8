"""FCDM, the fully convolutional diffusion model, in Keras 3 for JAX, PyTorch and TensorFlow.

Names are imported on first use, so that `import fcdm_keras` and every `--help` are quick.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "FCDMBackbone": "backbone",
    "ClassConditioning": "conditioning",
    "GaussianDiffusion": "diffusion",
    "DiffusionTrainer": "trainer",
    "ClassToImage": "tasks",
    "Identity": "autoencoders",
    "KLAutoencoder": "autoencoders",
    "AdamW": "optimizers",
    "load_torch_checkpoint": "convert",
    "save_torch_state_dict": "convert",
    "MODEL_SIZES": "recipes",
    "RECIPES": "recipes",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f"fcdm_keras.{_HOMES[name]}"), name)
    try:
        return importlib.import_module(f"fcdm_keras.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"fcdm_keras.{name}":
            raise
        raise AttributeError(f"module 'fcdm_keras' has no attribute {name!r}") from None


def __dir__():
    return sorted(__all__)
