"""Shared by all tests. The suite runs once per backend: `KERAS_BACKEND=jax|torch|tensorflow python -m pytest`."""

import json
import lzma
import os
import pathlib
import time

import keras
import numpy as np
import processes
import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"
VAE = GOLDEN / "vae"


_outcomes = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """For `suite.py`: a line of JSON for each test, (name, outcome, seconds, CPU seconds, peak KiB)."""
    began, used = time.monotonic(), processes.cpu_seconds()
    result = yield
    if "SUITE_RECORD" in os.environ:
        costs = (time.monotonic() - began, processes.cpu_seconds() - used, processes.peak_kib())
        with open(os.environ["SUITE_RECORD"], "a") as file:
            file.write(json.dumps([item.nodeid, _outcomes.get(item.nodeid, "failed"), *costs]) + "\n")
    return result


def pytest_runtest_logreport(report):
    if report.failed:
        _outcomes[report.nodeid] = "failed"
    elif report.when == "call" or report.skipped:
        _outcomes.setdefault(report.nodeid, report.outcome)


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
