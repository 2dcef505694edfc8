"""The training loop of a run: resume, callbacks, `fit`, and what is written at the end."""

import dataclasses
import shutil

import keras
import numpy as np

from fcdm_keras import backend, callbacks, distribution, runs
from fcdm_keras.checkpoint import CheckpointManager
from fcdm_keras.data.training_data import open_training_data
from fcdm_keras.distribution.supervision import check_agreement, check_shared
from fcdm_keras.evaluation.callback import Evaluate
from fcdm_keras.memory import describe_memory, gib
from fcdm_keras.plots import plot_losses
from fcdm_keras.presets import MODEL_SIZES
from fcdm_keras.pulse import Pulse

GRID_CLASSES, GRID_COLUMNS = 10, 10


class ClassRun:
    """What a run of class labels has of its own; a run on another kind of condition derives from this.

    Args:
        config: a `TrainConfig`.
        folder: the run folder.

    Attributes:
        data: a `TrainingData`.

    Raises:
        ValueError, OSError: the data do not fit the run.
    """

    def __init__(self, config, folder):
        self.config = config
        self.folder = folder
        self.data = self.open_data()

    def open_data(self):
        """The `TrainingData`."""
        return open_training_data(self.config, self.folder)

    def start_from(self, source, backbone):
        """Copies the weights of the model at `source` into `backbone`. Returns what was done, in one sentence."""
        return runs.copy_weights(runs.load_backbone(source), backbone)

    def build_backbone(self):
        """The backbone with fresh weights."""
        return runs.build_backbone(self.config)

    def build_task(self, backbone):
        """The task that samples from a backbone."""
        return runs.build_task(self.config, backbone, self.data.autoencoder)

    def grid(self, task):
        """The callback that draws grids: ten images of each of (up to) ten classes spread over all."""
        config = self.config
        classes = np.linspace(0, config.num_classes - 1, min(GRID_CLASSES, config.num_classes)).round().astype(int)
        labels = np.repeat(classes, GRID_COLUMNS)
        return callbacks.SampleGrid(task, labels, self.folder, config.sample_every, GRID_COLUMNS, **drawing(config))

    def judge(self):
        """`judge(images, conditions)`, the names of its scores, and the conditions of the images to score."""
        config = self.config
        labels = np.arange(config.num_eval_samples) % config.num_classes
        if config.dataset != "digits":
            return *reference_judge(config), labels
        from fcdm_keras.evaluation.digits import SCORES, score_digits

        return score_digits, SCORES, labels


def fit_run(config, folder, kind=ClassRun):
    """Trains a run to its last step, resuming what is in its folder, on the devices of `distribution.setup`.

    Args:
        config: a `TrainConfig`.
        folder: the run folder.
        kind: `kind(config, folder)` → a `ClassRun`, or of a class derived from it.

    Returns:
        The trainer and the task that samples from it.

    Raises:
        ValueError, OSError: the data, the devices, the weights to start from, or the folder's checkpoints do not fit
            the run.
        FloatingPointError: the loss is not finite.
    """
    distribution.check_batch(config.global_batch_size, config.accumulation_steps)
    distribution.check_model(MODEL_SIZES[config.model].hidden_channels)
    check_agreement(dataclasses.asdict(config))
    check_shared(folder)
    manager = CheckpointManager(folder / "checkpoints", config.keep_last, config.keep_every)
    run = kind(config, folder)
    backbone = run.build_backbone()
    if config.init_from and not manager.steps():
        done = run.start_from(config.init_from, backbone)
        distribution.say(f"Started from {config.init_from}: {done}.")
    trainer = runs.build_trainer(config, backbone)
    start = manager.restore(trainer) or 0
    task = run.build_task(trainer.backbone)
    _describe(run, trainer, start)
    if start < config.steps:
        if distribution.is_main():
            shutil.rmtree(folder / "preset", ignore_errors=True)  # of a shorter run
        trainer.fit(
            backend.feed(run.data.batches(config, start)),
            steps_per_epoch=config.steps - start,
            verbose=0,
            shuffle=False,
            callbacks=_callbacks(run, task, manager, start),
        )
    if distribution.is_main():
        plot_losses(folder / "log.csv", folder / "loss.png")
    runs.export_preset(trainer, folder / "preset", run.build_task)
    return trainer, task


def sampling_options(config):
    """Arguments of `generate` that a run's settings decide."""
    return {
        "num_steps": config.num_sampling_steps,
        "guidance_scale": config.cfg_scale,
        "sampler": config.sampler,
    }


def drawing(config):
    """As `sampling_options`, with the seed and the batch size of images drawn while training."""
    return {**sampling_options(config), "seed": config.seed, "batch_size": 100 if config.image_size < 64 else 10}


def reference_judge(config):
    """The judge that compares images with the run's reference, and the names of its scores."""
    from fcdm_keras.evaluation.features import load_extractor
    from fcdm_keras.evaluation.suite import Judge

    judge = Judge(config.eval_reference, load_extractor(config.eval_features, config.inception or None))
    return judge, judge.metrics


def _callbacks(run, task, manager, start):
    config = run.config
    shown, writers, tensorboard = [], [], None
    if distribution.is_main():  # writes for all
        progress = callbacks.Progress(config.steps)
        tensorboard = callbacks.TensorBoardWriter(run.folder / "tensorboard", start)
        shown, writers = [progress], [callbacks.CSVWriter(run.folder / "log.csv", start), tensorboard, progress]
    return [
        callbacks.StepLog(config.log_every, config.global_batch_size, writers),
        callbacks.StopOnNonFinite(),
        callbacks.Checkpoint(manager, config.ckpt_every),
        run.grid(task),
        *_evaluation(run, task, tensorboard, start),
        *([Pulse(run.folder)] if distribution.job().process_count > 1 else []),
        *shown,
    ]


def _evaluation(run, task, tensorboard, start):
    """The callback that scores images while training, if the run asks for it."""
    config = run.config
    if not config.eval_every:
        return []
    judge, names, conditions = run.judge()
    writers = []
    if distribution.is_main():
        log = callbacks.CSVWriter(run.folder / "scores.csv", start, ("step", *names))
        writers = [log, lambda row: tensorboard(row, "scores")]
    return [Evaluate(task, judge, conditions, config.eval_every, writers, **drawing(config))]


def _describe(run, trainer, start):
    config, data = run.config, run.data
    distribution.say(
        f"{run.folder}: FCDM-{config.model}, {trainer.backbone.count_params():,} parameters, Keras {keras.__version__} "
        f"on {keras.backend.backend()}, {config.steps:,} steps of {config.global_batch_size} images"
        + (f", resumed at step {start:,}" if start else "")
    )
    side = config.image_size // data.autoencoder.downsampling_factor
    placed = distribution.job()
    distribution.say(f"data: {data.description}\ndevices: {distribution.describe()}")
    parameters = trainer.backbone.count_params()
    distribution.say(describe_memory(config, side, placed.data_parallel, placed.model_parallel, parameters))
    if placed.model_parallel > 1:
        held, whole = distribution.device_bytes([*trainer.variables, *trainer.optimizer.variables])
        distribution.say(f"weights, EMA and moments: {gib(held)} on each device, of {gib(whole)}")
