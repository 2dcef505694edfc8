"""Callbacks for `DiffusionTrainer.fit`, all counted in optimizer steps since the start of the run."""

import math
from pathlib import Path

import numpy as np

from fcdm_keras import distribution, signals
from fcdm_keras.files import make_folder, remove_leftovers, replacing
from fcdm_keras.sampling.request import draw_together
from fcdm_keras.sampling.writers import grid
from fcdm_keras.training.logs import FIELDS, CSVWriter, Progress, StepLog, TensorBoardWriter, read_csv
from fcdm_keras.training.step_callback import StepCallback

__all__ = [
    "FIELDS", "CSVWriter", "Checkpoint", "Drawing", "Progress", "SampleGrid", "StepCallback", "StepLog",
    "StopOnNonFinite", "TensorBoardWriter", "read_csv",
]  # fmt: skip


class StopOnNonFinite(StepCallback):
    """Raises FloatingPointError at the first loss that is not finite, before anything is saved of that step."""

    def on_step(self, logs):
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(f"The loss is {logs['loss']} at step {self.step}: training stopped.")


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


class Drawing(StepCallback):
    """Base: calls `draw()` every `every` steps and at the end of training, and when a run goes on after a step of which
    it was stopped before that.

    Images that are not finite, and files that cannot be written, are told of, and training goes on: whether it can is
    for the loss to say, and for the checkpoint.

    Args:
        every: steps between drawings; 0 is never.

    Attributes:
        failure: why there is no result of the last drawing, or empty.
    """

    result = "drawing"
    failure = ""

    def __init__(self, every):
        super().__init__()
        self.every = every

    def draw(self):
        """Draws from the EMA weights of this step, together with the job's other processes, in `interruptible`."""

    def drawn(self):
        """Whether this step's result is there already, as the first process sees it."""
        return False

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._last = self.step
        if self.every and self.step and not distribution.gather(np.array([self.drawn()], np.int32))[0]:
            self._last = None
            if self.step % self.every == 0:
                self._draw()

    def on_step(self, logs):
        if self.due(self.every):
            self._draw()

    def on_train_end(self, logs=None):
        if self.every and self.step != self._last:
            self._draw()

    def _draw(self):
        self.failure = ""
        try:
            self.draw()
        except (FloatingPointError, OSError, ValueError) as error:
            self.failure = str(error)
            distribution.say(f"There is no {self.result} of step {self.step}. {error}")
        self._last = self.step


class SampleGrid(Drawing):
    """Draws a grid from the EMA weights every `every` steps: `samples/step-….png`, the newest also as `samples.png`.

    Args:
        task: a task over the trainer's backbone, e.g. `ClassToImage`.
        labels: labels, or whatever the images' conditions are, an array `(N, …)`.
        folder: run folder.
        every: steps between grids; 0 is never.
        columns: images per row.
        picture: `picture(images, columns)` → the grid as a PIL image.
        **options: passed to `task.draw`.
    """

    result = "grid"

    def __init__(self, task, labels, folder, every, columns=10, picture=grid, **options):
        super().__init__(every)
        self.task = task
        self.labels = labels
        self.folder = Path(folder)
        self.columns = columns
        self.picture = picture
        self.options = options

    def draw(self):
        """Draws and writes the grid now."""
        with signals.interruptible():
            drawn = draw_together(self.task, self.labels, weights=self.model.ema.values(), **self.options)
        if not distribution.is_main():
            return
        picture = self.picture(drawn, self.columns)
        make_folder(self._file().parent)
        remove_leftovers(self._file().parent)
        for path in (self._file(), self.folder / "samples.png"):
            with replacing(path) as file:
                picture.save(file, "PNG")

    def drawn(self):
        return self._file().exists()

    def _file(self):
        return self.folder / "samples" / f"step-{self.step:09d}.png"
