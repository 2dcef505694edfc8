"""What a run tells while it trains: rows of means, for a CSV file, TensorBoard and the terminal."""

import csv
import os
import time
from pathlib import Path

from tqdm import tqdm

from fcdm_keras import backend, distribution
from fcdm_keras.files import replacing
from fcdm_keras.formats.documents import read_table
from fcdm_keras.training.step_callback import StepCallback

FIELDS = ("step", "loss", "mse", "vb", "images_per_second")  # of the log of an iDDPM's training


def fields_of(trainer):
    """The fields of the log of a trainer's training."""
    return ("step", *(metric.name for metric in trainer.metrics), "images_per_second")


def metric_sums(trainer):
    """What a trainer's metrics have summed up since they were reset: name → [total, number of samples]."""
    return {
        metric.name: [float(value) for value in distribution.host_arrays(metric.variables)]
        for metric in trainer.metrics
    }


def last_row(step, sums):
    """The last step that a run which goes on after `step` keeps the log's row of: one of a part is written again.

    Args:
        step: of the checkpoint.
        sums: the checkpoint's `metric_sums`.
    """
    return step - any(count for _, count in sums.values())


class StepLog(StepCallback):
    """Every `every` steps, hands means over those steps to writers, and resets the metrics.

    What is left at the end of training gets a row too; its sums stay in the metrics, for a run that goes on.
    `images_per_second` counts the training steps' own time, not sampling or saving. Put this callback first.

    Args:
        every: steps between lines.
        batch_size: images per step.
        writers: callables that take a dict with `step`, the trainer's metrics and `images_per_second`.
        sums: `metric_sums` to go on from.
    """

    def __init__(self, every, batch_size, writers, sums=None):
        super().__init__()
        self.every = every
        self.batch_size = batch_size
        self.writers = writers
        self._sums = sums

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._seconds, self._steps = 0.0, 0

    def on_epoch_begin(self, epoch, logs=None):  # Keras has reset the metrics, which know no epochs here
        for metric in self.model.metrics if self._sums else ():
            backend.assign(metric.variables, self._sums.get(metric.name, [0.0] * len(metric.variables)))
        self._sums = None

    def on_test_begin(self, logs=None):  # validation is about to reset them
        self._keep()

    def on_epoch_end(self, epoch, logs=None):
        self._keep()

    def _keep(self):
        if self._sums is None:
            self._sums = metric_sums(self.model)

    def on_train_batch_begin(self, batch, logs=None):
        self._begin = time.perf_counter()

    def on_step(self, logs):
        self._seconds += time.perf_counter() - self._begin
        self._steps += self.step - self._before
        self._means = logs
        if self.due(self.every):
            self._write()
            self.model.reset_metrics()

    def on_train_end(self, logs=None):
        if self._steps:
            self._write()

    def _write(self):
        speed = self._steps * self.batch_size / self._seconds
        metrics = {metric.name: float(self._means[metric.name]) for metric in self.model.metrics}
        row = {"step": self.step, **metrics, "images_per_second": speed}
        for writer in self.writers:
            writer(row)
        self._seconds, self._steps = 0.0, 0


class CSVWriter:
    """Appends rows to a CSV file; rows after `resume_step`, which a resumed run repeats, are dropped first.

    Args:
        path: the file.
        resume_step: the last step whose row is kept.
        fields: keys of a row, `step` first.
    """

    def __init__(self, path, resume_step=0, fields=FIELDS):
        self.path, self.fields = Path(path), fields
        kept = [row for row in read_csv(self.path, fields) if row["step"] <= resume_step] if self.path.exists() else []
        with replacing(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(kept)

    def __call__(self, row):
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.fields).writerow(row)
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint that goes on behind it


def read_csv(path, fields=("step",)):
    """Rows of a log with these columns, see `fcdm_keras.formats.documents.read_table`. Raises ValueError or OSError."""
    return read_table(path, fields, "restore or remove it")


class TensorBoardWriter:
    """Writes scalars to a TensorBoard folder, without TensorFlow.

    Args:
        folder: log folder.
        resume_step: later points, which a resumed run repeats, are hidden.
    """

    def __init__(self, folder, resume_step=0):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1, flush_secs=1)

    def __call__(self, row, group="train"):
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"{group}/{name}", value, row["step"])


class Progress(StepCallback):
    """Progress bar with loss, speed and ETA.

    Args:
        steps: steps of the whole run.
    """

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self._bar = None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        interactive = os.isatty(2)
        self._bar = tqdm(
            total=self.steps,
            initial=self.step,
            desc="training",
            unit="step",
            mininterval=0.2 if interactive else 15,
            dynamic_ncols=interactive,
        )

    def on_step(self, logs):
        self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self._bar.update(self.step - self._before)

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Leaves the bar as it is; also where training ends by an exception."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, row):
        """As a writer of `StepLog`: prints the row above the bar."""
        metrics = (f"{name} {row[name]:.4f}" for name in row if name not in ("step", "images_per_second"))
        tqdm.write(f"step {row['step']:>7}  {'  '.join(metrics)}  {row['images_per_second']:,.0f} images/s")
