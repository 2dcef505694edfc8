"""The settings of a run of a text-to-image model, and its recipes. Nothing heavy is imported."""

import dataclasses

from fcdm_keras.arguments import COUNTED
from fcdm_keras.options import between, changeable, filled, setting, share
from fcdm_keras.recipes import STEPS, TrainConfig

UNTRAINED = "none"  # --text-weights none


@dataclasses.dataclass(frozen=True)
class TextTrainConfig(TrainConfig):
    """Everything that decides a run of a text-to-image model: `TrainConfig`, and what makes and draws captions."""

    # Without flags: a text run has no classes, and no images in memory.
    dataset: str = setting()
    num_classes: int = setting()
    cache: bool = setting(True)
    source: str = changeable("")
    data_dir: str = changeable("")
    label_dropout_mode: str = setting("joint")
    # With another meaning.
    latents: str = changeable("", "latent store with captions, made by `python -m t2i.encode`")
    label_dropout: float = setting(0.1, "share of samples trained without prompt, for guidance", share())
    eval_reference: str = changeable(
        "", "reference that they are compared with (not for shapes), see `python -m fcdm_keras.evaluate`"
    )
    # The weights may lie elsewhere when a run is resumed; that they are the same is checked.
    text_encoder: str = changeable(
        "ViT-L-14",
        "open_clip's name of the text encoder, or its configuration (.json); default the latent store's",
        filled(),
    )
    text_weights: str = changeable(
        "openai",
        f"its weights: a tag, a file, or {UNTRAINED} for an untrained one; default the latent store's",
        filled(),
    )
    text_seed: int = changeable(0, "seed of an untrained text encoder", between(-(2**63), 2**64 - 1))
    mirror_sided: bool = setting(False, 'also mirror images whose caption says "left" or "right"')
    num_captions: int = setting(4000, "captions that the shapes are trained with", between(1, COUNTED))
    share_of_two: float = setting(0.2, "share of these that are about two shapes", between(0, 1))
    autoencoder_steps: int = setting(1500, "steps that the shapes' autoencoder is trained for before the model", *STEPS)

    @property
    def encoder_options(self):
        """Arguments of `OpenCLIPTextEncoder`."""
        pretrained = None if self.text_weights == UNTRAINED else self.text_weights
        return {"model": self.text_encoder, "pretrained": pretrained, "seed": self.text_seed}


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
