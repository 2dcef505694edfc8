"""Many devices and many processes compute what one does: the real commands, with CPU devices and on loopback."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import processes
import pytest
from conftest import VAE
from PIL import Image
from sklearn.datasets import load_sample_image
from small_run import SMALL

import train_imagenet
from fcdm_keras import FCDMBackbone, distribution, encode, recipes, sample
from fcdm_keras.backend import job as present
from fcdm_keras.data.latent_store import LatentStore
from fcdm_keras.distribution import exchange, layout, supervision

ROOT = Path(__file__).parents[1]
BACKEND = keras.backend.backend()
STEPS, EVERY = 10, 5
FLAGS = (
    f"--steps={STEPS}", f"--ckpt-every={EVERY}", "--global-batch-size=16", "--clip-norm=0.5", "--log-every=1",
    f"--sample-every={STEPS}", "--num-sampling-steps=2", "--ema-decay=0.9", "--no-ema-warmup",
)  # fmt: skip
MICRO_BATCHES = ("--accumulation-steps=2", "--gradient-checkpointing")
TORCHRUN = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node=2", "--max-restarts=1")
SEVERAL_DEVICES = {
    "jax": {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    "tensorflow": {"LOGICAL_DEVICES": "2"},
}.get(BACKEND)


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.MODEL_SIZES, "XS", SMALL)
        yield


def start(program, *flags, launcher=(sys.executable,), backend=BACKEND, cwd=ROOT, **environment):
    """A process of `small_run.py`."""
    command = [*launcher, str(ROOT / "tests" / "small_run.py"), program, *flags]
    flags_of_xla = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), environment.get("XLA_FLAGS"))))
    environment = {**os.environ, **environment, "KERAS_BACKEND": backend, "XLA_FLAGS": flags_of_xla}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return processes.start(command, cwd=cwd, env=environment, **pipes)


def finished(process, seconds=500):
    """What a process printed and its exit status; killed if it takes longer."""
    try:
        return process.communicate(timeout=seconds)[0], process.returncode
    finally:
        process.kill()


def on_several_devices(program, *flags):
    """Runs a program on several devices of one host; returns what it printed. Of PyTorch's, each has its process."""
    environments = places() if BACKEND == "torch" else [SEVERAL_DEVICES]
    together = [start(program, *flags, **environment) for environment in environments]
    outputs = [finished(process) for process in together]
    assert not any(status for _, status in outputs), outputs
    return "".join(output for output, _ in outputs)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def places(count=2):
    """Environments of processes that belong together."""
    ports = [free_port() for _ in range(count)]
    for i in range(count):
        if BACKEND == "jax":
            names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
            yield dict(zip(names, (f"127.0.0.1:{ports[0]}", str(count), str(i))))
        elif BACKEND == "torch":
            names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
            yield dict(zip(names, ("127.0.0.1", str(ports[0]), str(count), str(i))))
        else:
            workers = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
            yield {"TF_CONFIG": f'{{"cluster": {{"worker": [{workers}]}}, "task": {{"type": "worker", "index": {i}}}}}'}


