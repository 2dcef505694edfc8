"""Objectives: the contract, and that a trainer and a task know no other way to the loss and to the samplers."""

import dataclasses

import numpy as np
import pytest
from helpers import tiny_backbone, to_numpy
from keras import ops

from fcdm_keras import recipes
from fcdm_keras.diffusion import FlowMatching, objectives, randomness
from fcdm_keras.diffusion.gaussian import GaussianDiffusion
from fcdm_keras.diffusion.objectives import IDDPM, OBJECTIVES, as_objective
from fcdm_keras.diffusion.samplers import SAMPLERS
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training.checkpoint import CheckpointManager
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
    x_t, times = objective.inputs(drawn)
    assert x_t.shape == (6, 4, 4, 2) and times.shape == (6,)
    output = ops.ones((6, 4, 4, objective.out_channels(2)))
    losses = objective.losses(output, drawn)
    assert tuple(sorted(losses)) == tuple(sorted(objective.loss_names)) and "loss" in losses
    assert all(loss.shape == (6,) and np.isfinite(to_numpy(loss)).all() for loss in losses.values())
    assert objective.sampler in SAMPLERS and name in recipes.SAMPLERS[objective.sampler]
    first, data = objective.span
    assert objective.log_snr(np.array([first])) < -4 and abs(data) == 1


def test_tables_of_names_agree():
    """Those that flags offer without importing Keras, and those that compute."""
    assert tuple(OBJECTIVES) == recipes.OBJECTIVES and tuple(SAMPLERS) == tuple(recipes.SAMPLERS)
    assert IDDPM().process(7).num_timesteps == 7


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_a_batch_brings_is_kept_and_the_rest_is_drawn(name):
    objective, given = OBJECTIVES[name](), batch()
    drawn = objective.draw(given, keys)
    again = objective.draw({**given, "noise": drawn["latents"]}, keys)
    np.testing.assert_array_equal(to_numpy(again["noise"]), to_numpy(given["latents"]))
    np.testing.assert_array_equal(to_numpy(again["timesteps"]), to_numpy(drawn["timesteps"]))
    again = objective.draw({**given, "timesteps": ops.zeros_like(drawn["timesteps"])}, keys)
    assert not to_numpy(again["timesteps"]).any()
    np.testing.assert_array_equal(to_numpy(again["noise"]), to_numpy(drawn["noise"]))
    assert "noise" not in given


def test_iddpm_shows_the_network_original_timesteps():
    objective = IDDPM(GaussianDiffusion("10"))
    drawn = {**batch(2), "timesteps": ops.convert_to_tensor([0, 9], "int32"), "noise": batch(2)["latents"]}
    assert to_numpy(objective.inputs(drawn)[1]).tolist() == [0, 999]


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
    with pytest.raises(ValueError, match="objective must be one of iddpm, flow. Received: 'velocity'"):
        ClassToImage(backbone, objective="velocity")
    monkeypatch.setitem(objectives.OBJECTIVES, "velocity", Velocity)
    with pytest.raises(ValueError, match="takes a backbone with 2 output channels for 2. Received: one with 4"):
        ClassToImage(backbone, objective="velocity")
    task = ClassToImage(tiny_backbone((0, 0, 0, 0, 0), out_channels=2), objective="velocity")
    assert task.get_config()["objective"] == "velocity"


SMALL = {"num_steps": 3, "guidance_scale": 2.0, "seed": 1}


@pytest.fixture(scope="module")
def flow_task():
    backbone = tiny_backbone((1, 0, 0, 0, 0), in_channels=3, out_channels=3)
    return ClassToImage(backbone, image_size=8, objective=FlowMatching("gvp", "noise"))


