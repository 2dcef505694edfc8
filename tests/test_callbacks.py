"""What a run writes while it trains: log, curves, TensorBoard, checkpoints and sample grids."""

import os
import time

import keras
import numpy as np
import pytest
from helpers import tiny_backbone, to_numpy
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fcdm_keras import images
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training import callbacks
from fcdm_keras.training.checkpoint import WEIGHTS, CheckpointManager
from fcdm_keras.training.logs import last_row, metric_sums
from fcdm_keras.training.plots import plot_losses
from fcdm_keras.training.trainer import DiffusionTrainer

pytestmark = pytest.mark.no_backend

BATCH = 4


class Run:
    """A trainer that can be set back to its start, so that it is compiled once for all tests."""

    def __init__(self):
        self.trainer = DiffusionTrainer(tiny_backbone((0, 0, 1, 0, 0), in_channels=1), ema_decay=0.5)
        self.trainer.compile(keras.optimizers.Adam(1e-2))
        self.variables = [*self.trainer.variables, *self.trainer.optimizer.variables]
        self.start = [to_numpy(variable) for variable in self.variables]
        generator = np.random.default_rng(0)
        self.latents = generator.uniform(-1, 1, (8 * BATCH, 8, 8, 1)).astype("float32")
        self.labels = generator.integers(0, 10, 8 * BATCH).astype("int32")

    def reset(self):
        for variable, value in zip(self.variables, self.start, strict=True):
            variable.assign(value.copy())
        self.trainer.reset_metrics()

    def fit(self, steps, *used, first=0):
        samples = slice(first * BATCH, (first + steps) * BATCH)
        options = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
        return self.trainer.fit(self.latents[samples], self.labels[samples], callbacks=list(used), **options).history

    def fit_as_they_come(self, *used, latents):
        """All batches as a data set, of which `fit` does not look at all numbers first."""
        batches = [(latents[i : i + BATCH], self.labels[i : i + BATCH]) for i in range(0, len(latents), BATCH)]
        self.trainer.fit((batch for batch in batches), callbacks=list(used), verbose=0)

    def values(self):
        return [to_numpy(variable) for variable in self.variables]


@pytest.fixture(scope="module")
def shared_run():
    return Run()


@pytest.fixture
def run(shared_run):
    shared_run.reset()
    return shared_run


def row(step, loss=0.5):
    return {"step": step, "loss": loss, "mse": 0.25, "vb": 0.125, "images_per_second": 1234.5}


def test_logged_means_are_those_of_the_steps_since_the_last_line(run):
    rows = []
    run.fit(8, callbacks.StepLog(3, BATCH, [rows.append]))
    run.reset()
    steps = [run.fit(1, first=i) for i in range(6)]
    assert [logged["step"] for logged in rows] == [3, 6, 8]  # the last is of what is left
    for logged, window in zip(rows[:2], (steps[:3], steps[3:]), strict=True):
        for name in ("loss", "mse", "vb"):
            np.testing.assert_allclose(logged[name], np.mean([step[name][0] for step in window]), rtol=1e-5)
    assert len({step["loss"][0] for step in steps}) == 6


def test_speed_counts_the_training_steps_only(run):
    class Slow(callbacks.StepCallback):
        def on_step(self, logs):
            time.sleep(0.5)

    rows, moments = [], []
    run.fit(4, callbacks.StepLog(2, BATCH, [rows.append, lambda _: moments.append(time.perf_counter())]), Slow())
    counted = 2 * BATCH / rows[1]["images_per_second"]
    assert 0 < counted < moments[1] - moments[0] - 2 * 0.5


def test_steps_are_counted_from_the_start_of_the_run(run):
    rows = []
    run.trainer.step.assign(1000)
    run.fit(4, callbacks.StepLog(2, BATCH, [rows.append]))
    assert [logged["step"] for logged in rows] == [1002, 1004]


