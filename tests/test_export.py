"""Exported networks, run by the engine alone in another process."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import inputs, relative_error, tiny_backbone, to_numpy

BACKEND = keras.backend.backend()
PROGRAM = {
    "torch": "import torch; run = torch.export.load(path).module(); tensor = torch.tensor",
    "tf_saved_model": "import tensorflow as tf; all = tf.saved_model.load(path); run = all.serve; tensor = tf.constant",
}
RUN = """
import sys
import numpy as np
path, folder = sys.argv[1:]
{load}
for number in range(2):
    given = np.load(f"{{folder}}/inputs_{{number}}.npz")
    output = run({{name: tensor(given[name]) for name in given}})
    np.save(f"{{folder}}/output_{{number}}.npy", getattr(output, "detach", lambda: output)().numpy())
assert "fcdm_keras" not in sys.modules
"""


def test_an_exported_network_runs_without_us(tmp_path, monkeypatch):
    format = "torch" if BACKEND == "torch" else "tf_saved_model"
    backbone = tiny_backbone(depths=(1, 0, 0, 0, 0))  # never called
    path = tmp_path / "network.pt2"
    backbone.export(path, format=format, verbose=False)
    whole, fractional = inputs(batch=3, height=12, width=8), inputs(batch=1, height=16, width=20, seed=2)
    given = [
        {**whole, "timesteps": whole["timesteps"].astype("float32")},
        {**fractional, "timesteps": np.array([0.25], "float32")},
    ]
    for number, arrays in enumerate(given):
        np.savez(tmp_path / f"inputs_{number}.npz", **arrays)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    code = RUN.format(load=PROGRAM[format])
    command = [sys.executable, "-c", code, str(path), str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not result.returncode, result.stderr
    for number, arrays in enumerate([whole, given[1]]):  # integer timesteps here, the same as float32 there
        assert relative_error(backbone(arrays), np.load(tmp_path / f"output_{number}.npy")) < 1e-5


def test_a_format_that_a_backend_cannot_write_is_refused_in_a_sentence(tmp_path):
    format, able = {
        "jax": ("torch", "torch"),
        "tensorflow": ("torch", "torch"),
        "torch": ("tf_saved_model", "jax, tensorflow"),
    }[BACKEND]
    with pytest.raises(ValueError, match=f"{format}.* backends {able}. Received: the backend {BACKEND}"):
        tiny_backbone(depths=(0, 0, 0, 0, 0)).export(tmp_path / "network", format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.no_backend
def test_pytorch_compiles_a_network_and_its_gradients_in_one_graph():
    import torch

    backbone = tiny_backbone(depths=(1, 0, 0, 0, 0))
    given = {name: torch.tensor(array) for name, array in inputs(height=8, width=8).items()}
    results = []
    for network in (backbone, torch.compile(backbone, backend="aot_eager", fullgraph=True)):
        backbone.zero_grad()
        output = network(given)
        output.square().mean().backward()
        results.append([output, *(p.grad for p in backbone.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 20
    for expected, found in zip(*results, strict=True):
        assert relative_error(found, to_numpy(expected)) < 1e-5


class Vectors(keras.layers.Layer):
    """A conditioning module of one's own."""

    input_name, widths = "vectors", None

    def call(self, vectors):
        return tuple(keras.ops.tile(vectors[:, :1], (1, width)) for width in self.widths)

    def null(self, batch_size):
        return keras.ops.zeros((batch_size, 5))


@pytest.mark.no_backend
def test_the_signature_follows_the_conditioning_module():
    from fcdm_keras.network.export import signature

    for options, name, shape, dtype in (
        ({}, "labels", (None,), "int32"),
        ({"conditioning": Vectors()}, "vectors", (None, 5), "float32"),
    ):
        (specs,) = signature(tiny_backbone(depths=(0, 0, 0, 0, 0), **options))
        assert (specs[name].shape, specs[name].dtype) == (shape, dtype)
        assert specs["x_t"].shape == (None, None, None, 2) and specs["timesteps"].dtype == "float32"