def test_a_flow_trains_checkpoints_and_draws(flow_task, tmp_path):
    """A trainer, its checkpoint, which another objective does not take, and the task's preset know the objective."""
    trainer = DiffusionTrainer(flow_task.backbone, objective=as_objective(flow_task.objective))
    trainer.compile()
    before = [weight.numpy() if hasattr(weight, "numpy") else to_numpy(weight) for weight in trainer.backbone.weights]
    batch = (np.ones((4, 8, 8, 3), "float32"), np.arange(4, dtype="int32"))
    assert np.isfinite(trainer.train_on_batch(*batch))
    manager = CheckpointManager(tmp_path / "checkpoints")
    manager.save(trainer)
    assert manager.restore(trainer) == 1
    other = DiffusionTrainer(flow_task.backbone, objective="flow")
    other.compile()
    with pytest.raises(ValueError, match="for the objective {'name': 'flow', 'path': 'gvp'.* this trainer's is"):
        manager.restore(other)
    for weight, value in zip(trainer.backbone.weights, before):
        weight.assign(value)
    images = flow_task.generate([1, 2], **SMALL)
    assert images.std() > 5
    flow_task.save_to_preset(tmp_path / "preset")
    loaded = ClassToImage.from_preset(tmp_path / "preset")
    assert loaded.objective == flow_task.objective and loaded.sampler == "euler_maruyama"
    np.testing.assert_allclose(loaded.generate([1, 2], **SMALL).astype(int), images.astype(int), atol=1)


def test_a_backbone_of_as_many_channels_out_as_in_is_a_flows(flow_task):
    assert ClassToImage(flow_task.backbone).objective["name"] == "flow"
    assert ClassToImage(tiny_backbone((0, 0, 0, 0, 0))).objective == "iddpm"


@pytest.mark.parametrize("sampler", ["stochastic_heun", "ode_heun", "ode_dopri5", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_an_image_of_every_sampler_depends_on_seed_and_index_alone(flow_task, sampler):
    options = {**SMALL, "sampler": sampler}
    images = flow_task.generate([1, 2, 3], **options).astype(int)
    alone = flow_task.generate([3], first_index=2, **options).astype(int)
    np.testing.assert_allclose(alone, images[2:], atol=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sampler": "ddim"},
            "ddim draws from networks of the objective iddpm, and this one's is flow: take one",
        ),
        ({"sampler": "unipc", "num_steps": 1}, "num_steps of the sampler unipc must be an integer in"),
        ({"sampler": "unipc", "order": 3, "num_steps": 2}, "num_steps of the sampler unipc must be an integer in .3"),
        ({"num_steps": 1}, "num_steps of the sampler euler_maruyama must be"),
        ({"diffusion_form": "cubic"}, "diffusion_form must be one of sigma"),
        ({"sampler": "ode_dopri5", "rtol": 1e-9}, "rtol must lie in"),
        ({"sampler": "ode_heun", "rtol": 1e-3}, "rtol=0.001 has no effect: the sampler ode_heun takes none"),
        ({"sampler": "dpmpp_2m", "grid": "cosine"}, "grid must be one of uniform"),
    ],
)
def test_what_a_flow_cannot_be_drawn_with_is_refused(flow_task, options, message):
    with pytest.raises(ValueError, match=message):
        flow_task.generate([], **{**SMALL, **options})


def test_an_iddpm_is_not_drawn_with_a_flows_sampler():
    task = ClassToImage(tiny_backbone((0, 0, 0, 0, 0), in_channels=3), image_size=8)
    with pytest.raises(ValueError, match="draws from networks of the objective flow, and this one's is iddpm"):
        task.generate([], sampler="ode_euler")
    assert task.generate([1], num_steps=2, sampler="unipc", grid="karras", seed=0).shape == (1, 8, 8, 3)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow_path": "vp"}, "flow_path=vp has no effect: the objective is iddpm"),
        ({"objective": "flow"}, "ddpm draws from networks of the objective iddpm, and this one's is flow"),
        ({"objective": "flow", "sampler": "unipc", "flow_weighting": "velocity"}, "velocities are not weighted"),
        ({"sampler": "unipc", "num_sampling_steps": 1}, "unipc takes 2 steps or more. Received: 1"),
    ],
)
def test_settings_of_no_run_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(recipes.RECIPES["imagenet256-s"], **change).check()


@pytest.mark.no_backend
def test_a_recipes_sampler_follows_its_objective():
    digits = dataclasses.replace(recipes.RECIPES["digits"], objective="flow")
    assert digits.completed({"objective"}).sampler == "ode_euler"
    assert digits.completed({"objective", "sampler"}).sampler == "ddim"
    assert recipes.RECIPES["imagenet256-xl-flow"].completed({}).sampler == "euler_maruyama"
