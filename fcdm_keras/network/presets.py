"""Preset folders, each whole or absent at any moment."""

import contextlib
import re
from pathlib import Path

from fcdm_keras import files

# What KerasHub writes (checked: 0.32.0), and what repositories of presets have beside it.
_PARTS = re.compile(
    r"(config|metadata|task|preprocessor|tokenizer|(audio|image|video)_converter)\.json|assets"
    r"|(model|task)\.weights\.(h5|json)|model_\d+\.weights\.h5"
)
_REQUIRED = ("config.json", "metadata.json")
_being_written = set()


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
