"""Pictures on disk: PNGs, `.npz` files and grids."""

import os
import shutil
import socket

import numpy as np
from PIL import Image

from fcdm_keras.data.npz import NpzArray, NpzWriter


def to_pil(image):
    """A uint8 `(H, W, 1 or 3)` array as a PIL image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def grid(images, columns, padding=2, min_side=32):
    """Images side by side on white, small ones enlarged by whole factors.

    Args:
        images: uint8 `(N, H, W, 1 or 3)`.
        columns: images per row.
        padding: pixels between images.
        min_side: an image shorter than this is enlarged to at least it.

    Returns:
        A PIL image.
    """
    factor = max(1, -(-min_side // min(images.shape[1:3])))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + padding) + padding, columns * (width + padding) + padding, channels), 255, "uint8"
    )
    for i, image in enumerate(images):
        top, left = (padding + place * (side + padding) for place, side in zip(divmod(i, columns), (height, width)))
        canvas[top : top + height, left : left + width] = image
    return to_pil(canvas)


class PNGFolder:
    """One PNG per image; images that are there stay."""

    def __init__(self, folder):
        self.folder = folder

    def path(self, index):
        return self.folder / f"{index:06d}.png"

    def has(self, first, stop):
        return all(self.path(i).exists() for i in range(first, stop))

    def write(self, first, drawn):
        for i, image in enumerate(drawn, first):
            if not self.path(i).exists():
                temporary = self.folder / f".unfinished-{_process()}.png"
                to_pil(image).save(temporary)
                os.replace(temporary, self.path(i))

    def finish(self, labels):
        for leftover in self.folder.glob(".unfinished-*.png"):  # of a process that was killed
            leftover.unlink()

    def first(self, count):
        return np.stack([np.atleast_3d(np.asarray(Image.open(self.path(i)))) for i in range(count)])


class NpzFile:
    """All images in one file, which has its name when it is whole. Until then they lie in parts beside it."""

    def __init__(self, path, shape):
        self.path = path
        self.shape = shape
        self.parts = path.with_name(path.name + ".parts")
        if not path.exists():
            self.parts.mkdir(exist_ok=True)

    def has(self, first, stop):
        return self.path.exists() or any(part.start <= first and stop <= part.stop for part in self._ranges())

    def write(self, first, drawn):
        if not self.has(first, first + len(drawn)):
            unfinished = self.parts / f".unfinished-{_process()}.npy"
            np.save(unfinished, drawn)
            os.replace(unfinished, self.parts / f"{first:09d}-{first + len(drawn):09d}.npy")

    def _ranges(self):
        """The images of each part, as a range, in order."""
        names = sorted(file.stem.split("-") for file in self.parts.glob("[0-9]*.npy"))
        return [range(int(first), int(stop)) for first, stop in names]

    def finish(self, labels):
        if self.path.exists():
            return
        whole = self.parts / self.path.name  # what a kill leaves of it goes with the parts
        with NpzWriter(whole, self.shape) as writer:
            for part in self._ranges():
                if part.start <= writer.rows < part.stop:
                    rows = np.load(self.parts / f"{part.start:09d}-{part.stop:09d}.npy")
                    writer.append(rows[writer.rows - part.start :])
            writer.finish(arr_1=labels)
        os.replace(whole, self.path)
        shutil.rmtree(self.parts)

    def first(self, count):
        return next(NpzArray(self.path).batches(count))


def _process():
    """A name that no other process writing to the same folder has."""
    return f"{socket.gethostname()}-{os.getpid()}"
