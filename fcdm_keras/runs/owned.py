"""Writing to a run folder only as long as this process owns it, see `fcdm_keras.runs.owner`."""

from fcdm_keras.runs import owner
from fcdm_keras.training.callbacks import StepCallback
from fcdm_keras.training.checkpoint import CheckpointManager


class OwnedCheckpoints(CheckpointManager):
    """A `CheckpointManager` in a run folder; `save` raises OSError if the folder was lost to another command."""

    def save(self, trainer):
        owner.check(self.folder)
        return super().save(trainer)


class StopWhereLost(StepCallback):
    """Raises OSError after the first step at which the run folder is known to be another's. Put it first.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_step(self, logs):
        owner.check(self.folder, surely=False)
