"""Train a KL autoencoder on your own images.

    python -m fcdm_keras.train_vae --output runs/vae                                # three embedded photographs
    python -m fcdm_keras.train_vae --source my_images/ --image-size 256 --resize 288 --block-out-channels \\
        128,256,512,512 --layers-per-block 2 --norm-num-groups 32 --output runs/my_vae

The number of levels gives the downsampling factor: 3 levels 4, 4 levels 8. The same command resumes a run that was
stopped at any moment. The folder then holds

    vae/                  config.json and safetensors as diffusers publishes them
    autoencoder.keras     the same for keras.saving.load_model
    reconstructions.png   held-out images, each above its reconstruction
    scores.json           PSNR on held-out images; mean and standard deviation of the latents
    log.csv, loss.png, checkpoints/, settings.json

`--vae DIR` of the other commands, and `KLAutoencoder.from_diffusers(DIR)`, take the folder as it is.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time

from fcdm_keras.files import write_atomically
from fcdm_keras.launch import add_device_flags, device_options
from fcdm_keras.vae_config import add_flags, config_from_flags, open_folder

FIELDS = ("step", "loss", "reconstruction", "kl", "images_per_second")
CURVES = {"reconstruction": "error of the values in [−1, 1]", "kl": "KL divergence, nats per value"}
SHOWN, COLUMNS = 32, 16  # held-out images in the grid
MEASURED = 256  # crops that the latents' scale is measured on


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fcdm_keras.train_vae",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser)
    parser.add_argument("--output", required=True, help="folder of the run")
    add_device_flags(parser)
    options = parser.parse_args(arguments)
    try:
        return config_from_flags(options), options
    except ValueError as error:
        parser.error(str(error))


def build_trainer(config):
    """A compiled `AutoencoderTrainer` with fresh weights, as `config` describes."""
    import keras

    from fcdm_keras import backend
    from fcdm_keras.autoencoders import KLAutoencoder
    from fcdm_keras.autoencoders.trainer import AutoencoderTrainer
    from fcdm_keras.optimizers import AdamW

    backend.allow_tf32()
    keras.utils.set_random_seed(config.seed % 2**32)
    autoencoder = KLAutoencoder(
        config.block_out_channels,
        config.layers_per_block,
        config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        scaling_factor=1.0,  # measured after training
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
    from fcdm_keras.autoencoders import KLAutoencoder

    return KLAutoencoder.from_config({**trainer.autoencoder.get_config(), "dtype": "float32"})


def draw_grid(autoencoder, held_out, folder):
    """Writes `reconstructions.png`: rows of held-out images, each above the row of their reconstructions."""
    import numpy as np

    from fcdm_keras import distribution, images
    from fcdm_keras.evaluation.reconstruction import reconstruct

    shown = held_out[:: max(1, len(held_out) // SHOWN)][:SHOWN]
    decoded = reconstruct(autoencoder, shown)
    if not distribution.is_main():
        return
    columns = min(COLUMNS, len(shown))
    rows = [part[start : start + columns] for start in range(0, len(shown), columns) for part in (shown, decoded)]
    rows = [np.concatenate([row, np.full((columns - len(row), *row.shape[1:]), 255, "uint8")]) for row in rows]
    images.grid(np.concatenate(rows), columns).save(folder / ".reconstructions.png")
    os.replace(folder / ".reconstructions.png", folder / "reconstructions.png")


def train(config, folder, images, held_out):
    """Trains to the last step, resuming what is in `folder`. Returns the autoencoder with the averaged weights."""
    import keras

    from fcdm_keras import backend, callbacks, distribution
    from fcdm_keras.checkpoint import CheckpointManager
    from fcdm_keras.data.crops import crop_batches
    from fcdm_keras.plots import plot_losses

    distribution.check_batch(config.batch_size, config.accumulation_steps)
    manager = CheckpointManager(folder / "checkpoints", keep_last=2)
    trainer = build_trainer(config)
    start = manager.restore(trainer) or 0
    average = averaged(trainer)
    main = distribution.is_main()
    distribution.say(
        f"{folder}: autoencoder of factor {config.downsampling_factor}, {trainer.autoencoder.count_params():,} "
        f"parameters, {len(images):,} images of {config.source}, {len(held_out):,} crops held out, Keras "
        f"{keras.__version__} on {keras.backend.backend()}, {config.steps:,} steps of {config.batch_size} crops"
        + (f", resumed at step {start:,}" if start else "")
    )

    class Grid(callbacks.StepCallback):
        def on_step(self, logs):
            if self.due(config.sample_every):
                trainer.ema.copy_to(average)
                draw_grid(average, held_out, folder)

    if start < config.steps:
        shown = [callbacks.Progress(config.steps)] if main else []
        writers = [callbacks.CSVWriter(folder / "log.csv", start, FIELDS), *shown] if main else []
        rows = distribution.batch_rows(config.batch_size)
        batches = crop_batches(images, config.image_size, config.batch_size, config.steps, config.seed, start, rows)
        trainer.fit(
            backend.feed(batches),
            steps_per_epoch=config.steps - start,
            verbose=0,
            shuffle=False,
            callbacks=[
                callbacks.StepLog(config.log_every, config.batch_size, writers),
                callbacks.StopOnNonFinite(),
                callbacks.Checkpoint(manager, config.ckpt_every),
                Grid(),
                *shown,
            ],
        )
    if main:
        plot_losses(folder / "log.csv", folder / "loss.png", CURVES)
    trainer.ema.copy_to(average)
    return average


def export(config, autoencoder, folder, images, held_out):
    """Measures, sets scale and shift, writes the autoencoder, grid and scores. Returns the scores."""
    import numpy as np

    from fcdm_keras import distribution
    from fcdm_keras.data.crops import RandomCrops
    from fcdm_keras.evaluation.reconstruction import latent_moments, psnr, reconstruct

    crops = RandomCrops(images, config.image_size, MEASURED, 1, config.seed)[0]["images"]
    mean, std = latent_moments(autoencoder, crops)
    autoencoder.scaling_factor, autoencoder.shift_factor = 1.0 / std, mean
    if distribution.is_main():
        autoencoder.save_diffusers(folder / ".unfinished-vae")
        shutil.rmtree(folder / "vae", ignore_errors=True)
        os.replace(folder / ".unfinished-vae", folder / "vae")
        autoencoder.save(folder / ".unfinished.keras")
        os.replace(folder / ".unfinished.keras", folder / "autoencoder.keras")
    draw_grid(autoencoder, held_out, folder)
    scores = {
        "steps": config.steps,
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
        write_atomically(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    distribution.barrier()  # behind it, the files are there for every process
    return scores


def run(config, folder):
    """Trains and exports. Returns the scores."""
    from fcdm_keras import distribution
    from fcdm_keras.data.crops import open_images
    from fcdm_keras.distribution.supervision import check_agreement, check_shared

    check_agreement(dataclasses.asdict(config))
    check_shared(folder)
    images, held_out, notes = open_images(config.source, config.image_size, config.resize)
    for note in notes:
        distribution.say(f"note: {note}")
    autoencoder = train(config, folder, images, held_out)
    for file, reason in getattr(images, "skipped", {}).items():
        distribution.say(f"note: {file} was left out: {reason}")
    return export(config, autoencoder, folder, images, held_out)


def main(arguments=None):
    began = time.perf_counter()
    config, options = parse(arguments)
    try:
        folder = open_folder(options.output, config)
        from fcdm_keras import distribution

        with distribution.setup(**device_options(options)):
            scores = run(config, folder)
            if not distribution.is_main():
                return
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command resumes from the last checkpoint.")
    print(
        f"\nPSNR on {scores['held_out_crops']} held-out crops: {scores['psnr']:.2f} dB (training crops "
        f"{scores['psnr_train']:.2f} dB)\nlatents: mean {scores['latent_mean']:.4f}, standard deviation "
        f"{scores['latent_std']:.4f}, so scaling_factor {scores['scaling_factor']:.5f}\n"
        f"{time.perf_counter() - began:.0f} s in all; the autoencoder is in {folder}/vae/ and "
        f"{folder}/autoencoder.keras, pictures and scores beside it"
    )


if __name__ == "__main__":
    main()
