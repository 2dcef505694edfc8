"""How a signal ends training: after a whole step, and after the same one in all processes of a job."""

import time

import numpy as np

from fcdm_keras import distribution
from fcdm_keras.signals import Listening, Stopped
from fcdm_keras.training.step_callback import StepCallback

INTERVAL = 1.0  # seconds between the moments when the processes of a job tell each other of signals


class Stop(StepCallback):
    """Raises `Stopped` in `fit` at the end of a step, if a signal has come while `listening` was entered.

    In a job of several processes the signal may have come to any of them. They exchange what they know after some
    steps, all after the same ones, which follow from the seconds per step that they exchange as well.
    """

    def __init__(self):
        super().__init__()
        self._alone = distribution.job().process_count == 1
        self.listening = Listening(self._alone)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._exchanged, self._next, self._then = self.step, self.step + 1, time.perf_counter()

    def on_step(self, logs):
        if self._alone:
            self.listening.check()
        elif self.step >= self._next:
            self._exchange()

    def on_train_end(self, logs=None):
        if self._alone:
            self.listening.check()
        else:
            self._exchange()

    def _exchange(self):
        now = time.perf_counter()
        seconds = (now - self._then) / max(1, self.step - self._exchanged)
        known = distribution.gather(np.array([[self.listening.number, seconds]], np.float32))
        number, seconds = known.max(axis=0)
        if number:
            raise Stopped(int(number))
        self._exchanged, self._then = self.step, time.perf_counter()
        self._next = self.step + max(1, int(INTERVAL / seconds))
