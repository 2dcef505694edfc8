"""The training loop of every run: what is saved and logged, and how it ends."""

import contextlib
import json
import sys

from fcdm_keras import backend, distribution, signals
from fcdm_keras.runs.owned import StopWhereLost
from fcdm_keras.training import callbacks
from fcdm_keras.training.logs import last_row
from fcdm_keras.training.stop import Stop


def logged_until(manager, start):
    """The last step whose row a log keeps when a run goes on after step `start`, whose checkpoint `manager` has."""
    return last_row(start, manager.metric_sums(start))


def fit(trainer, batches, manager, start, steps, *, log, ckpt_every, progress=(), drawing=(), watching=(), advice=()):
    """Trains from step `start` to `steps`, saving at the end, however it comes.

    Args:
        trainer: a compiled `StepTrainer`, at step `start`.
        batches: this process's rows of the batches from step `start` on.
        manager: its `OwnedCheckpoints`.
        start, steps: steps done, and of the whole run.
        log: `every`, `batch_size` and `writers` of `StepLog`.
        ckpt_every: steps between checkpoints.
        progress, drawing, watching: more callbacks; of these, a signal leaves those out that draw.
        advice: flags that help against losses that are not finite.

    Raises:
        Stopped: a signal came; the last step is saved, which has been told.
        FloatingPointError: the loss, or a weight, is not finite.
        OSError: a checkpoint cannot be written.
    """
    stop = Stop()
    log = callbacks.StepLog(*log, manager.metric_sums(start))
    checks = [StopWhereLost(manager.folder), log, callbacks.StopOnNonFinite()]
    saving = [*checks, callbacks.Checkpoint(manager, ckpt_every), *progress]
    try:
        with stop.listening:
            try:
                trainer.fit(
                    backend.feed(batches),
                    steps_per_epoch=steps - start,
                    verbose=0,
                    shuffle=False,
                    callbacks=[*saving, stop, *drawing, *watching],
                )
            except signals.Stopped as stopped:
                for callback in (*saving, *watching):
                    callback.on_train_end()
                _tell(stopped, trainer)
                raise
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}{_advised(manager, advice)}") from None
    finally:
        for callback in progress:
            callback.close()


class Finishing:
    """The steps behind training: each is tried, whatever became of the others; what failed is told at the end.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder):
        self.folder = folder
        self.missing = []

    @contextlib.contextmanager
    def step(self, name):
        """A context whose errors leave `name` missing, and end nothing."""
        try:
            yield
        except (OSError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
            self.missing.append(f"{name} ({error})")

    def look_at(self, drawing):
        """Notes which of some `Drawing` callbacks have no result of the last step."""
        self.missing += [f"the {callback.result} ({callback.failure})" for callback in drawing if callback.failure]

    def end(self):
        """Raises OSError in all processes where something is missing in the first."""
        missing = json.loads(distribution.gather_texts(json.dumps(self.missing))[0])
        if missing:
            raise OSError(
                f"{self.folder} is trained to its last step, which is saved. What is missing: {'; '.join(missing)}. "
                "Mend that, and the same command makes up for it."
            )


def tell_if_beyond(folder, start, steps):
    """Says so where a run has done more steps than it is asked for."""
    if start > steps:
        distribution.say(
            f"{folder} has done {start:,} steps, and --steps {steps} was asked: nothing to train; what is written now "
            f"is of step {start:,}."
        )


def advice(config):
    """What would help a run of these settings against losses that are not finite, as phrases."""
    flags = ["a lower --learning-rate"]
    if not 0 < config.clip_norm <= 1:
        flags.append("--clip-norm 1")
    if config.precision != "float32":
        flags.append("--precision float32")
    return flags


def _advised(manager, flags):
    if not flags:
        return ""
    steps, helpful = manager.steps(), " or ".join(filter(None, (", ".join(flags[:-1]), flags[-1])))
    if not steps:
        return f" There is no checkpoint yet: start again in the same folder, with {helpful}."
    return (
        f" The checkpoint of step {steps[-1]} holds the last good weights: the same command with {helpful} goes on "
        "from there."
    )


def _tell(stopped, trainer):
    step = trainer.steps_done
    if distribution.is_main():
        print(
            f"Stopped by {signals.name(stopped.number)} after step {step}, which is saved: the same command goes on "
            "from there.",
            file=sys.stderr,
        )
