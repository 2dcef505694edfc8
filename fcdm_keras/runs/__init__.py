"""Runs: one folder from the first step to the finished model.

A command (`command.py`) resolves its settings with a data set (`datasets.py`), opens the folder (`folder.py`), and
trains (`fit.py`) the model that `build.py` makes on the data that `data.py` opens. `load.py` finds models again.
"""
