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
from typing import Annotated

import numpy as np
from msgspec import Meta, to_builtins

from fcdm_keras.data.latent_store import StoreSource
from fcdm_keras.data.order import augmentation
from fcdm_keras.files import make_folder, remove_leftovers, replacing, sync, write_atomically
from fcdm_keras.formats.documents import Identifier, Struct, read_json
from fcdm_keras.formats.npz import NpzArray, load_small
from fcdm_keras.formats.numbers import check_finite
from t2i.captions import LIMIT, is_blank, is_text
from t2i.text_encoder import Identity, Settings, captions_hash, check_same_encoder

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
    captions = tuple(map(tuple, captions))
    texts = [caption for own in captions for caption in own] + [""]
    facts = {"encoder": encoder.identity(), "settings": encoder.settings(), "hash": captions_hash(texts)}
    if (folder / METADATA).exists():
        _check_same(_read(folder / METADATA, _Captions), facts, captions, encoder, folder / METADATA)
        return
    parts = folder / UNFINISHED
    make_folder(parts)
    remove_leftovers(parts)
    if (parts / METADATA).exists():
        _check_same(_read(parts / METADATA, _Facts), facts, captions, encoder, parts)
    else:
        write_atomically(parts / METADATA, json.dumps(facts) + "\n")
    files = [_part(encoder, texts, start, parts) for start in range(0, len(texts), PART)]
    unfinished = parts / EMBEDDINGS
    whole = np.lib.format.open_memmap(unfinished, "w+", np.float16, (len(texts), encoder.embedding_dim))
    for number, file in enumerate(files):
        whole[number * PART : (number + 1) * PART] = load_small(file, kinds="f")
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


def _check_same(stored, facts, captions, encoder, where):
    check_same_encoder(to_builtins(stored.encoder), encoder, str(where))
    if stored.hash != facts["hash"] or getattr(stored, "captions", captions) != captions:
        raise ValueError(f"{where} holds other captions than these: remove it to make them again.")


class _Facts(Struct):
    """What the captions of a store were encoded with; `hash` is of the captions."""

    encoder: Identity
    settings: Settings
    hash: Identifier


class _Captions(_Facts):
    captions: tuple[Annotated[tuple[str, ...], Meta(min_length=1)], ...]


def _read(file, schema):
    return read_json(file, schema, "remove it and run `python -m t2i.encode` again", LIMIT)


def _are_captions(own):
    return isinstance(own, (list, tuple)) and own and all(map(is_text, own))


def _checked(captions, file):
    """Captions as they were stored. Raises ValueError for an image of which nothing says anything."""
    for number, own in enumerate(captions):
        if all(map(is_blank, own)):
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
        content = _read(self.folder / METADATA, _Captions)
        self.encoder, self.settings = to_builtins(content.encoder), to_builtins(content.settings)
        stored = _checked(content.captions, self.folder / METADATA)
        self.captions = [[text for text in own if not is_blank(text)] for own in stored]
        self._rows = np.flatnonzero([not is_blank(text) for own in stored for text in own])
        self._firsts = np.cumsum([0, *map(len, self.captions)])
        count = sum(map(len, stored))
        self.blank = count - len(self._rows)
        expected = (count + 1, self.encoder["embedding_dim"])
        try:
            array = NpzArray(self.folder / EMBEDDINGS, kinds="f")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder / EMBEDDINGS} is damaged ({error}): {_AGAIN}.") from None
        if array.shape != expected:
            raise ValueError(
                f"{self.folder / EMBEDDINGS} must have the shape {expected}. Received: {array.shape}; {_AGAIN}."
            )
        self._embeddings = array.mapped()

    def __len__(self):
        return len(self.captions)

    def __reduce__(self):  # to worker processes, without the arrays
        return type(self), (self.folder,)

    def read(self, images, numbers):
        """Embeddings of caption `numbers` `(B,)` of images `(B,)`, float32 `(B, D)`."""
        rows = self._rows[self._firsts[np.asarray(images)] + np.asarray(numbers)]
        embeddings = self._embeddings[rows].astype(np.float32)
        check_finite(f"{self.folder / EMBEDDINGS}", embeddings)
        return embeddings

    def all_embeddings(self):
        """Those of all captions, float16 `(N, D)`."""
        check_finite(f"{self.folder / EMBEDDINGS}", self._embeddings)
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
