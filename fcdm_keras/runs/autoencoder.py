"""The run of `python -m fcdm_keras.train_vae`: an autoencoder trained, measured and exported."""

import os

import keras
import numpy as np

from fcdm_keras import backend, distribution, signals
from fcdm_keras.autoencoders import KLAutoencoder
from fcdm_keras.data.crops import RandomCrops, crop_batches, open_images
from fcdm_keras.evaluation.reconstruction import latent_moments, psnr, reconstruct
from fcdm_keras.files import replacing, replacing_folder, sync, write_atomically
from fcdm_keras.options import to_json
from fcdm_keras.runs import loop, owner, plan
from fcdm_keras.runs.folder import CHECKPOINTS, LOG, LOSSES, SCORES, VAE
from fcdm_keras.runs.history import describe, read_history, settle
from fcdm_keras.runs.owned import OwnedCheckpoints
from fcdm_keras.sampling.writers import grid
from fcdm_keras.training import callbacks
from fcdm_keras.training.autoencoder import AutoencoderTrainer
from fcdm_keras.training.optimizer import AdamW
from fcdm_keras.training.plots import plot_losses

FIELDS = ("step", "loss", "reconstruction", "kl", "images_per_second")
CURVES = {"reconstruction": "error of the values in [−1, 1]", "kl": "KL divergence, nats per value"}
SHOWN, COLUMNS = 32, 16  # held-out images in the grid
MEASURED = 256  # crops that the latents' scale is measured on


def build_trainer(config):
    """A compiled `AutoencoderTrainer` with fresh weights, as `config` describes."""
    backend.allow_tf32()
    keras.utils.set_random_seed(config.seed % 2**32)
    autoencoder = KLAutoencoder(
        config.block_out_channels,
        config.layers_per_block,
        config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        scaling_factor=1.0,  # measured after training
        force_upcast=config.precision != "mixed_float16",  # what is trained in float16 fits into it
        dtype=config.precision,
    )
    trainer = AutoencoderTrainer(
        autoencoder,
        loss=config.loss,
        kl_weight=config.kl_weight,
        ema_decay=config.ema_decay,
        accumulation_steps=config.accumulation_steps,
        seed=config.seed,
    )
    trainer.compile(AdamW(config.learning_rate, global_clipnorm=config.clip_norm or None))
    return trainer


def averaged(trainer):
    """An autoencoder of the trainer's architecture, in float32, to hold the averaged weights."""
    return KLAutoencoder.from_config({**trainer.autoencoder.get_config(), "dtype": "float32"})


