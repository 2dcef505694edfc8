"""FCDM, the fully convolutional diffusion model, in Keras 3 for JAX, PyTorch and TensorFlow.

Names are imported on first use, so that `import fcdm_keras` and every `--help` are quick.
"""

import importlib

from fcdm_keras import moved, registry

__version__ = "0.1.0"

_HOMES = {
    "FCDMBackbone": "network.fcdm",
    "ClassConditioning": "network.conditioning",
    "GaussianDiffusion": "diffusion",
    "DiffusionTrainer": "training.trainer",
    "ClassToImage": "sampling.tasks",
    "Identity": "autoencoders",
    "KLAutoencoder": "autoencoders",
    "AdamW": "training.optimizer",
    "load_torch_checkpoint": "network.reference",
    "save_torch_state_dict": "network.reference",
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


_HOMES_BEFORE = {
    "analysis": ("reporting.analysis",),
    "autoencoders.compiled": ("autoencoders.base",),
    "autoencoders.identity": ("autoencoders.base",),
    "autoencoders.space_to_depth": ("autoencoders.base",),
    "autoencoders.trainer": ("training.autoencoder",),
    "backbone": ("network.fcdm",),
    "callbacks": ("training.callbacks",),
    "checkpoint": ("training.checkpoint",),
    "conditioning": ("network.conditioning",),
    "data.digits": ("data.embedded",),
    "data.encoding": ("data.latent_writer",),
    "data.npz": ("formats.npz",),
    "data.photos": ("data.embedded",),
    "data.training_data": ("runs.data", "data.batches"),
    "distribution.agreement": ("distribution.supervision",),
    "distribution.watch": ("distribution.supervision",),
    "drawing": ("sampling.request", "sampling.flags"),
    "ema": ("training.ema",),
    "engine": ("backend",),
    "evaluation.graph": ("evaluation.inception.graph",),
    "evaluation.graph_ops": ("evaluation.inception.graph_ops",),
    "evaluation.graph_values": ("evaluation.inception.graph_values",),
    "evaluation.sources": ("evaluation.image_sets",),
    "fitting": ("runs.fit", "runs.data"),
    "guidance": ("diffusion.guidance",),
    "hub": ("backend.hub",),
    "images": ("sampling.writers",),
    "initializers": ("network.initializers",),
    "launch": ("distribution.launch", "options"),
    "layers": ("network.layers", "network.resampling"),
    "memory": ("network.costs",),
    "network.torch_files": ("formats.torch_files", "formats.numbers"),
    "npz": ("formats.npz",),
    "optimizers": ("training.optimizer",),
    "paper": ("reporting.paper",),
    "plots": ("training.plots",),
    "presets": ("recipes", "options"),
    "pulse": ("training.pulse",),
    "randomness": ("diffusion.randomness",),
    "report_page": ("reporting.page",),
    "run_folder": ("runs.folder",),
    "samplers": ("diffusion.samplers",),
    "step_trainer": ("training.step",),
    "tasks": ("sampling.tasks",),
    "trainer": ("training.trainer",),
    "vae_config": ("recipes", "options"),
}
moved.keep({f"fcdm_keras.{old}": tuple(f"fcdm_keras.{home}" for home in now) for old, now in _HOMES_BEFORE.items()})

_SERIALIZABLE = {
    "autoencoders.base": ("Identity", "SpaceToDepth"),
    "autoencoders.kl": ("KLAutoencoder",),
    "autoencoders.patch": ("PatchAutoencoder",),
    "network.conditioning": ("ClassConditioning",),
    "network.fcdm": ("FCDMBackbone", "IsotropicBackbone"),
    "network.initializers": ("Centre", "Normal", "Uniform", "XavierUniform"),
    "network.isotropic": ("PatchFinalLayer",),
    "network.layers": ("Conv2D", "Linear", "DepthwiseConv", "GRN", "FCDMBlock", "TimestepEmbedding", "FinalLayer"),
    "network.resampling": ("Downsample", "Upsample"),
    "network.rivals.attention": ("Attention", "MLP"),
    "network.rivals.dic": ("DiCBackbone", "DiCBlock"),
    "network.rivals.dico": ("DiCoBackbone", "DiCoBlock"),
    "network.rivals.dig": ("DiGBackbone", "DiGBlock", "GatedMLP"),
    "network.rivals.dit": ("DiTBackbone", "DiTBlock", "SiTBackbone"),
    "network.rivals.recurrence": ("GatedLinearAttention",),
    "network.rivals.tokens": ("FinalTokens",),
    "network.rivals.uvit": ("UViTBackbone", "UViTBlock"),
    "network.variants": (
        "CCA",
        "NeighborhoodAttention",
        "CCABlock",
        "FeedforwardBlock",
        "CCAFeedforwardBlock",
        "ResNetBlock",
        "NeighborhoodBlock",
    ),
    "sampling.tasks": ("ClassToImage",),
    "training.ema": ("EMA",),
    "training.optimizer": ("AdamW",),
}
registry.offer("fcdm_keras", _SERIALIZABLE)
