"""The autoencoder of the recipe `shapes`, trained on drawn scenes in a few minutes, once per run."""

import json
import shutil

import keras
import numpy as np

from fcdm_keras import distribution
from fcdm_keras.autoencoders import PatchAutoencoder
from fcdm_keras.data.batches import training_batches
from fcdm_keras.files import replacing
from fcdm_keras.formats.npz import array_names, load_small
from fcdm_keras.runs import loop
from fcdm_keras.runs.owned import OwnedCheckpoints
from fcdm_keras.training import callbacks
from fcdm_keras.training.autoencoder import AutoencoderTrainer
from fcdm_keras.training.optimizer import AdamW
from t2i.shapes.drawing import draw_all
from t2i.shapes.scenes import random_scene

FACTOR = 4  # pixels to a latent
WARMUP, LEARNING_RATE = 50, 3e-3
LOG_EVERY, CHECKPOINT_EVERY = 100, 250
FILE, UNFINISHED = "autoencoder.npz", "autoencoder"  # in the run folder: its weights; checkpoints until it is trained
MEASURED = 1000  # scenes for the latents' statistics


class Scenes:
    """Pictures of the training split alone, as a source of training batches: no picture comes twice."""

    def __init__(self, seed, count):
        self.seed, self.count = seed, count

    def __len__(self):
        return self.count

    def take(self, samples, places):
        """`images` uint8 `(B, 32, 32, 3)`."""
        return {"images": draw_all([random_scene(self.seed, int(sample)) for sample in samples])}


def open_autoencoder(config, folder):
    """The autoencoder of a run: read from its folder (a `Path`), or trained and left there.

    Training resumes from its last checkpoint. With several processes, all must call this together.

    Args:
        config: a `TextTrainConfig`.
        folder: the run folder.

    Raises:
        ValueError: the file in the folder is damaged.
    """
    finished = json.loads(distribution.gather_texts(json.dumps((folder / FILE).exists()))[0])
    return read_autoencoder(config, folder) if finished else _train(config, folder)


def read_autoencoder(config, folder):
    """The autoencoder in a run folder. Raises ValueError if its file is damaged or of other sizes."""
    autoencoder = PatchAutoencoder(FACTOR, config.latent_channels)
    try:
        names = array_names(folder / FILE)
        autoencoder.set_weights([load_small(folder / FILE, name, "f") for name in names])
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{folder / FILE} is damaged ({reason}): remove it, and it is trained again.") from None
    return autoencoder


def _train(config, folder):
    """Trains to the last step, and writes the averaged weights."""
    keras.utils.set_random_seed(config.seed % 2**32)
    autoencoder = PatchAutoencoder(FACTOR, config.latent_channels)
    steps, batch_size = config.autoencoder_steps, config.global_batch_size
    trainer = AutoencoderTrainer(autoencoder, loss="l2", kl_weight=0.0, ema_decay=0.99, seed=config.seed)
    warmup = min(WARMUP, steps // 2)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, alpha=0.01, warmup_target=LEARNING_RATE, warmup_steps=warmup
    )
    trainer.compile(AdamW(schedule))
    manager = OwnedCheckpoints(folder / UNFINISHED, keep_last=1)
    start = manager.restore(trainer) or 0
    distribution.say(
        f"autoencoder: {autoencoder.count_params():,} parameters, trained first, for {steps:,} steps of {batch_size} "
        "scenes" + (f", resumed at step {start:,}" if start else "")
    )
    if start < steps:
        progress = [callbacks.Progress(steps)] if distribution.is_main() else []
        scenes = Scenes(config.seed, steps * batch_size)
        rows = distribution.batch_rows(batch_size)
        loop.fit(
            trainer,
            training_batches(scenes, batch_size, steps, config.seed, start, config.data_workers, rows),
            manager,
            start,
            steps,
            log=(LOG_EVERY, batch_size, progress),
            ckpt_every=CHECKPOINT_EVERY,
            progress=progress,
        )
    trainer.ema.copy_to(autoencoder)
    autoencoder.adapt(draw_all([random_scene(config.seed, index) for index in range(MEASURED)]))
    weights = distribution.host_arrays([variable.value for variable in autoencoder.weights])
    if distribution.is_main():
        with replacing(folder / FILE) as file:
            np.savez(file, *weights)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    distribution.barrier()
    return autoencoder
