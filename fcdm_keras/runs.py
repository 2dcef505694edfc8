"""A run's model built from its configuration, exported and loaded again."""

import json
import shutil
from pathlib import Path

import keras
from keras import ops

from fcdm_keras import backend, distribution
from fcdm_keras.autoencoders import Identity, KLAutoencoder
from fcdm_keras.backbone import FCDMBackbone
from fcdm_keras.checkpoint import CheckpointManager
from fcdm_keras.convert import load_torch_checkpoint
from fcdm_keras.optimizers import AdamW
from fcdm_keras.presets import MODEL_SIZES
from fcdm_keras.run_folder import stored_config
from fcdm_keras.tasks import ClassToImage
from fcdm_keras.trainer import DiffusionTrainer


def build_backbone(config, conditioning=None):
    """A backbone with fresh weights, as `config` describes; the default conditioning is of its classes."""
    backend.allow_tf32()
    keras.utils.set_random_seed(config.seed % 2**32)
    size = MODEL_SIZES[config.model]
    backbone = FCDMBackbone(
        size.hidden_channels,
        size.depths,
        num_classes=config.num_classes,
        in_channels=config.latent_channels,
        conditioning=conditioning,
        dtype=config.precision,
    )
    backbone.gradient_checkpointing = config.gradient_checkpointing
    return backbone


def build_trainer(config, backbone=None):
    """A compiled `DiffusionTrainer`, as `config` describes, of a backbone from `build_backbone`."""
    trainer = DiffusionTrainer(
        backbone or build_backbone(config),
        ema_decay=config.ema_decay,
        ema_warmup=config.ema_warmup,
        label_dropout=config.label_dropout,
        label_dropout_mode=config.label_dropout_mode,
        accumulation_steps=config.accumulation_steps,
        seed=config.seed,
    )
    optimizer = AdamW(config.learning_rate, config.weight_decay, global_clipnorm=config.clip_norm or None)
    trainer.compile(optimizer)
    return trainer


def load_backbone(source):
    """The backbone of a preset, a run folder, or a reference checkpoint (`.pt`). Raises ValueError or OSError."""
    if str(source).endswith(".pt"):
        return load_torch_checkpoint(source)
    return find_model(source, FCDMBackbone.from_preset, lambda folder: load_task(folder).backbone)


def copy_weights(source, target, same_conditions=True):
    """Starts one backbone from another of the same sizes; the conditioning stays as it is where it has other shapes.

    Args:
        source, target: `FCDMBackbone`s, which may differ in their number of classes.
        same_conditions: whether equal conditions mean the same in both; else the conditioning stays as it is.

    Returns:
        What was done, in one sentence.

    Raises:
        ValueError: the networks differ in more than their conditioning.
    """
    sizes = ("hidden_channels", "depths", "in_channels", "out_channels", "expansion_ratio", "kernel_size")
    different = [
        f"{name} {getattr(source, name)} there, {getattr(target, name)} here"
        for name in sizes
        if getattr(source, name) != getattr(target, name)
    ]
    if different:
        raise ValueError(f"The weights to start from are of another network: {'; '.join(different)}.")
    old, new = source.conditioning, target.conditioning
    shapes = [[tuple(v.shape) for v in conditioning.weights] for conditioning in (old, new)]
    same = same_conditions and shapes[0] == shapes[1]
    kept, made = (source.variables, target.variables) if same else (_without(source, old), _without(target, new))
    for a, b in zip(kept, made, strict=True):
        b.assign(ops.cast(a.value, b.dtype) * 1)
    if same:
        return f"all {len(made)} tensors are kept"
    both = hasattr(old, "num_classes") and hasattr(new, "num_classes")
    classes = f" ({old.num_classes} classes there, {new.num_classes} here)" if both else ""
    return f"{len(made)} tensors are kept, the {len(new.weights)} of the conditioning are made anew{classes}"


def _without(backbone, conditioning):
    left_out = {id(variable) for variable in conditioning.variables}
    return [variable for variable in backbone.variables if id(variable) not in left_out]


def build_task(config, backbone, autoencoder=None):
    """The task that samples from `backbone` in a run of `config`; without autoencoder, images are the latents."""
    return ClassToImage(backbone, autoencoder or Identity(backbone.in_channels), image_size=config.image_size)


def export_preset(trainer, folder, build_task):
    """Saves the EMA weights as a task preset in `folder`, which is whole or absent at any moment.

    Args:
        trainer: a `DiffusionTrainer`.
        folder: a `Path`.
        build_task: `build_task(backbone)` → the task.
    """
    backbone = FCDMBackbone.from_config({**trainer.backbone.get_config(), "dtype": "float32"})
    trainer.ema.copy_to(backbone)
    for source, target in zip(trainer.backbone.non_trainable_variables, backbone.non_trainable_variables, strict=True):
        target.assign(ops.cast(source.value, target.dtype) * 1)
    task = build_task(backbone)
    with distribution.readable(task.variables):
        unfinished = folder.with_name(f".unfinished-{folder.name}")
        if distribution.is_main():
            shutil.rmtree(unfinished, ignore_errors=True)
        distribution.write_once(lambda path: task.save_to_preset(str(path)), unfinished)
    if distribution.is_main():
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)


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
    options = {} if autoencoder is None else {"autoencoder": autoencoder}

    def unfinished(folder):
        config = stored_config(folder)
        backbone = newest_average(config, folder, build_backbone(config))
        return backbone and build_task(config, backbone, autoencoder or stored_autoencoder(config, folder))

    def load(preset):
        file = Path(preset) / "task.json"
        kind = json.loads(file.read_text(encoding="utf-8"))["class_name"] if file.exists() else "ClassToImage"
        if kind != "ClassToImage":
            raise ValueError(f"it holds a {kind}, and a ClassToImage is needed.")
        return ClassToImage.from_preset(preset, **options)

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
    for folder in (source / "preset", source):
        if (folder / "config.json").exists() and (folder / "metadata.json").exists():
            try:
                return load(str(folder))
            except (ValueError, OSError, TypeError) as error:  # the last for a class that is not imported
                reason = str(error).partition("\n")[0]
                raise ValueError(f"The preset {folder} is damaged or of another kind of model: {reason}") from None
    if (source / "config.json").exists() and (source / "checkpoints").is_dir():
        model = unfinished(source)
        if model is not None:
            return model
    raise FileNotFoundError(
        f"There is no model at {source}: expected a run folder with a checkpoint or a preset folder with config.json."
    )


def newest_average(config, folder, backbone):
    """The backbone with the EMA weights of a run's newest checkpoint; `None` where there is none."""
    trainer = build_trainer(config, backbone)
    if CheckpointManager(folder / "checkpoints", read_only=True).restore(trainer) is None:
        return None
    trainer.ema.copy_to(backbone)
    return backbone


def stored_autoencoder(config, folder):
    """The autoencoder of a latent run: the one asked for, or the one that made its latent store."""
    if config.dataset == "digits":
        return None
    name = config.vae or json.loads((folder / "latents.json").read_text(encoding="utf-8"))["autoencoder"]
    return KLAutoencoder.from_diffusers(name)
