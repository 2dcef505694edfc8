"""Random crops of unlabelled images, for training an autoencoder.

Crop r of step s follows from (seed, s, r) alone, so a resumed run goes on with the crops that it would have seen.
"""

import os
from pathlib import Path

import grain
import numpy as np
from PIL import Image

from fcdm_keras.data.embedded import load_photos, load_regions
from fcdm_keras.data.folders import list_pictures
from fcdm_keras.data.pictures import UnreadableImageError, decode_image, shorter_side, shown

HELD_OUT_SHARE, HELD_OUT_LIMIT = 0.05, 256
CACHE_BYTES = 2**30
_SHOWN = 3  # names in a message


def open_images(source, size, resize=0):
    """Images to train on, crops to judge by, and what to tell the user.

    Args:
        source: `"photos"` (embedded), or a folder with images anywhere below it, of which 5 % (1 to 256) are held out.
        size: side of the crops in pixels.
        resize: reduce images whose shorter side is longer than this to it; 0 keeps all as they are.

    Returns:
        A sequence of uint8 images `(H, W, 3)`, held-out crops uint8 `(N, size, size, 3)`, a list of sentences.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds fewer than two images that are large enough.
    """
    if source == "photos" and not os.path.isdir(source):
        held_out, _, _ = load_photos("held_out", size, stride=size)
        return load_regions("train"), held_out[:: -(-len(held_out) // HELD_OUT_LIMIT)], []
    listing = _image_files(source)
    files, notes = _usable(listing.files, source, size, resize)
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(files))
    files = ImageFiles([files[i] for i in order], size, resize)
    held_out, rest = _center_crops(files, min(HELD_OUT_LIMIT, max(1, round(HELD_OUT_SHARE * len(files)))))
    notes += [f"{shown(file)} is left out: {reason}" for file, reason in files.skipped.items()]
    notes += [listing.left_out()] if listing.left_out() else []
    return ImageFiles(files.files[rest:], size, resize), held_out, notes


class ImageFiles:
    """A sequence of image files as uint8 `(H, W, 3)`; what was decoded is kept in memory up to a gibibyte.

    A file that cannot be decoded, or is too small, stands for the next one that can; `skipped` names it.
    """

    def __init__(self, files, size, resize=0):
        self.files = files
        self.size = size
        self.resize = resize
        self.skipped = {}
        self._cache, self._bytes = {}, 0

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        for place in range(index, index + len(self)):
            file = self.files[place % len(self)]
            if file not in self.skipped:
                try:
                    return self.read(file)
                except UnreadableImageError as error:
                    self.skipped[file] = str(error)
        raise ValueError(f"None of {len(self)} images can be read, such as {self.files[0]}: {self.skipped[file]}")

    def read(self, file):
        """Decodes a file. Raises UnreadableImageError if it is damaged or smaller than a crop."""
        if file in self._cache:
            return self._cache[file]
        image = decode_image(file)
        if self.resize and min(image.shape[:2]) > self.resize:
            factor = self.resize / min(image.shape[:2])
            sides = [round(side * factor) for side in image.shape[1::-1]]
            image = np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.LANCZOS))
        if min(image.shape[:2]) < self.size:
            raise UnreadableImageError("it is smaller than the crop")
        if self._bytes + image.nbytes <= CACHE_BYTES:
            self._cache[file] = image
            self._bytes += image.nbytes
        return image


class RandomCrops:
    """Batch `i` of `steps`, for Grain: crops of random images at random places, half of them mirrored.

    Args:
        images: sequence of uint8 `(H, W, 3)`, each at least as large as a crop.
        size: side of the crops.
        batch_size: crops per batch, B.
        steps: number of batches.
        seed: integer seed.
        rows: which crops of each batch to make, a range; default all. Processes of one job make different ones.
    """

    def __init__(self, images, size, batch_size, steps, seed, rows=None):
        self.images = images
        self.size = size
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows)

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        generator = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        chosen = generator.integers(len(self.images), size=self.batch_size)
        draws = generator.random((self.batch_size, 3))
        crops = []
        for image, (*place, mirror) in zip((self.images[int(i)] for i in chosen[self._rows]), draws[self._rows]):
            corner = [int(share * (side - self.size + 1)) for share, side in zip(place, image.shape)]
            crop = _cut(image, self.size, corner)
            crops.append(crop[:, ::-1] if mirror < 0.5 else crop)
        return {"images": np.stack(crops)}


def crop_batches(images, size, batch_size, steps, seed, start=0, rows=None):
    """A Grain data set of batches `start … steps − 1` of `{"images"}`, uint8 `(B, size, size, 3)`."""
    return grain.MapDataset.source(RandomCrops(images, size, batch_size, steps, seed, rows))[start:]


def _cut(image, size, corner):
    top, left = corner
    return image[top : top + size, left : left + size]


def _center_crops(files, count):
    """Crops from the middles of the first `count` files that can be read, and how many files that took."""
    crops = []
    for place, file in enumerate(files.files[:-1], 1):
        try:
            image = files.read(file)
        except UnreadableImageError as error:
            files.skipped[file] = str(error)
            continue
        crops.append(_cut(image, files.size, [(side - files.size) // 2 for side in image.shape[:2]]))
        if len(crops) == count:
            return np.stack(crops), place
    damaged, reason = next(iter(files.skipped.items()))
    raise ValueError(f"{len(files.skipped)} of {len(files)} images cannot be read, such as {damaged}: {reason}.")


def _image_files(source):
    """The `Listing` of a folder with pictures."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no folder {source}; give a folder of images, or "photos".')
    listing = list_pictures(folder)
    if not listing.files:
        raise ValueError(f"{source} holds no images. {listing.left_out()}".rstrip())
    return listing


def _usable(files, source, size, resize):
    """The files whose header tells of an image that is large enough, and a sentence about the others."""
    usable, unreadable, small = [], [], []
    for file in files:
        try:
            shorter = shorter_side(file)
        except UnreadableImageError:
            unreadable.append(shown(file.name))
            continue
        enough = (min(shorter, resize) if resize else shorter) >= size
        (usable if enough else small).append(file if enough else shown(file.name))
    notes = [
        f"{len(names)} of {len(files)} images are left out, {why}: {', '.join(names[:_SHOWN])}"
        + (" …" if len(names) > _SHOWN else "")
        for names, why in ((unreadable, "which cannot be read"), (small, f"smaller than {size} pixels"))
        if names
    ]
    if len(usable) < 2:
        raise ValueError(
            f"{source} must hold at least two images of {size} pixels or more, one to train on and one to judge by. "
            f"Received: {len(usable)}" + (f" ({'; '.join(notes)})" if notes else "")
        )
    return usable, notes
