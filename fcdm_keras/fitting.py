"""The training loop of a run: resume, callbacks, `fit`, and what is written at the end."""

import shutil

import keras
import numpy as np

from fcdm_keras import callbacks, runs
from fcdm_keras.checkpoint import CheckpointManager
from fcdm_keras.data.training_data import open_training_data
from fcdm_keras.evaluation.callback import Evaluate
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
    return callbacks.SampleGrid(task, labels, folder, config.sample_every, GRID_COLUMNS, **_drawing(config))


def _drawing(config):
    return {**sampling_options(config), "seed": config.seed, "batch_size": 100 if config.image_size < 64 else 10}


def _callbacks(config, folder, task, manager, log, start):
    progress = callbacks.Progress(config.steps)
    tensorboard = callbacks.TensorBoardWriter(folder / "tensorboard", start)
    return [
        callbacks.StepLog(config.log_every, config.global_batch_size, [log, tensorboard, progress]),
        callbacks.StopOnNonFinite(),
        callbacks.Checkpoint(manager, config.ckpt_every),
        sample_grid(config, folder, task),
        *_evaluation(config, folder, task, tensorboard, start),
        progress,
    ]


def _evaluation(config, folder, task, tensorboard, start):
    """The callback that scores images while training, if the run asks for it."""
    if not config.eval_every:
        return []
    if config.dataset == "digits":
        from fcdm_keras.evaluation.digits import SCORES, score_digits

        judge, names = score_digits, SCORES
    else:
        from fcdm_keras.evaluation.features import load_extractor
        from fcdm_keras.evaluation.suite import Judge

        judge = Judge(config.eval_reference, load_extractor(config.eval_features, config.inception or None))
        names = judge.metrics
    log = callbacks.CSVWriter(folder / "scores.csv", start, ("step", *names))
    writers = [log, lambda row: tensorboard(row, "scores")]
    labels = np.arange(config.num_eval_samples) % config.num_classes
    return [Evaluate(task, judge, labels, config.eval_every, writers, **_drawing(config))]


def _say(config, folder, data, trainer, start):
    print(
        f"{folder}: FCDM-{config.model}, {trainer.backbone.count_params():,} parameters, Keras {keras.__version__} on "
        f"{keras.backend.backend()}, {config.steps:,} steps of {config.global_batch_size} images"
        + (f", resumed at step {start:,}" if start else "")
    )
    side = config.image_size // data.autoencoder.downsampling_factor
    print(f"data: {data.description}\n{describe_memory(config, side)}")
