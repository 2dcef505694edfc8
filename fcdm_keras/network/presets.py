"""Preset folders: each whole or absent at any moment, and its documents checked before it is loaded."""

import contextlib
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fcdm_keras import files
from fcdm_keras.formats.documents import Count, Name, Size, Width, as_schema, read_json, shown
from fcdm_keras.formats.hdf5 import check_weights, one_line

# What KerasHub writes (checked: 0.32.0), and what repositories of presets have beside it.
_PARTS = re.compile(
    r"(config|metadata|task|preprocessor|tokenizer|(audio|image|video)_converter)\.json|assets"
    r"|(model|task)\.weights\.(h5|json)|model_\d+\.weights\.h5"
)
_REQUIRED = ("config.json", "metadata.json")
_OURS = ("fcdm_keras>", "t2i>")  # what the registered names of our classes begin with
_DECIDES_NOTHING = {"name", "dtype", "policy", "trainable"}  # of what a network is
_File = Annotated[str, Meta(pattern=r"^[^/\\]{1,255}\Z")]
_being_written = set()


class _Object(msgspec.Struct):
    """What Keras makes of an object; of other packages too, so more may stand there."""

    class_name: Name
    config: dict[str, Any]
    registered_name: str | None = None


class _Metadata(msgspec.Struct):
    keras_version: Name
    parameter_count: Count | None = None


class _Shards(msgspec.Struct):
    """Keras's index of weights in several files, which lie beside it."""

    weight_map: dict[str, _File | tuple[_File, ...]]


class _Backbone(msgspec.Struct):
    """The configuration of a backbone of ours."""

    in_channels: Width = 1
    out_channels: Width | None = None
    hidden_channels: Width = 1
    depths: Annotated[tuple[Annotated[int, Meta(ge=0, le=4096)], ...], Meta(min_length=1, max_length=64)] = (0,)
    kernel_size: Width = 1
    expansion_ratio: Annotated[float, Meta(gt=0, le=1024)] = 1.0
    variant: str | None = None
    head_width: Width | None = None
    conditioning: _Object | None = None
    dtype: dict[str, Any] | None = None
    policy: dict[str, Any] | None = None
    quantized: dict[str, tuple[str, ...]] = {}


class _Part(msgspec.Struct):
    """The configuration of an autoencoder or a conditioning module of ours."""

    latent_channels: Width = 1
    in_channels: Width = 1
    downsampling_factor: Width = 1
    layers_per_block: Width = 1
    norm_num_groups: Width = 1
    block_out_channels: tuple[Width, ...] = ()
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    num_classes: Annotated[int, Meta(ge=1, le=10**6)] = 1
    embedding_dim: Width = 1
    widths: tuple[Width, ...] | None = None


class _Task(msgspec.Struct):
    """The configuration of a task of ours."""

    backbone: _Object
    autoencoder: _Object | None = None
    image_size: Size | Annotated[tuple[Size, ...], Meta(min_length=2, max_length=2)] = 1  # a pair crashes msgspec 0.22
    objective: str | dict[str, Any] = ""
    class_names: tuple[str, ...] | None = None


class ReplacedWhole:
    """A model of KerasHub whose presets are whole at any moment."""

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Saves a preset, which takes the place of an earlier one in `preset_dir` as a whole.

        Raises:
            ValueError: the folder holds anything else than a preset; nothing has been touched.
            OSError: it cannot be written; what was there is.
        """
        with replacing(preset_dir) as folder:
            files.reserve(folder, 4 * self.count_params())
            super().save_to_preset(str(folder), max_shard_size)


def read_object(file):
    """The configuration of a Keras object in a preset's file, a dict of `class_name`, `config`, … Raises ValueError."""
    content = read_json(file, dict[str, Any])
    as_schema(content, _Object, file)
    return content


@contextlib.contextmanager
def reading(preset, weights=True):
    """A context in which a preset is loaded, whose documents, and `weights`, are checked first, where it is a folder.

    Raises:
        ValueError: a document is damaged, they contradict each other, or Keras cannot make the objects of them.
    """
    folder = Path(preset)
    if folder.is_dir():
        _check_documents(folder)
        if weights and (held := sum(map(check_weights, sorted(folder.glob("*.weights.h5"))))):
            _check_costs(folder, held)
    try:
        yield
    except (KeyError, AttributeError, IndexError, RecursionError, ValueError) as error:
        if type(error) is ValueError and "\n" not in str(error):
            raise
        raise ValueError(f"The preset {preset} holds no model that Keras can make ({one_line(error)}).") from None


