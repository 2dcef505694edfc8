"""Runs that are killed, and runs on another backend: the real command, in processes of its own where that matters."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import processes
import pytest
from helpers import signal_at, to_numpy

import train_imagenet
from fcdm_keras import recipes
from fcdm_keras.data.embedded import load_digits
from fcdm_keras.runs.build import build_trainer
from fcdm_keras.training import callbacks

ROOT = Path(__file__).parent.parent
NEXT_BACKEND = {"jax": "torch", "torch": "tensorflow"}  # so that all three are compared
STEPS, EVERY = 10, 4
SMALL = recipes.ModelSize(8, (1, 0, 0, 0, 0))  # of recipe digits here: the network is not the subject


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.MODEL_SIZES, "XS", SMALL)
        yield


def arguments(results, *flags, steps=STEPS):
    flags = ("--log-every=3", "--sample-every=0", "--global-batch-size=16", "--num-sampling-steps=2", *flags)
    return [f"--results-dir={results}", f"--steps={steps}", f"--ckpt-every={EVERY}", *flags]


def train(results, *flags):
    """Trains in this process; returns what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        train_imagenet.main(arguments(results, *flags))
    return output.getvalue()


def process_of(call, backend=None):
    """A process that runs `call` of this module, given as text."""
    program = f"""import sys; sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]}; import test_resume
test_resume.recipes.MODEL_SIZES["XS"] = test_resume.SMALL; test_resume.{call}"""
    environment = {**os.environ, "KERAS_BACKEND": backend or keras.backend.backend()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return processes.start([sys.executable, "-c", program], cwd=ROOT, env=environment, **pipes)


def train_until_killed(results, step):
    """Trains in a process that is killed (-9) as soon as that step's checkpoint is there."""
    process = process_of(f"train_imagenet.main({arguments(results)!r})")
    while not (results / "digits" / "checkpoints" / f"step-{step:09d}").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


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
    train(results)
    return results


@pytest.mark.no_backend
def test_a_run_writes_what_the_readme_says(uninterrupted):
    folder = uninterrupted / "digits"
    for name in ("config.json", "log.csv", "loss.png", "scores.json", "checkpoints", "preset", "tensorboard"):
        assert (folder / name).exists(), name
    scores = json.loads((folder / "scores.json").read_text())
    assert {"agreement", "frechet", "frechet_real", "classifier_accuracy", "seconds"} <= scores.keys()
    assert [row["step"] for row in log(uninterrupted)] == [3, 6, 9, STEPS]


def test_a_killed_and_resumed_run_ends_bit_for_bit_as_one_that_was_not(uninterrupted, tmp_path):
    train_until_killed(tmp_path, EVERY)
    assert "resumed at step" in train(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def assert_same_run(results, one):
    expected, resumed = weights(one), weights(results)
    assert expected.keys() == resumed.keys() and len(expected) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    assert log(results) == log(one)


@pytest.mark.no_backend
def test_a_run_that_signals_stopped_ends_as_one_that_was_not(uninterrupted, tmp_path, capsys):
    """In a step, while a grid is drawn, and after the last step, whose grid is drawn when the run goes on."""
    for number, step in ((signal.SIGTERM, 2), (signal.SIGINT, 5), (signal.SIGUSR1, STEPS)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            if step == 5:
                patch.setattr(callbacks, "draw_together", lambda *_, number=number, **__: os.kill(os.getpid(), number))
            else:
                signal_at(patch, number, step)
            train(tmp_path, "--sample-every=5")
        assert ended.value.code == 128 + number
        words = f"Stopped by {number.name} after step {step}, which is saved: the same command goes on from there."
        assert capsys.readouterr().err.splitlines()[-1] == words
        assert weights(tmp_path, step)["vars/0"] == step and not (tmp_path / "digits" / "preset").exists()
    grids = tmp_path / "digits" / "samples"
    assert os.listdir(grids) == ["step-000000005.png"]  # given up at first
    assert f"resumed at step {STEPS}" in train(tmp_path, "--sample-every=5") and len(os.listdir(grids)) == 2
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.no_backend
def test_a_finished_run_can_be_scored_again_and_trained_on(uninterrupted):
    before = weights(uninterrupted)
    assert f"resumed at step {STEPS}" in train(uninterrupted)
    after = weights(uninterrupted)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def half_way(uninterrupted, tmp_path_factory):
    """`uninterrupted` as it was at its first checkpoint, in a folder of its own."""
    results = tmp_path_factory.mktemp("half_way")
    shutil.copytree(uninterrupted, results, dirs_exist_ok=True)
    shutil.rmtree(results / "digits" / "preset")
    for step in (2 * EVERY, STEPS):
        shutil.rmtree(results / "digits" / "checkpoints" / f"step-{step:09d}")
    return results


@pytest.mark.no_backend
def test_a_run_goes_on_with_another_learning_rate_if_asked(half_way):
    """A step size of almost nothing, from the checkpoint on: the weights stay, and the run says and keeps why."""
    before = weights(half_way, EVERY)
    with pytest.raises(SystemExit, match="^error: .*seed=0 there, 1 now.*: give .* --seed 0, or another --results-dir"):
        train(half_way, "--seed=1")
    changed = ["--learning-rate=1e-30", "--accumulation-steps=2", "--clip-norm=1"]
    line = f"learning_rate 0.001 → 1e-30 from step {EVERY} on"
    assert line in train(half_way, *changed).splitlines()
    after = weights(half_way)
    moved = [name for name, value in before.items() if not np.allclose(after[name], value, rtol=0, atol=1e-25)]
    assert moved and not any(name.startswith("backbone/") for name in moved)
    config = json.loads((half_way / "digits" / "config.json").read_text())
    assert (config["learning_rate"], config["clip_norm"], config["accumulation_steps"]) == (1e-30, 1.0, 2)
    entries = json.loads((half_way / "digits" / "history.json").read_text())
    assert sorted((e["setting"], e["step"]) for e in entries) == [("clip_norm", EVERY), ("learning_rate", EVERY)]
    with pytest.raises(SystemExit, match="^error: .*give .* --learning-rate 1e-30 --clip-norm 1.0 .or --learning-rate"):
        train(half_way)


@pytest.mark.no_backend
def test_accumulation_changes_rounding_alone(uninterrupted, half_way, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "digits" / "checkpoints" / f"step-{STEPS:09d}")
    train(tmp_path, "--accumulation-steps=4")
    for name, value in weights(uninterrupted).items():
        np.testing.assert_allclose(weights(tmp_path)[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    rows = [[row["loss"] for row in log(results)] for results in (uninterrupted, tmp_path)]
    np.testing.assert_allclose(*rows, rtol=1e-5)


def trajectory():
    """Losses of four training steps of the digits, with a fresh model."""
    trainer = build_trainer(dataclasses.replace(recipes.RECIPES["digits"], learning_rate=1e-4))
    images, labels = load_digits("train")
    losses = []
    for step in range(4):
        part = slice(16 * step, 16 * step + 16)
        losses.append(float(trainer.train_on_batch(images[part], labels[part], return_dict=True)["loss"]))
        trainer.reset_metrics()
    return losses


def trajectory_and_two_steps_more(results):
    print("LOSSES", trajectory())
    train_imagenet.main(arguments(results, steps=STEPS + 2))


@pytest.fixture(scope="module")
def elsewhere(uninterrupted, tmp_path_factory):
    """On another backend: what `trajectory` gives, and the finished run trained on, as (losses, printed, results)."""
    results = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(uninterrupted, results, dirs_exist_ok=True)
    process = process_of(f"trajectory_and_two_steps_more({str(results)!r})", NEXT_BACKEND[keras.backend.backend()])
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    losses = next(line for line in output.splitlines() if line.startswith("LOSSES"))
    return json.loads(losses.removeprefix("LOSSES")), output, results


if keras.backend.backend() in NEXT_BACKEND:

    def test_backends_walk_the_same_trajectory_from_the_same_seed(elsewhere):
        """Initial weights, timesteps, noise and dropped labels are the same; only rounding differs."""
        np.testing.assert_allclose(trajectory(), elsewhere[0], rtol=1e-3)

    def test_a_checkpoint_goes_on_on_another_backend(elsewhere):
        _, output, results = elsewhere
        assert f"resumed at step {STEPS}" in output
        rows = log(results)
        assert [row["step"] for row in rows] == [3, 6, 9, STEPS + 2]
        assert all(np.isfinite(row["loss"]) for row in rows)
        assert rows[-1]["loss"] < rows[0]["loss"]
        assert to_numpy(weights(results, STEPS + 2)["vars/0"]) == STEPS + 2
