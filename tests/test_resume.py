"""Runs that are killed, and runs on another backend: the real script, in processes of its own."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from helpers import to_numpy

from fcdm_keras.data.digits import load_digits
from fcdm_keras.presets import RECIPES
from fcdm_keras.runs import build_trainer

ROOT = Path(__file__).parent.parent
NEXT_BACKEND = {"jax": "torch", "torch": "tensorflow", "tensorflow": "jax"}
STEPS, EVERY = 10, 4


def train(results, *flags, kill_after=None, steps=STEPS, **environment):
    """Runs `train_imagenet.py`; with `kill_after`, kills it (-9) as soon as that step's checkpoint is there."""
    command = [sys.executable, ROOT / "train_imagenet.py", "--results-dir", str(results), f"--steps={steps}"]
    command += [f"--ckpt-every={EVERY}", "--log-every=1", "--sample-every=0", "--global-batch-size=16"]
    command += ["--num-sampling-steps=2", *flags]
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if kill_after is None:
        output, _ = process.communicate(timeout=600)
        return process.returncode, output
    checkpoint = results / "digits" / "checkpoints" / f"step-{kill_after:09d}"
    while not checkpoint.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return None


def weights(results, step=STEPS):
    """Every array of a checkpoint: weights, EMA, optimizer, step."""
    arrays = {}
    with h5py.File(results / "digits" / "checkpoints" / f"step-{step:09d}" / "trainer.weights.h5") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def log(results):
    with open(results / "digits" / "log.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    results = tmp_path_factory.mktemp("uninterrupted")
    code, output = train(results)
    assert code == 0, output
    return results


def test_a_run_writes_what_the_readme_says(uninterrupted):
    folder = uninterrupted / "digits"
    for name in ("config.json", "log.csv", "loss.png", "scores.json", "checkpoints", "preset", "tensorboard"):
        assert (folder / name).exists(), name
    scores = json.loads((folder / "scores.json").read_text())
    assert {"agreement", "frechet", "frechet_real", "classifier_accuracy", "seconds"} <= scores.keys()
    assert [row["step"] for row in log(uninterrupted)] == list(range(1, STEPS + 1))


def test_a_killed_and_resumed_run_ends_bit_for_bit_as_one_that_was_not(uninterrupted, tmp_path):
    train(tmp_path, kill_after=EVERY)
    code, output = train(tmp_path)
    assert code == 0 and "resumed at step" in output, output
    expected, resumed = weights(uninterrupted), weights(tmp_path)
    assert expected.keys() == resumed.keys() and len(expected) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    assert log(tmp_path) == log(uninterrupted)


def test_a_finished_run_can_be_scored_again_and_trained_on(uninterrupted):
    before = weights(uninterrupted)
    code, output = train(uninterrupted)
    assert code == 0 and f"resumed at step {STEPS}" in output, output
    after = weights(uninterrupted)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_run_folder_of_other_settings_is_refused(uninterrupted):
    code, output = train(uninterrupted, "--learning-rate=0.01")
    assert code != 0 and "learning_rate=0.001 there, 0.01 now" in output
    assert "Traceback" not in output


def trajectory():
    """Losses of four training steps of the digits, with a fresh model."""
    trainer = build_trainer(dataclasses.replace(RECIPES["digits"], learning_rate=1e-4))
    images, labels = load_digits("train")
    losses = []
    for step in range(4):
        part = slice(16 * step, 16 * step + 16)
        losses.append(float(trainer.train_on_batch(images[part], labels[part], return_dict=True)["loss"]))
        trainer.reset_metrics()
    return losses


def trajectory_on(backend):
    """The same in a process of another backend."""
    program = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]}; import test_resume; "
    program += "print('LOSSES', test_resume.trajectory())"
    environment = {**os.environ, "KERAS_BACKEND": backend}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("LOSSES")]
    assert lines, result.stderr
    return json.loads(lines[0].removeprefix("LOSSES"))


def test_backends_walk_the_same_trajectory_from_the_same_seed():
    """Initial weights, timesteps, noise and dropped labels are the same; only rounding differs."""
    np.testing.assert_allclose(trajectory(), trajectory_on(NEXT_BACKEND[keras.backend.backend()]), rtol=1e-3)


def test_a_checkpoint_goes_on_on_another_backend(uninterrupted, tmp_path):
    code, output = train(uninterrupted, f"--steps={STEPS + 2}", KERAS_BACKEND=NEXT_BACKEND[keras.backend.backend()])
    assert code == 0 and f"resumed at step {STEPS}" in output, output
    rows = log(uninterrupted)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 3))
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert to_numpy(weights(uninterrupted, STEPS + 2)["vars/0"]) == STEPS + 2
