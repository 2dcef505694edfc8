"""What the processes of a job know of each other while they wait: each tells the others its step."""

from fcdm_keras import distribution
from fcdm_keras.distribution import supervision
from fcdm_keras.training.callbacks import StepCallback

STALL = 120.0  # seconds without a step, after which it is reported
SILENT = 3 * supervision.INTERVAL  # without a sign of life for so long, a process is reported then


class Pulse(StepCallback):
    """Says on stderr which process of a job is silent or behind when no step ends for a while.

    An engine waits for a slow process without a word. Signs of life come by `supervision.Watch`, which ends the job
    when they stay away.

    Args:
        stall: seconds without a step before the first report.
    """

    def __init__(self, stall=STALL):
        super().__init__()
        self.stall = stall

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._report = None
        self._tell()

    def on_step(self, logs):
        self._tell()
        if self._report is None:  # the first step compiles, and may take any time
            self._report = supervision.StallReport(self.stall, self.describe)
        self._report.beat()

    def on_train_end(self, logs=None):
        if self._report is not None:
            self._report.stop()

    def _tell(self):
        if supervision.watch():
            supervision.watch().step(self.step)

    def describe(self, seconds):
        """A report after so many seconds without a step."""
        job, watch = distribution.job(), supervision.watch()
        notes = [note for index in range(job.process_count) if (note := self._note(index, watch))]
        return (
            f"process {job.process_index}: no step has ended for {seconds:.0f} s, after step {self.step}; "
            + ("; ".join(notes) if notes else "all processes are alive and at this step")
            + "."
        )

    def _note(self, index, watch):
        name = f"process {index} ({watch.processes[index]['host']}, {watch.processes[index]['pid']})"
        if index not in watch.known:
            return f"{name} gives no sign of life"
        step, silence = watch.known[index]
        if silence > SILENT:
            return f"{name} has not been heard of for {silence:.0f} s, since step {step}"
        return f"{name} is behind, at step {step}" if step is not None and step < self.step else ""
