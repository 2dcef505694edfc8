"""Runs: one folder from the first step to the finished model.

A command (`command.py`) resolves its settings with a data set (`datasets.py`), opens the folder (`folder.py`), and
trains (`fit.py`) the model that `build.py` makes on the data that `data.py` opens. `load.py` finds models again.
"""

import importlib

_HOMES = {
    **dict.fromkeys(("build_backbone", "build_task", "build_trainer", "copy_weights", "export_preset"), "build"),
    **dict.fromkeys(("find_model", "load_backbone", "load_task", "newest_average", "stored_autoencoder"), "load"),
}


def __getattr__(name):  # imported on first use: this package is read before anything heavy
    if name in _HOMES:
        return getattr(importlib.import_module(f"fcdm_keras.runs.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fcdm_keras.runs' has no attribute {name!r}")