def losses(rows):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def test_a_window_in_which_a_run_was_stopped_is_that_of_one_that_was_not(run, tmp_path):
    """Digit for digit, through a checkpoint, validation, and epochs."""
    whole, parts, manager = [], [], CheckpointManager(tmp_path)
    run.fit(8, callbacks.StepLog(4, BATCH, [whole.append]))
    run.reset()
    run.fit(3, callbacks.StepLog(4, BATCH, [parts.append]), callbacks.Checkpoint(manager, 100))
    assert [row["step"] for row in parts] == [3]
    sums = manager.metric_sums(3)
    assert sums["loss"][1] == 3 * BATCH and last_row(3, sums) == 2  # so a log drops the row of step 3
    run.reset()
    manager.restore(run.trainer)
    run.trainer.fit(
        run.latents[3 * BATCH :],
        run.labels[3 * BATCH :],
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        epochs=2,
        steps_per_epoch=2,
        validation_data=(run.latents[:BATCH], run.labels[:BATCH]),
        callbacks=[log := callbacks.StepLog(4, BATCH, [parts.append], sums), save := callbacks.Checkpoint(manager, 1)],
    )
    assert losses(parts[1:2]) == losses(whole[:1]) and log.step == save.step == 7
    assert last_row(4, manager.metric_sums(4)) == 4  # nothing was left of its window
    run.fit(1, callbacks.StepLog(4, BATCH, [parts.append], metric_sums(run.trainer)), first=7)
    assert parts[-1]["step"] == 8


def test_log_drops_what_a_resumed_run_repeats(tmp_path):
    path = tmp_path / "log.csv"
    write = callbacks.CSVWriter(path)
    for step in (10, 20, 30, 40):
        write(row(step, loss=step / 7))
    write = callbacks.CSVWriter(path, resume_step=20)
    write(row(30, loss=9.0))
    assert callbacks.read_csv(path) == [row(10, 10 / 7), row(20, 20 / 7), row(30, 9.0)]
    assert path.read_text().splitlines()[0] == "step,loss,mse,vb,images_per_second"
    callbacks.CSVWriter(path)
    assert callbacks.read_csv(path) == []  # a run that starts anew
    assert os.listdir(tmp_path) == ["log.csv"]


def test_log_survives_being_cut_anywhere(tmp_path):
    path = tmp_path / "log.csv"
    write = callbacks.CSVWriter(path)
    for step in (100, 200):
        write(row(step))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        complete = max(content[:length].count(b"\r\n") - 1, 0)
        assert callbacks.read_csv(path) == [row(100), row(200)][:complete], content[:length]
        callbacks.CSVWriter(path, resume_step=200)(row(300))
        assert callbacks.read_csv(path) == [*[row(100), row(200)][:complete], row(300)]


def test_curves_are_drawn_from_any_log(tmp_path):
    write = callbacks.CSVWriter(tmp_path / "log.csv")
    for rows in ([], [row(10)], [row(20, loss=float("nan")), row(30, loss=float("inf"))]):
        for logged in rows:
            write(logged)
        plot_losses(tmp_path / "log.csv", tmp_path / "loss.png")
        assert Image.open(tmp_path / "loss.png").size == (1200, 480)


def scalars(folder):
    """Loss and vb as TensorBoard shows them, by step; nothing as long as a field is missing."""
    events = EventAccumulator(str(folder)).Reload()
    if set(events.Tags()["scalars"]) != {f"train/{name}" for name in callbacks.FIELDS[1:]}:
        return {}
    return {name: [(event.step, event.value) for event in events.Scalars(f"train/{name}")] for name in ("loss", "vb")}


def test_tensorboard_reads_the_log_and_hides_what_was_repeated(tmp_path):
    for resume_step, losses, visible in (
        (0, {10: 1, 20: 2, 30: 3}, [(10, 1), (20, 2), (30, 3)]),
        (20, {30: 4, 40: 5}, [(10, 1), (20, 2), (30, 4), (40, 5)]),
        (0, {10: 6}, [(10, 6)]),
    ):
        write = callbacks.TensorBoardWriter(tmp_path, resume_step)
        for step, loss in losses.items():
            write(row(step, loss))
        expected = {"loss": visible, "vb": [(step, 0.125) for step, _ in visible]}
        deadline = time.monotonic() + 20
        while (shown := scalars(tmp_path)) != expected and time.monotonic() < deadline:
            time.sleep(0.1)  # on disk after a second
        assert shown == expected


def test_training_stops_at_a_loss_that_is_not_finite_and_keeps_the_last_good_checkpoint(run, tmp_path):
    latents = run.latents.copy()
    latents[4 * BATCH - 1, 3, 3] = 1e30  # the last sample of step 4; its square is none of float32
    manager = CheckpointManager(tmp_path)
    with pytest.raises(FloatingPointError, match="^The loss is (nan|inf) at step 4: training stopped[.]$"):
        run.fit_as_they_come(callbacks.StopOnNonFinite(), callbacks.Checkpoint(manager, 2), latents=latents)
    assert manager.steps() == [2]
    run.reset()
    run.fit(2)
    expected = run.values()
    assert manager.restore(run.trainer) == 2
    for restored, value in zip(run.values(), expected, strict=True):
        np.testing.assert_array_equal(restored, value)
        assert np.isfinite(restored).all()


