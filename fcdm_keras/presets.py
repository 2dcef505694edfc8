"""Model sizes and training recipes, and the command-line flags made from them. Standard library only."""

import argparse
import dataclasses
import json
import math


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """Sizes of one model: C, blocks per level, and the figures that `python -m fcdm_keras.model_table` recomputes."""

    hidden_channels: int
    depths: tuple[int, ...]
    parameters: int | None = None  # exact, 1000 classes and 4 latent channels
    gmacs_256: float | None = None  # the paper's "FLOPs (G)" at 256 px (tables 2 and 3)
    gmacs_512: float | None = None  # the paper's "FLOPs (G)" at 512 px (table 5)


# fmt: off
MODEL_SIZES = {
    "XS": ModelSize( 32, (1, 2,  2, 2, 1)),                            # ours, for small images
    "S":  ModelSize(128, (2, 4,  8, 4, 2),  32_699_912,  3.1),
    "B":  ModelSize(256, (2, 4,  8, 4, 2), 127_675_400, 12.2),
    "L":  ModelSize(512, (2, 4,  8, 4, 2), 504_453_128, 48.3),
    "XL": ModelSize(512, (3, 6, 12, 6, 3), 698_754_056, 64.6, 257.7),
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run. Defaults are the paper's (table 7)."""

    recipe: str
    dataset: str
    model: str
    image_size: int
    num_classes: int
    steps: int
    latent_channels: int = 4
    latent_scale: float = 0.18215  # of SD's autoencoders
    latents: str = ""
    source: str = ""
    data_dir: str = ""
    vae: str = ""
    cache: bool = True
    flips: bool = True
    sample_posterior: bool = True
    data_workers: int = 0
    init_from: str = ""
    global_batch_size: int = 256
    accumulation_steps: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    ema_decay: float = 0.9999
    ema_warmup: bool = False
    label_dropout: float = 0.1
    label_dropout_mode: str = "joint"
    precision: str = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: int = 100
    sample_every: int = 10_000
    eval_every: int = 0
    num_eval_samples: int = 200
    eval_reference: str = ""
    eval_features: str = "inception"
    inception: str = ""
    ckpt_every: int = 10_000
    keep_last: int = 3
    keep_every: int = 100_000
    sampler: str = "ddpm"
    num_sampling_steps: int = 250
    cfg_scale: float = 1.5
    results_dir: str = "runs"


HELP = {
    "dataset": "data set",
    "model": "model size: " + ", ".join(MODEL_SIZES),
    "image_size": "side of the images, pixels",
    "num_classes": "number of classes; default the latent store's",
    "latent_channels": "channels of the latents",
    "latent_scale": "factor from the autoencoder's latents to what is diffused, which the store must have; 0 is any",
    "latents": "latent store, made by `python -m fcdm_keras.encode`",
    "source": "images for --no-cache: folder of class folders, or TFDS name; default the recipe's data set",
    "data_dir": "folder of TensorFlow Datasets",
    "vae": "autoencoder that decodes samples: folder or Hub id; default what the latent store was made with",
    "cache": "train from a latent store; --no-cache: keep the images in memory and encode every batch (small sets)",
    "flips": "mirror half of the images",
    "sample_posterior": "draw latents from the autoencoder's posterior anew at each read; else its mean",
    "data_workers": "processes that read training data; 0 reads in this one",
    "init_from": "start from the weights of a preset, run or reference checkpoint (.pt)",
    "steps": "optimizer steps in all",
    "global_batch_size": "images per optimizer step, over all devices and micro-batches",
    "accumulation_steps": "micro-batches per optimizer step; divides the global batch size",
    "learning_rate": "constant step size of AdamW",
    "weight_decay": "AdamW's weight decay",
    "clip_norm": "clip the gradients to this global norm; 0 is off",
    "ema_decay": "decay of the weights' moving average, per step",
    "ema_warmup": "let the decay rise from 0.1 at the start",
    "label_dropout": "share of samples trained without label, for guidance",
    "label_dropout_mode": "joint: one drop for all three tables; per_level: each on its own, as the reference",
    "precision": "dtype policy: float32, mixed_bfloat16 or mixed_float16",
    "gradient_checkpointing": "recompute blocks in the backward pass: less memory, more time",
    "seed": "seed of weights, data order, noise and timesteps",
    "log_every": "steps between log lines",
    "sample_every": "steps between sample grids; 0 is never",
    "eval_every": "steps between scores of images drawn from the EMA weights; 0 is never",
    "num_eval_samples": "images drawn for these scores",
    "eval_reference": "reference that they are compared with (not for digits), see `python -m fcdm_keras.evaluate`",
    "eval_features": "features of these scores: inception, dinov2, pixels or a .keras model",
    "inception": "classify_image_graph_def.pb; default downloads it",
    "ckpt_every": "steps between checkpoints",
    "keep_last": "newest checkpoints kept",
    "keep_every": "checkpoints at multiples of this many steps are kept for good; 0 is none",
    "sampler": "ddpm or ddim",
    "num_sampling_steps": "sampling steps, 1 to 1000",
    "cfg_scale": "guidance scale on all channels; 1 is none",
    "results_dir": "folder of run folders; the run is in RESULTS_DIR/RECIPE",
}
CHOICES = {
    "model": tuple(MODEL_SIZES),
    "label_dropout_mode": ("joint", "per_level"),
    "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
    "sampler": ("ddpm", "ddim"),
}
# May change when a run is resumed; everything else must stay as it was.
MAY_CHANGE = {
    "steps", "latents", "source", "data_dir", "vae", "data_workers", "gradient_checkpointing",
    "log_every", "sample_every", "eval_every", "num_eval_samples", "eval_reference", "eval_features", "inception",
    "ckpt_every", "keep_last", "keep_every", "sampler", "num_sampling_steps", "cfg_scale", "results_dir",
}  # fmt: skip


def _imagenet(image_size, model, steps):
    name = f"imagenet{image_size}-{model.lower()}"
    return TrainConfig(
        recipe=name,
        dataset="imagenet2012",
        model=model,
        image_size=image_size,
        num_classes=1000,
        steps=steps,
        data_workers=4,
    )


RECIPES = {
    config.recipe: config
    for config in (
        # scikit-learn's handwritten digits in pixel space; minutes on two CPU cores.
        TrainConfig(
            recipe="digits",
            dataset="digits",
            model="XS",
            image_size=8,
            num_classes=10,
            steps=1000,
            latent_channels=1,
            latent_scale=1.0,
            flips=False,
            global_batch_size=128,
            learning_rate=1e-3,
            ema_decay=0.999,
            ema_warmup=True,
            log_every=50,
            sample_every=500,
            ckpt_every=250,
            keep_every=0,
            sampler="ddim",
            num_sampling_steps=50,
        ),
        # Three photographs that ship inside packages, through an autoencoder and a latent store of their own.
        TrainConfig(
            recipe="photos",
            dataset="photos",
            model="XS",
            image_size=48,
            num_classes=3,
            steps=800,
            latent_scale=0.0,
            global_batch_size=64,
            learning_rate=1e-3,
            ema_decay=0.999,
            ema_warmup=True,
            log_every=50,
            sample_every=400,
            ckpt_every=200,
            keep_every=0,
            sampler="ddim",
            num_sampling_steps=50,
        ),
        # Table 7. Scores: not yet reproduced.
        _imagenet(256, "S", 400_000),
        _imagenet(256, "B", 400_000),
        _imagenet(256, "L", 400_000),
        _imagenet(256, "XL", 2_000_000),
        _imagenet(512, "XL", 1_000_000),
    )
}


def add_config_flags(parser, recipes=RECIPES, default="digits", texts=HELP, choices=CHOICES):
    """Adds `--recipe` and one flag per field of a recipe to an argument parser; unset means the recipe's value.

    Args:
        parser: an `argparse.ArgumentParser`.
        recipes: name → `TrainConfig`, or a class derived from it.
        default: name of the recipe that is trained if none is named.
        texts: field → help; a field without help gets no flag.
        choices: field → allowed values.
    """
    parser.add_argument(
        "--recipe", default=default, choices=tuple(recipes), help=f"training recipe (default: {default})"
    )
    for field in dataclasses.fields(recipes[default]):
        if field.name not in texts:
            continue
        flag, text = "--" + field.name.replace("_", "-"), texts[field.name]
        if field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(flag, type=field.type, choices=choices.get(field.name), default=None, help=text)


def config_from_flags(options, recipes=RECIPES):
    """The recipe named by parsed `options` with the flags that were given. Raises ValueError if they make no run."""
    recipe = recipes[options.recipe]
    given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(recipe)}
    changes = {name: value for name, value in given.items() if value is not None and name != "recipe"}
    config = dataclasses.replace(recipe, **changes)
    check_config(config)
    return config


