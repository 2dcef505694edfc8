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
from fcdm_keras.presets import MAY_CHANGE, TrainConfig, config_from_json, config_to_json


def open_run(config, may_change=MAY_CHANGE):
    """Creates or re-opens the run folder of `config` and stores the configuration there.

    Args:
        config: a `TrainConfig`, or of a class derived from it.
        may_change: fields that may differ when the run is resumed.

    Returns:
        Path of the folder.

    Raises:
        ValueError: the folder holds a run of another configuration.
        OSError: the folder cannot be written to.
    """
    folder = Path(config.results_dir) / config.recipe
    file = folder / "config.json"
    if file.exists():
        _check_same(stored_config(folder, type(config)), config, folder, may_change)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, config_to_json(config))
    except OSError as error:
        raise OSError(f"The run folder {folder} cannot be written to: {error.strerror or error}.") from None
    return folder


def stored_config(folder, config_class=TrainConfig, others=False):
    """The configuration stored in a run folder; options as in `config_from_json`. Raises ValueError if unreadable."""
    file = Path(folder) / "config.json"
    try:
        return config_from_json(file.read_text(), config_class, others)
    except ValueError as error:
        raise ValueError(
            f"{file} does not fit; give another run folder, or remove it if it is damaged: {error}"
        ) from None


def _check_same(stored, config, folder, may_change):
    different = [
        f"{name}={getattr(stored, name)!r} there, {getattr(config, name)!r} now"
        for name in vars(stored)
        if name not in may_change and getattr(stored, name) != getattr(config, name)
    ]
    if different:
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(different)}): give the flags that it was "
            "started with to resume it, or another --results-dir."
        )
