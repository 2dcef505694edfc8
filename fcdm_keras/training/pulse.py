"""What the processes of a job know of each other while they wait: each leaves a sign of life in the run folder."""

import json
import os
import socket
import threading
from pathlib import Path

from fcdm_keras import distribution
from fcdm_keras.distribution.supervision import StallReport
from fcdm_keras.training.callbacks import StepCallback

INTERVAL = 5.0  # seconds between signs of life
SILENT = 6 * INTERVAL  # without one for so long, a process is reported
STALL = 120.0  # seconds without a step, after which the others are looked at


class Pulse(StepCallback):
    """Says on stderr which process of a job is silent or behind when no step ends for a while.

    An engine waits for a slow or stopped process without a word. Files are `<folder>/processes/<index>.json`; their
    times are those of the file system, one clock for all hosts.

    Args:
        folder: the run folder, which all processes share.
        stall: seconds without a step before the first report.
        interval: seconds between signs of life.
    """

    def __init__(self, folder, stall=STALL, interval=INTERVAL):
        super().__init__()
        self.folder = Path(folder) / "processes"
        self.stall = stall
        self.interval = interval

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.folder.mkdir(exist_ok=True)
        self._stop = threading.Event()
        self._sign()
        threading.Thread(target=self._live, daemon=True).start()
        self._report = None

    def on_step(self, logs):
        if self._report is None:  # the first step compiles, and may take any time
            self._report = StallReport(self.stall, self.describe)
        self._report.beat()

    def on_train_end(self, logs=None):
        self._stop.set()
        if self._report is not None:
            self._report.stop()

    def _live(self):
        while not self._stop.wait(self.interval):
            self._sign()

    def _sign(self):
        file = self._file(distribution.job().process_index)
        state = {"step": self.step, "host": socket.gethostname(), "process": os.getpid()}
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(state))
        os.replace(unfinished, file)

    def _file(self, index):
        return self.folder / f"{index}.json"

    def describe(self, seconds):
        """A report after so many seconds without a step."""
        job = distribution.job()
        now = self._file(job.process_index).stat().st_mtime
        notes = [note for i in range(job.process_count) if (note := self._note(i, now))]
        return (
            f"process {job.process_index}: no step has ended for {seconds:.0f} s, after step {self.step}; "
            + ("; ".join(notes) if notes else "all processes are alive and at this step")
            + "."
        )

    def _note(self, index, now):
        try:
            silence = now - self._file(index).stat().st_mtime
            state = json.loads(self._file(index).read_text())
        except (OSError, ValueError):
            return f"process {index} has left no sign of life"
        name = f"process {index} ({state['host']}, {state['process']})"
        if silence > max(SILENT, 3 * self.interval):
            return f"{name} has not been heard of for {silence:.0f} s, since step {state['step']}"
        if state["step"] < self.step:
            return f"{name} is behind, at step {state['step']}"
        return ""
