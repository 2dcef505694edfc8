"""Pictures on disk: PNGs, `.npz` files and grids.

What is in the folder decides what is still to be drawn. So its files are examined before anything is drawn: those that
are damaged are drawn again, and those of other programs stop the command.
"""

import io
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from fcdm_keras.files import make_folder, remove_leftovers, replacing, sync
from fcdm_keras.formats import regular
from fcdm_keras.formats.npz import NpzArray, NpzWriter, array_names, load_small

_BESIDE = 2**20  # bytes of a PNG beside its pixels
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


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
    """One PNG per image; images that are there stay.

    Args:
        folder: a `Path`.
        shape: `(N, H, W, 1 or 3)` of all images, to `examine` those that are there.
    """

    def __init__(self, folder, shape=None):
        self.folder = folder
        self.shape = shape

    def path(self, index):
        return self.folder / f"{index:06d}.png"

    def examine(self, labels):
        """Numbered files that are damaged. Raises ValueError for one that is none of these images."""
        files = sorted(file for file in self.folder.iterdir() if re.fullmatch(r"\d{6,}\.png", file.name))
        for file in files:
            if int(file.stem) >= len(labels) or self.path(int(file.stem)) != file:
                raise ValueError(_foreign(file, f"none of the {len(labels)} images of this command"))
        Image.init()  # before threads do
        with ThreadPoolExecutor() as pool:
            return [file for file, whole in zip(files, pool.map(self._is_whole, files)) if not whole]

    def _is_whole(self, file):
        _, height, width, channels = self.shape
        expected = ("PNG", "L" if channels == 1 else "RGB", (width, height))
        if regular.size(file) > 2 * height * width * channels + _BESIDE:
            raise ValueError(_foreign(file, f"{file.stat().st_size:,} bytes of one image"))
        content, found = file.read_bytes(), None
        whole = content.endswith(PNG_END)
        try:
            with Image.open(io.BytesIO(content)) as picture:
                found = (picture.format, picture.mode, picture.size)
                picture.verify()  # the checksums of all its parts
        except Image.DecompressionBombError:
            found = ("of", "many", "pixels")
        except (OSError, SyntaxError, ValueError):
            whole = False
        if found not in (None, expected):
            raise ValueError(_foreign(file, "{} {} {}, where {} {} {} is drawn".format(*found, *expected)))
        return whole

    def begin(self):
        """Nothing: each file is whole or absent."""

    def has(self, first, stop):
        return all(self.path(i).exists() for i in range(first, stop))

    def write(self, first, drawn):
        for i, image in enumerate(drawn, first):
            if not self.path(i).exists():
                with replacing(self.path(i)) as file:
                    to_pil(image).save(file, "PNG")

    def finish(self, labels):
        """Nothing: each file has its place."""

    def first(self, count):
        return np.stack([np.atleast_3d(np.asarray(Image.open(self.path(i)))) for i in range(count)])


class NpzFile:
    """All images in one file, which has its name when it is whole. Until then they lie in parts beside it.

    A part is named after its images: `.npy` files of batches, and an `.npz` file that held fewer images.

    Args:
        path: the file, a `Path`.
        shape: `(N, H, W, channels)` of all images.
    """

    def __init__(self, path, shape):
        self.path = path
        self.shape = shape
        self.parts = path.with_name(path.name + ".parts")

    def examine(self, labels):
        """The file, if it is damaged, and parts that are. Raises ValueError for a file that is not of these images."""
        files = [self.path] if self.path.exists() else []
        return [file for file in files + [file for _, file in self._ranges()] if not self._is_whole(file, labels)]

    def _is_whole(self, file, labels):
        try:
            if file.suffix == ".npy":
                part = NpzArray(file)
                return part.dtype == np.uint8 and part.shape == (len(_range(file)), *self.shape[1:])
            names = array_names(file)
            if {"arr_0", "arr_1"} <= set(names):
                array, stored = NpzArray(file), load_small(file, "arr_1", "iuU")
                for _ in array.batches(64):  # which compares the checksum
                    pass
        except ValueError:
            return False
        if not {"arr_0", "arr_1"} <= set(names):
            raise ValueError(_foreign(file, f"with {', '.join(names)}, where arr_0 and arr_1 are written"))
        if array.dtype != np.uint8 or array.shape[1:] != self.shape[1:] or len(array) > len(labels):
            raise ValueError(_foreign(file, f"{array.dtype} {array.shape}, where uint8 {self.shape} is drawn"))
        if not np.array_equal(stored, labels[: len(array)]):
            raise ValueError(_foreign(file, "of images of other labels"))
        return True

    def begin(self):
        """Makes room for parts, if images are missing; a file with fewer becomes one of them."""
        rows = len(NpzArray(self.path)) if self.path.exists() else 0
        if rows == self.shape[0]:
            return
        make_folder(self.parts)
        remove_leftovers(self.parts)
        if rows:
            os.replace(self.path, self.parts / f"{0:09d}-{rows:09d}.npz")

    def has(self, first, stop):
        return self.path.exists() or any(part.start <= first and stop <= part.stop for part, _ in self._ranges())

    def write(self, first, drawn):
        if not self.has(first, first + len(drawn)):
            with replacing(self.parts / f"{first:09d}-{first + len(drawn):09d}.npy") as file:
                np.save(file, drawn)

    def _ranges(self):
        """The images of each part, as a range, and its file, in order."""
        files = (file for kind in ("npy", "npz") for file in self.parts.glob(f"[0-9]*-[0-9]*.{kind}"))
        return sorted(((_range(file), file) for file in files), key=lambda pair: (pair[0].start, pair[0].stop))

    def finish(self, labels):
        if self.path.exists():
            return
        whole = self.parts / self.path.name  # what a kill leaves of it goes with the parts
        with NpzWriter(whole, self.shape) as writer:
            for part, file in self._ranges():
                if part.start <= writer.rows < part.stop:
                    known = writer.rows - part.start
                    for rows in NpzArray(file).batches(64):
                        writer.append(rows[known:])
                        known = max(0, known - len(rows))
            writer.finish(arr_1=labels)
        os.replace(whole, self.path)
        sync(self.path.parent)
        shutil.rmtree(self.parts)

    def first(self, count):
        return next(NpzArray(self.path).batches(count))


def _range(part):
    """The images of a part, as its name has them."""
    return range(*map(int, part.stem.split("-")))


def _foreign(file, what):
    return f"{file} is another program's ({what}): move it away, or give another --output."
