"""The engine that Keras is about to start, and whether it can. Standard library only."""

import importlib.util
import json
import os
from pathlib import Path

ENGINES = ("jax", "torch", "tensorflow")
_DEFAULT = "tensorflow"  # Keras's, where nothing names one


def check(environ=os.environ):
    """Raises ValueError for an engine that is not here, and for settings of Keras that would change results unseen.

    Keras takes its backend from `KERAS_BACKEND`, else from `keras.json` in `KERAS_HOME` or `~/.keras`.
    """
    file = Path(environ.get("KERAS_HOME") or Path("~/.keras").expanduser()) / "keras.json"
    stored = _stored(file)
    place = "KERAS_BACKEND" if environ.get("KERAS_BACKEND") else str(file)
    name = environ.get("KERAS_BACKEND") or stored.get("backend", _DEFAULT)
    if name not in ENGINES:
        raise ValueError(f"{place} must name {', '.join(ENGINES[:-1])} or {ENGINES[-1]}. Received: {str(name)[:60]!r}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(
            f'Keras computes on {name} here, which is not installed: pip install "fcdm-keras[{name}]", or set '
            "KERAS_BACKEND to one that is."
        )
    floatx = stored.get("floatx", "float32")
    if floatx != "float32":
        raise ValueError(
            f"{file} sets floatx to {str(floatx)[:60]!r}, and commands compute in what their flags say: set it to "
            '"float32" there, and give --precision where less is wanted.'
        )


def _stored(file):
    """What `keras.json` says; Keras itself passes over text that is no JSON."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{file}, which Keras reads, is no JSON object: mend it, or remove it.")
    return content
