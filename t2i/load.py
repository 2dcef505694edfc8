"""Parts of text-to-image models found again: of a run folder, a preset, or a reference checkpoint."""

from pathlib import Path

from msgspec import to_builtins

from fcdm_keras.formats.documents import Struct, as_schema, read_json
from fcdm_keras.network import presets
from fcdm_keras.network.base import DiffusionBackbone
from fcdm_keras.runs import build
from fcdm_keras.runs import load as class_models
from fcdm_keras.runs.folder import PRESET, stored_config
from t2i.conditioning import TextConditioning
from t2i.recipes import TextTrainConfig
from t2i.shapes import autoencoder as shapes
from t2i.text_encoder import Identity, Settings

TEXT = "text.json"  # in the run folder: the text encoder's settings and identity


class _Text(Struct):
    settings: Settings
    identity: Identity


def build_backbone(config, embedding_dim):
    """A backbone with fresh weights, conditioned on text embeddings of `embedding_dim` numbers."""
    return build.build_backbone(config, TextConditioning(embedding_dim, name="conditioning"))


def load_backbone(source):
    """The backbone of a preset, a run folder or a reference checkpoint, conditioned on text or on classes."""
    if str(source).endswith(".pt"):
        return class_models.load_backbone(source)

    def unfinished(folder):
        if (folder / TEXT).exists():
            return _newest_backbone(stored_config(folder, TextTrainConfig), folder)
        return class_models.load_backbone(folder)

    return class_models.find_model(source, DiffusionBackbone.from_preset, unfinished)


def stored_identity(source):
    """The identity of the text encoder of a run or preset folder; `None` where there is none."""
    for file in (Path(source, PRESET, "task.json"), Path(source, "task.json"), Path(source, TEXT)):
        if file.exists():
            return read_text_settings(source)["identity"] if file.name == TEXT else _task_identity(file)
    return None


def read_text_settings(folder):
    """The text encoder of a run folder: a dict of its `settings` and `identity`. Raises ValueError or OSError."""
    return to_builtins(read_json(Path(folder) / TEXT, _Text))


def _task_identity(file):
    config = presets.read_object(file)["config"]
    identity = as_schema(config.get("text_identity"), Identity | None, file)
    return identity and to_builtins(identity)


def unfinished_parts(folder, autoencoder=None):
    """Arguments of `TextToImage` for a run folder without a preset, from its newest checkpoint.

    Args:
        folder: the run folder.
        autoencoder: replaces the run's, if given.

    Returns:
        A dict, or `None` where there is no checkpoint.

    Raises:
        ValueError: it is no run of a text-to-image model.
    """
    if not (folder / TEXT).exists():
        raise ValueError(f"{folder} holds no run of a text-to-image model (no {TEXT}).")
    config = stored_config(folder, TextTrainConfig)
    backbone = _newest_backbone(config, folder)
    if backbone is None:
        return None
    text = read_text_settings(folder)
    return {
        "backbone": backbone,
        "autoencoder": autoencoder or stored_autoencoder(config, folder),
        "image_size": config.image_size,
        "objective": build.build_objective(config),
        "text_encoder": text["settings"],
        "text_identity": text["identity"],
    }


def _newest_backbone(config, folder):
    embedding_dim = read_text_settings(folder)["identity"]["embedding_dim"]
    return class_models.newest_average(config, folder, build_backbone(config, embedding_dim))


def stored_autoencoder(config, folder):
    """The autoencoder of a run: its own, if it trained one, or as in class-conditional runs."""
    if (folder / shapes.FILE).exists():
        return shapes.read_autoencoder(config, folder)
    return class_models.stored_autoencoder(config, folder)
