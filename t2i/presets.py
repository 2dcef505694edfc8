"""Training recipes of text-to-image models, and the flags made from them. Standard library only."""

import dataclasses

from fcdm_keras import presets
from fcdm_keras.presets import TrainConfig

UNTRAINED = "none"  # --text-weights none


@dataclasses.dataclass(frozen=True)
class TextTrainConfig(TrainConfig):
    """Everything that decides a run of a text-to-image model: `TrainConfig`, and what makes and draws captions."""

    text_encoder: str = "ViT-L-14"
    text_weights: str = "openai"
    text_seed: int = 0
    mirror_sided: bool = False
    num_captions: int = 4000
    share_of_two: float = 0.2
    autoencoder_steps: int = 1500

    @property
    def encoder_options(self):
        """Arguments of `OpenCLIPTextEncoder`."""
        pretrained = None if self.text_weights == UNTRAINED else self.text_weights
        return {"model": self.text_encoder, "pretrained": pretrained, "seed": self.text_seed}


_WITHOUT_FLAG = ("dataset", "num_classes", "cache", "source", "data_dir", "label_dropout_mode")
HELP = {
    **{name: text for name, text in presets.HELP.items() if name not in _WITHOUT_FLAG},
    "latents": "latent store with captions, made by `python -m t2i.encode`",
    "label_dropout": "share of samples trained without prompt, for guidance",
    "text_encoder": "open_clip's name of the text encoder, or its configuration (.json); default the latent store's",
    "text_weights": f"its weights: a tag, a file, or {UNTRAINED} for an untrained one; default the latent store's",
    "text_seed": "seed of an untrained text encoder",
    "mirror_sided": 'also mirror images whose caption says "left" or "right"',
    "num_captions": "captions that the shapes are trained with",
    "share_of_two": "share of these that are about two shapes",
    "autoencoder_steps": "steps that the shapes' autoencoder is trained for, before the model",
    "eval_reference": "reference that they are compared with (not for shapes), see `python -m fcdm_keras.evaluate`",
}
# The weights may lie elsewhere when a run is resumed; that they are the same is checked.
MAY_CHANGE = presets.MAY_CHANGE | {"text_encoder", "text_weights", "text_seed"}

RECIPES = {
    config.recipe: config
    for config in (
        # Scenes of one or two flat shapes, drawn as they are read; minutes on two CPU cores.
        TextTrainConfig(
            recipe="shapes",
            dataset="shapes",
            model="XS",
            image_size=32,
            num_classes=1,
            steps=3500,
            latent_channels=6,
            latent_scale=1.0,
            flips=False,
            global_batch_size=64,
            learning_rate=2e-3,
            ema_decay=0.999,
            ema_warmup=True,
            log_every=50,
            sample_every=1000,
            ckpt_every=500,
            keep_every=0,
            sampler="ddim",
            num_sampling_steps=25,
            cfg_scale=3.0,
            text_encoder="ViT-S-16-alt",
            text_weights=UNTRAINED,
            label_dropout=0.2,
        ),
        # Appendix H: 100K steps of 256 images, all else as in table 7. Not yet reproduced.
        TextTrainConfig(
            recipe="coco256-xl",
            dataset="coco_captions",
            model="XL",
            image_size=256,
            num_classes=1,
            steps=100_000,
            data_workers=4,
            cfg_scale=4.0,
        ),
    )
}


def add_config_flags(parser):
    """Adds `--recipe` and the flags of its fields to an argument parser; unset means the recipe's value."""
    presets.add_config_flags(parser, RECIPES, "shapes", HELP)


def config_from_flags(options):
    """The recipe named by parsed `options` with the flags that were given. Raises ValueError if they make no run."""
    config = presets.config_from_flags(options, RECIPES)
    if config.autoencoder_steps < 1:
        raise ValueError(f"autoencoder_steps must be at least 1. Received: {config.autoencoder_steps}")
    if config.num_captions < 1 or not 0 <= config.share_of_two <= 1:
        raise ValueError(
            "num_captions must be at least 1, share_of_two must lie in [0, 1]. "
            f"Received: {config.num_captions}, {config.share_of_two}"
        )
    if not config.text_encoder or not config.text_weights:
        raise ValueError(f"text_encoder and text_weights must not be empty ({UNTRAINED} is untrained).")
    return config
