"""Captions and their text embeddings, beside the latents of a latent store.

    store/
      …                           the latents, see `fcdm_keras.data.latent_store`
      captions.json               captions of every image, the text encoder's identity; written last
      embeddings.npy              float16 (captions + 1, D): all captions' in their order, then the empty prompt's
      captions.unfinished/        parts of the embeddings while they are being made

No Keras here: data workers import this file.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np

from fcdm_keras.data.latent_store import StoreSource
from fcdm_keras.data.order import augmentation
from fcdm_keras.files import make_folder, remove_leftovers, replacing, sync, write_atomically
from t2i.captions import is_blank, is_text
from t2i.text_encoder import captions_hash, check_same_encoder

METADATA, EMBEDDINGS, UNFINISHED = "captions.json", "embeddings.npy", "captions.unfinished"
PART = 8192  # captions per part
SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def write_captions(folder, captions, encoder):
    """Encodes the captions of a finished latent store and stores both there. What is finished is kept.

    Args:
        folder: the store.
        captions: for each of its images, in its order, a list of at least one string that is not blank.
        encoder: an `OpenCLIPTextEncoder`.

    Raises:
        ValueError: a caption is no text, or blank; the store has captions already, or half of them, that are others or
            of another encoder.
        OSError: the disk is full. Finished parts are kept.
    """
    folder = Path(folder)
    for number, own in enumerate(captions):
        if not _are_captions(own) or any(map(is_blank, own)):
            raise ValueError(f"Captions must be texts, at least one of each image. Received: {own!r} of image {number}")
    texts = [caption for own in captions for caption in own] + [""]
    facts = {"encoder": encoder.identity(), "settings": encoder.settings(), "hash": captions_hash(texts)}
    if (folder / METADATA).exists():
        _check_same(_read(folder / METADATA), facts, encoder, folder / METADATA)
        return
    parts = folder / UNFINISHED
    make_folder(parts)
    remove_leftovers(parts)
    if (parts / METADATA).exists():
        _check_same(_read(parts / METADATA), facts, encoder, parts)
    else:
        write_atomically(parts / METADATA, json.dumps(facts) + "\n")
    files = [_part(encoder, texts, start, parts) for start in range(0, len(texts), PART)]
    unfinished = parts / EMBEDDINGS
    whole = np.lib.format.open_memmap(unfinished, "w+", np.float16, (len(texts), encoder.embedding_dim))
    for number, file in enumerate(files):
        whole[number * PART : (number + 1) * PART] = np.load(file)
    whole.flush()
    del whole
    sync(unfinished)
    os.replace(unfinished, folder / EMBEDDINGS)
    sync(folder)
    write_atomically(folder / METADATA, json.dumps({**facts, "captions": captions}, ensure_ascii=False) + "\n")
    shutil.rmtree(parts)


def _part(encoder, texts, start, folder):
    """The file of one part's embeddings, made if it is not there."""
    file = folder / f"{start:09d}.npy"
    if not file.exists():
        with replacing(file) as unfinished:
            np.save(unfinished, encoder.encode(texts[start : start + PART]).astype(np.float16))
    return file


def _check_same(stored, facts, encoder, where):
    check_same_encoder(stored["encoder"], encoder, str(where))
    if stored["hash"] != facts["hash"]:
        raise ValueError(f"{where} holds other captions than these: remove it to make them again.")


def _read(file):
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        _ = content["encoder"], content["settings"], content["hash"]
        return content
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove it and run `python -m t2i.encode` again.") from None


def _are_captions(own):
    return isinstance(own, (list, tuple)) and own and all(map(is_text, own))


def _checked(captions, file):
    """Captions as they were stored. Raises ValueError for others, and for an image of which nothing says anything."""
    for number, own in enumerate(captions if isinstance(captions, list) else [captions]):
        if not _are_captions(own) or all(map(is_blank, own)):
            raise ValueError(f"{file} has no caption of image {number}, but {str(own)[:60]}: {_AGAIN}.")
    return captions


