"""Flow matching against the reference's results, and what holds for every path and prediction."""

import numpy as np
import pytest
from conftest import GOLDEN
from helpers import in_one_graph, nhwc, relative_error, to_numpy
from keras import ops

from fcdm_keras.arguments import FLOW_PATHS, FLOW_PREDICTIONS
from fcdm_keras.diffusion import FlowMatching, GaussianDiffusion, randomness, samplers
from fcdm_keras.diffusion.objectives import IDDPM, as_objective, described
from fcdm_keras.network.reference import load_torch_checkpoint

pytestmark = pytest.mark.quick
PATHS = {"Linear": "linear", "GVP": "gvp", "VP": "vp"}
CHAINS = ("sigma_Mean", "sigma_Tweedie", "sigma_Euler", "linear_Mean", "decreasing_Mean")


@pytest.fixture(scope="module")
def flow(golden):
    return golden("fcdm/flow")


@pytest.fixture(scope="module")
def backbone():
    return load_torch_checkpoint(GOLDEN / "fcdm" / "flow_checkpoint.pt")


def predict_with(backbone, flow):
    labels = ops.convert_to_tensor(flow["z_y"], "int32")
    return lambda x_t, times: backbone({"x_t": x_t, "timesteps": times, "labels": labels})


@pytest.mark.parametrize("name", PATHS)
def test_paths_and_losses(backbone, flow, name):
    latents, noise, times = nhwc(flow["x1"]), nhwc(flow["x0"]), flow["t"]
    for prediction in FLOW_PREDICTIONS:
        objective = FlowMatching(PATHS[name], prediction)
        x_t = objective.corrupt(latents, noise, times)
        output = backbone({"x_t": x_t, "timesteps": times, "labels": flow["y"].astype("int32")})
        loss = objective.training_losses(output, latents, noise, times)["loss"]
        np.testing.assert_allclose(to_numpy(loss), flow[f"{name}_{prediction}_loss"], rtol=1e-4)
    assert relative_error(x_t, nhwc(flow[f"{name}_xt"])) < 1e-5
    assert relative_error(objective.true_velocity(latents, noise, times), nhwc(flow[f"{name}_ut"])) < 1e-4


@pytest.mark.parametrize("chain", ["sde_heun_sigma_Mean", *(f"sde_euler_{name}" for name in CHAINS)])
def test_stochastic_chains(backbone, flow, chain):
    _, method, form, last_step = chain.split("_")
    sampler = {"euler": samplers.euler_maruyama, "heun": samplers.stochastic_heun}[method]
    options = {"diffusion_form": form, "last_step": last_step.lower(), "last_step_size": float(flow["last_step_size"])}
    z, drawn = ops.convert_to_tensor(nhwc(flow["z"])), nhwc(flow[f"{chain}_noise"])
    steps = int(flow["sde_steps"])
    sample = in_one_graph(sampler, predict_with(backbone, flow), z, FlowMatching(), steps, drawn, **options)
    assert relative_error(sample, nhwc(flow[chain])) < 1e-3


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_chains_without_noise(backbone, flow, method):
    z, steps = ops.convert_to_tensor(nhwc(flow["z"])), int(flow["ode_steps"])
    sample = in_one_graph(samplers.ode, predict_with(backbone, flow), z, FlowMatching(), steps, method)
    assert relative_error(sample, nhwc(flow[f"ode_{method}"])) < 1e-3


def random_batch(count=5):
    generator = np.random.default_rng(3)
    latents, noise = generator.standard_normal((2, count, 4, 4, 2), dtype="float32")
    return latents, noise, generator.uniform(0.05, 0.95, count).astype("float32")


def true_output(objective, latents, noise, times):
    """What a perfect network gives, from derivatives of the path by differences in float64."""
    alpha, sigma = (np.asarray(part) for part in objective.coefficients(times.astype("float64"), np)[:2])
    later = objective.coefficients(times.astype("float64") + 1e-6, np)[:2]
    earlier = objective.coefficients(times.astype("float64") - 1e-6, np)[:2]
    d_alpha, d_sigma = ((b - a) / 2e-6 for a, b in zip(earlier, later))

    def over(values):
        return values[:, None, None, None]

    outputs = {
        "velocity": over(d_alpha) * latents + over(d_sigma) * noise,
        "noise": noise,
        "score": -noise / over(sigma),
    }
    return over(alpha) * latents + over(sigma) * noise, outputs


@pytest.mark.parametrize("path", FLOW_PATHS)
@pytest.mark.parametrize("prediction", FLOW_PREDICTIONS)
def test_predictions_convert_into_each_other(path, prediction):
    objective, (latents, noise, times) = FlowMatching(path, prediction), random_batch()
    x_t, outputs = true_output(objective, latents, noise, times)
    given = [ops.convert_to_tensor(part, "float32") for part in (outputs[prediction], x_t, times)]
    assert relative_error(objective.latents(*given), latents) < 2e-3  # α of VP is 0.01 near noise
    for name, expected in outputs.items():
        assert relative_error(getattr(objective, name)(*given), expected) < 2e-3, name
    losses = objective.training_losses(given[0], latents, noise, times)["loss"]
    assert to_numpy(losses).max() < 1e-5


