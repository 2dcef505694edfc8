"""The configuration of an autoencoder's training, its flags and its folder. Standard library only."""

import argparse
import dataclasses
import json
import math
from pathlib import Path

from fcdm_keras.files import write_atomically


def _field(default, help, **options):
    return dataclasses.field(default=default, metadata={"help": help, **options})


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Everything that decides a training run of `python -m fcdm_keras.train_vae`."""

    source: str = _field("photos", "folder of images, or photos (three photographs that ship inside packages)")
    image_size: int = _field(32, "side of the random crops, pixels; images of any size can be encoded later")
    resize: int = _field(0, "reduce images whose shorter side is longer than this to it; 0 keeps them as they are")
    block_out_channels: tuple = _field((16, 32, 64), "widths of the levels, such as 16,32,64; each but the last halves")
    layers_per_block: int = _field(1, "residual blocks per level of the encoder; the decoder has one more")
    latent_channels: int = _field(4, "channels of the latents")
    norm_num_groups: int = _field(8, "groups of the norms; divides every width")
    steps: int = _field(1000, "optimizer steps in all")
    batch_size: int = _field(16, "crops per step")
    accumulation_steps: int = _field(1, "micro-batches per step, to save memory; divides the batch size")
    learning_rate: float = _field(1e-3, "constant step size of AdamW")
    clip_norm: float = _field(1.0, "clip the gradients to this global norm; 0 is off")
    loss: str = _field("l1", "l1 or l2: absolute or squared error", choices=("l1", "l2"))
    kl_weight: float = _field(1e-6, "weight of the KL divergence")
    ema_decay: float = _field(0.999, "decay of the weights' moving average, per step")
    precision: str = _field("float32", "dtype policy", choices=("float32", "mixed_bfloat16", "mixed_float16"))
    seed: int = _field(0, "seed of weights, crops and noise")
    log_every: int = _field(50, "steps between log lines")
    sample_every: int = _field(500, "steps between reconstruction grids; 0 is never")
    ckpt_every: int = _field(500, "steps between checkpoints")

    @property
    def downsampling_factor(self):
        return 2 ** (len(self.block_out_channels) - 1)


# May change when a run is resumed; everything else must stay as it was.
MAY_CHANGE = {"steps", "log_every", "sample_every", "ckpt_every"}
SETTINGS = "settings.json"


def add_flags(parser):
    """Adds one flag per field of `VAEConfig`."""
    for field in dataclasses.fields(VAEConfig):
        default = field.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=_widths if field.type is tuple else field.type,
            default=default,
            choices=field.metadata.get("choices"),
            help=f"{field.metadata['help']} (default {shown})",
        )


def config_from_flags(options):
    """The configuration of parsed `options`. Raises ValueError, in one sentence, if it cannot be trained."""
    config = VAEConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(VAEConfig)})
    check(config)
    return config


def check(config):
    """Raises ValueError, in one sentence, for a value that cannot be trained with."""
    for name, lowest in (
        ("image_size", 1), ("resize", 0), ("layers_per_block", 1), ("latent_channels", 1), ("norm_num_groups", 1),
        ("steps", 1), ("batch_size", 1), ("accumulation_steps", 1), ("clip_norm", 0), ("kl_weight", 0),
        ("ema_decay", 0), ("seed", 0), ("log_every", 1), ("sample_every", 0), ("ckpt_every", 1),
    ):  # fmt: skip
        value = getattr(config, name)
        if not (value >= lowest and math.isfinite(value)):
            raise ValueError(f"{name} must be at least {lowest} and finite. Received: {value}")
    if not (config.learning_rate > 0 and math.isfinite(config.learning_rate)):
        raise ValueError(f"learning_rate must be above 0 and finite. Received: {config.learning_rate}")
    if config.ema_decay >= 1 or config.seed >= 2**64:
        raise ValueError(f"ema_decay must be below 1, seed below 2**64. Received: {config.ema_decay}, {config.seed}")
    if any(width % config.norm_num_groups for width in config.block_out_channels):
        raise ValueError(
            f"block_out_channels must be multiples of norm_num_groups={config.norm_num_groups}. "
            f"Received: {','.join(map(str, config.block_out_channels))}"
        )
    if config.image_size % config.downsampling_factor:
        raise ValueError(
            f"image_size must be a multiple of {config.downsampling_factor}, the downsampling factor of "
            f"{len(config.block_out_channels)} levels. Received: {config.image_size}"
        )
    if config.batch_size % config.accumulation_steps:
        raise ValueError(
            f"batch_size must be divisible by accumulation_steps={config.accumulation_steps}. "
            f"Received: {config.batch_size}"
        )
    if 0 < config.resize < config.image_size:
        raise ValueError(f"resize must be at least image_size={config.image_size}. Received: {config.resize}")


def open_folder(output, config):
    """Creates or re-opens the folder of a run and stores the configuration there as `settings.json`.

    Raises:
        ValueError: it holds a run of another configuration.
        OSError: it cannot be written to.
    """
    folder = Path(output)
    file = folder / SETTINGS
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    if file.exists():
        try:
            stored = dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} cannot be read; remove it, or give another --output: {error}") from None
        different = [
            f"{name}={stored.get(name)!r} there, {value!r} now"
            for name, value in settings.items()
            if name not in MAY_CHANGE and stored.get(name) != value
        ]
        if different:
            raise ValueError(
                f"{folder} holds a run of another configuration ({'; '.join(different)}): give the flags that it was "
                "started with to resume it, or another --output."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise OSError(f"The run folder {folder} cannot be written to: {error.strerror or error}.") from None
    return folder


def _widths(text):
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        raise argparse.ArgumentTypeError(f"expected positive widths such as 16,32,64. Received: {text!r}")
    return widths
