"""What a network costs: parameters, multiply-accumulates, and accelerator memory of training.

MACs are multiply-accumulates of one forward pass of one sample, as torchprofile counts them on the reference: those of
convolutions and linears, and the elementwise products that the reference writes out (two in GRN, one in each adaLN
modulation). The paper calls them FLOPs; a multiply-accumulate is two floating-point operations, so FLOPs proper are
twice as many. Standard library only.
"""

import dataclasses

from fcdm_keras.network import block_costs
from fcdm_keras.network.cost_sums import Costs, vectors
from fcdm_keras.network.rivals import costs as rivals
from fcdm_keras.recipes.ablations import variant_of


def costs_of(size, height=32, width=32, **options):
    """The `Costs` of a network and one sample; arguments as in `count`."""
    total = Costs()
    COUNTS[size.network](total, size, height, width, **options)
    return total


def count(size, height=32, width=32, **options):
    """Parameters, and multiply-accumulates of one sample of `height` × `width`.

    Args:
        size: a `ModelSize`.
        height, width: size of x_t, as the network takes it.
        **options: as the count of the size's network in `COUNTS` takes them.

    Returns:
        Two integers.
    """
    total = costs_of(size, height, width, **options)
    return total.parameters, total.macs


def _fcdm(
    total,
    size,
    height,
    width,
    *,
    num_classes=1000,
    embedding_dim=None,
    in_channels=4,
    out_channels=None,
    expansion_ratio=None,
    kernel_size=None,
    frequency_dim=256,
):
    """An `FCDMBackbone` of these sizes; with `embedding_dim`, embeddings of so many numbers stand where classes do."""
    c, full = size.hidden_channels, height * width
    out_channels = out_channels or 2 * in_channels
    levels = ((c, full), (2 * c, full // 4), (4 * c, full // 16))
    _blocks(total, size, (*levels, levels[1], levels[0]), expansion_ratio, kernel_size)
    vectors(total, [d for d, _ in levels], num_classes, embedding_dim, frequency_dim)
    total.add(9 * in_channels * c, c, full)  # x_embedder
    for (d, pixels), (deeper, deeper_pixels) in zip(levels, levels[1:], strict=False):
        total.add(9 * d * deeper // 4, 0, pixels)  # down
        total.add(9 * deeper * d * 4, 0, deeper_pixels)  # up
        total.add(2 * d * d, d, pixels)  # merge
    total.add(9 * c * c, c, full)  # output_layer
    total.add(c * 2 * c, 2 * c, 1)  # final adaLN
    total.add(9 * c * out_channels, out_channels, full, products=c)


def _isotropic(
    total,
    size,
    height,
    width,
    *,
    num_classes=1000,
    embedding_dim=None,
    in_channels=4,
    out_channels=None,
    expansion_ratio=None,
    kernel_size=None,
    frequency_dim=256,
):
    """As `_fcdm`, of the variant `isotropic`."""
    c, pixels = size.hidden_channels, height * width // 4
    _blocks(total, size, ((c, pixels),), expansion_ratio, kernel_size)
    vectors(total, [c], num_classes, embedding_dim, frequency_dim)
    total.add(4 * in_channels * c, c, pixels)  # x_embedder
    total.add(c * 2 * c, 2 * c, 1)  # final adaLN
    total.add(c * 4 * (out_channels or 2 * in_channels), 4 * (out_channels or 2 * in_channels), pixels, products=c)


def _blocks(total, size, levels, expansion_ratio, kernel_size):
    row = variant_of(size.variant)
    sizes = (expansion_ratio or row.expansion_ratio, kernel_size or row.kernel_size)
    for (d, pixels), depth in zip(levels, size.depths, strict=True):
        for _ in range(depth):
            block_costs.add(total, row.block, block_costs.Block(d, pixels, *sizes))


# Each adds up what a network costs; networks without one are trained without estimates.
COUNTS = {"fcdm": _fcdm, "isotropic": _isotropic, **rivals.COUNTS}


def _fcdm_maps(size, pixels):
    """Numbers of one sample's feature maps that an FCDM keeps for the backward pass: all, and with checkpointing."""
    c = size.hidden_channels
    levels = [(c, pixels), (2 * c, pixels // 4), (4 * c, pixels // 16), (2 * c, pixels // 4), (c, pixels)]
    return _maps(size, levels)


def _isotropic_maps(size, pixels):
    return _maps(size, [(size.hidden_channels, pixels // 4)])


def _maps(size, levels):
    row = variant_of(size.variant)
    sizes = (row.expansion_ratio, row.kernel_size)
    kept = [block_costs.add(Costs(), row.block, block_costs.Block(d, p, *sizes)) * d * p for d, p in levels]
    inputs = sum(depth * d * p for (d, p), depth in zip(levels, size.depths, strict=True))
    # With checkpointing one input per block, and one block at a time in full.
    return sum(depth * maps for maps, depth in zip(kept, size.depths, strict=True)), inputs + max(kept)


MAPS = {"fcdm": _fcdm_maps, "isotropic": _isotropic_maps}


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one device: weights, gradients, AdamW's two moments, EMA, and activations of one micro-batch.

    Activations are 0 where the network has no estimate.
    """

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
    size = config.size
    if parameters is None:
        sizes = {"num_classes": config.num_classes, "in_channels": config.latent_channels}
        parameters, _ = count(size, latent_side, latent_side, **sizes)
    parameters //= model_parallel
    samples = _samples(config, data_parallel)
    element = 4 if config.precision == "float32" else 2
    kept = MAPS[size.network](size, latent_side**2) if size.network in MAPS else (0, 0)
    return TrainingMemory(
        weights=4 * parameters,
        gradients=4 * parameters,
        optimizer=8 * parameters,
        ema=4 * parameters,
        activations=samples * element * kept[0],
        activations_checkpointed=samples * element * kept[1],
    )


def describe_memory(config, latent_side, data_parallel=1, model_parallel=1, parameters=None):
    """The estimate as text, for the terminal; arguments as in `training_memory`."""
    memory = training_memory(config, latent_side, data_parallel, model_parallel, parameters)
    parts = ", ".join(f"{name} {gib(getattr(memory, name))}" for name in ("weights", "gradients", "optimizer", "ema"))
    if not memory.activations:
        return f"memory: {parts}, and activations on one device"
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
