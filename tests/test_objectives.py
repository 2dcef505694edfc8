"""Objectives: the contract, and that a trainer and a task know no other way to the loss and to the samplers."""

import numpy as np
import pytest
from helpers import tiny_backbone, to_numpy
from keras import ops

from fcdm_keras.diffusion import objectives, randomness
from fcdm_keras.diffusion.gaussian import GaussianDiffusion
from fcdm_keras.diffusion.objectives import IDDPM, OBJECTIVES
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training.trainer import DiffusionTrainer


def batch(count=6):
    generator = np.random.default_rng(0)
    return {"latents": ops.convert_to_tensor(generator.standard_normal((count, 4, 4, 2), dtype="float32"))}


def keys(name):
    purpose = {"timesteps": randomness.TIMESTEPS, "noise": randomness.NOISE}[name]
    return randomness.sample_keys((1, 2), purpose, 0, ops.arange(6))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_keeps_to_the_contract(name):
    objective = OBJECTIVES[name]()
    drawn = objective.draw(batch(), keys)
    assert drawn["timesteps"].shape == (6,) and drawn["noise"].shape == (6, 4, 4, 2)
    x_t, times = objective.corrupt(drawn)
    assert x_t.shape == (6, 4, 4, 2) and times.shape == (6,)
    output = ops.ones((6, 4, 4, objective.out_channels(2)))
    losses = objective.losses(output, drawn)
    assert tuple(sorted(losses)) == tuple(sorted(objective.loss_names)) and "loss" in losses
    assert all(loss.shape == (6,) and np.isfinite(to_numpy(loss)).all() for loss in losses.values())
    assert objective.process(7).num_timesteps == 7


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_a_batch_brings_is_kept_and_the_rest_is_drawn(name):
    objective, given = OBJECTIVES[name](), batch()
    drawn = objective.draw(given, keys)
    again = objective.draw({**given, "noise": drawn["latents"]}, keys)
    np.testing.assert_array_equal(to_numpy(again["noise"]), to_numpy(given["latents"]))
    np.testing.assert_array_equal(to_numpy(again["timesteps"]), to_numpy(drawn["timesteps"]))
    again = objective.draw({**given, "timesteps": ops.zeros(6, "int32")}, keys)
    assert not to_numpy(again["timesteps"]).any()
    np.testing.assert_array_equal(to_numpy(again["noise"]), to_numpy(drawn["noise"]))
    assert "noise" not in given


def test_iddpm_shows_the_network_original_timesteps():
    objective = IDDPM(GaussianDiffusion("10"))
    drawn = {**batch(2), "timesteps": ops.convert_to_tensor([0, 9], "int32"), "noise": batch(2)["latents"]}
    assert to_numpy(objective.corrupt(drawn)[1]).tolist() == [0, 999]


class Velocity(IDDPM):
    """Another objective: as many output channels as latents have, and a loss of its own."""

    loss_names = ("loss",)

    def out_channels(self, channels):
        return channels

    def losses(self, output, batch):
        return {"loss": ops.mean(ops.square(output - batch["noise"] + batch["latents"]), axis=(1, 2, 3))}


@pytest.mark.no_backend
def test_a_trainer_takes_another_objective():
    trainer = DiffusionTrainer(tiny_backbone((0, 0, 0, 0, 0), out_channels=2), objective=Velocity())
    trainer.compile()
    logs = trainer.train_on_batch(np.ones((4, 8, 8, 2), "float32"), np.arange(4, dtype="int32"), return_dict=True)
    assert logs.keys() == {"loss"} and np.isfinite(float(logs["loss"]))


def test_objectives_that_do_not_fit_are_refused(monkeypatch):
    backbone = tiny_backbone((0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="takes a backbone with 2 output channels for 2. Received: one with 4"):
        DiffusionTrainer(backbone, objective=Velocity())
    with pytest.raises(ValueError, match="Received: both"):
        DiffusionTrainer(backbone, GaussianDiffusion(), objective=IDDPM())
    with pytest.raises(ValueError, match="objective must be one of iddpm. Received: 'velocity'"):
        ClassToImage(backbone, objective="velocity")
    monkeypatch.setitem(objectives.OBJECTIVES, "velocity", Velocity)
    task = ClassToImage(backbone, objective="velocity")
    assert task.get_config()["objective"] == "velocity"
