"""Shared by all tests. The suite runs once per backend: `KERAS_BACKEND=jax|torch|tensorflow python -m pytest`."""

import pathlib

import keras
import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def golden():
    """`golden("fcdm/name")`: the arrays of a file of reference results, see `tests/golden/README.md`."""

    def load(name):
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays}

    return load


@pytest.fixture(scope="session")
def golden_checkpoint():
    return str(GOLDEN / "fcdm" / "fcdm_checkpoint.pt")
