"""Data sets of class-labelled images, as objects that a run's settings choose.

A data set checks the settings of a run before anything heavy is imported, and opens itself. It has

- `resolve(config, given, dry_run)`: the settings with what only the data know (`given` are the flags that were given);
  raises ValueError or OSError, in one sentence, if there is nothing to train on;
- `latent_side(config)`: height and width of the latents; without it, memory and disk are not compared beforehand;
- `prepare(config, folder)`: makes what must be there first, and returns the settings with it; mostly nothing;
- `open(config, folder)`: the opened data, a `ClassData` (`fcdm_keras.runs.data`) or like one: what the samples are,
  how a grid of them is drawn, how images are judged and how scores are shown;
- if it makes something in the run folder first: `makes`, the names of these files and folders, and `made_of`, the
  settings that they follow from. They are made anew if such a setting changes before anything was trained with them.
  And `load_start(source)`: the backbone to start from, which is looked at before they are made.

Nothing heavy is imported. Each method that computes imports what it needs itself.
"""

import dataclasses

from fcdm_keras.recipes import VAEConfig
from fcdm_keras.runs.folder import SCORES, VAE, open_vae_run


class Digits:
    """scikit-learn's handwritten digits, in pixel space."""

    def resolve(self, config, given, dry_run=False):
        if (config.image_size, config.num_classes, config.latent_channels) != (8, 10, 1) or config.latents:
            raise ValueError(
                "the digits are 8 pixels wide, of 1 channel and 10 classes; leave out --image-size, --num-classes, "
                "--latent-channels and --latents."
            )
        return config

    def latent_side(self, config):
        return config.image_size

    def prepare(self, config, folder):
        return config

    def open(self, config, folder):
        from fcdm_keras.runs import data

        return data.open_digits(config)


class Stored:
    """A latent store."""

    maker = "fcdm_keras.encode"  # the command that makes one
    sources = "a folder of class folders. The embedded recipes are `digits` and `photos`."

    def resolve(self, config, given, dry_run=False):
        check_reference(config)
        if dry_run:
            return config
        if not config.latents:
            raise ValueError(
                f"recipe {config.recipe} trains on latents: give a store with --latents DIR. `python -m {self.maker} "
                f"--source {config.dataset} --vae stabilityai/sd-vae-ft-ema --image-size {config.image_size} --output "
                f"DIR` makes one; --source may also be {self.sources}"
            )
        return self.fitted(config, given)

    def fitted(self, config, given):
        """The settings with the store's number of classes, unless it was given. Raises ValueError for another store."""
        from fcdm_keras.data.latent_store import check_fit, read_metadata

        metadata = read_metadata(config.latents)
        if "num_classes" not in given:
            config = dataclasses.replace(config, num_classes=metadata.num_classes)
        check_fit(metadata, config)
        return config

    def latent_side(self, config):
        from fcdm_keras.data.latent_store import read_metadata

        return read_metadata(config.latents).latent_shape[0]

    def prepare(self, config, folder):
        return config

    def open(self, config, folder):
        from fcdm_keras.runs import data

        return data.open_stored(config, folder)


class Photos(Stored):
    """Three embedded photographs, through an autoencoder that is trained on them first, and a store of its latents."""

    makes, made_of = ("autoencoder", "latents"), ("seed", "image_size")

    def resolve(self, config, given, dry_run=False):
        if config.latents:
            return super().resolve(config, given, dry_run)
        check_reference(config)
        return config

    def latent_side(self, config):
        return super().latent_side(config) if config.latents else config.image_size // VAEConfig().downsampling_factor

    def load_start(self, source):
        from fcdm_keras.runs import load

        return load.load_backbone(source)

    def prepare(self, config, folder):
        """Trains the autoencoder and encodes the photographs; what is there already is kept."""
        if config.latents:
            return config
        from fcdm_keras.data.embedded import PhotoSource
        from fcdm_keras.data.encode import encode
        from fcdm_keras.runs.autoencoder import train_and_export

        autoencoder, latents = folder / "autoencoder", folder / "latents"
        if not all((autoencoder / name).exists() for name in (SCORES, VAE)):
            settings = VAEConfig(seed=config.seed)
            train_and_export(settings, open_vae_run(autoencoder, settings))
        if not (latents / "store.json").exists():
            encode(PhotoSource(), vae=str(autoencoder / "vae"), image_size=config.image_size, output=latents)
        return dataclasses.replace(config, latents=str(latents))


class InMemory(Stored):
    """Images in memory, encoded as they come (`--no-cache`)."""

    def resolve(self, config, given, dry_run=False):
        check_reference(config)
        return config

    def latent_side(self, config):
        return config.image_size // 8  # of the published autoencoders; another says so when it is opened

    def open(self, config, folder):
        from fcdm_keras.runs import data

        return data.open_in_memory(config)


DATASETS = {"digits": Digits(), "photos": Photos()}  # those with a way of their own; all others are latent stores


def dataset_of(config):
    """The data set of a run's settings."""
    if config.dataset == "digits" or config.cache:
        return DATASETS.get(config.dataset, Stored())
    return InMemory()


def check_reference(config):
    """Raises ValueError for scores while training without a reference."""
    if config.eval_every and not config.eval_reference:
        raise ValueError("--eval-every scores images against a reference: give one with --eval-reference REF.npz.")
