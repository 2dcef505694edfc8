"""Our network, diffusion and training step against the reference implementation's results."""

import numpy as np
import pytest
from helpers import nhwc, relative_error, to_numpy
from keras import ops

from fcdm_keras.diffusion import guidance, samplers
from fcdm_keras.diffusion.gaussian import GaussianDiffusion
from fcdm_keras.network.reference import load_torch_checkpoint
from fcdm_keras.network.torch_names import parameters
from fcdm_keras.training.optimizer import AdamW
from fcdm_keras.training.trainer import DiffusionTrainer

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def backbone(golden_checkpoint):
    return load_torch_checkpoint(golden_checkpoint, weights="model")


@pytest.fixture(scope="module")
def forward(golden):
    return golden("fcdm/fcdm_forward")


def denoise_with(backbone):
    return lambda x_t, t, labels: backbone({"x_t": x_t, "timesteps": t, "labels": labels})


def test_forward_pass(backbone, forward):
    output = backbone({"x_t": nhwc(forward["x"]), "timesteps": forward["t"], "labels": forward["y"]})
    assert relative_error(output, nhwc(forward["out"])) < 1e-4


def test_forward_pass_at_fractional_timesteps(backbone, forward):
    output = backbone({"x_t": nhwc(forward["x"]), "timesteps": forward["t_frac"], "labels": forward["y"]})
    assert relative_error(output, nhwc(forward["out_t_frac"])) < 1e-4


def test_forward_pass_of_ema_weights(golden_checkpoint, golden, forward):
    backbone = load_torch_checkpoint(golden_checkpoint, weights="ema")
    output = backbone({"x_t": nhwc(forward["x"]), "timesteps": forward["t"], "labels": forward["y"]})
    assert relative_error(output, nhwc(golden("fcdm/fcdm_ema_forward")["out"])) < 1e-4


def test_guidance_on_first_three_channels(backbone, forward):
    half = len(forward["cfg_x"]) // 2
    x_t, t = nhwc(forward["cfg_x"])[:half], forward["cfg_t"][:half]
    condition, null = (ops.convert_to_tensor(y, "int32") for y in np.split(forward["cfg_y"], 2))
    predict = guidance.guide(denoise_with(backbone), condition, null, float(forward["cfg_scale"]), "first_three")
    output = predict(ops.convert_to_tensor(x_t), ops.convert_to_tensor(t, "int32"))
    assert relative_error(output, nhwc(forward["cfg_out"])[:half]) < 1e-4


