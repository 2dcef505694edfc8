"""The training loop of a run: resume, callbacks, `fit`, and what is written at the end."""

import shutil

import keras
import numpy as np

from fcdm_keras import distribution
from fcdm_keras.evaluation.callback import Evaluate
from fcdm_keras.files import replacing
from fcdm_keras.network.costs import describe_memory, gib
from fcdm_keras.runs import build, loop, owner, plan
from fcdm_keras.runs import folder as run_folder
from fcdm_keras.runs.data import sampling_options
from fcdm_keras.runs.datasets import dataset_of
from fcdm_keras.runs.history import describe, read_history, settle
from fcdm_keras.runs.owned import OwnedCheckpoints
from fcdm_keras.training import callbacks
from fcdm_keras.training.logs import fields_of
from fcdm_keras.training.plots import plot_losses
from fcdm_keras.training.pulse import Pulse


def fit_run(config, folder, dataset=None, finishing=None):
    """Trains a run to its last step, resuming what is in its folder, on the devices of `distribution.setup`.

    Args:
        config: a `TrainConfig`.
        folder: the run folder.
        dataset: see `fcdm_keras.runs.datasets`; default the one that the settings name.
        finishing: the `loop.Finishing` of what more is to come; default that of this function alone.

    Returns:
        The opened data, the trainer, and the task that samples from it.

    Raises:
        ValueError, OSError: the data, the devices, the weights to start from, or the folder's checkpoints do not fit
            the run, or the folder is another command's now.
        FloatingPointError: the loss is not finite.
    """
    dataset = dataset or dataset_of(config)
    plan.check(config, folder, dataset)
    config = dataset.prepare(config, folder)
    manager = OwnedCheckpoints(folder / run_folder.CHECKPOINTS, config.keep_last, config.keep_every)
    data = dataset.open(config, folder)
    run_folder.remember_classes(folder, getattr(data, "class_names", None))
    backbone = data.build_backbone(config)
    if config.init_from and not manager.steps():
        done = data.start_from(config.init_from, backbone)
        distribution.say(f"Started from {config.init_from}: {done}.")
    trainer = build.build_trainer(config, backbone)
    start = manager.restore(trainer) or 0
    trainer.optimizer.learning_rate = config.learning_rate  # which may have changed
    if distribution.is_main():
        settle(folder, start)
    task = data.build_task(config, trainer.backbone)
    _describe(config, folder, data, trainer, start)
    own = finishing or loop.Finishing(folder)
    own.look_at(_fit(config, folder, data, trainer, task, manager, start))
    owner.check(folder)
    _export(config, folder, data, trainer, own)
    if finishing is None:
        own.end()
    return data, trainer, task


def _export(config, folder, data, trainer, finishing):
    if distribution.is_main():
        with finishing.step(run_folder.LOSSES), replacing(folder / run_folder.LOSSES) as picture:
            plot_losses(folder / run_folder.LOG, picture)
    with finishing.step(run_folder.PRESET):
        build.export_preset(trainer, folder / run_folder.PRESET, lambda averaged: data.build_task(config, averaged))


def _fit(config, folder, data, trainer, task, manager, start):
    """Trains, or completes what is trained. Returns the callbacks that drew."""
    if start >= config.steps:
        return _complete(config, folder, data, trainer, task, start)
    progress, writers, tensorboard = [], [], None
    if distribution.is_main():  # writes for all
        shutil.rmtree(folder / run_folder.PRESET, ignore_errors=True)  # of a shorter run
        (folder / run_folder.ADAPTERS).unlink(missing_ok=True)
        until = loop.logged_until(manager, start)
        progress, tensorboard = [callbacks.Progress(config.steps)], _tensorboard(folder, until)
        writers = [callbacks.CSVWriter(folder / run_folder.LOG, until, fields_of(trainer)), tensorboard, *progress]
        for row in _scored(folder):
            if until < row["step"] <= start:  # hidden with the log's row, and not drawn again
                tensorboard(row, "scores")
    drawing = [_grid(config, folder, data, task), *_evaluation(config, folder, data, task, tensorboard, start)]
    loop.fit(
        trainer,
        data.batches(config, start),
        manager,
        start,
        config.steps,
        log=(config.log_every, config.global_batch_size, writers),
        ckpt_every=config.ckpt_every,
        progress=progress,
        drawing=drawing,
        watching=[Pulse()] if distribution.job().process_count > 1 else [],
        advice=loop.advice(config),
    )
    return drawing


def _complete(config, folder, data, trainer, task, start):
    """For a run whose steps are done: draws what a signal kept it from at the last one."""
    loop.tell_if_beyond(folder, start, config.steps)
    drawing = [_grid(config, folder, data, task)]
    if config.eval_every and not distribution.gather(np.array([start in _scored_steps(folder)], np.int32))[0]:
        drawing += _evaluation(config, folder, data, task, lambda *row: _tensorboard(folder, start)(*row), start)
    for callback in drawing:
        callback.set_model(trainer)
        callback.on_train_begin()
        callback.on_train_end()
    return drawing


def _tensorboard(folder, until):
    return callbacks.TensorBoardWriter(folder / run_folder.TENSORBOARD, until)


def _scored(folder):
    """The rows of the scores while training."""
    file = folder / run_folder.SCORE_LOG
    return callbacks.read_csv(file) if file.exists() else []


def _scored_steps(folder):
    return {row["step"] for row in _scored(folder)}


def _drawing(config):
    """Arguments of `draw` for images drawn while training."""
    return {**sampling_options(config), "seed": config.seed, "batch_size": 100 if config.image_size < 64 else 10}


def _grid(config, folder, data, task):
    conditions, columns, picture = data.shown(config)
    return callbacks.SampleGrid(
        task, conditions, folder, config.sample_every, columns, picture=picture, **_drawing(config)
    )


def _evaluation(config, folder, data, task, tensorboard, start):
    """The callback that scores images while training, if the run asks for it."""
    if not config.eval_every:
        return []
    judge, names, conditions = data.judge(config)
    writers = []
    if distribution.is_main():
        log = callbacks.CSVWriter(folder / run_folder.SCORE_LOG, start, ("step", *names))
        writers = [log, lambda row: tensorboard(row, "scores")]
    return [Evaluate(task, judge, conditions, config.eval_every, writers, _scored_steps(folder), **_drawing(config))]


def _describe(config, folder, data, trainer, start):
    network = type(trainer.backbone).__name__.removesuffix("Backbone") if not config.variant else "FCDM"
    distribution.say(
        f"{folder}: {network}-{config.model_name}, {trainer.backbone.count_params():,} parameters, "
        f"Keras {keras.__version__} on {keras.backend.backend()}, "
        f"{config.steps:,} steps of {config.global_batch_size} images"
        + (f", resumed at step {start:,}" if start else "")
    )
    for entry in read_history(folder):
        distribution.say(describe(entry))
    side = config.image_size // data.autoencoder.downsampling_factor
    placed = distribution.job()
    distribution.say(f"data: {data.description}\ndevices: {distribution.describe()}")
    parameters = trainer.backbone.count_params()
    distribution.say(describe_memory(config, side, placed.data_parallel, placed.model_parallel, parameters))
    if placed.model_parallel > 1:
        held, whole = distribution.device_bytes([*trainer.variables, *trainer.optimizer.variables])
        distribution.say(f"weights, EMA and moments: {gib(held)} on each device, of {gib(whole)}")
