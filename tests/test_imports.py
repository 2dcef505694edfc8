"""Nothing needs TensorFlow where Keras runs on something else, and GPUs are hidden from it there."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import processes
import pytest

ROOT = Path(__file__).parents[1]
BACKEND = keras.backend.backend()


def run(program, backend, start=subprocess.run):
    """Runs a Python program under a backend in a process of its own; returns what it printed."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", program]
    done = start(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_TENSORFLOW = """
import importlib.util, sys, tempfile

class Without:
    "A finder that sees what another one sees, but TensorFlow."
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *arguments):
        hidden = name.split(".")[0] in ("tensorflow", "tensorflow_text")
        return None if hidden else self.finder.find_spec(name, *arguments)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
assert importlib.util.find_spec("tensorflow") is None
try:
    import tensorflow
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("TensorFlow is still there")

import numpy as np
import fcdm_keras
from fcdm_keras.training.callbacks import FIELDS, TensorBoardWriter

objects = [getattr(fcdm_keras, name) for name in fcdm_keras.__all__]
backbone = fcdm_keras.FCDMBackbone(8, (0, 0, 0, 0, 0), num_classes=10, in_channels=2)
trainer = fcdm_keras.DiffusionTrainer(backbone)
trainer.compile()
losses = trainer.train_on_batch(np.zeros((2, 8, 8, 2), "float32"), np.array([3, 4], "int32"), return_dict=True)
assert np.isfinite(float(losses["loss"]))
with tempfile.TemporaryDirectory() as folder:
    TensorBoardWriter(folder)(dict.fromkeys(FIELDS, 1))
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "tensorflow_text")]
print("trained without")
"""


if BACKEND == "jax":  # what it takes of TensorFlow elsewhere is the same on PyTorch

    def test_all_works_where_tensorflow_is_not_installed():
        assert "trained without" in run(WITHOUT_TENSORFLOW, BACKEND)


HIDES_GPUS = """
import importlib, sys
import keras  # before TensorFlow: PyTorch crashes where it comes second
import tensorflow as tf

calls, hide = [], tf.config.set_visible_devices

def spy(devices, kind):
    calls.append((devices, kind, "keras_hub" in sys.modules))
    hide(devices, kind)

def in_use(devices, kind):
    raise RuntimeError("Visible devices cannot be modified after being initialized")

tf.config.set_visible_devices = spy
import fcdm_keras.backend.hub
assert tf.config.get_visible_devices("GPU") == []
tf.config.set_visible_devices = in_use
importlib.reload(fcdm_keras.backend.hub)
print(calls, fcdm_keras.backend.hub.keras_hub.__name__)
"""


@pytest.mark.no_backend
def test_gpus_are_hidden_from_tensorflow_before_kerashub_imports_it():
    assert run(HIDES_GPUS, "torch").strip() == f"{[([], 'GPU', False)]} keras_hub"


HIDES_AT_ONCE = """
import importlib, sys

for module in ("autoencoders", "training.trainer", "evaluation.features"):
    for name in [name for name in sys.modules if name.startswith("fcdm_keras")]:
        del sys.modules[name]
    importlib.import_module(f"fcdm_keras.{module}")
    print("fcdm_keras.backend.hub" in sys.modules)
"""


def test_whatever_computes_hides_the_gpus_too():
    """Keras imports TensorFlow in `fit` where it is installed."""
    assert run(HIDES_AT_ONCE, BACKEND, processes.run).split() == ["True"] * 3


if BACKEND != "tensorflow":

    def test_a_broken_tensorflow_does_not_silence_errors(tmp_path):
        """stderr is closed while TensorFlow starts; what goes wrong then must still be seen."""
        (tmp_path / "tensorflow").mkdir()
        (tmp_path / "tensorflow" / "__init__.py").write_text("raise ImportError('broken installation')")
        environment = {**os.environ, "KERAS_BACKEND": BACKEND, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        command = [sys.executable, "-c", "import fcdm_keras.backend.hub"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1 and "broken installation" in done.stderr
