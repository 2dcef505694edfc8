"""Callbacks for `DiffusionTrainer.fit`, all counted in optimizer steps since the start of the run."""

import csv
import math
import os
import time
from pathlib import Path

import keras
from tqdm import tqdm

from fcdm_keras import distribution
from fcdm_keras.sampling.request import draw_together
from fcdm_keras.sampling.writers import grid

FIELDS = ("step", "loss", "mse", "vb", "images_per_second")  # of the log of a diffusion model's training


class StepCallback(keras.callbacks.Callback):
    """Base: keeps `step`, the number of optimizer steps done, through resumed runs."""

    def on_train_begin(self, logs=None):
        self.step = self.model.steps_done

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.on_step(logs)

    def on_step(self, logs):
        """Called after each step with the metrics' means since the last log line."""

    def due(self, every):
        """Whether this step is a multiple of `every` (0 is never)."""
        return bool(every) and self.step % every == 0


class StopOnNonFinite(StepCallback):
    """Raises FloatingPointError at the first loss that is not finite, before anything is saved of that step."""

    def on_step(self, logs):
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"The loss is {logs['loss']} at step {self.step}: training stopped. Checkpoints hold the last good "
                "weights; resume with a lower learning rate, --clip-norm 1, or --precision float32."
            )


class StepLog(StepCallback):
    """Every `every` steps, hands means over those steps to writers, and resets the metrics.

    `images_per_second` counts the training steps' own time, not sampling or saving. Put this callback first.

    Args:
        every: steps between lines.
        batch_size: images per step.
        writers: callables that take a dict with `step`, the trainer's metrics and `images_per_second`.
    """

    def __init__(self, every, batch_size, writers):
        super().__init__()
        self.every = every
        self.batch_size = batch_size
        self.writers = writers

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._seconds, self._steps = 0.0, 0

    def on_train_batch_begin(self, batch, logs=None):
        self._begin = time.perf_counter()

    def on_step(self, logs):
        self._seconds += time.perf_counter() - self._begin
        self._steps += 1
        if not self.due(self.every):
            return
        speed = self._steps * self.batch_size / self._seconds
        metrics = {metric.name: float(logs[metric.name]) for metric in self.model.metrics}
        row = {"step": self.step, **metrics, "images_per_second": speed}
        for writer in self.writers:
            writer(row)
        self._seconds, self._steps = 0.0, 0
        self.model.reset_metrics()


class CSVWriter:
    """Appends rows to a CSV file; rows after `resume_step`, which a resumed run repeats, are dropped first.

    Args:
        path: the file.
        resume_step: the step that the run goes on from.
        fields: keys of a row, `step` first.
    """

    def __init__(self, path, resume_step=0, fields=FIELDS):
        self.path, self.fields = Path(path), fields
        kept = [row for row in read_csv(self.path) if row["step"] <= resume_step] if self.path.exists() else []
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, self.path)

    def __call__(self, row):
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.fields).writerow(row)


def read_csv(path):
    """Rows of a log as dicts of numbers; a line cut short by a kill is left out."""
    rows = []
    with open(path, newline="") as file:
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            try:
                rows.append({name: int(value) if name == "step" else float(value) for name, value in row.items()})
            except (TypeError, ValueError):
                continue
    return rows


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
        self._bar.update()

    def on_train_end(self, logs=None):
        self._bar.close()

    def __call__(self, row):
        """As a writer of `StepLog`: prints the row above the bar."""
        metrics = (f"{name} {row[name]:.4f}" for name in row if name not in ("step", "images_per_second"))
        tqdm.write(f"step {row['step']:>7}  {'  '.join(metrics)}  {row['images_per_second']:,.0f} images/s")


class Checkpoint(StepCallback):
    """Saves every `every` steps and at the end.

    Args:
        manager: a `CheckpointManager`.
        every: steps between checkpoints.
    """

    def __init__(self, manager, every):
        super().__init__()
        self.manager = manager
        self.every = every
        self._saved = None

    def on_step(self, logs):
        if self.due(self.every):
            self._save()

    def on_train_end(self, logs=None):
        if self.step != self._saved:
            self._save()

    def _save(self):
        self.manager.save(self.model)
        self._saved = self.step


class SampleGrid(StepCallback):
    """Draws a grid from the EMA weights every `every` steps: `samples/step-….png`, the newest also as `samples.png`.

    Images that are not finite are told of, and training goes on: whether it can is for the loss to say.

    Args:
        task: a task over the trainer's backbone, e.g. `ClassToImage`.
        labels: labels, or whatever the images' conditions are, an array `(N, …)`.
        folder: run folder.
        every: steps between grids; 0 is never.
        columns: images per row.
        picture: `picture(images, columns)` → the grid as a PIL image.
        **options: passed to `task.draw`.
    """

    def __init__(self, task, labels, folder, every, columns=10, picture=grid, **options):
        super().__init__()
        self.task = task
        self.labels = labels
        self.folder = Path(folder)
        self.every = every
        self.columns = columns
        self.picture = picture
        self.options = options

    def on_step(self, logs):
        if self.due(self.every):
            try:
                self.draw()
            except FloatingPointError as error:
                distribution.say(f"There is no grid of step {self.step}. {error}")

    def draw(self):
        """Draws and writes the grid now."""
        drawn = draw_together(self.task, self.labels, weights=self.model.ema.values(), **self.options)
        if not distribution.is_main():
            return
        picture = self.picture(drawn, self.columns)
        (self.folder / "samples").mkdir(exist_ok=True)
        picture.save(self.folder / "samples" / f"step-{self.step:09d}.png")
        picture.save(self.folder / "samples.png")
