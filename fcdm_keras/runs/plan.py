"""What a run needs, looked at before any of it is made: seconds here, lest hours are lost later."""

import dataclasses
import shutil

from fcdm_keras import backend, distribution
from fcdm_keras.distribution.supervision import check_agreement, check_shared
from fcdm_keras.machine import memory
from fcdm_keras.network import costs
from fcdm_keras.recipes.ablations import variant_of
from fcdm_keras.runs import build, data
from fcdm_keras.runs.folder import CHECKPOINTS, newest_step

STATE = 4 * 4  # bytes of one parameter in a checkpoint: weight, average, and AdamW's two moments, in float32


def check(config, folder, dataset):
    """Raises ValueError or OSError, in one sentence, for a run that this machine, its data or its folder cannot hold.

    Args:
        config: a `TrainConfig`.
        folder: the run folder.
        dataset: see `fcdm_keras.runs.datasets`.
    """
    distribution.check_batch(config.global_batch_size, config.accumulation_steps)
    size, smallest = config.size, variant_of(config.variant).smallest_side
    distribution.check_model(size.hidden_channels)
    check_agreement(dataclasses.asdict(config))
    check_shared(folder)
    side = dataset.latent_side(config) if hasattr(dataset, "latent_side") else None
    if side is not None and side < smallest:
        raise ValueError(
            f"The variant {config.variant} needs latents of at least {smallest}×{smallest}: give a larger "
            f"--image-size. Received: {side}×{side}"
        )
    if side is not None and size.network in costs.COUNTS:
        parameters, _ = costs.count(size, side, side, in_channels=config.latent_channels, num_classes=1)
        check_disk(folder, STATE * parameters, config)
        _check_memory(config, side, parameters)
    if getattr(dataset, "makes", ()) and not config.latents:
        _check_what_follows(config, folder, dataset)


def check_autoencoder(config, folder):
    """As `check`, for the run of an autoencoder.

    Args:
        config: a `VAEConfig`.
        folder: the run folder.
    """
    distribution.check_batch(config.batch_size, config.accumulation_steps)
    check_agreement(dataclasses.asdict(config))
    check_shared(folder)
    blocks = 2 * config.layers_per_block + 1  # of a level in encoder and decoder, each with such a convolution at least
    parameters = sum(blocks * 9 * width**2 for width in config.block_out_channels)
    check_disk(folder, STATE * parameters, config, keep_last=2)
    rows = config.batch_size // distribution.job().data_parallel
    needed = 3 * 4 * rows * config.image_size**2
    if _computes_here():
        maps = 4 * rows // config.accumulation_steps * config.image_size**2 * config.block_out_channels[0]
        needed += STATE * parameters + blocks * maps
    memory.check(
        needed,
        f"Training an autoencoder with {config.batch_size:,} crops of {config.image_size}×{config.image_size} per step",
        "use a smaller --batch-size, more --accumulation-steps, smaller crops, or fewer channels",
    )


def check_disk(folder, size, config, keep_last=None):
    """Raises OSError if the checkpoints of a run find no room beside what its folder holds.

    Args:
        folder: the run folder.
        size: bytes of one checkpoint.
        config: the run's settings, with `steps` and `ckpt_every`.
        keep_last: checkpoints kept; default the settings' own.
    """
    if not distribution.is_main():
        return
    count = 1 + min(keep_last or config.keep_last, -(-config.steps // config.ckpt_every))  # a new one beside those kept
    there = sum(file.stat().st_size for file in (folder / CHECKPOINTS).glob("step-*/*") if file.is_file())
    needed, free = count * size - there, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{count} checkpoints of {memory.size(size)} need {memory.size(needed)} more in {folder}, and the disk has "
            f"{memory.size(free)} free: make room, choose a smaller model or another folder."
        )


def _check_memory(config, side, parameters):
    """What trains surely needs: the batch on the host, and where that computes, weights and checkpointed maps."""
    placed = distribution.job()
    rows = config.global_batch_size // placed.data_parallel
    needed = 3 * 4 * rows * config.latent_channels * side**2
    if _computes_here():
        estimate = costs.training_memory(config, side, placed.data_parallel, placed.model_parallel, parameters)
        needed += estimate.total(checkpointed=True)
    memory.check(
        needed,
        f"Training {config.model_name} in batches of {config.global_batch_size:,}",
        "use a smaller --global-batch-size, more --accumulation-steps, a smaller model, or more devices",
    )
    images = config.num_eval_samples * config.image_size**2 * 3 if config.eval_every else 0
    memory.check(images, f"{config.num_eval_samples:,} images to score", "use a smaller --num-eval-samples")


def _computes_here():
    """Whether the network's memory is the host's."""
    return "cpu" in backend.devices()[0].lower()


def _check_what_follows(config, folder, dataset):
    """What would be found missing only when an autoencoder has been trained."""
    if config.eval_every and config.eval_reference:
        data.reference_judge(config)
    if config.init_from and newest_step(folder) is None:
        build.check_start(dataset.load_start(config.init_from), build.build_backbone(config))
