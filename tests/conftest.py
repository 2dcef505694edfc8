"""Shared by all tests. The suite runs once per backend: `KERAS_BACKEND=jax|torch|tensorflow python -m pytest`."""

import lzma
import pathlib

import keras
import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"
VAE = GOLDEN / "vae"


# Files that take longest, in this order: they start first, so that the workers finish together.
LONGEST = (
    "distribution",
    "trainer",
    "resume",
    "train_vae",
    "golden",
    "training_data",
    "autoencoders",
    "tasks",
    "sample",
    "imports",
)


def pytest_collection_modifyitems(items):
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


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


@pytest.fixture(scope="session")
def vae():
    """The reference autoencoder, see `tests/golden/README.md`."""
    from fcdm_keras.autoencoders import KLAutoencoder

    return KLAutoencoder.from_diffusers(VAE)


@pytest.fixture(scope="session")
def inception_graph(tmp_path_factory):
    """Path of the small frozen graph that is laid out as the Inception graph of ADM's suite."""
    path = tmp_path_factory.mktemp("graph") / "classify_image_graph_def.pb"
    path.write_bytes(lzma.decompress((GOLDEN / "adm" / "graph" / f"{path.name}.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def inception(inception_graph):
    """That graph as an extractor, compiled once."""
    from fcdm_keras.evaluation.features import Inception

    return Inception(inception_graph, batch_size=8)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """Path of the configuration of a very small text tower, the same for all, so that its process can be shared."""
    from text_helpers import write_config

    return write_config(tmp_path_factory.mktemp("clip"))
