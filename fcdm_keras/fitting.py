"""The training loop of a run: resume, callbacks, `fit`, and what is written at the end."""

import shutil

import keras
import numpy as np

from fcdm_keras import callbacks, runs
from fcdm_keras.checkpoint import CheckpointManager
from fcdm_keras.data.training_data import open_training_data
from fcdm_keras.memory import describe_memory
from fcdm_keras.plots import plot_losses

GRID_CLASSES, GRID_COLUMNS = 10, 10


def fit_run(config, folder):
    """Trains a run to its last step, resuming what is in its folder.

    Args:
        config: a `TrainConfig`.
        folder: the run folder.

    Returns:
        The trainer and the task that samples from it.

    Raises:
        ValueError, OSError: the data, the weights to start from, or the folder's checkpoints do not fit the run.
        FloatingPointError: the loss is not finite.
    """
    manager = CheckpointManager(folder / "checkpoints", config.keep_last, config.keep_every)
    data = open_training_data(config, folder)
    backbone = runs.build_backbone(config)
    if config.init_from and not manager.steps():
        done = runs.copy_weights(runs.load_backbone(config.init_from), backbone)
        print(f"Started from {config.init_from}: {done}.")
    trainer = runs.build_trainer(config, backbone)
    start = manager.restore(trainer) or 0
    task = runs.build_task(config, trainer.backbone, data.autoencoder)
    _say(config, folder, data, trainer, start)
    log = callbacks.CSVWriter(folder / "log.csv", start)
    if start < config.steps:
        shutil.rmtree(folder / "preset", ignore_errors=True)  # of a shorter run
        trainer.fit(
            data.batches(config, start),
            steps_per_epoch=config.steps - start,
            verbose=0,
            shuffle=False,
            callbacks=_callbacks(config, folder, task, manager, log, start),
        )
    plot_losses(folder / "log.csv", folder / "loss.png")
    runs.export_preset(trainer, config, folder / "preset", data.autoencoder)
    return trainer, task


def sampling_options(config):
    """Arguments of `generate` that a run's settings decide."""
    return {
        "num_steps": config.num_sampling_steps,
        "guidance_scale": config.cfg_scale,
        "sampler": config.sampler,
    }


def sample_grid(config, folder, task):
    """The callback that draws a run's grids: ten images of each of (up to) ten classes spread over all."""
    classes = np.linspace(0, config.num_classes - 1, min(GRID_CLASSES, config.num_classes)).round().astype(int)
    labels = np.repeat(classes, GRID_COLUMNS)
    options = {**sampling_options(config), "seed": config.seed, "batch_size": 100 if config.image_size < 64 else 10}
    return callbacks.SampleGrid(task, labels, folder, config.sample_every, GRID_COLUMNS, **options)


def _callbacks(config, folder, task, manager, log, start):
    progress = callbacks.Progress(config.steps)
    writers = [log, callbacks.TensorBoardWriter(folder / "tensorboard", start), progress]
    return [
        callbacks.StepLog(config.log_every, config.global_batch_size, writers),
        callbacks.StopOnNonFinite(),
        callbacks.Checkpoint(manager, config.ckpt_every),
        sample_grid(config, folder, task),
        progress,
    ]


def _say(config, folder, data, trainer, start):
    print(
        f"{folder}: FCDM-{config.model}, {trainer.backbone.count_params():,} parameters, Keras {keras.__version__} on "
        f"{keras.backend.backend()}, {config.steps:,} steps of {config.global_batch_size} images"
        + (f", resumed at step {start:,}" if start else "")
    )
    side = config.image_size // data.autoencoder.downsampling_factor
    print(f"data: {data.description}\n{describe_memory(config, side)}")
