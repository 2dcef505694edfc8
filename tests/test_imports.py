"""What may import what, and that nothing needs TensorFlow where Keras runs on something else."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import keras
import processes

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fcdm_keras"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
TEXT_FILES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "t2i").rglob("*.py")}
BACKEND = keras.backend.backend()


def imports(file):
    """Full names of all that a file imports anywhere in it: `a.b` for `import a.b`, `a.b.c` for `from a.b import c`."""
    for node in ast.walk(ast.parse({**FILES, **TEXT_FILES}[file].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(file):
    """Names of the package's modules that a file imports."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("fcdm_keras.")}


def test_the_files_are_seen():
    assert {"backbone.py", "kernels/__init__.py", "engine/on_jax.py", "data/digits.py"} <= FILES.keys()
    assert "keras" in imports("layers.py") and "kernels" in ours("layers.py")


def test_backends_are_imported_in_their_places_only():
    allowed = ("kernels/", "engine/", "distribution/on_", "convert.py", "hub.py")
    for file in FILES:
        backends = {name.split(".")[0] for name in imports(file)} & {"jax", "jaxlib", "torch", "tensorflow"}
        assert not backends or file.startswith(allowed), (file, backends)
    assert "tensorflow" in imports("hub.py")


def test_mathematics_sees_no_network():
    networks = {"backbone", "layers", "trainer", "tasks", "conditioning", "autoencoders", "hub", "runs", "checkpoint"}
    evaluation = [f"evaluation/{name}.py" for name in ("metrics", "statistics", "neighbors", "graph", "graph_ops")]
    for file in ("diffusion.py", "samplers.py", "guidance.py", "randomness.py", *evaluation):
        assert not ours(file) & networks, (file, ours(file))


def test_layers_do_not_see_what_is_built_of_them():
    order = ("presets", "layers", "conditioning", "backbone", "trainer", "tasks", "runs", "sample")
    for place, module in enumerate(order):
        assert not ours(f"{module}.py") & set(order[place:]), module


def test_the_package_does_not_import_what_uses_it():
    for file in FILES:
        names = {name.split(".")[0] for name in imports(file)}
        assert not any(name in ("t2i", "tests", "benchmarks") or name.startswith("train_") for name in names), file


def test_text_to_image_leaves_its_backends_to_the_package():
    """PyTorch and open_clip are in the text encoder's own process only, which imports nothing of ours."""
    foreign = {"jax", "jaxlib", "torch", "torchvision", "tensorflow", "tensorflow_datasets", "keras_hub", "open_clip"}
    assert {"t2i/tasks.py", "t2i/shapes/data.py"} <= TEXT_FILES.keys()
    for file in TEXT_FILES:
        names = {name.split(".")[0] for name in imports(file)}
        if file == "t2i/open_clip_worker.py":
            assert names & foreign == {"open_clip", "torch"} and not names & {"fcdm_keras", "t2i", "keras"}
        else:
            assert not names & foreign, (file, names & foreign)
        assert not any(name in ("tests", "benchmarks") or name.startswith("train_") for name in names), file


def test_data_workers_and_shapes_import_no_keras():
    for file in TEXT_FILES:
        drawn = file.startswith("t2i/shapes/") and file != "t2i/shapes/autoencoder.py"
        if drawn or file in ("t2i/caption_store.py", "t2i/text_encoder.py", "t2i/coco.py"):
            assert "keras" not in {name.split(".")[0] for name in imports(file)}, file


def test_presets_import_the_standard_library_only():
    for file in ("t2i/presets.py", "t2i/__init__.py"):
        assert {name.split(".")[0] for name in imports(file)} <= {*sys.stdlib_module_names, "fcdm_keras"}, file
    for file in ("presets.py", "files.py", "run_folder.py", "vae_config.py"):
        assert {name.split(".")[0] for name in imports(file)} <= {*sys.stdlib_module_names, "fcdm_keras"}, file
        assert ours(file) <= {"presets", "files"}, file


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
from fcdm_keras.callbacks import FIELDS, TensorBoardWriter

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


if BACKEND != "tensorflow":

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
import fcdm_keras.hub
assert tf.config.get_visible_devices("GPU") == []
tf.config.set_visible_devices = in_use
importlib.reload(fcdm_keras.hub)
print(calls, fcdm_keras.hub.keras_hub.__name__)
"""


def test_gpus_are_hidden_from_tensorflow_before_kerashub_imports_it():
    expected = [] if BACKEND == "tensorflow" else [([], "GPU", False)]
    assert run(HIDES_GPUS, BACKEND).strip() == f"{expected} keras_hub"


HIDES_AT_ONCE = """
import importlib, sys

for module in ("autoencoders", "trainer", "evaluation.features"):
    for name in [name for name in sys.modules if name.startswith("fcdm_keras")]:
        del sys.modules[name]
    importlib.import_module(f"fcdm_keras.{module}")
    print("fcdm_keras.hub" in sys.modules)
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
        command = [sys.executable, "-c", "import fcdm_keras.hub"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1 and "broken installation" in done.stderr