def _check_documents(folder):
    read_json(folder / "metadata.json", _Metadata)
    if (folder / "model.weights.json").exists():
        read_json(folder / "model.weights.json", _Shards)
    stored, file = read_object(folder / "config.json"), folder / "task.json"
    if _is_ours(stored):
        as_schema(stored["config"], _Backbone, f"The `config` in {folder / 'config.json'}")
        _check_part(stored, "conditioning", folder / "config.json")
    if not file.exists():
        return
    task = read_object(file)
    if _is_ours(task):
        as_schema(task["config"], _Task, f"The `config` in {file}")
        _check_part(task, "autoencoder", file)
        difference = _difference(task["config"]["backbone"], stored, "$")
        if difference:
            raise ValueError(
                f"{file} and config.json beside it are of different backbones: {difference}; copy the whole preset "
                "again."
            )


def _check_part(content, name, file):
    part = content["config"].get(name)
    if part and _is_ours(part):
        as_schema(part["config"], _Part, f"The {name} in {file}")


def _check_costs(folder, held):
    """Raises ValueError for documents of ours whose sizes ask for more numbers than the weights hold, `held`."""
    for file in filter(Path.exists, (folder / "config.json", folder / "task.json")):
        content = read_object(file)
        needed = max(_costs(content["config"]), default=0) if _is_ours(content) else 0
        if needed > held:
            raise ValueError(
                f"{file} asks for {needed:,} numbers or more, and the weights beside it hold {held:,}; copy the whole "
                "preset again."
            )


def _costs(config, width=1):
    """For each size in a configuration, and in its parts, how many numbers a model has for it, at the least."""
    width = config.get("hidden_channels", width)
    yield width**2 * max(1, sum(config.get("depths", ())))
    yield width * config.get("num_classes", 1)
    yield max(config.get("block_out_channels", ()), default=1) ** 2 * config.get("layers_per_block", 1)
    yield config.get("embedding_dim", 1) ** 2
    for part in config.values():
        if isinstance(part, dict) and isinstance(part.get("config"), dict):
            yield from _costs(part["config"], width)


def _is_ours(content):
    return str(content.get("registered_name")).startswith(_OURS)


def _difference(there, here, path):
    """The first place at which two documents differ, as a phrase; `None` where they say the same network."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = sorted((there.keys() | here.keys()) - _DECIDES_NOTHING)
        found = (_difference(there.get(name), here.get(name), f"{path}.{name}") for name in names)
        return next(filter(None, found), None)
    return None if there == here else f"{path} is {shown(there)} there, {shown(here)} here"


@contextlib.contextmanager
def replacing(folder, whatever=False):
    """A new folder, to be filled with a preset, that takes the place of `folder` once all of it is on disk.

    Within such a folder, as where a task saves its backbone beside itself, it is the folder itself.

    Args:
        folder: path of the preset.
        whatever: replace a folder with other contents, too.

    Raises:
        ValueError: `folder` holds anything else than a preset; nothing has been touched.
        OSError: it cannot be written; what was there before is.
    """
    folder = Path(folder)
    if folder in _being_written:
        yield folder
        return
    if not whatever:
        check_replaceable(folder)
    try:
        with files.replacing_folder(folder) as unfinished:
            _being_written.add(unfinished)
            try:
                yield unfinished
            finally:
                _being_written.discard(unfinished)
    except (OSError, RuntimeError) as error:  # h5py raises either
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OSError(f"The preset {folder} could not be written ({reason}); what was there before is.") from None


def check_replaceable(folder):
    """Raises ValueError unless a preset can be written to a path: there is nothing, an empty folder, or a preset."""
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"A preset is a folder, and {folder} is a file: give another place.")
        return
    names = sorted(entry.name for entry in folder.iterdir())
    other = [name for name in names if not _PARTS.fullmatch(name)]
    if names and (other or not all(name in names for name in _REQUIRED)):
        held = f"{other[0]}, which is no part of a preset" if other else f"{names[0]} and is no preset"
        raise ValueError(f"{folder} holds {held}: give a folder that is empty, absent or an earlier preset.")
