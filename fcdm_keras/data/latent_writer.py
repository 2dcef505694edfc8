"""Makes a latent store from a source of images and an autoencoder, shard by shard."""

import collections
import concurrent.futures
import dataclasses
import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from keras import ops
from tqdm import tqdm

from fcdm_keras.data.labels import check_label
from fcdm_keras.data.latent_store import checksum
from fcdm_keras.data.store_metadata import METADATA, SETTINGS, ShardEntry, StoreMetadata, StoreSettings
from fcdm_keras.data.transforms import UnreadableImageError
from fcdm_keras.files import DifferentContentsError, check_utf8, make_folder, remove_leftovers, sync, write_atomically
from fcdm_keras.formats.documents import read_json
from fcdm_keras.machine import memory
from fcdm_keras.options import differences

_OTHER = "remove it to make it again, or give another --output"
HALF_LIMIT = float(np.finfo(np.float16).max)  # latents are stored in float16


class StoreEncoder:
    """Encodes a source into a latent store. Finished shards are kept; the rest is made on `run`.

    Args:
        folder: of the store, created if needed.
        source: see `fcdm_keras.data.sources`.
        autoencoder: a `KLAutoencoder`.
        autoencoder_name: what `KLAutoencoder.from_diffusers` loaded it from.
        image_size: side of the centre crop in pixels.
        flips: also encode each image's mirror image.
        shard_size: images of the source per shard.
        batch_size: images encoded at once.
        max_unreadable: images that may be left out because they cannot be decoded.

    Raises:
        ValueError: the folder holds a store made otherwise, or the image size does not fit the autoencoder.
        OSError: the folder cannot be written to, or the store does not fit on the disk.
    """

    def __init__(
        self,
        folder,
        source,
        autoencoder,
        *,
        autoencoder_name,
        image_size,
        flips=True,
        shard_size=16384,
        batch_size=32,
        max_unreadable=100,
    ):
        factor = autoencoder.downsampling_factor
        if image_size % (4 * factor):
            raise ValueError(
                f"The image size must be a multiple of {4 * factor}: the autoencoder reduces by {factor}, the network "
                f"by 4. Received: {image_size}"
            )
        what = f"Encoding {batch_size:,} images of {image_size}×{image_size} at once"
        memory.check(5 * batch_size * image_size**2 * 3, what, "use a smaller --batch-size")
        check_utf8("A store's autoencoder", autoencoder_name)
        check_utf8("A latent store", folder)
        self.folder = Path(folder)
        self.source = source
        self.batch_size = batch_size
        self.max_unreadable = max_unreadable
        self.shard_size = shard_size
        self.num_shards = -(-len(source) // shard_size)
        side = image_size // factor
        self.metadata = StoreMetadata(
            source=str(source.name),
            split=source.split,
            autoencoder=str(autoencoder_name),
            autoencoder_hash=autoencoder.weights_hash(),
            scale=float(autoencoder.scale),
            shift=float(autoencoder.shift),
            image_size=image_size,
            latent_shape=(side, side, autoencoder.latent_channels),
            flips=flips,
            class_names=tuple(source.class_names),
        )
        self.autoencoder = autoencoder
        self._open()

    def _open(self):
        asked = {**vars(self.metadata), "shard_size": self.shard_size, "images": len(self.source)}
        settings, file = StoreSettings(**asked), self.folder / SETTINGS
        try:
            make_folder(self.folder)
            for name in (file.name, METADATA):
                remove_leftovers(self.folder, name)
            if file.exists():
                _check_same(read_json(file, StoreSettings, _OTHER), settings, self.folder)
            else:
                write_atomically(file, settings.to_json())
        except OSError as error:
            raise OSError(f"The latent store {self.folder} cannot be written to: {error.strerror or error}.") from None
        missing = sum(len(self._range(i)) for i in range(self.num_shards) if self._entry(i) is None)
        record = 4 * int(np.prod(self.metadata.latent_shape)) + 64
        needed, free = missing * record * (2 if self.metadata.flips else 1), shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"The latent store {self.folder} needs {needed / 2**30:.1f} GiB more, and the disk has "
                f"{free / 2**30:.1f} GiB free; make room, choose another --output, or halve it with --no-flips."
            )

    def run(self, process_index=0, num_processes=1):
        """Encodes what is missing of this process's shards, and writes the metadata if no shard is missing then.

        Returns:
            The finished store's `StoreMetadata`, or `None` while other processes' shards are missing.

        Raises:
            ValueError: more than `max_unreadable` images cannot be read, or a label is none of its classes.
            OSError: the disk is full. Finished shards are kept.
        """
        own = range(process_index, self.num_shards, num_processes)
        missing = [i for i in own if self._entry(i) is None]
        total, left = (sum(len(self._range(i)) for i in shards) for shards in (own, missing))
        with tqdm(total=total, initial=total - left, desc="encoding", unit="image", mininterval=_interval()) as bar:
            for index in missing:
                try:
                    self._encode_shard(index, bar)
                except OSError as error:
                    raise OSError(
                        f"Shard {index} could not be written to {self.folder} ({error.strerror or error}). Finished "
                        "shards are kept; make room and run the same command again."
                    ) from None
        return self.finish()

    def _range(self, index):
        return range(len(self.source))[index * self.shard_size : (index + 1) * self.shard_size]

    def _entry(self, index):
        """What stands beside a shard; `None` where that, or the shard with all its bytes, is missing."""
        sidecar = self.folder / f"shard-{index:05d}.json"
        entry = read_json(sidecar, ShardEntry, _OTHER) if sidecar.exists() else None
        count, most = entry and entry.images + len(entry.skipped), len(self._range(index))
        if entry and count > most:
            raise ValueError(f"{sidecar} tells of {count:,} images, and the shard has {most:,} at most; {_OTHER}.")
        shard = entry and self.folder / entry.file
        return entry if shard and shard.is_file() and shard.stat().st_size == entry.bytes else None

    def _encode_shard(self, index, bar):
        writer, skipped, enlarged, batch = ShardWriter(self.folder, index), [], [], []
        places = self._range(index)
        for example, crop in _decoded(self.source, places.start, places.stop, self.metadata.image_size):
            check_label(example, self.source)
            try:
                image, small = crop.result()
            except UnreadableImageError as error:
                skipped.append([example.key, str(error)])
                self._check_limit(skipped)
                bar.update()
                continue
            enlarged += [example.key] if small else []
            batch.append((example, image))
            if len(batch) == self.batch_size:
                self._write(writer, batch, bar)
                batch = []
        if batch:
            self._write(writer, batch, bar)
        writer.finish(skipped=skipped, enlarged=enlarged)

    def _write(self, writer, batch, bar):
        images = np.stack([image for _, image in batch])
        padding = self.batch_size - len(images)  # a short batch is filled up, so that one size is compiled
        images = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)), mode="edge")
        views = [images, np.ascontiguousarray(images[:, :, ::-1])] if self.metadata.flips else [images]
        encoded = [posterior_arrays(self.autoencoder, view) for view in views]
        for i, (example, _) in enumerate(batch):
            _check_finite([posterior for view in encoded for posterior in (view[0][i], view[1][i])], example.key)
            writer.write([(mean[i], std[i]) for mean, std in encoded], example.label, example.key)
        bar.update(len(batch))

    def _check_limit(self, skipped):
        finished = sum(len(entry.skipped) for entry in self._entries())
        if finished + len(skipped) > self.max_unreadable:
            key, reason = skipped[-1]
            raise ValueError(
                f"More than {self.max_unreadable} images cannot be read, the last one {key} ({reason}); repair or "
                "remove them, or raise --max-unreadable. Finished shards are kept."
            )

    def _entries(self):
        return list(filter(None, map(self._entry, range(self.num_shards))))

    def finish(self):
        """Writes the metadata if no shard is missing; returns what `run` does."""
        entries = self._entries()
        if len(entries) < self.num_shards:
            return None
        metadata = dataclasses.replace(
            self.metadata,
            num_images=sum(entry.images for entry in entries),
            skipped=sum(len(entry.skipped) for entry in entries),
            enlarged=sum(len(entry.enlarged) for entry in entries),
            shards=tuple(entry.shard() for entry in entries),
        )
        if not metadata.num_images:
            raise ValueError(f"None of the {len(self.source):,} images of {self.metadata.source} can be read.")
        write_atomically(self.folder / METADATA, metadata.to_json())
        return metadata


