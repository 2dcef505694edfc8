"""Commands and checkpoints that are killed, or lose their power, before any of their file operations.

`python tests/kill.py` does so with every command, in processes of its own; here are those that cost little.
"""

import os
import shutil
import signal

import kill
import numpy as np
import pytest
from conftest import GOLDEN
from helpers import tiny_backbone
from power import cut, state, watched
from test_checkpoint import FORKS, fork, new_trainer, save

from fcdm_keras import convert, evaluate
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training.checkpoint import CheckpointManager

pytestmark = [pytest.mark.no_backend, FORKS]


@pytest.fixture(scope="module")
def trainer():
    return new_trainer()


@pytest.fixture(scope="module")
def begun(trainer, tmp_path_factory):
    """Folders in which a checkpoint is about to be written: none, two earlier ones, and one of the same step alone."""
    root = tmp_path_factory.mktemp("begun")
    (root / "new").mkdir()
    save(trainer, CheckpointManager(root / "earlier" / "checkpoints"), 1, 2)
    save(trainer, CheckpointManager(root / "same" / "checkpoints"), 3)
    return root


def ended(work, root, **options):
    """Calls `work()` in a process that is ended. Returns whether it got through, and how many fsyncs it asked for."""
    reading, writing = os.pipe()

    def run():
        counter = watched(root, **options)
        work()
        os.write(writing, str(counter.syncs).encode())

    status = os.waitpid(fork(run), 0)[1]
    os.close(writing)
    with os.fdopen(reading) as told:
        syncs = told.read()
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status == 0, int(syncs or 0)


def is_lost(trainer, start, place, moment, dropped=None):
    """Whether a power cut at an operation of a save of step 3 costs a checkpoint; whether it got through; fsyncs."""
    shutil.copytree(start, place / "run")
    before, journal = state(place), place.with_name("journal")

    def work():
        save(trainer, CheckpointManager(place / "run" / "checkpoints", keep_last=1), 3)

    through, syncs = ended(work, place, end_at=moment, journal=journal, dropped=dropped)
    cut(place, before, journal)
    journal.unlink()
    manager = CheckpointManager(place / "run" / "checkpoints", read_only=True)
    whole = max((step for step in manager.steps() if manager.damage(step) is None), default=0)
    shutil.rmtree(place / "run")
    return whole < (3 if through else STARTS[start.name]), through, syncs


STARTS = {"new": 0, "earlier": 2, "same": 3}  # the newest checkpoint that is there


@pytest.mark.parametrize("start", STARTS)
def test_a_power_cut_costs_no_checkpoint_and_every_fsync_is_needed(start, begun, trainer, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    for moment in range(1, 60):
        lost, through, syncs = is_lost(trainer, begun / start, place, moment)
        assert not lost, moment
        if through:
            break
    assert syncs >= 4
    for number in range(1, syncs + 1):
        moments = (None, *range(1, moment))
        assert any(is_lost(trainer, begun / start, place, at, number)[0] for at in moments), f"fsync {number}"


def commands(inputs, out):
    """Commands that cost little, and what is in place of their outputs before."""
    samples = str(inputs / "a.npz")
    return {
        "reference": (evaluate.main, [samples, "--write-reference", str(out / "r.npz"), "--features", "pixels"]),
        "json": (
            evaluate.main,
            [samples, "--reference", samples, "--features", "pixels", "--json", str(out / "a.json")],
        ),
        "convert": (convert.main, [str(GOLDEN / "fcdm" / "fcdm_checkpoint.pt"), str(out / "preset"), "--overwrite"]),
    }


@pytest.mark.parametrize("power", [True, False])
@pytest.mark.parametrize("name", ["reference", "json", "convert"])
def test_a_command_that_is_ended_and_run_again_leaves_what_an_undisturbed_one_leaves(name, power, tmp_path):
    """Ended before every operation, or every fifth of many; whatever it replaces is there, whole, in between."""
    inputs, out = tmp_path / "inputs", tmp_path / "place" / "out"
    inputs.mkdir()
    np.savez(inputs / "a.npz", arr_0=np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype("uint8"))
    ClassToImage(tiny_backbone((0, 0, 0, 0, 0), in_channels=3), image_size=8).save_to_preset(str(inputs / "preset"))
    main, flags = commands(inputs, out)[name]
    found = []
    for moment in (None, *range(1, 60, 5 if name == "convert" else 1)):
        shutil.rmtree(out.parent, ignore_errors=True)
        out.mkdir(parents=True)
        if name == "convert":
            shutil.copytree(inputs / "preset", out / "preset")
        old, before, journal = kill.contents(out), state(out.parent), tmp_path / "journal" if power else None
        through, _ = ended(lambda: main(flags), out.parent, end_at=moment, journal=journal)
        if power:
            cut(out.parent, before, journal)
            journal.unlink()
        if moment is None:
            found.append(kill.contents(out))
            continue
        there = {part: kept for part, kept in kill.contents(out).items() if ".unfinished-" not in part}
        assert there in (old, found[0]), moment
        ended(lambda: main(flags), out.parent)
        assert kill.contents(out) == found[0], moment
        if through:
            return
    raise AssertionError("it never got through")
