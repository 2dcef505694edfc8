"""Sets of images to score: of an `.npz` or `.npy` file, a folder, memory, a latent store, or a model that draws them.

Each has `name`, `count`, `shape` (H, W, channels), and `batches(size, count)`, which yields uint8 `(B, H, W, C)`: all
images, or `count` of them that are evenly spaced, so that a set in order of its classes gives some of each.
"""

import math
import warnings
from pathlib import Path

import numpy as np
from keras import ops

from fcdm_keras.autoencoders import KLAutoencoder, to_uint8
from fcdm_keras.data.folders import by_number, list_pictures
from fcdm_keras.data.latent_store import LatentStore
from fcdm_keras.data.pictures import UnreadableImageError, decode_image, shown
from fcdm_keras.evaluation import is_model  # noqa: F401  (its home before)
from fcdm_keras.evaluation.arrays import LOOKED_AT, check_images, spaced
from fcdm_keras.formats.npz import NpzArray
from fcdm_keras.formats.numbers import on_host

LOOKED_INTO = 2**28  # bytes of a file whose values decide what is advised


class ImageFile:
    """`arr_0` of an `.npz` file, or the array of a `.npy` file, read in pieces.

    Raises:
        ValueError: there is no `arr_0`, or it holds no uint8 images.
        OSError: the file cannot be read.
    """

    def __init__(self, path):
        self._array = NpzArray(path)
        check_images(self._array.shape, self._array.dtype, self._some, f"arr_0 of {path} must be uint8 images")
        self.name, self.count, self.shape = str(path), len(self._array), self._array.shape[1:]

    def batches(self, size, count=None):
        return self._array.batches(size) if count is None else self._array.rows(spaced(self.count, count), size)

    def _some(self):
        """A few rows from all over the first `LOOKED_INTO` bytes."""
        row_bytes = self._array.dtype.itemsize * math.prod(self._array.shape[1:])
        near = max(1, min(len(self._array), LOOKED_INTO // row_bytes))
        return next(self._array.rows(spaced(near, min(near, LOOKED_AT)), LOOKED_AT))


class ImageFolder:
    """All pictures in a folder and those below it, in the order of their numbers or names; of our samples not the grid.

    All have three channels. What else lies there is told in a warning.

    Raises:
        ValueError: there are no images, or, while reading, one that is damaged or of another size than the first.
    """

    def __init__(self, path):
        self.name = shown(path)
        listing = list_pictures(path)
        ours = (Path(path) / "settings.json").is_file()
        listing.others -= ours
        grid = Path(path) / "grid.png" if ours else None
        self._files = sorted((file for file in listing.files if file != grid), key=by_number)
        if not self._files:
            raise ValueError(f"{self.name} must hold images. Received: none. {listing.left_out()}".rstrip())
        if listing.left_out():
            warnings.warn(f"{self.name}: {listing.left_out()}", stacklevel=2)
        self.count, self.shape = len(self._files), None
        self.shape = self._read(self._files[0]).shape

    def batches(self, size, count=None):
        files = [self._files[place] for place in spaced(self.count, count)]
        for start in range(0, len(files), size):
            yield np.stack([self._read(file) for file in files[start : start + size]])

    def _read(self, file):
        try:
            image = decode_image(file)
        except UnreadableImageError as error:
            raise ValueError(f"{shown(file)} is no image, or is damaged: {error}") from None
        if self.shape not in (None, image.shape):
            raise ValueError(
                f"All images must have one size. Received: {image.shape[:2]} of {shown(file.name)}, {self.shape[:2]} "
                f"of {shown(self._files[0].name)}; crop or resize them first."
            )
        return image


class ArrayImages:
    """Images in memory, uint8 `(N, H, W, channels)`.

    Raises:
        ValueError: an array of another type or shape.
    """

    def __init__(self, images, name="the images"):
        self._images = images = on_host(images, name)
        check_images(images.shape, images.dtype, lambda: images[spaced(len(images), min(len(images), LOOKED_AT))])
        self.name, self.count, self.shape = name, len(images), images.shape[1:]

    def batches(self, size, count=None):
        places = spaced(self.count, count)
        return (self._images[places[start : start + size]] for start in range(0, len(places), size))


class StoredImages:
    """The images of a latent store: its posteriors' means, decoded by the autoencoder that made them.

    They are reconstructions, so scores against them leave out what the autoencoder loses.

    Raises:
        FileNotFoundError: the store is not finished, or its autoencoder is not there.
        ValueError: the store is damaged, or the autoencoder is another one now.
    """

    def __init__(self, path):
        self._store = LatentStore(path)
        metadata = self._store.metadata
        self._autoencoder = KLAutoencoder.from_diffusers(metadata.autoencoder)
        if self._autoencoder.weights_hash() != metadata.autoencoder_hash:
            raise ValueError(f"{metadata.autoencoder} is not the autoencoder that made {path}: its weights differ.")
        self.name, self.count = str(path), len(self._store)
        self.shape = (metadata.image_size, metadata.image_size, self._autoencoder.in_channels)

    def batches(self, size, count=None):
        places = spaced(self.count, count)
        for start in range(0, len(places), size):
            means, *_ = self._store.read(places[start : start + size])
            yield ops.convert_to_numpy(to_uint8(self._autoencoder.decode(means.astype(np.float32))))


class DrawnImages:
    """What a `Request` draws; its batch size counts, not the caller's."""

    def __init__(self, drawing, name):
        self._drawing = drawing
        self.name, self.count, self.shape = name, len(drawing), drawing.image_shape

    def batches(self, size, count=None):
        if count not in (None, self.count):
            raise ValueError(f"{self.name} draws {self.count} images. Received: {count} asked for")
        return (images for _, images in self._drawing.batches())


class Part:
    """`count` images of a set, evenly spaced.

    Raises:
        ValueError: it holds fewer.
    """

    def __init__(self, images, count):
        if count > images.count:
            raise ValueError(f"{images.name} holds {images.count} images. Received: {count} asked for")
        self._images = images
        self.name, self.count, self.shape = images.name, count, images.shape

    def batches(self, size):
        return self._images.batches(size, self.count)


def open_images(source):
    """The images at the path of a folder, a latent store or an `.npz` file.

    Raises:
        ValueError: it holds no images that can be scored.
        FileNotFoundError: there is nothing.
    """
    path = Path(source)
    if (path / "settings.json").exists() and list(path.glob("shard-*")):
        return StoredImages(path)
    if path.is_dir():
        return ImageFolder(path)
    if not path.exists():
        raise FileNotFoundError(f"There are no images at {source}: expected an .npz file, a folder, or a run folder.")
    return ImageFile(path)
