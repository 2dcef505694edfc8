"""A run's model built from its configuration, exported and loaded again."""

import shutil
from pathlib import Path

import keras

from fcdm_keras import engine
from fcdm_keras.autoencoders import Identity
from fcdm_keras.backbone import FCDMBackbone
from fcdm_keras.checkpoint import CheckpointManager
from fcdm_keras.optimizers import AdamW
from fcdm_keras.presets import MODEL_SIZES
from fcdm_keras.run_folder import stored_config
from fcdm_keras.tasks import ClassToImage
from fcdm_keras.trainer import DiffusionTrainer

CHANNELS = {"digits": 1}  # of the images of data sets that are trained in pixel space


def build_trainer(config):
    """A compiled `DiffusionTrainer` with fresh weights, as `config` describes."""
    engine.allow_tf32()
    keras.utils.set_random_seed(config.seed % 2**32)
    size = MODEL_SIZES[config.model]
    backbone = FCDMBackbone(
        size.hidden_channels,
        size.depths,
        num_classes=config.num_classes,
        in_channels=CHANNELS.get(config.dataset, 4),
        dtype=config.precision,
    )
    backbone.gradient_checkpointing = config.gradient_checkpointing
    trainer = DiffusionTrainer(
        backbone,
        ema_decay=config.ema_decay,
        ema_warmup=config.ema_warmup,
        label_dropout=config.label_dropout,
        label_dropout_mode=config.label_dropout_mode,
        accumulation_steps=config.accumulation_steps,
        seed=config.seed,
    )
    optimizer = AdamW(config.learning_rate, config.weight_decay, global_clipnorm=config.clip_norm or None)
    trainer.compile(optimizer, jit_compile=True if config.torch_compile else "auto")
    return trainer


def build_task(config, backbone):
    """The task that samples from `backbone` in a run of `config`."""
    return ClassToImage(backbone, Identity(backbone.in_channels), image_size=config.image_size)


def export_preset(trainer, config, folder):
    """Saves the EMA weights as a task preset in `folder`, which is whole or absent at any moment."""
    backbone = FCDMBackbone.from_config({**trainer.backbone.get_config(), "dtype": "float32"})
    trainer.ema.copy_to(backbone)
    unfinished = folder.with_name(f".unfinished-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    build_task(config, backbone).save_to_preset(str(unfinished))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def load_task(source, autoencoder=None):
    """A task from a run folder, a preset folder, `hf://…` or `kaggle://…`.

    A run that is not finished gives the EMA weights of its newest checkpoint.

    Args:
        source: where the model is.
        autoencoder: replaces the preset's, if given.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: its files are damaged.
    """
    options = {} if autoencoder is None else {"autoencoder": autoencoder}
    if "://" in str(source):
        return ClassToImage.from_preset(str(source), **options)
    source = Path(source)
    for folder in (source / "preset", source):
        if (folder / "config.json").exists() and (folder / "metadata.json").exists():
            try:
                return ClassToImage.from_preset(str(folder), **options)
            except (ValueError, OSError) as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(f"The preset {folder} is damaged or not of a class-to-image task: {reason}") from None
    if (source / "config.json").exists() and (source / "checkpoints").is_dir():
        config = stored_config(source)
        trainer = build_trainer(config)
        if CheckpointManager(source / "checkpoints", read_only=True).restore(trainer) is not None:
            trainer.ema.copy_to(trainer.backbone)
            return build_task(config, trainer.backbone)
    raise FileNotFoundError(
        f"There is no model at {source}: expected a run folder with a checkpoint or a preset folder with config.json."
    )