def draw_grid(autoencoder, held_out, folder):
    """Writes `reconstructions.png`: rows of held-out images, each above the row of their reconstructions."""
    shown = held_out[:: max(1, len(held_out) // SHOWN)][:SHOWN]
    decoded = reconstruct(autoencoder, shown)
    if not distribution.is_main():
        return
    columns = min(COLUMNS, len(shown))
    rows = [part[start : start + columns] for start in range(0, len(shown), columns) for part in (shown, decoded)]
    rows = [np.concatenate([row, np.full((columns - len(row), *row.shape[1:]), 255, "uint8")]) for row in rows]
    with replacing(folder / "reconstructions.png") as file:
        grid(np.concatenate(rows), columns).save(file, "PNG")


def _resume(trainer, manager, config, folder):
    """Restores the newest checkpoint, and takes what was changed since. Returns its step, 0 where there is none."""
    start = manager.restore(trainer) or 0
    trainer.optimizer.learning_rate = config.learning_rate
    if distribution.is_main():
        settle(folder, start)
    return start


def train(config, folder, images, held_out):
    """Trains to the last step, resuming what is in `folder`.

    Returns:
        The autoencoder with the averaged weights, and the steps done.
    """
    manager = OwnedCheckpoints(folder / CHECKPOINTS, keep_last=2)
    trainer = build_trainer(config)
    start = _resume(trainer, manager, config, folder)
    average = averaged(trainer)
    distribution.say(
        f"{folder}: autoencoder of factor {config.downsampling_factor}, {trainer.autoencoder.count_params():,} "
        f"parameters, {len(images):,} images of {config.source}, {len(held_out):,} crops held out, Keras "
        f"{keras.__version__} on {keras.backend.backend()}, {config.steps:,} steps of {config.batch_size} crops"
        + (f", resumed at step {start:,}" if start else "")
    )
    for entry in read_history(folder):
        distribution.say(describe(entry))

    def draw():
        trainer.ema.copy_to(average)
        draw_grid(average, held_out, folder)

    if start < config.steps:
        _fit(config, folder, images, trainer, manager, start, draw)
    loop.tell_if_beyond(folder, start, config.steps)
    owner.check(folder)
    trainer.ema.copy_to(average)
    return average, trainer.steps_done


def _fit(config, folder, images, trainer, manager, start, draw):
    progress, writers = [], []
    if distribution.is_main():
        progress = [callbacks.Progress(config.steps)]
        writers = [callbacks.CSVWriter(folder / LOG, loop.logged_until(manager, start), FIELDS), *progress]
    rows = distribution.batch_rows(config.batch_size)
    loop.fit(
        trainer,
        crop_batches(images, config.image_size, config.batch_size, config.steps, config.seed, start, rows),
        manager,
        start,
        config.steps,
        log=(config.log_every, config.batch_size, writers),
        ckpt_every=config.ckpt_every,
        progress=progress,
        drawing=[Grid(config.sample_every, draw)],
        advice=loop.advice(config),
    )


class Grid(callbacks.StepCallback):
    """Calls `draw()` every `every` steps."""

    def __init__(self, every, draw):
        super().__init__()
        self.every, self.draw = every, draw

    def on_step(self, logs):
        if self.due(self.every):
            try:
                with signals.interruptible():
                    self.draw()
            except OSError as error:
                distribution.say(f"There is no grid of step {self.step}. {error}")


def export(config, autoencoder, folder, images, held_out, steps):
    """Measures, sets scale and shift, writes the autoencoder, curves, grid and scores. Returns the scores.

    Raises:
        OSError: something cannot be written; all else is.
    """
    finishing = loop.Finishing(folder)
    crops = RandomCrops(images, config.image_size, MEASURED, 1, config.seed)[0]["images"]
    mean, std = latent_moments(autoencoder, crops)
    autoencoder.scaling_factor, autoencoder.shift_factor = 1.0 / std, mean
    if distribution.is_main():
        with finishing.step(VAE), replacing_folder(folder / VAE) as unfinished:
            autoencoder.save_diffusers(unfinished)
        with finishing.step("autoencoder.keras"):
            autoencoder.save(folder / ".unfinished.keras")
            sync(folder / ".unfinished.keras")
            os.replace(folder / ".unfinished.keras", folder / "autoencoder.keras")
        with finishing.step(LOSSES), replacing(folder / LOSSES) as picture:
            plot_losses(folder / LOG, picture, CURVES)
    with finishing.step("reconstructions.png"):
        draw_grid(autoencoder, held_out, folder)
    scores = {
        "steps": steps,
        "psnr": float(np.mean(psnr(held_out, reconstruct(autoencoder, held_out)))),
        "psnr_train": float(np.mean(psnr(crops, reconstruct(autoencoder, crops)))),
        "held_out_crops": len(held_out),
        "latent_mean": mean,
        "latent_std": std,
        "scaling_factor": autoencoder.scale,
        "shift_factor": autoencoder.shift,
        "weights_hash": autoencoder.weights_hash(),
    }
    if distribution.is_main():
        with finishing.step(SCORES):
            write_atomically(folder / SCORES, to_json(scores))
    finishing.end()  # behind it, the files are there for every process
    return scores


def train_and_export(config, folder):
    """Trains, measures and exports, or goes on with what is in the folder. Returns the scores."""
    plan.check_autoencoder(config, folder)
    images, held_out, notes = open_images(config.source, config.image_size, config.resize)
    for note in notes:
        distribution.say(f"note: {note}")
    autoencoder, steps = train(config, folder, images, held_out)
    for file, reason in getattr(images, "skipped", {}).items():
        distribution.say(f"note: {file} was left out: {reason}")
    scores = export(config, autoencoder, folder, images, held_out, steps)
    distribution.say(
        f"\nPSNR on {scores['held_out_crops']} held-out crops: {scores['psnr']:.2f} dB (training crops "
        f"{scores['psnr_train']:.2f} dB)\nlatents: mean {scores['latent_mean']:.4f}, standard deviation "
        f"{scores['latent_std']:.4f}, so scaling_factor {scores['scaling_factor']:.5f}"
    )
    return scores
