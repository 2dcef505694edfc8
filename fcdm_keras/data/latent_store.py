"""The latent store: the posteriors of an autoencoder over a data set, in a few large ArrayRecord shards.

    store/
      store.json                  the metadata, written when the last shard is finished
      shard-00000.array_record    per image two records: the image's posterior and its mirror image's
      shard-00000.json            images, bytes, SHA-256, what was skipped; written when the shard is finished
      settings.json               how the store is being made, so that only the same command goes on with it

A record is the posterior's mean and standard deviation, float16 `(2, h, w, c)` and unscaled, then the label (int32),
then the image's key (UTF-8). Records 2i and 2i + 1 belong to image i; a store without flips has record i only. The
noise of the posterior is drawn anew at each read. No Keras here: data workers import this file.
"""

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from fcdm_keras.data.labels import check_labels
from fcdm_keras.data.order import augmentation
from fcdm_keras.data.store_metadata import METADATA, StoreMetadata, read_metadata  # noqa: F401  (for earlier users)
from fcdm_keras.files import check_utf8
from fcdm_keras.formats.numbers import check_finite

_READ = 256  # images that are looked at together


class _ShardFile(NamedTuple):
    """What array_record takes so as not to open every file for its length."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def check_fit(metadata, config):
    """Raises ValueError, in one sentence, if a store does not fit the `TrainConfig` of a run."""
    for what, stored, wanted, cure in (
        ("images of a side of", metadata.image_size, config.image_size, "--image-size"),
        ("latent channels:", metadata.latent_shape[2], config.latent_channels, "--latent-channels"),
        ("classes:", metadata.num_classes, config.num_classes, "--num-classes"),
        ("the latent scale", metadata.scale, config.latent_scale, "--latent-scale"),
    ):
        if wanted and not math.isclose(stored, wanted, rel_tol=1e-6):
            raise ValueError(
                f"The latent store {config.latents} does not fit the run: it holds {what} {stored}, and the run asks "
                f"for {wanted}; pass {cure} {stored}, or use another store."
            )


class LatentStore:
    """A finished store, read at random.

    Args:
        folder: the store.

    Attributes:
        metadata: a `StoreMetadata`.

    Raises:
        FileNotFoundError: there is no finished store.
        ValueError: another version, or a shard is missing or of another length.
    """

    def __init__(self, folder):
        check_utf8("A latent store", folder)
        self.folder = Path(folder)
        self.metadata = read_metadata(folder)
        for shard in self.metadata.shards:
            file = self.folder / shard.file
            size = file.stat().st_size if file.exists() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size:,} bytes"
                raise ValueError(
                    f"{file} {found}, and {shard.bytes:,} were written: the store is incomplete; copy it again, or "
                    "delete the shard, its .json and store.json and run the same encode command."
                )
        per_image = 2 if self.metadata.flips else 1
        shards = [shard for shard in self.metadata.shards if shard.images]
        files = [_ShardFile(str(self.folder / s.file), 0, s.images * per_image, s.images) for s in shards]
        self._records = ArrayRecordDataSource(files, {"max_parallelism": "0"})

    def __len__(self):
        return self.metadata.num_images

    def read(self, images, flipped=None):
        """Posteriors of images.

        Args:
            images: indices `(B,)` in [0, len).
            flipped: bool `(B,)`, whether to read the mirror image's; default none.

        Returns:
            mean and standard deviation, float16 `(B, h, w, c)` each, unscaled; labels, int32 `(B,)`; keys, a list.
        """
        images = np.asarray(images)
        records = images
        if self.metadata.flips:
            records = 2 * images + (0 if flipped is None else np.asarray(flipped, int))
        elif flipped is not None and np.any(flipped):
            raise ValueError(f"{self.folder} holds no flipped images: it was encoded with --no-flips.")
        try:
            encoded = self._records.__getitems__(records.tolist())
            means, stds, labels, keys = unpack_records(encoded, self.metadata.latent_shape)
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            raise ValueError(
                f"{self.folder} is damaged ({str(error).partition(';')[0]}); `python -m fcdm_keras.encode --verify "
                f"{self.folder}` tells which shards are."
            ) from None
        for key, *posterior in zip(keys, means, stds):
            check_finite(f"{self.folder}: the latent of {key}", np.stack(posterior))
        return means, stds, labels, keys

    def check_numbers(self):
        """Raises ValueError for the first latent of all that is not finite, or whose label is of no class."""
        for flipped in {False, self.metadata.flips}:
            for start in range(0, len(self), _READ):
                images = np.arange(start, min(start + _READ, len(self)))
                *_, labels, keys = self.read(images, np.full(len(images), flipped))
                check_labels(labels, keys, self.metadata.num_classes, f"The latent store {self.folder}")

    def damaged_shards(self):
        """Compares every shard with its checksum. Returns the files that do not match."""
        files = ((self.folder / shard.file, shard.sha256) for shard in self.metadata.shards)
        return [file for file, expected in files if checksum(file) != expected]

    def __reduce__(self):  # to worker processes
        return type(self), (self.folder,)


class StoreSource:
    """A latent store as a source of training batches: a flip or not, and a new draw of the posterior, at each place.

    Args:
        store: a `LatentStore`.
        seed: integer seed of flips and noise.
        sample_posterior: draw from the posterior (mean + std · noise); else its mean.
        flips: draw mirror images half of the time, if the store has them.
    """

    def __init__(self, store, seed, sample_posterior=True, flips=True):
        self.store = store
        self.seed = seed
        self.sample_posterior = sample_posterior
        self.flips = flips and store.metadata.flips

    def __len__(self):
        return len(self.store)

    def take(self, samples, places):
        """`latents` float32 `(B, h, w, c)`, scaled, and `labels` int32 `(B,)`."""
        generators = [augmentation(self.seed, place) for place in places]
        flipped = np.array([generator.random() < 0.5 for generator in generators]) & self.flips
        latents, labels = self.latents(samples, flipped, generators)
        return {"latents": latents, "labels": labels}

    def latents(self, samples, flipped, generators):
        """Latents as `take` gives them, and labels, of images that are mirrored where `flipped`.

        Args:
            samples: indices `(B,)`.
            flipped: bool `(B,)`.
            generators: B NumPy generators, for the posteriors' noise.
        """
        latents, std, labels, keys = self.store.read(samples, flipped)
        check_labels(labels, keys, self.store.metadata.num_classes, f"The latent store {self.store.folder}")
        latents = latents.astype(np.float32)
        if self.sample_posterior:
            noise = np.stack([generator.standard_normal(std.shape[1:], np.float32) for generator in generators])
            latents += std * noise
        metadata = self.store.metadata
        return (latents - np.float32(metadata.shift)) * np.float32(metadata.scale), labels


def unpack_records(records, latent_shape):
    """Means, stds, labels and keys of a list of records, see above. Raises ValueError for one that is too short."""
    size = 2 * int(np.prod(latent_shape))
    numbers = np.stack([np.frombuffer(record, "<f2", size) for record in records]).reshape(-1, 2, *latent_shape)
    labels = np.array([np.frombuffer(record, "<i4", 1, 2 * size)[0] for record in records], np.int32)
    return numbers[:, 0], numbers[:, 1], labels, [_text(record[2 * size + 4 :]) for record in records]


def _text(key):
    return key.decode(errors="backslashreplace")


def checksum(path):
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
