"""The base of our callbacks: they count the trainer's own steps, from the start of the run."""

import keras


class StepCallback(keras.callbacks.Callback):
    """Base: keeps `step`, the optimizer steps done, through epochs, resumed runs and `steps_per_execution`."""

    def on_train_begin(self, logs=None):
        self.step = self._before = self.model.steps_done
        self._one_by_one = self.model.steps_per_execution == 1

    def on_train_batch_end(self, batch, logs=None):
        # Keras comes here after `steps_per_execution` steps, or fewer where the data end. Reading a step waits for it.
        self._before, self.step = self.step, self.step + 1 if self._one_by_one else self.model.steps_done
        self.on_step(logs)

    def on_step(self, logs):
        """Called after each step, or several that are executed as one, with the metrics' means since the last line."""

    def due(self, every):
        """Whether a multiple of `every` (0 is never) has been reached since the last call of `on_step`."""
        return bool(every) and self.step // every > self._before // every