def _decoded(source, start, stop, size):
    """Yields examples in order, each with the future of its crop, decoded by threads a little ahead."""
    threads = min(16, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        ahead = collections.deque()
        for example in _read(source, start, stop):
            ahead.append((example, pool.submit(example.cropped, size)))
            if len(ahead) > 8 * threads:
                yield ahead.popleft()
        yield from ahead


def _read(source, start, stop):
    """The source's examples. Raises ValueError where it is gone, for an OSError means that the store is not written."""
    try:
        yield from source.read(start, stop)
    except OSError as error:
        raise ValueError(
            f"{source.name} cannot be read any more ({error.strerror or error}). Finished shards are kept; bring it "
            "back and run the same command again."
        ) from None


def _check_finite(arrays, key):
    """Raises ValueError for latents that cannot be stored, which names the image."""
    if not all((np.abs(array) <= HALF_LIMIT).all() for array in arrays):  # also false for NaN
        raise ValueError(
            f"The latents of {key} are not finite, or beyond ±{HALF_LIMIT:,.0f}, and are not stored: the weights of "
            "the autoencoder are damaged, or do not suit its dtype. Finished shards are kept."
        )


def posterior_arrays(autoencoder, images):
    """The posterior's mean and standard deviation of uint8 images `(B, H, W, 3)`, as float32 arrays."""
    mean, logvar = map(ops.convert_to_numpy, autoencoder.encode(images))
    return mean, np.exp(0.5 * logvar)


class ShardWriter:
    """Writes one shard under a hidden name; `finish` renames it when all of it is on disk.

    Args:
        folder: the store.
        index: number of the shard.

    Raises:
        OSError: on any call, where the disk is full or read-only.
    """

    def __init__(self, folder, index):
        self.folder = Path(folder)
        self.name = f"shard-{index:05d}"
        self._unfinished = self.folder / f".unfinished-{self.name}"
        remove_leftovers(folder, f"{self.name}.json")
        self.images = 0
        self._writer = _guarded(ArrayRecordWriter, str(self._unfinished), "group_size:1,uncompressed")

    def write(self, posteriors, label, key):
        """Adds one image: a list of (mean, std) `(h, w, c)`, of itself and, with flips, of its mirror image."""
        for mean, std in posteriors:
            _guarded(self._writer.write, pack_record(mean, std, label, key))
        self.images += 1

    def finish(self, **facts):
        """Puts the shard in its place. `facts` are stored with it."""
        _guarded(self._writer.close)
        file = self.folder / f"{self.name}.array_record"
        sync(self._unfinished)
        entry = {
            "file": file.name,
            "images": self.images,
            "bytes": self._unfinished.stat().st_size,
            "sha256": checksum(self._unfinished),
            **facts,
        }
        os.replace(self._unfinished, file)
        sync(self.folder)
        write_atomically(self.folder / f"{self.name}.json", json.dumps(entry, ensure_ascii=False) + "\n")


def pack_record(mean, std, label, key):
    """One record's bytes, as `fcdm_keras.data.latent_store` describes them."""
    return np.stack([mean, std]).astype("<f2").tobytes() + np.int32(label).astype("<i4").tobytes() + key.encode()


def _check_same(stored, settings, folder):
    different = differences(msgspec.to_builtins(stored), msgspec.to_builtins(settings))
    if different:
        raise DifferentContentsError(
            f"{folder} holds a latent store made otherwise ({'; '.join(different)[:600]}): give the options that it "
            "was started with, another --output, or --overwrite to replace it."
        )


def _interval():
    return 0.2 if os.isatty(2) else 15


def _guarded(function, *args):
    """ArrayRecord reports a full disk as RuntimeError."""
    try:
        return function(*args)
    except RuntimeError as error:
        raise OSError(str(error).partition("\n")[0]) from None
