"""The mathematics: the process, objectives, samplers, guidance and random numbers. It knows a network as a function."""

from fcdm_keras.diffusion.gaussian import GaussianDiffusion

__all__ = ["GaussianDiffusion"]
