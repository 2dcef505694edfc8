"""Data sets of captioned images, as objects like those of `fcdm_keras.runs.datasets`. Nothing heavy is imported."""

import dataclasses

from fcdm_keras.options import flag
from fcdm_keras.runs.datasets import Stored
from t2i.recipes import UNTRAINED


class Shapes:
    """Captioned scenes of flat shapes, drawn as they are read."""

    makes = ("text.json", "embeddings.npz", "autoencoder", "autoencoder.npz")
    made_of = (
        "seed", "latent_channels", "global_batch_size", "autoencoder_steps", "num_captions", "share_of_two",
        "text_encoder", "text_weights", "text_seed",
    )  # fmt: skip

    def resolve(self, config, given, dry_run=False):
        if config.image_size != 32 or config.latents:
            raise ValueError("the shapes are drawn, 32 pixels wide; leave out --image-size and --latents.")
        return config

    def latent_side(self, config):
        from t2i.shapes.autoencoder import FACTOR

        return config.image_size // FACTOR

    def load_start(self, source):
        from t2i import load

        return load.load_backbone(source)

    def prepare(self, config, folder):
        return config

    def open(self, config, folder):
        from t2i import data

        return data.open_shapes(config, folder)


class Captioned(Stored):
    """A latent store with captions, such as MS-COCO's."""

    maker = "t2i.encode"
    sources = "a folder with COCO's official files. The embedded recipe is `shapes`."

    def fitted(self, config, given):
        """The settings with the text encoder of the store. Raises ValueError if flags name another."""
        from fcdm_keras.data.latent_store import check_fit, read_metadata
        from t2i.caption_store import CaptionStore
        from t2i.text_encoder import absolute

        check_fit(read_metadata(config.latents), config)
        settings = CaptionStore(config.latents).settings
        stored = {
            "text_encoder": settings["model"],
            "text_weights": settings["pretrained"] or UNTRAINED,
            "text_seed": settings["seed"],
        }
        for name, value in stored.items():
            asked = given.get(name, value)
            if asked != value and (isinstance(asked, int) or absolute(asked) != value):
                raise ValueError(
                    f"The captions of {config.latents} were encoded with {name} {value}, and the run asks for "
                    f"{getattr(config, name)}; leave out {flag(name)}, or encode them again."
                )
        return dataclasses.replace(config, **stored)

    def open(self, config, folder):
        from t2i import data

        return data.open_captioned(config, folder)


DATASETS = {"shapes": Shapes()}  # those with a way of their own; all others are latent stores with captions


def dataset_of(config):
    """The data set of a run's settings."""
    return DATASETS.get(config.dataset, Captioned())
