"""The folder of a run. Standard library only: a folder that does not fit is refused before anything heavy is imported.

runs/digits/
  config.json       the resolved configuration          log.csv        step, loss, mse, vb, images_per_second
  checkpoints/      what the run resumes from           loss.png       the loss curve
  samples.png       the newest grid (all in samples/)   tensorboard/   the log for TensorBoard
  preset/           the EMA weights as a KerasHub preset
  scores.json       scores of the samples (digits)      scores.csv     scores while training (--eval-every)
  latents.json      the metadata of the latent store that the run was started on
"""

import dataclasses
from pathlib import Path

from fcdm_keras import options
from fcdm_keras.files import read_text
from fcdm_keras.recipes import TrainConfig

CONFIG, CHECKPOINTS, PRESET = "config.json", "checkpoints", "preset"
LOG, LOSSES, TENSORBOARD = "log.csv", "loss.png", "tensorboard"
SCORES, SCORE_LOG, LATENTS = "scores.json", "scores.csv", "latents.json"


def open_run(config):
    """Creates or re-opens the run folder of `config` and stores the configuration there.

    Args:
        config: a `TrainConfig`, or of a class derived from it.

    Returns:
        Path of the folder.

    Raises:
        ValueError: the folder holds a run of another configuration.
        OSError: the folder cannot be written to.
    """
    folder = Path(config.results_dir) / config.recipe
    if (folder / CONFIG).exists():
        stored = stored_config(folder, type(config))
        _check_same(dataclasses.asdict(stored), config, folder, "--results-dir")
    options.open_folder(folder, CONFIG, config)
    return folder


def open_vae_run(output, config):
    """As `open_run`, of the run of a `VAEConfig` in the folder `output`, whose configuration is in `settings.json`."""
    folder = Path(output)
    file = folder / "settings.json"
    if file.exists():
        try:
            stored = dict(options.read_json(file))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} cannot be read; remove it, or give another --output: {error}") from None
        _check_same(stored, config, folder, "--output")
    options.open_folder(folder, file.name, config)
    return folder


def stored_config(folder, config_class=TrainConfig, others=False):
    """The configuration stored in a run folder; options as in `options.from_json`. Raises ValueError if unreadable."""
    file = Path(folder) / CONFIG
    try:
        return options.from_json(read_text(file), config_class, others)
    except ValueError as error:
        raise ValueError(
            f"{file} does not fit; give another run folder, or remove it if it is damaged: {error}"
        ) from None


def _check_same(stored, config, folder, place):
    different = options.differences(stored, dataclasses.asdict(config), options.may_change(type(config)))
    if different:
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(different)}): give the flags that it was "
            f"started with to resume it, or another {place}."
        )
