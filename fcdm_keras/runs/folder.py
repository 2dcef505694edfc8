"""The folder of a run. Standard library only: a folder that does not fit is refused before anything heavy is imported.

runs/digits/
  config.json       the resolved configuration          log.csv        step, loss, mse, vb, images_per_second
  checkpoints/      what the run resumes from           loss.png       the loss curve
  samples.png       the newest grid (all in samples/)   tensorboard/   the log for TensorBoard
  preset/           the EMA weights as a KerasHub preset
  scores.json       scores of the samples (digits)      scores.csv     scores while training (--eval-every)
  latents.json      the metadata of the latent store that the run was started on
  classes.json      the classes' names in the order of their numbers, where they have names
"""

import dataclasses
from pathlib import Path

from fcdm_keras import options
from fcdm_keras.files import read_text, write_atomically
from fcdm_keras.recipes import TrainConfig

CONFIG, CHECKPOINTS, PRESET = "config.json", "checkpoints", "preset"
LOG, LOSSES, TENSORBOARD = "log.csv", "loss.png", "tensorboard"
SCORES, SCORE_LOG, LATENTS, CLASSES = "scores.json", "scores.csv", "latents.json", "classes.json"


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


def remember_classes(folder, class_names):
    """Stores the names of the classes that a run is trained on. Raises ValueError if it was started on others."""
    known = stored_classes(folder)
    if known and class_names and known != tuple(class_names):
        number = next((n for n, pair in enumerate(zip(known, class_names)) if len(set(pair)) > 1), len(known))
        raise ValueError(
            f"{folder} was trained on other classes, from number {number} on: compare the data's with its {CLASSES}, "
            "give the data that it was started on, or another --results-dir."
        )
    if class_names:
        write_atomically(Path(folder) / CLASSES, options.to_json(list(class_names)))


def stored_classes(folder):
    """The names of a run's classes, or of its latent store's, a tuple; `None` where they have none.

    Raises:
        ValueError: the file that holds them is damaged.
    """
    for name in (CLASSES, LATENTS):
        file = Path(folder) / name
        if file.exists():
            try:
                content = options.read_json(file)
                return tuple(content if name == CLASSES else content["class_names"])
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{file} holds no names of classes, or is damaged: restore or remove it.") from None
    return None


def _check_same(stored, config, folder, place):
    different = options.differences(stored, dataclasses.asdict(config), options.may_change(type(config)))
    if different:
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(different)}): give the flags that it was "
            f"started with to resume it, or another {place}."
        )