def check_config(config):
    """Raises ValueError, in one sentence, for a value that cannot be trained with."""
    for name, lowest in (
        ("image_size", 4), ("num_classes", 1), ("steps", 1), ("global_batch_size", 1), ("accumulation_steps", 1),
        ("latent_channels", 1), ("latent_scale", 0), ("data_workers", 0), ("log_every", 1), ("sample_every", 0),
        ("eval_every", 0), ("num_eval_samples", 4), ("ckpt_every", 1), ("keep_last", 1), ("keep_every", 0),
        ("cfg_scale", 0), ("clip_norm", 0), ("weight_decay", 0), ("seed", 0),
    ):  # fmt: skip
        if not getattr(config, name) >= lowest:
            raise ValueError(f"{name} must be at least {lowest}. Received: {getattr(config, name)}")
    for field in dataclasses.fields(config):
        if field.type is float and not math.isfinite(getattr(config, field.name)):
            raise ValueError(f"{field.name} must be finite. Received: {getattr(config, field.name)}")
    if not config.learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0. Received: {config.learning_rate}")
    for name in ("ema_decay", "label_dropout"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1). Received: {getattr(config, name)}")
    if config.seed >= 2**64:
        raise ValueError(f"seed must be below 2**64. Received: {config.seed}")
    if not 1 <= config.num_sampling_steps <= 1000:
        raise ValueError(f"num_sampling_steps must lie in [1, 1000]. Received: {config.num_sampling_steps}")
    if config.global_batch_size % config.accumulation_steps:
        raise ValueError(
            f"global_batch_size must be divisible by accumulation_steps={config.accumulation_steps}. "
            f"Received: {config.global_batch_size}"
        )
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}. Received: {getattr(config, name)!r}")


def config_to_json(config):
    """The config as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def config_from_json(text, config_class=TrainConfig, others=False):
    """The inverse of `config_to_json`.

    Args:
        text: JSON.
        config_class: `TrainConfig`, or the class derived from it that was written.
        others: leave out what `config_class` has no field for, to read what runs of all kinds have in common.

    Raises:
        ValueError: for other text.
    """
    try:
        values = json.loads(text)
        names = {field.name for field in dataclasses.fields(config_class)}
        unknown = [name for name in values if name not in names]
        if unknown and not others:
            raise ValueError(f"it is of another kind of run, with {unknown[0]}")
        config = config_class(**{name: value for name, value in values.items() if name in names})
        check_config(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"This is no configuration of a run ({error}).") from None
    return config
