"""Models found again: of a run folder, a preset, or a reference checkpoint."""

from pathlib import Path

from fcdm_keras.autoencoders import Identity, KLAutoencoder
from fcdm_keras.data.store_metadata import read_store
from fcdm_keras.network.base import DiffusionBackbone
from fcdm_keras.network.presets import read_object
from fcdm_keras.network.reference import load_torch_checkpoint
from fcdm_keras.runs import folder as run_folder
from fcdm_keras.runs.build import build_backbone, build_task, build_trainer
from fcdm_keras.runs.folder import stored_config
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training.checkpoint import CheckpointManager


def load_backbone(source):
    """The backbone of a preset, a run folder, or a file with a reference checkpoint. Raises ValueError or OSError."""
    if str(source).endswith(".pt") or Path(source).is_file():
        return load_torch_checkpoint(source)
    return find_model(source, DiffusionBackbone.from_preset, lambda folder: load_task(folder).backbone)


def load_task(source, autoencoder=None):
    """A `ClassToImage` from a run folder, a preset folder, `hf://…` or `kaggle://…`.

    A run that is not finished gives the EMA weights of its newest checkpoint.

    Args:
        source: where the model is.
        autoencoder: replaces the preset's, if given.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: its files are damaged.
    """
    replaced = {} if autoencoder is None else {"autoencoder": autoencoder}

    def unfinished(folder):
        config = stored_config(folder)
        backbone = newest_average(config, folder, build_backbone(config))
        if backbone is None:
            return None
        autoencoder_used = autoencoder or stored_autoencoder(config, folder)
        return build_task(config, backbone, autoencoder_used, run_folder.stored_classes(folder))

    def load(preset):
        file = Path(preset) / "task.json"
        kind = read_object(file)["class_name"] if file.exists() else "ClassToImage"
        if kind != "ClassToImage":
            raise ValueError(f"it holds a {kind}, and a ClassToImage is needed.")
        if Path(preset).is_dir() and not file.exists():  # a backbone's, as `convert` writes: flags say the rest
            return ClassToImage.from_preset(preset, image_size=256, **replaced)
        return ClassToImage.from_preset(preset, **replaced)

    return find_model(source, load, unfinished)


def find_model(source, load, unfinished):
    """A model from wherever it is: a run folder, a preset folder, `hf://…` or `kaggle://…`.

    Args:
        source: where the model is.
        load: `load(preset)` → the model of a preset, given as a string.
        unfinished: `unfinished(folder)` → the model of a run folder without preset, or `None` without checkpoint.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: its files are damaged, or of another kind of model.
    """
    if "://" in str(source):
        return load(str(source))
    source = Path(source)
    for folder in (source / run_folder.PRESET, source):
        if (folder / "config.json").exists() and (folder / "metadata.json").exists():
            try:
                return load(str(folder))
            except (ValueError, OSError, TypeError) as error:  # the last for a class that is not imported
                reason = str(error).partition("\n")[0]
                raise ValueError(f"The preset {folder} is damaged or of another kind of model: {reason}") from None
    if (source / run_folder.CONFIG).exists() and (source / run_folder.CHECKPOINTS).is_dir():
        model = unfinished(source)
        if model is not None:
            return model
    raise FileNotFoundError(
        f"There is no model at {source}: expected a run folder with a checkpoint or a preset folder with config.json."
    )


def newest_average(config, folder, backbone):
    """The backbone with the EMA weights of a run's newest checkpoint; `None` where there is none."""
    trainer = build_trainer(config, backbone)
    if CheckpointManager(folder / run_folder.CHECKPOINTS, read_only=True).restore(trainer) is None:
        return None
    trainer.ema.copy_to(backbone)
    return backbone


def stored_autoencoder(config, folder):
    """The autoencoder of a run: the one asked for, or the one that made its latent store; without either, none."""
    store = folder / run_folder.LATENTS
    if not store.exists() and config.cache:
        return Identity(config.latent_channels)
    return KLAutoencoder.from_diffusers(config.vae or read_store(store).autoencoder)