def test_checkpoints_are_written_when_due_and_at_the_end(run, tmp_path):
    manager = CheckpointManager(tmp_path)
    run.fit(5, callbacks.Checkpoint(manager, 2))
    assert manager.steps() == [2, 4, 5]
    os.truncate(manager.path(5) / WEIGHTS, 100)
    with pytest.warns(UserWarning, match="passed over"):
        assert manager.restore(run.trainer) == 4
    run.fit(1, callbacks.Checkpoint(manager, 2))
    assert manager.damage(5) is None  # the damaged one is replaced


@pytest.fixture(scope="module")
def task(shared_run):
    return ClassToImage(shared_run.trainer.backbone, image_size=8)


def test_grid_shows_the_averaged_weights(run, task, tmp_path):
    labels, options = [1, 2, 3, 4, 5], {"num_steps": 2, "sampler": "ddim", "seed": 0}
    run.fit(4, callbacks.SampleGrid(task, labels, tmp_path, every=4, columns=3, **options))
    assert os.listdir(tmp_path / "samples") == ["step-000000004.png"]
    picture = np.asarray(Image.open(tmp_path / "samples.png"))
    np.testing.assert_array_equal(picture, np.asarray(Image.open(tmp_path / "samples" / "step-000000004.png")))
    assert picture.shape == (2 * 34 + 2, 3 * 34 + 2)  # 8×8 enlarged to 32×32, 2 pixels between
    assert (picture[36:, 70:] == 255).all()  # no sixth image
    averaged = tiny_backbone((0, 0, 1, 0, 0), in_channels=1)
    run.trainer.ema.copy_to(averaged)
    of_average = ClassToImage(averaged, image_size=8).generate(labels, **options)
    of_weights = task.generate(labels, **options)
    assert (of_average != of_weights).any()
    for i, image in enumerate(of_average):
        shown = picture[2 + 34 * (i // 3) :, 2 + 34 * (i % 3) :][:32:4, :32:4]
        np.testing.assert_allclose(shown.astype(int), image[..., 0].astype(int), atol=1)


def test_a_grid_that_is_not_finite_is_told_and_training_goes_on(run, task, tmp_path, capsys):
    run.trainer.ema.averages[0].assign(np.full(run.trainer.ema.averages[0].shape, np.nan))
    run.fit(4, callbacks.SampleGrid(task, [1, 2, 3, 4, 5], tmp_path, every=4, num_steps=2, sampler="ddim", seed=0))
    assert "There is no grid of step 4. The weights" in capsys.readouterr().out and not os.listdir(tmp_path)


def test_grid_leaves_training_as_it_is(run, task, tmp_path):
    run.fit(4)
    expected = run.values()
    run.reset()
    grid = callbacks.SampleGrid(task, [1, 2, 3, 4, 5], tmp_path, every=2, num_steps=2, sampler="ddim", seed=0)
    run.fit(4, grid)
    assert len(os.listdir(tmp_path / "samples")) == 2
    for value, without in zip(run.values(), expected, strict=True):
        np.testing.assert_array_equal(value, without)


def test_the_last_grid_is_drawn_however_short_the_run_and_a_missing_one_when_it_goes_on(run, task, tmp_path):
    def grids(every, steps, first=0):
        options = {"every": every, "num_steps": 2, "sampler": "ddim", "seed": 0}
        run.fit(steps, callbacks.SampleGrid(task, [1, 2], tmp_path, **options), first=first)
        return sorted(int(name[5:14]) for name in os.listdir(tmp_path / "samples")) if any(tmp_path.iterdir()) else []

    assert grids(0, 2) == []
    run.reset()
    assert grids(100, 2) == [2]
    os.remove(tmp_path / "samples" / "step-000000002.png")
    assert grids(2, 1, first=2) == [2, 3]


def test_grid_keeps_every_pixel():
    pixels = np.arange(3 * 2 * 5 * 3, dtype="uint8").reshape(3, 2, 5, 3)
    picture = np.asarray(images.grid(pixels, columns=2, padding=1, min_side=2))
    assert picture.shape == (2 * 3 + 1, 2 * 6 + 1, 3)
    for i, (top, left) in enumerate(((1, 1), (1, 7), (4, 1))):
        np.testing.assert_array_equal(picture[top : top + 2, left : left + 5], pixels[i])
