"""The processes and devices at work, known to all of the package. Standard library only.

It stands apart from `fcdm_keras.distribution`, which sets it, so that the backends' files can ask without a ring of
imports.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes and devices at work. `process_index` and the rest are plain numbers, the same to ask anywhere."""

    process_index: int = 0
    process_count: int = 1
    devices: tuple[str, ...] = ("the default",)
    model_parallel: int = 1
    launcher: str = ""
    keeps_memory: bool = False

    @property
    def data_parallel(self):
        """The number of devices, or groups of devices, that the batch is cut over."""
        return len(self.devices) // self.model_parallel


_job = None


def job():
    """The present `Job`; outside of `distribution.setup`, one process on its default device."""
    return _job or Job()


def has_job():
    """Whether the present `Job` has been set."""
    return _job is not None


def set_job(new):
    """Makes `new` the present `Job`; `None` ends it."""
    global _job
    _job = new


def is_main():
    """Whether this is the first process, which alone writes logs, pictures and checkpoints."""
    return job().process_index == 0


def say(text):
    """Prints, in the first process only."""
    if is_main():
        print(text)
