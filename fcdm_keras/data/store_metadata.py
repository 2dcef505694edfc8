"""What the JSON files of a latent store hold, see `fcdm_keras.data.latent_store`. Nothing heavy is imported here."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fcdm_keras.formats.documents import Count, Name, Names, Size, Struct, as_schema, read_json

FORMAT_VERSION = 1
METADATA, SETTINGS = "store.json", "settings.json"
_AGAIN = "make the store again, or restore this file"


class Shard(Struct):
    """One shard of a store: its file beside the metadata, what is in it, and its checksum."""

    file: Annotated[str, Meta(pattern=r"^[^/\\]{1,200}\.array_record\Z")]
    images: Count
    bytes: Count
    sha256: Annotated[str, Meta(max_length=64)]


class ShardEntry(Shard):
    """What stands beside a shard: also the images that were left out, with the reason, and that were enlarged."""

    skipped: tuple[tuple[str, str], ...] = ()  # (key, reason)
    enlarged: tuple[str, ...] = ()

    def shard(self):
        return msgspec.convert({name: getattr(self, name) for name in Shard.__struct_fields__}, Shard)


@dataclasses.dataclass(frozen=True)
class StoreMetadata:
    """What a store says of itself; also what its makers must agree on, except for counts and shards."""

    source: str
    split: str
    autoencoder: Name  # as `KLAutoencoder.from_diffusers` takes it
    autoencoder_hash: str  # of the weights
    scale: Annotated[float, Meta(gt=0)]
    shift: float
    image_size: Size  # pixels
    latent_shape: tuple[Size, Size, Size]
    flips: bool
    class_names: Names
    num_images: Count = 0
    skipped: Count = 0
    enlarged: Count = 0
    shards: tuple[Shard, ...] = ()
    version: int = FORMAT_VERSION

    @property
    def num_classes(self):
        return len(self.class_names)

    def to_json(self):
        return json.dumps(msgspec.to_builtins(self), indent=1, ensure_ascii=False) + "\n"


@dataclasses.dataclass(frozen=True)
class StoreSettings(StoreMetadata):
    """How a store is being made: what its metadata begins as, images per shard, and images of the source."""

    shard_size: Size = dataclasses.field(kw_only=True)
    images: Count = dataclasses.field(kw_only=True)


def read_store(file):
    """The metadata in a `store.json`, or in a copy of one.

    Raises:
        ValueError: it is of another version or damaged.
        OSError: it cannot be read.
    """
    content = read_json(file, dict[str, Any], _AGAIN)
    version = as_schema(content, _Version, file, _AGAIN).version
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{Path(file).parent} is a latent store of version {version}, and this program reads version "
            f"{FORMAT_VERSION}; make it again with `python -m fcdm_keras.encode`, or use the program that made it."
        )
    metadata = as_schema(content, StoreMetadata, file, _AGAIN)
    listed = sum(shard.images for shard in metadata.shards)
    if listed != metadata.num_images or not listed:
        raise ValueError(
            f"{file} does not fit: its shards hold {listed:,} images, its num_images is "
            f"{metadata.num_images:,}; {_AGAIN}."
        )
    return metadata


def read_metadata(folder):
    """The metadata of a finished store.

    Raises:
        FileNotFoundError: there is no store, or it is not finished.
        ValueError: it is of another version or damaged.
    """
    file = Path(folder) / METADATA
    if file.exists():
        return read_store(file)
    unfinished = (Path(folder) / SETTINGS).exists()
    raise FileNotFoundError(
        f"{folder} holds an unfinished latent store; run the same `python -m fcdm_keras.encode` command again."
        if unfinished
        else f"There is no latent store at {folder}; make one with `python -m fcdm_keras.encode`."
    )


class _Version(msgspec.Struct):
    version: int
