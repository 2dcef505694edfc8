"""The folder of a run. Standard library only: a folder that does not fit is refused before anything heavy is imported.

runs/digits/
  config.json       the resolved configuration          log.csv        step, loss, mse, vb, images_per_second
  checkpoints/      what the run resumes from           loss.png       the loss curve
  samples.png       the newest grid (all in samples/)   tensorboard/   the log for TensorBoard
  preset/           the EMA weights as a KerasHub preset
  scores.json       scores of the samples (digits)      scores.csv     scores while training (--eval-every)
"""

from pathlib import Path

from fcdm_keras.files import write_atomically
from fcdm_keras.presets import MAY_CHANGE, config_from_json, config_to_json


def open_run(config):
    """Creates or re-opens the run folder of `config` and stores the configuration there.

    Returns:
        Path of the folder.

    Raises:
        ValueError: the folder holds a run of another configuration.
        OSError: the folder cannot be written to.
    """
    folder = Path(config.results_dir) / config.recipe
    file = folder / "config.json"
    if file.exists():
        _check_same(stored_config(folder), config, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, config_to_json(config))
    except OSError as error:
        raise OSError(f"The run folder {folder} cannot be written to: {error.strerror or error}.") from None
    return folder


def stored_config(folder):
    """The configuration stored in a run folder. Raises ValueError if it cannot be read."""
    file = Path(folder) / "config.json"
    try:
        return config_from_json(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} cannot be read; remove it, or give another --results-dir: {error}") from None


def _check_same(stored, config, folder):
    different = [
        f"{name}={getattr(stored, name)!r} there, {getattr(config, name)!r} now"
        for name in vars(stored)
        if name not in MAY_CHANGE and getattr(stored, name) != getattr(config, name)
    ]
    if different:
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(different)}): give the flags that it was "
            "started with to resume it, or another --results-dir."
        )
