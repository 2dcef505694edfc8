"""Sets of images to score: of an `.npz` file, a folder, memory, a latent store, or a model that draws them.

Each has `name`, `count`, `shape` (H, W, channels), and `batches(size, stop)`, which yields uint8 `(B, H, W, C)`.
"""

import warnings
from pathlib import Path

import numpy as np
from keras import ops

from fcdm_keras.autoencoders import KLAutoencoder, to_uint8
from fcdm_keras.data.folders import by_number, list_pictures
from fcdm_keras.data.latent_store import LatentStore
from fcdm_keras.data.npz import NpzArray
from fcdm_keras.data.pictures import UnreadableImageError, decode_image, picture_header, shown


class ImageFile:
    """`arr_0` of an `.npz` file, read in pieces.

    Raises:
        ValueError: there is no `arr_0`, or it holds no uint8 images.
        OSError: the file cannot be read.
    """

    def __init__(self, path):
        self._array = NpzArray(path)
        self.name, self.count, self.shape = str(path), len(self._array), self._array.shape[1:]
        shape, dtype = self._array.shape, self._array.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
            raise ValueError(
                f"arr_0 of {path} must be uint8 images (N, H, W, 3), 0 to 255. Received: {dtype} of shape {shape}"
                + ("; convert them with clip(127.5 · x + 128, 0, 255)" if dtype.kind == "f" else "")
            )

    def batches(self, size, stop=None):
        return self._array.batches(size, stop)


class ImageFolder:
    """All pictures in a folder and those below it, in the order of their numbers or names; `grid.png` is left out.

    They are gray, of one channel, if all are stored so, and else of three.

    What else lies there is told in a warning.

    Raises:
        ValueError: there are no images, or, while reading, one that is damaged or of another size than the first.
    """

    def __init__(self, path):
        self.name = shown(path)
        listing = list_pictures(path)
        listing.others -= (Path(path) / "settings.json").is_file()  # of our own samples
        self._files = sorted((file for file in listing.files if file.name != "grid.png"), key=by_number)
        if not self._files:
            raise ValueError(f"{self.name} must hold images. Received: none. {listing.left_out()}".rstrip())
        if listing.left_out():
            warnings.warn(f"{self.name}: {listing.left_out()}", stacklevel=2)
        self._channels = 1 if all(map(_is_gray, self._files)) else 3
        self.count, self.shape = len(self._files), None
        self.shape = self._read(self._files[0]).shape

    def batches(self, size, stop=None):
        files = self._files[:stop]
        for start in range(0, len(files), size):
            yield np.stack([self._read(file) for file in files[start : start + size]])

    def _read(self, file):
        try:
            image = decode_image(file)[..., : self._channels]
        except UnreadableImageError as error:
            raise ValueError(f"{shown(file)} is no image, or is damaged: {error}") from None
        if self.shape not in (None, image.shape):
            raise ValueError(
                f"All images must have one size. Received: {image.shape[:2]} of {shown(file.name)}, {self.shape[:2]} "
                f"of {shown(self._files[0].name)}; crop or resize them first."
            )
        return image


def _is_gray(file):
    try:
        return picture_header(file)[1]
    except UnreadableImageError:
        return True  # it is named when it is read


class ArrayImages:
    """Images in memory, uint8 `(N, H, W, channels)`."""

    def __init__(self, images, name="the images"):
        self._images = images
        self.name, self.count, self.shape = name, len(images), images.shape[1:]

    def batches(self, size, stop=None):
        count = self.count if stop is None else min(stop, self.count)
        return (self._images[start : min(start + size, count)] for start in range(0, count, size))


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

    def batches(self, size, stop=None):
        count = self.count if stop is None else min(stop, self.count)
        for start in range(0, count, size):
            means, *_ = self._store.read(np.arange(start, min(start + size, count)))
            yield ops.convert_to_numpy(to_uint8(self._autoencoder.decode(means.astype(np.float32))))


class DrawnImages:
    """What a `Drawing` draws; its batch size counts, not the caller's."""

    def __init__(self, drawing, name):
        self._drawing = drawing
        self.name, self.count, self.shape = name, len(drawing), drawing.image_shape

    def batches(self, size, stop=None):
        for first, images in self._drawing.batches():
            if stop is not None and first >= stop:
                return
            yield images[: None if stop is None else stop - first]


def is_model(source):
    """Whether `source` looks like a run folder, a preset folder or an address of one."""
    return "://" in str(source) or (Path(source) / "config.json").exists()


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