class CaptionStore:
    """The captions of a latent store, with their embeddings on disk.

    Args:
        folder: the store.

    Attributes:
        captions: for each image a list of strings.
        blank: how many captions are blank, which earlier versions stored; they are left out.
        encoder: identity of the text encoder, see `OpenCLIPTextEncoder.identity`.
        settings: its settings, see `OpenCLIPTextEncoder.settings`.

    Raises:
        FileNotFoundError: the store has no captions.
        ValueError: they are damaged.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        if not (self.folder / METADATA).exists():
            raise FileNotFoundError(
                f"The latent store {folder} has no captions: make it, or finish it, with `python -m t2i.encode`."
            )
        content = _read(self.folder / METADATA)
        self.encoder, self.settings = content["encoder"], content["settings"]
        stored = _checked(content.get("captions"), self.folder / METADATA)
        self.captions = [[text for text in own if not is_blank(text)] for own in stored]
        self._rows = np.flatnonzero([not is_blank(text) for own in stored for text in own])
        self._firsts = np.cumsum([0, *map(len, self.captions)])
        count = sum(map(len, stored))
        self.blank = count - len(self._rows)
        expected = (count + 1, self.encoder["embedding_dim"])
        try:
            self._embeddings = np.load(self.folder / EMBEDDINGS, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder / EMBEDDINGS} is damaged ({error}): {_AGAIN}.") from None
        if self._embeddings.shape != expected:
            raise ValueError(
                f"{self.folder / EMBEDDINGS} must have the shape {expected}. "
                f"Received: {self._embeddings.shape}; {_AGAIN}."
            )

    def __len__(self):
        return len(self.captions)

    def __reduce__(self):  # to worker processes, without the arrays
        return type(self), (self.folder,)

    def read(self, images, numbers):
        """Embeddings of caption `numbers` `(B,)` of images `(B,)`, float32 `(B, D)`."""
        rows = self._rows[self._firsts[np.asarray(images)] + np.asarray(numbers)]
        return self._embeddings[rows].astype(np.float32)

    def all_embeddings(self):
        """Those of all captions, float16 `(N, D)`."""
        return self._embeddings[self._rows] if self.blank else self._embeddings[:-1]

    def null_embedding(self):
        """That of the empty prompt, float32 `(D,)`."""
        return self._embeddings[-1].astype(np.float32)


_AGAIN = f"remove it and {METADATA} and run `python -m t2i.encode` again"


class CaptionedSource:
    """A latent store with captions as a source of training batches: at each place a caption, and a flip or not.

    Args:
        source: a `StoreSource`.
        captions: the `CaptionStore` of the same folder.
        mirror_sided: also mirror images whose caption says "left" or "right".
    """

    def __init__(self, source, captions, mirror_sided=False):
        if len(source) != len(captions):
            raise ValueError(
                f"The latent store {captions.folder} has captions of {len(captions):,} images, and {len(source):,} "
                f"images: {_AGAIN}."
            )
        if not isinstance(source, StoreSource):
            raise ValueError(f"source must be a StoreSource. Received: {type(source).__name__}")
        self.source = source
        self.captions = captions
        self.mirror_sided = mirror_sided

    def __len__(self):
        return len(self.source)

    def drawn(self, samples, generators):
        """Which caption `(B,)` of each image, and whether it is mirrored, bool `(B,)`."""
        flips = np.array([generator.random() < 0.5 for generator in generators]) & self.source.flips
        own = [self.captions.captions[sample] for sample in samples]
        numbers = np.array([int(generator.integers(len(texts))) for texts, generator in zip(own, generators)])
        if not self.mirror_sided:
            flips &= np.array([not SIDED.search(texts[number]) for texts, number in zip(own, numbers)])
        return numbers, flips

    def take(self, samples, places):
        """`latents` float32 `(B, h, w, c)`, scaled, and `text_embeddings` float32 `(B, D)`."""
        generators = [augmentation(self.source.seed, place) for place in places]
        numbers, flipped = self.drawn(samples, generators)
        latents, _ = self.source.latents(samples, flipped, generators)
        return {"latents": latents, "text_embeddings": self.captions.read(samples, numbers)}
