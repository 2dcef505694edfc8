"""What a run trains on, from its configuration: the digits, a latent store, or images that are encoded as they come."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from fcdm_keras import distribution
from fcdm_keras.autoencoders import Identity, KLAutoencoder
from fcdm_keras.data.batches import ArraySource, training_batches
from fcdm_keras.data.embedded import load_digits
from fcdm_keras.data.latent_store import LatentStore, StoreSource, check_fit
from fcdm_keras.data.latent_writer import posterior_arrays
from fcdm_keras.data.order import augmentation
from fcdm_keras.data.sources import open_source, read_images
from fcdm_keras.files import write_atomically


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Samples, and the autoencoder between them and images."""

    source: Any  # has a length and `take(samples, places)`
    autoencoder: Any
    description: str
    transform: Callable | None = None  # of each batch, in the main process

    def batches(self, config, start):
        """A Grain data set of this process's rows of the batches from step `start` on."""
        rows = distribution.batch_rows(config.global_batch_size)
        batches = training_batches(
            self.source, config.global_batch_size, config.steps, config.seed, start, config.data_workers, rows
        )
        return batches if self.transform is None else batches.map(self.transform)


def open_training_data(config, folder):
    """The data of a run.

    Args:
        config: a `TrainConfig`.
        folder: the run folder, which remembers what it was trained on.

    Raises:
        FileNotFoundError: the store, the images or the autoencoder are not there.
        ValueError: they do not fit the configuration, each other, or what the run was started on.
    """
    if config.dataset == "digits":
        images, labels = load_digits("train")
        source = ArraySource({"latents": images, "labels": labels})
        return TrainingData(source, Identity(config.latent_channels), f"{len(source):,} real handwritten digits")
    return _stored(config, folder) if config.cache else _encoded_on_the_fly(config)


def _stored(config, folder):
    store = LatentStore(config.latents)
    check_fit(store.metadata, config)
    _check_same_store(store, folder)
    name = config.vae or store.metadata.autoencoder
    autoencoder = KLAutoencoder.from_diffusers(name)
    if autoencoder.weights_hash() != store.metadata.autoencoder_hash:
        raise ValueError(
            f"The autoencoder {name} is not the one that made the latent store {config.latents} "
            f"({store.metadata.autoencoder}): their weights differ. Give that one with --vae, or encode again."
        )
    source = StoreSource(store, config.seed, config.sample_posterior, config.flips)
    mirrored = ", half of them mirrored" if source.flips else ""
    return TrainingData(source, autoencoder, f"{len(source):,} latents of {store.metadata.source}{mirrored}")


def _check_same_store(store, folder):
    """The run folder keeps the metadata of the store that the run was started on."""
    file, text = folder / "latents.json", store.metadata.to_json()
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{folder} was trained on another latent store than {store.folder}: compare {file} with its store.json. "
            "Give the store that it was started on, or another --results-dir."
        )
    write_atomically(file, text)


def _encoded_on_the_fly(config):
    if not config.vae:
        raise ValueError("--no-cache encodes images while training and needs an autoencoder: give one with --vae.")
    source = open_source(config.source or config.dataset, data_dir=config.data_dir or None)
    if len(source.class_names) != config.num_classes:
        raise ValueError(
            f"{source.name} has {len(source.class_names)} classes, and the run asks for {config.num_classes}; pass "
            f"--num-classes {len(source.class_names)}."
        )
    autoencoder = KLAutoencoder.from_diffusers(config.vae)
    if config.latent_scale and not np.isclose(autoencoder.scale, config.latent_scale, rtol=1e-6):
        raise ValueError(
            f"The autoencoder {config.vae} has the latent scale {autoencoder.scale}, and the run asks for "
            f"{config.latent_scale}; pass --latent-scale {autoencoder.scale}."
        )
    images, labels, skipped = read_images(source, config.image_size)
    side = config.image_size // autoencoder.downsampling_factor
    shape = (side, side, autoencoder.latent_channels)
    memory = ImageSource(images, labels, shape, config.seed, config.sample_posterior, config.flips)
    left_out = f"; {len(skipped)} cannot be read and are left out, the first {skipped[0][0]}" if skipped else ""
    text = f"{len(memory):,} images of {source.name} in memory ({images.nbytes / 2**30:.2f} GiB){left_out}"
    return TrainingData(memory, autoencoder, text, _encoding(autoencoder))


class ImageSource:
    """Images in memory as a source of training batches that are still to be encoded.

    Args:
        images: uint8 `(N, H, W, 3)`.
        labels: int `(N,)`.
        latent_shape: `(h, w, c)`.
        seed, sample_posterior, flips: as in `StoreSource`.
    """

    def __init__(self, images, labels, latent_shape, seed, sample_posterior=True, flips=True):
        self.images, self.labels = images, labels
        self.latent_shape = latent_shape
        self.seed = seed
        self.sample_posterior = sample_posterior
        self.flips = flips

    def __len__(self):
        return len(self.images)

    def take(self, samples, places):
        """`images` uint8, some mirrored, `noise` of the posterior (zero if it is not sampled), and `labels`."""
        images = self.images[samples]
        noise = np.zeros((len(images), *self.latent_shape), np.float32)
        for i, place in enumerate(places):
            generator = augmentation(self.seed, place)
            if (generator.random() < 0.5) & self.flips:
                images[i] = images[i, :, ::-1]
            if self.sample_posterior:
                noise[i] = generator.standard_normal(self.latent_shape, np.float32)
        return {"images": images, "noise": noise, "labels": self.labels[samples]}


def _encoding(autoencoder):
    """Turns batches of `ImageSource` into batches of latents."""

    def encode(batch):
        mean, std = posterior_arrays(autoencoder, batch["images"])
        return {"latents": autoencoder.to_diffusion(mean + std * batch["noise"]), "labels": batch["labels"]}

    return encode
