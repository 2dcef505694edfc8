"""Checkpoints hold everything, and nothing that can happen while one is written spoils them."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
import processes
import pytest
from helpers import tiny_backbone, to_numpy

from fcdm_keras.files import write_atomically
from fcdm_keras.training.checkpoint import MANIFEST, WEIGHTS, CheckpointManager
from fcdm_keras.training.trainer import DiffusionTrainer

BACKENDS = ("jax", "torch", "tensorflow")
ROOT = Path(__file__).parents[1]
FORKS = pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")


def new_trainer(step=0, seed=0, **sizes):
    """A trainer at `step` whose weights, EMA and optimizer state are random numbers of `seed`."""
    trainer = DiffusionTrainer(tiny_backbone((0, 0, 1, 0, 0), **sizes))
    trainer.compile()
    generator = np.random.default_rng(seed)
    for variable in state(trainer):
        if variable is trainer.optimizer.learning_rate:
            continue  # it stays as compiled
        if "int" in keras.backend.standardize_dtype(variable.dtype):
            variable.assign(generator.integers(1, 1000))
        else:
            variable.assign(generator.standard_normal(variable.shape, dtype="float32"))
    trainer.step.assign(step)
    return trainer


def state(trainer):
    return [*trainer.backbone.variables, *trainer.ema.variables, *trainer.optimizer.variables]


def values(trainer):
    return [to_numpy(variable) for variable in (*state(trainer), trainer.step)]


def assert_equal(first, second):
    for a, b in zip(values(first), values(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def trainer():
    return new_trainer(seed=1)


@pytest.fixture(scope="module")
def other():
    """Another trainer of the same sizes, to load into."""
    return new_trainer(seed=2)


def save(trainer, manager, *steps):
    for step in steps:
        trainer.step.assign(step)
        manager.save(trainer)


@pytest.mark.quick
def test_everything_comes_back(tmp_path, trainer, other):
    save(trainer, CheckpointManager(tmp_path), 7)
    assert len(values(trainer)) > 3 * len(trainer.trainable_variables)  # weights, EMA and two moments
    assert any((a != b).any() for a, b in zip(values(trainer), values(other), strict=True))
    assert CheckpointManager(tmp_path).restore(other) == 7
    assert_equal(other, trainer)


def test_an_empty_folder_restores_nothing(tmp_path, other):
    before = values(other)
    assert CheckpointManager(tmp_path / "new" / "folder").restore(other) is None
    for a, b in zip(values(other), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_old_checkpoints_are_pruned(tmp_path, trainer):
    save(trainer, CheckpointManager(tmp_path, keep_last=2, keep_every=4), *range(1, 8))
    assert sorted(os.listdir(tmp_path)) == ["step-000000004", "step-000000006", "step-000000007"]
    manager = CheckpointManager(tmp_path, keep_last=1)
    save(trainer, manager, 9)
    assert manager.steps() == [9]


def test_saving_a_step_again_replaces_it(tmp_path, trainer, other):
    manager = CheckpointManager(tmp_path)
    save(other, manager, 3)
    save(trainer, manager, 3)
    assert os.listdir(tmp_path) == ["step-000000003"]
    manager.restore(other)
    assert_equal(other, trainer)


def test_leftovers_of_an_interrupted_save_are_removed_and_never_loaded(tmp_path, trainer, other):
    save(trainer, CheckpointManager(tmp_path), 3)
    shutil.copytree(tmp_path / "step-000000003", tmp_path / ".unfinished-000000009")
    reader = CheckpointManager(tmp_path, read_only=True)
    assert (tmp_path / ".unfinished-000000009").exists()  # its writer may be at work
    assert reader.steps() == [3] and reader.restore(other) == 3
    CheckpointManager(tmp_path)
    assert os.listdir(tmp_path) == ["step-000000003"]


def truncate(folder):
    os.truncate(folder / WEIGHTS, os.path.getsize(folder / WEIGHTS) // 2)


def flip(folder, name=WEIGHTS, place=0.6):
    content = bytearray((folder / name).read_bytes())
    content[int(place * len(content))] ^= 1
    (folder / name).write_bytes(content)


DAMAGES = {
    "truncated weights": truncate,
    "flipped byte": flip,
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "empty manifest": lambda folder: (folder / MANIFEST).write_text(""),
    "other manifest": lambda folder: (folder / MANIFEST).write_text("[1, 2]"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
    "weights are a folder": lambda folder: [(folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path, trainer, other):
    manager = CheckpointManager(tmp_path)
    save(trainer, manager, 1, 2)
    damage(tmp_path / "step-000000002")
    with pytest.warns(UserWarning, match="step-000000002 is passed over: "):
        assert CheckpointManager(tmp_path, read_only=True).restore(other) == 1
    with pytest.warns(UserWarning, match="step-000000002 is passed over: .*aside as damaged-step-000000002."):
        assert manager.restore(other) == 1
    assert sorted(os.listdir(tmp_path)) == ["damaged-step-000000002", "step-000000001"]
    trainer.step.assign(1)
    assert_equal(other, trainer)
    damage(tmp_path / "step-000000001") if damage is not flip else truncate(tmp_path / "step-000000001")
    with (
        pytest.warns(UserWarning, match="step-000000001 is passed over: (?!.*set aside)"),
        pytest.raises(ValueError, match=f"^All checkpoints in {tmp_path} are damaged; remove the folder"),
    ):
        manager.restore(other)


def test_any_flipped_byte_is_found(tmp_path, trainer):
    manager = CheckpointManager(tmp_path)
    save(trainer, manager, 5)
    folder = manager.path(5)
    places = {WEIGHTS: np.linspace(0, 0.9999, 20), MANIFEST: np.linspace(0, 0.999, 100)}
    for file in places:
        for place in places[file]:
            flip(folder, file, place)
            assert manager.damage(5) is not None, (file, place)
            flip(folder, file, place)
    assert manager.damage(5) is None


def test_a_renamed_checkpoint_is_damaged(tmp_path, trainer):
    manager = CheckpointManager(tmp_path)
    save(trainer, manager, 5)
    manager.path(5).rename(manager.path(6))
    assert "another step" in manager.damage(6)


def test_pruning_never_prefers_a_damaged_checkpoint(tmp_path, trainer, other):
    """A run that passed over damaged checkpoints goes on below their steps; what it saves there has to stay."""
    save(trainer, CheckpointManager(tmp_path, keep_last=5), 1, 7, 8, 9)
    for step in (7, 8, 9):
        truncate(tmp_path / f"step-{step:09d}")
    manager = CheckpointManager(tmp_path, keep_last=2)
    with pytest.warns(UserWarning, match="passed over"):
        assert manager.restore(other) == 1
    save(other, manager, 2, 3)
    assert manager.steps() == [2, 3] and manager.restore(other) == 3
    assert {f"damaged-step-{step:09d}" for step in (7, 8, 9)} <= set(os.listdir(tmp_path))


@pytest.mark.quick
def test_another_configuration_is_refused(tmp_path, trainer):
    save(trainer, CheckpointManager(tmp_path), 1)
    with pytest.raises(ValueError, match="step-000000001 was written by another configuration: it holds [0-9,]+ num"):
        CheckpointManager(tmp_path).restore(new_trainer(in_channels=3))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(value, tmp_path, trainer):
    manager = CheckpointManager(tmp_path)
    save(trainer, manager, 1)
    bias = trainer.backbone.x_embedder.bias
    good = to_numpy(bias)
    bias.assign(np.where(np.arange(len(good)) == 3, value, good))
    try:
        with pytest.raises(FloatingPointError, match="x_embedder/bias is not finite at step 2; no checkpoint"):
            save(trainer, manager, 2)
    finally:
        bias.assign(good)
    assert os.listdir(tmp_path) == ["step-000000001"]


class Disk:
    """Spies on what is brought to disk and what is renamed, in order: ("sync" or "rename", name)."""

    def __init__(self, patch):
        self.events = []
        sync, rename, replace = os.fsync, os.rename, os.replace

        def noted_sync(descriptor):
            self.events.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
            sync(descriptor)

        def noted_rename(source, target, *rest, **options):
            self.events.append(("rename", os.path.basename(target)))
            rename(source, target, *rest, **options)

        def noted_replace(source, target, *rest, **options):
            self.events.append(("rename", os.path.basename(target)))
            replace(source, target, *rest, **options)

        patch.setattr(os, "fsync", noted_sync)
        patch.setattr(os, "rename", noted_rename)
        patch.setattr(os, "replace", noted_replace)


@pytest.mark.quick
def test_a_checkpoint_is_on_disk_before_it_has_its_name(tmp_path, trainer, monkeypatch):
    """A power cut may lose what was not synced: both files and their folder, then the new name in the folder above."""
    manager = CheckpointManager(tmp_path / "checkpoints")
    trainer.step.assign(4)
    disk = Disk(monkeypatch)
    manager.save(trainer)
    named = disk.events.index(("rename", "step-000000004"))
    before, after = disk.events[:named], disk.events[named + 1 :]
    synced = [name for kind, name in before if kind == "sync"]
    assert synced[-3:] == [MANIFEST, WEIGHTS, ".unfinished-000000004"]
    assert ("sync", "checkpoints") in after


def test_a_small_file_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    write_atomically(tmp_path / "a.json", "text")
    (kind, unfinished), renamed, folder = disk.events
    assert kind == "sync" and unfinished.startswith(".unfinished-a.json-") and renamed == ("rename", "a.json")
    assert folder == ("sync", tmp_path.name)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_full_disk_spoils_nothing(share, tmp_path, trainer, other):
    """The system refuses to let files grow beyond a share of what a checkpoint needs, as a full disk does."""
    manager = CheckpointManager(tmp_path, keep_last=1)
    save(trainer, manager, 1)
    limit = int(share * os.path.getsize(manager.path(1) / WEIGHTS))
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, allowed[1]))
        with pytest.raises(OSError, match="^The checkpoint of step 2 could not be written") as raised:
            save(trainer, manager, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert str(tmp_path) in str(raised.value) and "Earlier checkpoints are untouched: [1]." in str(raised.value)
    assert os.listdir(tmp_path) == ["step-000000001"] and manager.damage(1) is None
    save(trainer, manager, 2)  # there is room again
    assert manager.steps() == [2] and manager.damage(2) is None
    assert manager.restore(other) == 2


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "checkpoints", Path("/proc/checkpoints")):
        with pytest.raises(OSError, match=f"^Checkpoints cannot be written to {folder}: .*[.]$"):
            CheckpointManager(folder)


def fork(work):
    """Runs `work()` in a forked process; returns its id."""
    process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def newest_of_whole(folder):
    """The newest step in `folder`, having checked that every checkpoint is whole and nothing else is left."""
    manager = CheckpointManager(folder)
    steps = manager.steps()
    assert [manager.damage(step) for step in steps] == [None] * len(steps)
    assert sorted(os.listdir(folder)) == [f"step-{step:09d}" for step in steps]
    return steps[-1]


@pytest.mark.no_backend
@FORKS
def test_a_kill_at_random_moments_leaves_whole_checkpoints(tmp_path, trainer, other):
    moments = random.Random(0)
    began = time.perf_counter()
    save(trainer, CheckpointManager(tmp_path, keep_last=2), 1)
    one = time.perf_counter() - began

    def save_for_ever():
        manager = CheckpointManager(tmp_path, keep_last=2)
        step = manager.steps()[-1]
        while True:
            step += 1
            save(trainer, manager, step)

    for _ in range(12):
        process = fork(save_for_ever)
        time.sleep(moments.uniform(0.1 * one, 6 * one))
        os.kill(process, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
        last = newest_of_whole(tmp_path)
    assert last > 1  # some saves got through
    assert CheckpointManager(tmp_path).restore(other) == last


@pytest.mark.no_backend
@FORKS
def test_a_kill_before_any_file_operation_leaves_whole_checkpoints(tmp_path, trainer):
    """Saves step 2, which replaces a checkpoint and prunes another, killed before its 1st, 2nd, … system operation."""
    save(trainer, CheckpointManager(tmp_path / "before", keep_last=9), 1, 2)

    def save_killed_at(moment, folder):
        count = 0

        def hook(event, arguments):
            nonlocal count
            count += event.startswith(("os.", "open", "shutil."))
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        manager = CheckpointManager(folder, keep_last=1)
        sys.addaudithook(hook)
        manager.save(trainer)

    for moment in range(1, 200):
        folder = tmp_path / "after"
        shutil.copytree(tmp_path / "before", folder)
        status = os.waitpid(fork(lambda moment=moment, folder=folder: save_killed_at(moment, folder)), 0)[1]
        assert newest_of_whole(folder) in (1, 2)
        if status == 0:
            break
        assert os.WIFSIGNALED(status)
        shutil.rmtree(folder)
    assert moment > 10 and CheckpointManager(folder).steps() == [2]


WRITE = """
import sys
sys.path.insert(0, "tests")
from test_checkpoint import CheckpointManager, new_trainer
CheckpointManager(sys.argv[1]).save(new_trainer(step=42, seed=7))
"""


def test_a_checkpoint_of_another_backend_loads(tmp_path, other):
    writer = BACKENDS[(BACKENDS.index(keras.backend.backend()) + 1) % 3]
    environment = {**os.environ, "KERAS_BACKEND": writer}
    processes.run([sys.executable, "-c", WRITE, tmp_path], cwd=ROOT, env=environment, check=True, timeout=300)
    assert json.loads((tmp_path / "step-000000042" / MANIFEST).read_text())["backend"] == writer
    assert CheckpointManager(tmp_path).restore(other) == 42
    assert_equal(other, new_trainer(step=42, seed=7))
