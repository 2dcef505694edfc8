"""The mathematics: the process, objectives, samplers, guidance and random numbers. It knows a network as a function."""

from fcdm_keras.diffusion.flow import FlowMatching
from fcdm_keras.diffusion.gaussian import (
    GaussianDiffusion,
    discretized_gaussian_log_likelihood,
    gather,
    normal_kl,
    respaced_timesteps,
    split_output,
)

__all__ = [
    "FlowMatching", "GaussianDiffusion", "discretized_gaussian_log_likelihood", "gather", "normal_kl",
    "respaced_timesteps", "split_output",
]  # fmt: skip
