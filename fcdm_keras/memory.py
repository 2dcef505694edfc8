"""Accelerator memory of training, from the architecture. Standard library only."""

import dataclasses

from fcdm_keras.model_table import count
from fcdm_keras.recipes import MODEL_SIZES

# Feature maps that the backward pass of one block needs, in units of its width d: the block's input, after the
# depthwise convolution, normalised, modulated, after the second linear; and three of the hidden width 3d.
_BLOCK_MAPS = 5 + 3 * 3


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one device: weights, gradients, AdamW's two moments, EMA, and activations of one micro-batch."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    activations_checkpointed: int

    def total(self, checkpointed):
        """Bytes in all, with or without gradient checkpointing."""
        fixed = self.weights + self.gradients + self.optimizer + self.ema
        return fixed + (self.activations_checkpointed if checkpointed else self.activations)


def training_memory(config, latent_side, data_parallel=1, model_parallel=1, parameters=None):
    """An estimate for a `TrainConfig` on one device.

    Weights, gradients, moments and EMA are exact (float32). Activations are what the blocks keep for the backward pass;
    kernels' work space and what a compiler fuses away are not counted.

    Args:
        config: a `TrainConfig`.
        latent_side: height and width of the latents.
        data_parallel: devices, or groups of devices, that the batch is cut over.
        model_parallel: devices that share one copy of the model, each with about its part.
        parameters: of the model; default those of one that is conditioned on the config's classes.

    Returns:
        A `TrainingMemory`.
    """
    size = MODEL_SIZES[config.model]
    if parameters is None:
        sizes = {"num_classes": config.num_classes, "in_channels": config.latent_channels}
        parameters, _ = count(size, latent_side, latent_side, **sizes)
    parameters //= model_parallel
    samples = _samples(config, data_parallel)
    element = 4 if config.precision == "float32" else 2
    c, pixels = size.hidden_channels, latent_side**2
    widths = [(c, pixels), (2 * c, pixels // 4), (4 * c, pixels // 16), (2 * c, pixels // 4), (c, pixels)]
    maps = [(depth, d * p * samples * element) for (d, p), depth in zip(widths, size.depths, strict=True)]
    return TrainingMemory(
        weights=4 * parameters,
        gradients=4 * parameters,
        optimizer=8 * parameters,
        ema=4 * parameters,
        activations=_BLOCK_MAPS * sum(depth * bytes_ for depth, bytes_ in maps),
        # One input per block, and one block at a time in full.
        activations_checkpointed=sum(depth * bytes_ for depth, bytes_ in maps) + _BLOCK_MAPS * max(b for _, b in maps),
    )


def describe_memory(config, latent_side, data_parallel=1, model_parallel=1, parameters=None):
    """The estimate as text, for the terminal; arguments as in `training_memory`."""
    memory = training_memory(config, latent_side, data_parallel, model_parallel, parameters)
    parts = ", ".join(f"{name} {gib(getattr(memory, name))}" for name in ("weights", "gradients", "optimizer", "ema"))
    return (
        f"memory: {parts}; "
        f"activations of {_samples(config, data_parallel)} samples about {gib(memory.activations)}, with "
        f"--gradient-checkpointing {gib(memory.activations_checkpointed)}; in all about "
        f"{gib(memory.total(config.gradient_checkpointing))} on one device"
    )


def _samples(config, data_parallel):
    """Samples that a device works on at once."""
    return config.global_batch_size // config.accumulation_steps // data_parallel


def gib(size):
    """Bytes as GiB or MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