@pytest.mark.parametrize(
    "table",
    [
        "betas",
        "alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    ],
)
def test_tables_of_the_full_process(golden, table):
    np.testing.assert_allclose(
        getattr(GaussianDiffusion(), table), golden("fcdm/diffusion")[f"full_{table}"], rtol=1e-12
    )


@pytest.mark.parametrize("respacing", ["250", "50", "ddim50", "10,15,20", "8"])
def test_respaced_processes(golden, respacing):
    arrays, diffusion = golden("fcdm/diffusion"), GaussianDiffusion(respacing)
    np.testing.assert_array_equal(diffusion.timesteps, arrays[f"spaced_{respacing}_timesteps"])
    np.testing.assert_allclose(diffusion.betas, arrays[f"spaced_{respacing}_betas"], rtol=1e-12)


def test_noising(golden):
    arrays = golden("fcdm/diffusion")
    x_t = GaussianDiffusion().q_sample(nhwc(arrays["x0"]), arrays["t"], nhwc(arrays["noise"]))
    np.testing.assert_allclose(to_numpy(x_t), nhwc(arrays["x_t"]), rtol=1e-5, atol=1e-6)


def test_losses_per_sample(golden):
    arrays = golden("fcdm/diffusion")
    losses = GaussianDiffusion().training_losses(
        nhwc(arrays["model_output"]), nhwc(arrays["x0"]), nhwc(arrays["noise"]), arrays["t"]
    )
    np.testing.assert_allclose(to_numpy(losses["mse"]), arrays["loss_mse"], rtol=1e-5)
    np.testing.assert_allclose(to_numpy(losses["vb"]), arrays["loss_vb_float64"], rtol=1e-4)
    total = arrays["loss_mse"] + arrays["loss_vb_float64"]
    np.testing.assert_allclose(to_numpy(losses["loss"]), total, rtol=1e-5)


@pytest.mark.parametrize(("respacing", "prefix", "times"), [("", "p_", "t"), ("50", "spaced50_p_", "spaced50_t_index")])
def test_reverse_step_distribution(golden, respacing, prefix, times):
    arrays = golden("fcdm/diffusion")
    p = GaussianDiffusion(respacing).p_mean_variance(nhwc(arrays["model_output"]), nhwc(arrays["x_t"]), arrays[times])
    for ours, theirs in (("mean", "mean"), ("log_variance", "log_variance"), ("pred_latents", "pred_xstart")):
        assert relative_error(p[ours], nhwc(arrays[prefix + theirs])) < 1e-5, ours


def test_reverse_step_variance_and_clipping(golden):
    arrays = golden("fcdm/diffusion")
    given = (nhwc(arrays["model_output"]), nhwc(arrays["x_t"]), arrays["t"])
    variance = GaussianDiffusion().p_mean_variance(*given)["variance"]
    np.testing.assert_allclose(to_numpy(variance), nhwc(arrays["p_variance"]), rtol=1e-4)
    clipped = GaussianDiffusion().p_mean_variance(*given, clip_denoised=True)["mean"]
    assert relative_error(clipped, nhwc(arrays["p_mean_clipped"])) < 1e-5


@pytest.mark.parametrize(("name", "eta"), [("ddpm", None), ("ddim_eta0.0", 0.0), ("ddim_eta0.7", 0.7)])
def test_single_sampler_steps(golden, name, eta):
    """Each sample of the batch is at a step of its own, so each is taken out of a one-step chain of that step."""
    arrays, full = golden("fcdm/diffusion"), GaussianDiffusion("50")
    for i, index in enumerate(arrays["spaced50_t_index"]):
        x_t, output = (nhwc(arrays[key][i : i + 1]) for key in ("x_t", "model_output"))
        noise = nhwc(arrays[f"spaced50_{name}_noise"][i : i + 1])
        ours = _one_step(full, int(index), x_t, output, noise, eta)
        assert relative_error(ours, nhwc(arrays[f"spaced50_{name}"][i : i + 1])) < 1e-5, index


def _one_step(diffusion, index, x_t, output, noise, eta):
    """Step `index` of a process: a sampler is run with a `predict` that notes the step's result on the way."""
    seen = {}
    steps = diffusion.num_timesteps
    step_noise = np.zeros((steps, *x_t.shape), "float32")
    step_noise[steps - 1 - index] = noise

    class Until:  # the process, cut so that the chain starts at `index`; the second step sees the first one's result
        def __getattr__(self, name):
            return getattr(diffusion, name)

        num_timesteps = index + 1

    def predict(x, timesteps):
        seen.setdefault(int(to_numpy(timesteps)[0]), to_numpy(x))
        return ops.convert_to_tensor(output)

    arguments = (predict, ops.convert_to_tensor(x_t), Until(), step_noise[steps - 1 - index :])
    with _eager_loop():
        final = samplers.ddpm(*arguments) if eta is None else samplers.ddim(*arguments, eta=eta)
    return final if index == 0 else seen[int(diffusion.timesteps[index - 1])]


def _eager_loop():
    """Runs `ops.fori_loop` as a Python loop, so that `predict` sees values."""
    from unittest import mock

    def loop(lower, upper, body, value):
        for i in range(lower, upper):
            value = body(ops.convert_to_tensor(i, "int32"), value)
        return value

    return mock.patch.object(ops, "fori_loop", loop)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@pytest.mark.parametrize("guided", [False, True])
def test_whole_chains(backbone, golden, name, guided):
    arrays, suffix = golden("fcdm/sampling"), "_cfg" if guided else ""
    labels, null = ops.convert_to_tensor(arrays["y"], "int32"), ops.full((2,), 10, dtype="int32")
    scale = float(arrays["cfg_scale"]) if guided else 1.0
    predict = guidance.guide(denoise_with(backbone), labels, null, scale, "first_three")
    noise = nhwc(arrays[f"{name}{suffix}_noise"])[:, :2]  # the conditional half
    sampler = samplers.SAMPLERS[name]
    sample = sampler(predict, ops.convert_to_tensor(nhwc(arrays["z"])), GaussianDiffusion("8"), noise)
    assert relative_error(sample, nhwc(arrays[f"{name}{suffix}_sample"])) < 1e-4


@pytest.fixture(scope="module")
def trained(golden_checkpoint, golden):
    """Four training steps: (trainer, losses, gradients of the first step as they moved AdamW's first moment)."""
    arrays = golden("fcdm/training")
    backbone = load_torch_checkpoint(golden_checkpoint, weights="model")
    trainer = DiffusionTrainer(backbone, ema_decay=float(arrays["ema_decay"]), label_dropout=0.0)
    trainer.compile(AdamW(float(arrays["lr"])))
    losses, gradients = [], None
    for k in range(len(arrays["losses"])):
        batch = {
            "latents": nhwc(arrays["x"][k]),
            "labels": arrays["y"][k].astype("int32"),
            "timesteps": arrays["t"][k].astype("int32"),
            "noise": nhwc(arrays["noise"][k]),
        }
        losses.append(trainer.train_on_batch(batch, return_dict=True)["loss"])
        trainer.reset_metrics()
        if k == 0:  # m₁ = (1 − β₁) · gradient
            gradients = [to_numpy(m) / 0.1 for m in trainer.optimizer._momentums]
    return trainer, losses, gradients


def test_losses_of_four_training_steps(trained, golden):
    np.testing.assert_allclose(trained[1], golden("fcdm/training")["losses"], rtol=1e-5)


def _by_name(backbone, values):
    """Reference name → value in PyTorch's layout, from values in the order of the trainable variables."""
    values = {id(v): value for v, value in zip(backbone.trainable_variables, values, strict=True)}
    return {name: to_torch(values[id(v)]) for name, (v, _, to_torch) in parameters(backbone).items()}


@pytest.mark.parametrize("kind", ["grad0", "final", "ema"])
def test_gradients_weights_and_ema(trained, golden, kind):
    trainer, _, gradients = trained
    values = {
        "grad0": gradients,
        "final": [to_numpy(v) for v in trainer.backbone.trainable_variables],
        "ema": [to_numpy(v) for v in trainer.ema.averages],
    }[kind]
    arrays, ours = golden("fcdm/training"), _by_name(trainer.backbone, values)
    names = [key.removeprefix(f"{kind}/") for key in arrays if key.startswith(f"{kind}/")]
    assert set(names) == set(ours)
    largest = max(np.abs(arrays[f"{kind}/{name}"]).max() for name in names)
    for name in names:
        theirs = arrays[f"{kind}/{name}"]
        np.testing.assert_allclose(
            ours[name], theirs, rtol=1e-3, atol=2e-4 * max(theirs.std(), 0.01 * largest), err_msg=name
        )
