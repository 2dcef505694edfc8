"""A run's model, built from its configuration and exported."""

import shutil

import keras
from keras import ops

from fcdm_keras import backend, distribution
from fcdm_keras.autoencoders import Identity
from fcdm_keras.diffusion.flow import FlowMatching
from fcdm_keras.diffusion.objectives import as_objective
from fcdm_keras.files import replace_folder
from fcdm_keras.network import adapters
from fcdm_keras.network.backbones import BACKBONES
from fcdm_keras.recipes.ablations import variant_of
from fcdm_keras.runs.folder import ADAPTERS
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training.optimizer import AdamW
from fcdm_keras.training.trainer import DiffusionTrainer


def build_backbone(config, conditioning=None):
    """A backbone with fresh weights, as `config` describes; the default conditioning is of its classes."""
    backend.allow_tf32()
    keras.utils.set_random_seed(config.seed % 2**32)
    size = config.size
    backbone = BACKBONES[size.network](
        size.hidden_channels,
        size.depths,
        num_classes=config.num_classes,
        in_channels=config.latent_channels,
        out_channels=build_objective(config).out_channels(config.latent_channels),
        conditioning=conditioning,
        dtype=config.precision,
        **({"variant": size.variant} if size.variant else {}),
        **size.options,
    )
    backbone.gradient_checkpointing = config.gradient_checkpointing
    return backbone


def build_objective(config):
    """The objective that `config` names."""
    if config.objective != "flow":
        return as_objective(config.objective)
    weighting = None if config.flow_weighting == "none" else config.flow_weighting
    return FlowMatching(config.flow_path, config.flow_prediction, weighting, times=config.flow_times)


def build_trainer(config, backbone=None):
    """A compiled `DiffusionTrainer`, as `config` describes, of a backbone from `build_backbone`, which it may adapt."""
    backbone = backbone or build_backbone(config)
    if config.lora_rank:
        backbone.enable_lora(config.lora_rank)
        backbone.conditioning.trainable = True  # new classes need it
    trainer = DiffusionTrainer(
        backbone,
        objective=build_objective(config),
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


def copy_weights(source, target, same_conditions=True):
    """Starts one backbone from another of the same sizes; the conditioning stays as it is where it has other shapes.

    Args:
        source, target: backbones, which may differ in their number of classes.
        same_conditions: whether equal conditions mean the same in both; else the conditioning stays as it is.

    Returns:
        What was done, in one sentence.

    Raises:
        ValueError: the networks differ in more than their conditioning.
    """
    check_start(source, target)
    old, new = source.conditioning, target.conditioning
    shapes = [[tuple(v.shape) for v in conditioning.weights] for conditioning in (old, new)]
    same = same_conditions and shapes[0] == shapes[1]
    kept, made = (source.weights, target.weights) if same else (_without(source, old), _without(target, new))
    for a, b in zip(kept, made, strict=True):
        b.assign(ops.cast(a.value, b.dtype) * 1)
    if same:
        return f"all {len(made)} tensors are kept"
    both = hasattr(old, "num_classes") and hasattr(new, "num_classes")
    classes = f" ({old.num_classes} classes there, {new.num_classes} here)" if both else ""
    return f"{len(made)} tensors are kept, the {len(new.weights)} of the conditioning are made anew{classes}"


def check_start(source, target):
    """Raises ValueError unless two backbones differ in nothing but their conditioning."""
    there, here = _sizes(source), _sizes(target)
    different = [f"{name} {there.get(name)} there, {here[name]} here" for name in here if there.get(name) != here[name]]
    if different:
        raise ValueError(f"The weights to start from are of another network: {'; '.join(different)}.")


def _sizes(backbone):
    """What a backbone's weights but the conditioning's depend on."""
    config = {"network": type(backbone).__name__, **backbone.get_config()}
    if hasattr(backbone, "variant"):  # those with the same blocks differ in sizes alone
        config["variant"] = variant_of(backbone.variant).block
    left_out = ("name", "trainable", "dtype", "conditioning")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in config.items() if name not in left_out}


def _without(backbone, conditioning):
    left_out = {id(variable) for variable in conditioning.weights}
    return [variable for variable in backbone.weights if id(variable) not in left_out]


def build_task(config, backbone, autoencoder=None, class_names=None):
    """The task that samples from `backbone` in a run of `config`; without autoencoder, images are the latents."""
    autoencoder = autoencoder or Identity(backbone.in_channels)
    objective = build_objective(config)
    return ClassToImage(backbone, autoencoder, config.image_size, objective, class_names=class_names)


def export_preset(trainer, folder, build_task):
    """Saves the EMA weights as a task preset in `folder`, which is whole or absent at any moment.

    Adapters are merged there, and saved by themselves in `adapters.lora.h5` beside it.

    Args:
        trainer: a `DiffusionTrainer`.
        folder: a `Path`.
        build_task: `build_task(backbone)` → the task.
    """
    backbone = type(trainer.backbone).from_config({**trainer.backbone.get_config(), "dtype": "float32"})
    adapted = list(adapters.adapted(trainer.backbone).values())
    if adapted:
        backbone.enable_lora(adapted[0].lora_rank, sorted({layer.name for layer in adapted}))
        for own, theirs in zip(backbone.weights, trainer.backbone.weights):
            own.trainable = theirs.trainable
    trainer.ema.copy_to(backbone)
    task = build_task(backbone)
    with distribution.readable(task.variables):
        unfinished = folder.with_name(f".unfinished-{folder.name}")
        if distribution.is_main():
            shutil.rmtree(unfinished, ignore_errors=True)
        distribution.write_once(lambda path: task.save_to_preset(str(path)), unfinished)
        if adapted and distribution.is_main():
            backbone.save_lora_weights(folder.with_name(ADAPTERS))
    if distribution.is_main():
        replace_folder(unfinished, folder)
