"""Autoencoders between images and the latents that are diffused; `fcdm_keras.autoencoders.base` has their contract."""

from fcdm_keras.autoencoders.base import Identity, SpaceToDepth, sample_posterior, to_uint8
from fcdm_keras.autoencoders.kl import KLAutoencoder
from fcdm_keras.autoencoders.patch import PatchAutoencoder

__all__ = ["Identity", "KLAutoencoder", "PatchAutoencoder", "SpaceToDepth", "sample_posterior", "to_uint8"]
