"""The folder of a run. A folder that does not fit is refused before anything heavy is imported.

runs/digits/
  config.json       the resolved configuration          log.csv        step, loss, mse, vb, images_per_second
  checkpoints/      what the run resumes from           loss.png       the loss curve
  samples.png       the newest grid (all in samples/)   tensorboard/   the log for TensorBoard
  preset/           the EMA weights as a KerasHub preset
  adapters.lora.h5  those that were trained with --lora-rank, which the preset has merged
  scores.json       scores of the samples (digits)      scores.csv     scores while training (--eval-every)
  latents.json      the metadata of the latent store that the run was started on
  classes.json      the classes' names in the order of their numbers, where they have names
  history.json      settings that were changed while training, with their steps
  .owner/           the claim of the command that is at work there
"""

import contextlib
import dataclasses
import re
import shutil
from pathlib import Path

from fcdm_keras import options
from fcdm_keras.data.store_metadata import read_store
from fcdm_keras.files import read_text, write_atomically
from fcdm_keras.formats.documents import Names, read_json
from fcdm_keras.recipes import TrainConfig, VAEConfig
from fcdm_keras.runs.history import HISTORY, record
from fcdm_keras.runs.outputs import RUN, check_folder
from fcdm_keras.runs.owner import owned

CONFIG, CHECKPOINTS, PRESET, ADAPTERS = "config.json", "checkpoints", "preset", "adapters.lora.h5"
LOG, LOSSES, TENSORBOARD = "log.csv", "loss.png", "tensorboard"
SCORES, SCORE_LOG, LATENTS, CLASSES = "scores.json", "scores.csv", "latents.json", "classes.json"
VAE_CONFIG, VAE = "settings.json", "vae"  # of an autoencoder's run: its configuration, and what it exports
_DAMAGED = "give another run folder, or restore or remove this file"
_CHECKPOINT = re.compile(r"step-(\d{9})")


def folder_of(config):
    """Path of the run folder of a `TrainConfig`."""
    return Path(config.results_dir) / config.recipe


def open_run(config, given=(), dataset=None):
    """Creates or re-opens the run folder of `config` and stores the configuration there.

    What flags change of a run that has begun is kept in its history. A folder without a checkpoint takes any
    configuration.

    Args:
        config: a `TrainConfig`, or of a class derived from it.
        given: names of the settings that flags gave.
        dataset: its data set, whose `makes` are removed where they are of other settings that nothing was trained with.

    Returns:
        Path of the folder.

    Raises:
        ValueError: the folder holds a run of another configuration.
        OSError: the folder cannot be written to.
    """
    folder = folder_of(config)

    def stored():
        return dataclasses.asdict(stored_config(folder, type(config)))

    return _open(folder, CONFIG, stored, config, given, dataset)


def open_vae_run(output, config, given=()):
    """As `open_run`, of the run of a `VAEConfig` in the folder `output`, whose configuration is in `settings.json`."""
    folder = Path(output)

    def stored():
        file, cure = folder / VAE_CONFIG, "restore or remove it, or give another --output"
        return dataclasses.asdict(options.from_json(read_text(file), VAEConfig, False, file, cure))

    return _open(folder, VAE_CONFIG, stored, config, given)


@contextlib.contextmanager
def opened(config, given=(), dataset=None):
    """A context that owns the run folder, see `fcdm_keras.runs.owner`, opened as by `open_run`."""
    with owned(folder_of(config)):
        yield open_run(config, given, dataset)


@contextlib.contextmanager
def vae_opened(output, config, given=()):
    """A context that owns the folder of an autoencoder's run, opened as by `open_vae_run`."""
    with owned(output, "--output"):
        yield open_vae_run(output, config, given)


def begun(folder):
    """Whether a run folder holds what a run goes on from, or a finished model."""
    return newest_step(folder) is not None or any(Path(folder, name).exists() for name in (PRESET, VAE))


def newest_step(folder):
    """The step of a run's newest checkpoint, whole or not; `None` where there is none."""
    checkpoints = Path(folder) / CHECKPOINTS
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return max((int(match[1]) for match in map(_CHECKPOINT.fullmatch, names) if match), default=None)


def _open(folder, file, read, config, given, dataset=None):
    place = "--results-dir" if file == CONFIG else "--output"
    check_folder(folder, RUN, overwrite=None, place=place)
    if begun(folder):
        if (folder / file).exists():
            changed = _allowed(read(), config, given, folder, place)
            if changed:  # before the configuration: a kill in between repeats this
                record(folder, newest_step(folder) or 0, changed)
    else:
        _forget(folder, file, read, config, dataset)
    options.open_folder(folder, file, config)
    return folder


def _forget(folder, file, read, config, dataset):
    """Removes what a command left that trained nothing."""
    for name in (CLASSES, LATENTS, HISTORY):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    if not (folder / file).exists():
        return
    try:
        changed = options.changes(read(), dataclasses.asdict(config))
    except ValueError:
        changed = dataclasses.asdict(config)
    if changed.keys() & set(getattr(dataset, "made_of", ())) and not config.latents:
        for path in (folder / name for name in dataset.makes):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def stored_config(folder, config_class=TrainConfig, others=False):
    """The configuration stored in a run folder, see `options.from_json`. Raises ValueError or OSError."""
    file = Path(folder) / CONFIG
    return options.from_json(read_text(file), config_class, others, file, _DAMAGED)


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
            return read_store(file).class_names if name == LATENTS else read_json(file, Names, "restore or remove it")
    return None


def _allowed(stored, config, given, folder, place):
    """What given flags change of a run: name → values before and after. Raises ValueError for other changes."""
    kind, now = type(config), dataclasses.asdict(config)
    may_be_asked = options.may_be_adjusted(kind)
    adjusted = may_be_asked & set(given)
    different = options.changes(stored, now, options.may_change(kind) | adjusted)
    if different:
        phrases = options.differences(stored, {name: now[name] for name in different})
        flags = " ".join(options.flag_with(name, there) for name, (there, _) in different.items() if there is not None)
        asked = " ".join(options.flag_with(name, now[name]) for name in different if name in may_be_asked)
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(phrases)}): give the flags that it was "
            f"started with to resume it, {flags}"
            + (f" (or {asked}, which changes it from here on)" if asked else "")
            + f", or another {place}."
        )
    return options.changes(stored, {name: now[name] for name in adjusted})