def train_here(results, *flags):
    """Trains on one device, in this process; returns what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        train_imagenet.main([f"--results-dir={results}", *FLAGS, *flags])
    return output.getvalue()


def log(results):
    with open(results / "digits" / "log.csv", newline="") as file:
        return [[float(row[name]) for name in ("step", "loss", "mse", "vb")] for row in csv.DictReader(file)]


def weights(results, step):
    """The arrays of a checkpoint: weights, EMA, moments, step."""
    arrays = {}
    with h5py.File(results / "digits" / "checkpoints" / f"step-{step:09d}" / "trainer.weights.h5") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def assert_same_run(results, one, tolerance=1e-5):
    np.testing.assert_allclose(log(results), log(one), rtol=tolerance)
    for step in (EVERY, STEPS):
        ours, expected = weights(results, step), weights(one, step)
        assert ours.keys() == expected.keys() and len(expected) > 100
        for part in ("backbone", "ema"):
            flat = [np.concatenate([a[n].ravel() for n in sorted(a) if n.startswith(part)]) for a in (ours, expected)]
            assert np.abs(flat[0] - flat[1]).max() <= tolerance * np.abs(flat[1]).max(), (part, step)
    assert_same_picture(results / "digits" / "samples.png", one / "digits" / "samples.png")


def assert_same_picture(path, expected):
    a, b = (np.asarray(Image.open(file)).astype(int) for file in (path, expected))
    assert a.shape == b.shape and b.std() > 20
    assert np.abs(a - b).max() <= 1


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The results folder of a run on one device."""
    results = tmp_path_factory.mktemp("one")
    train_here(results, *MICRO_BATCHES)
    return results


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The same on several devices of this host, and what it printed."""
    results = tmp_path_factory.mktemp("several")
    return results, on_several_devices("train_imagenet.py", f"--results-dir={results}", *FLAGS, *MICRO_BATCHES)


def test_several_devices_train_as_one(one, several):
    """Losses, weights, their average, and 100 images: so draws differ between devices, and gradients are averaged."""
    results, output = several
    count = {"jax": 4, "torch": 2, "tensorflow": 2}[BACKEND]
    assert f"devices: {count} devices" in output and f"activations of {16 // 2 // count} samples" in output
    assert_same_run(results, one)


def test_a_checkpoint_of_several_devices_goes_on_on_one(one, several, tmp_path):
    shutil.copytree(several[0] / "digits", tmp_path / "digits")
    shutil.rmtree(tmp_path / "digits" / "checkpoints" / f"step-{STEPS:09d}")
    assert f"resumed at step {EVERY}" in train_here(tmp_path, f"--results-dir={tmp_path}", *MICRO_BATCHES)
    assert_same_run(tmp_path, one)


if BACKEND == "jax":  # One direction is enough, and PyTorch starts fastest.

    def test_a_checkpoint_of_several_devices_goes_on_on_another_backend(one, several, tmp_path):
        shutil.copytree(several[0] / "digits", tmp_path / "digits")
        shutil.rmtree(tmp_path / "digits" / "checkpoints" / f"step-{STEPS:09d}")
        process = start("train_imagenet.py", f"--results-dir={tmp_path}", *FLAGS, *MICRO_BATCHES, backend="torch")
        output, status = finished(process)
        assert status == 0 and f"resumed at step {EVERY}" in output, output
        assert_same_run(tmp_path, one, tolerance=2e-5)


def test_two_processes_go_on_after_one_is_killed(one, tmp_path):
    flags = (f"--results-dir={tmp_path}", *FLAGS)
    if BACKEND == "torch":  # torchrun starts the processes again by itself
        output, status = finished(start("train_imagenet.py", *flags, launcher=TORCHRUN, KILL_AT="1:7"))
        assert status == 0 and "exitcode: -9" in output and f"resumed at step {EVERY}" in output, output
        assert_same_run(tmp_path, one)
        return
    killed = [start("train_imagenet.py", *flags, KILL_AT="1:7", **place) for place in places()]
    killed[1].wait(500)
    died = time.monotonic()
    output, status = finished(killed[0], 90)
    assert killed[1].returncode == -signal.SIGKILL and status != 0, output
    assert time.monotonic() - died < 60
    assert [row[0] for row in log(tmp_path)] == list(range(1, 8))
    outputs = [finished(p) for p in [start("train_imagenet.py", *flags, **place) for place in places()]]
    assert [status for _, status in outputs] == [0, 0], outputs
    assert f"resumed at step {EVERY}" in outputs[0][0] and "2 processes" in outputs[0][0]
    assert "step " not in outputs[1][0]  # only the first one reports
    assert_same_run(tmp_path, one)


if BACKEND == "jax":  # Keras cuts models over devices on JAX only.

    def test_a_model_cut_over_devices_trains_as_a_whole_one(one, tmp_path):
        output = on_several_devices("train_imagenet.py", f"--results-dir={tmp_path}", *FLAGS, "--model-parallel=2")
        assert "4 devices (cpu:0 … cpu:3), 2 for each copy of the model" in output
        held, whole = output.partition("moments: ")[2].split(" MiB")[:2]
        assert 0.4 < float(held) / float(whole.rpartition(" ")[2]) < 0.7  # of figures with one digit
        assert_same_run(tmp_path, one)


def test_every_variable_has_a_place_in_the_layout():
    """Exactly one pattern matches each path, with one entry per axis; averages are laid out as their weights."""
    import re

    backbone = FCDMBackbone(8, (1, 1, 1, 1, 1), num_classes=3)
    others = [
        FCDMBackbone(8, (1,) * 5, num_classes=3, variant="neighborhood", head_width=4),
        FCDMBackbone(8, (1,) * 5, num_classes=3, variant="cca_feedforward"),
        FCDMBackbone(8, (1,) * 5, num_classes=3, variant="resnet"),
        FCDMBackbone(8, (1,), num_classes=3, variant="isotropic"),
    ]
    for variable in (v for network in (backbone, *others) for v in network.variables):
        for path in (variable.path, "diffusion_trainer/ema/" + variable.path.replace("/", "_")):
            found = [axes for pattern, axes in layout.patterns() if re.fullmatch(pattern, path)]
            assert len(found) == 1, path
            assert found[0] == () or len(found[0]) == len(variable.shape), path
            cut = [size for size, axis in zip(variable.shape, found[0]) if axis]
            assert all(size % 4 == 0 for size in cut)
    whole = sum(np.prod(v.shape) for v in backbone.variables if not _axes(v))
    assert whole < 0.4 * backbone.count_params()  # even here, where the depthwise kernels and ends weigh most


def test_one_device_holds_all_bytes():
    backbone = FCDMBackbone(8, (0, 0, 0, 0, 0), num_classes=3)
    assert distribution.device_bytes(backbone.variables) == (4 * backbone.count_params(),) * 2


def _axes(variable):
    import re

    return next(axes for pattern, axes in layout.patterns() if re.fullmatch(pattern, variable.path))


def test_images_do_not_depend_on_the_number_of_devices(one, tmp_path):
    preset = str(one / "digits" / "preset")
    flags = ("--num-samples=11", "--num-sampling-steps=3", "--batch-size=3", "--npz", "--seed=4")
    sample.main([preset, *flags, "--output", str(tmp_path / "one")])
    on_several_devices("fcdm_keras.sample", preset, *flags, f"--output={tmp_path / 'several'}")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "several").iterdir()} and "000010.png" in names
    for name in names - {"samples.npz", "settings.json"}:
        assert_same_picture(tmp_path / "several" / name, tmp_path / "one" / name)
    with np.load(tmp_path / "one" / "samples.npz") as a, np.load(tmp_path / "several" / "samples.npz") as b:
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"]).max() <= 1
        np.testing.assert_array_equal(a["arr_1"], b["arr_1"])


def test_latents_do_not_depend_on_the_number_of_devices(tmp_path):
    photo = load_sample_image("china.jpg")
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(5):
            crop = photo[60 * i : 60 * i + 32, 100 * ord(label) % 400 :][:, :32]
            Image.fromarray(crop).save(tmp_path / "images" / label / f"{i}.png")
    flags = (f"--source={tmp_path / 'images'}", f"--vae={VAE}", "--image-size=32", "--shard-size=4", "--batch-size=3")
    encode.main([*flags, f"--output={tmp_path / 'one'}"])
    output = on_several_devices("fcdm_keras.encode", *flags, f"--output={tmp_path / 'several'}")
    assert output.count("10 images of 2 classes at 32 px") == 1
    a, b = (LatentStore(tmp_path / name).read(np.arange(10)) for name in ("one", "several"))
    for ours, expected in zip(b[:3], a[:3]):  # mean, deviation (both float16), label
        np.testing.assert_allclose(ours.astype(float), expected.astype(float), rtol=2e-3, atol=2e-3)
    assert a[3] == b[3] and len(set(a[3])) == 10


@pytest.mark.no_backend
def test_text_to_image_on_two_processes_trains_as_on_one(tiny_clip, tmp_path):
    """The autoencoder, the model and the scores, each made by both."""
    flags = ["--steps=3", "--autoencoder-steps=3", "--global-batch-size=4", "--num-captions=12", "--log-every=1"]
    flags += ["--sample-every=3", "--num-sampling-steps=1", "--cfg-scale=1", f"--text-encoder={tiny_clip}"]
    runs = [("two", place) for place in places()] + [("one", {})]
    started = [start("train_coco.py", f"--results-dir={tmp_path / name}", *flags, **place) for name, place in runs]
    outputs = [finished(process) for process in started]
    assert [status for _, status in outputs] == [0, 0, 0], outputs
    two, one = (tmp_path / name / "shapes" for name in ("two", "one"))
    with np.load(two / "autoencoder.npz") as ours, np.load(one / "autoencoder.npz") as expected:
        for name in expected.files:
            np.testing.assert_allclose(ours[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    logs = [np.loadtxt(run / "log.csv", delimiter=",", skiprows=1)[:, :4] for run in (two, one)]
    np.testing.assert_allclose(*logs, rtol=1e-4)
    assert_same_picture(two / "samples.png", one / "samples.png")
    assert json.loads((two / "scores.json").read_text()).keys() == json.loads((one / "scores.json").read_text()).keys()


def test_a_process_alone_says_that_the_others_are_missing():
    place = list(places())[1]
    began = time.monotonic()
    output, status = finished(start("fcdm_keras.sample", "x", "--output=/tmp/x", "--connect-timeout=5", **place), 120)
    assert status != 0 and "error: " in output and "Check that all were started" in output, output
    assert time.monotonic() - began < 60


if BACKEND == "torch":  # What the processes say to each other does not depend on the backend.

    @pytest.mark.parametrize(
        ("differs", "message"),
        [
            ("flag", "do not run the same: num_samples=5 in process 0, 6 in process 1"),
            ("folder", "is not shared: process"),
        ],
    )
    def test_processes_that_do_not_belong_together_are_stopped(one, tmp_path, differs, message):
        processes = []
        for i, place in enumerate(places()):
            (tmp_path / f"host{i}").mkdir()
            count = f"--num-samples={5 + i if differs == 'flag' else 5}"
            flags = (str(one / "digits" / "preset"), count, "--output=samples")
            processes.append(start("fcdm_keras.sample", *flags, cwd=tmp_path / f"host{i}", **place))
        outputs = [finished(process, 120) for process in processes]
        assert all(status == 1 for _, status in outputs) and any(message in output for output, _ in outputs), outputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 99}, r"--devices must lie in \[1, 1\]|torchrun --nproc-per-node 99"),
        ({"model_parallel": 3}, "--model-parallel (needs KERAS_BACKEND=jax|must divide the number of devices, 1)"),
    ],
)
def test_devices_that_are_not_there_are_refused(options, message):
    with pytest.raises(ValueError, match=message), distribution.setup(**options):
        raise AssertionError
    assert distribution.job() == distribution.Job()


def test_a_batch_that_cannot_be_cut_is_refused(monkeypatch):
    monkeypatch.setattr(present, "_job", distribution.Job(devices=("a", "b", "c", "d")))
    distribution.check_batch(24, 3)
    message = r"devices × accumulation steps = 4 × 3, such as 24; or use fewer devices. Received: 20"
    with pytest.raises(ValueError, match=message):
        distribution.check_batch(20, 3)
    with pytest.raises(ValueError, match="must divide half the model's width, 12 / 2"):
        monkeypatch.setattr(present, "_job", distribution.Job(devices=("a",) * 4, model_parallel=4))
        distribution.check_model(12)


def test_processes_read_different_rows(monkeypatch):
    for devices, model_parallel, expected in (
        (8, 1, [range(6), range(6, 12), range(12, 18), range(18, 24)]),
        (8, 4, [range(12), range(12), range(12, 24), range(12, 24)]),  # two processes for one copy of the model
        (4, 4, [range(24)] * 4),
    ):
        rows = []
        for index in range(4):
            job = distribution.Job(index, 4, ("x",) * devices, model_parallel)
            monkeypatch.setattr(present, "_job", job)
            rows.append(distribution.batch_rows(24))
        assert rows == expected


def test_what_differs_between_processes_is_named(monkeypatch):
    own = {"seed": 1}
    other = f'{{"code": "{supervision.code_hash()}", "keras": "2.0", "seed": 2}}'
    monkeypatch.setattr(exchange, "gather_texts", lambda text: [text, other])
    with pytest.raises(ValueError, match="keras='3.*' in process 0, '2.0' in process 1; seed=1 in process 0, 2 in"):
        supervision.check_agreement(own)


def test_a_stall_is_reported_and_a_beat_is_not(capsys):
    report = supervision.StallReport(0.4, lambda silence: "nothing happens")
    for _ in range(8):
        report.beat()
        time.sleep(0.1)
    assert not capsys.readouterr().err
    time.sleep(1.0)
    report.stop()
    assert 1 <= capsys.readouterr().err.count("nothing happens") <= 2


def test_a_deadline_ends_the_process():
    program = "import time\nfrom fcdm_keras.distribution import supervision\n"
    program += "with supervision.deadline(0.2, 'late'): time.sleep(60)"
    done = processes.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL and done.stderr.endswith("error: late\n")