@pytest.mark.parametrize("path", FLOW_PATHS)
def test_the_weighted_score_loss_is_the_velocity_loss(path):
    """SiT eq. 11: of one network, read as score and as velocity; and likelihood weighs it by 1/w."""
    latents, noise, times = random_batch()
    score = FlowMatching(path, "score", "velocity")
    x_t = score.corrupt(latents, noise, times)
    output = ops.convert_to_tensor(np.random.default_rng(1).standard_normal(latents.shape, dtype="float32"))
    velocity = score.velocity(output, x_t, ops.convert_to_tensor(times))
    expected = FlowMatching(path).training_losses(velocity, latents, noise, times)["loss"]
    weighted = to_numpy(score.training_losses(output, latents, noise, times)["loss"])
    np.testing.assert_allclose(weighted, to_numpy(expected), rtol=1e-3)
    likely = FlowMatching(path, "score", "likelihood").training_losses(output, latents, noise, times)["loss"]
    rate = np.asarray(score.rates(times.astype("float64"), np)[1])
    np.testing.assert_allclose(to_numpy(likely), weighted / rate, rtol=1e-3)


@pytest.mark.parametrize("path", FLOW_PATHS)
def test_at_equal_signal_to_noise_ratio_flow_and_iddpm_agree(path):
    """A predictor of the noise, told λ, gives the same x̂_0 in both, of the same mixture of data and noise."""
    flow, iddpm = FlowMatching(path, "noise"), IDDPM()
    timesteps = np.array([20, 300, 700])
    ratio = iddpm.log_snr(timesteps)
    np.testing.assert_allclose(np.exp(2 * ratio), 1 / (1 / GaussianDiffusion().alphas_cumprod[timesteps] - 1))
    grid = np.linspace(1e-4, 1 - 1e-4, 200_001)
    times = np.interp(ratio, flow.log_snr(grid), grid)
    mixed = np.random.default_rng(0).standard_normal((3, 4, 4, 1))
    results = []
    for objective, own in ((flow, times), (iddpm, timesteps)):
        alpha, sigma = (part[:, None, None, None] for part in objective.coefficients(own.astype("float64"), np)[:2])
        x_t = ops.convert_to_tensor(mixed * np.hypot(alpha, sigma), "float32")  # of equal norm
        noise = np.tanh(mixed).astype("float32")
        output = noise if objective is flow else np.concatenate([noise, noise], axis=-1)
        results.append(to_numpy(objective.latents(ops.convert_to_tensor(output), x_t, ops.convert_to_tensor(own))))
        results[-1] = results[-1] * (alpha / np.hypot(alpha, sigma))
    np.testing.assert_allclose(results[0], results[1], rtol=2e-3, atol=2e-3)


def test_times_are_drawn_in_the_interval_of_training():
    keys = randomness.sample_keys((1, 2), randomness.TIMESTEPS, 0, ops.arange(20_000))
    latents = ops.zeros((20_000, 1, 1, 1))
    uniform = to_numpy(FlowMatching().draw({"latents": latents}, lambda name: keys)["timesteps"])
    assert uniform.min() >= 0 and uniform.max() < 1
    np.testing.assert_allclose(np.quantile(uniform, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)
    middle = FlowMatching(times="logit_normal").draw({"latents": latents}, lambda name: keys)["timesteps"]
    logits = np.log(to_numpy(middle).astype("float64")) - np.log1p(-to_numpy(middle).astype("float64"))
    assert abs(logits.mean()) < 0.03 and abs(logits.std() - 1) < 0.02
    near = to_numpy(FlowMatching("gvp", "noise").draw({"latents": latents}, lambda name: keys)["timesteps"])
    assert 1e-3 <= near.min() < 2e-3 and 0.998 < near.max() <= 0.9991


def test_objectives_are_described_and_made_again():
    assert described(IDDPM()) == "iddpm" and type(as_objective("iddpm")) is IDDPM
    stored = described(FlowMatching("vp", "score", "likelihood", times="logit_normal"))
    assert described(as_objective(stored)) == stored and as_objective(stored).path == "vp"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowMatching("cubic"), "path must be one of 'linear', 'gvp', 'vp'. Received: 'cubic'"),
        (lambda: FlowMatching(prediction="data"), "prediction must be one of .* Received: 'data'"),
        (lambda: FlowMatching("vp", "noise", "none"), "weighting must be one of None, 'velocity', 'likelihood'"),
        (lambda: FlowMatching(weighting="velocity"), "no effect: velocities are not weighted; leave it out"),
        (lambda: FlowMatching(times="late"), "times must be one of 'uniform', 'logit_normal'. Received: 'late'"),
        (lambda: as_objective({"name": "flow", "paths": "vp"}), "The objective flow cannot be made of"),
        (lambda: as_objective("rectified"), "objective must be one of iddpm, flow"),
        (lambda: FlowMatching().corrupt(*random_batch(2)[:2], [0.5, 1.5]), r"in \[0, 1\], 0 is noise .* 0.5 to 1.5"),
        (lambda: FlowMatching().check_timesteps(np.array([0.1, np.nan])), r"times must lie in \[0, 1\]"),
        (lambda: FlowMatching().check_timesteps(np.array([0, 1])), "must be floating-point numbers .* int64"),
        (
            lambda: FlowMatching().training_losses(ops.ones((2, 4, 4, 4)), *random_batch(2)),
            r"must give 2 channels \(velocity\). Received: 4",
        ),
    ],
)
def test_what_makes_no_flow_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
