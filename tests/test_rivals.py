"""The networks that FCDM is compared with, against their published code's results."""

import json
import math

import keras
import numpy as np
import pytest
from conftest import GOLDEN
from helpers import inputs, nhwc, relative_error, to_numpy
from keras import ops

from fcdm_keras.convert import main
from fcdm_keras.diffusion import guidance
from fcdm_keras.network.architectures import ARCHITECTURES
from fcdm_keras.network.backbones import BACKBONES
from fcdm_keras.network.base import DiffusionBackbone
from fcdm_keras.network.costs import costs_of
from fcdm_keras.network.reference import load_torch_checkpoint
from fcdm_keras.network.rivals.recurrence import gated_linear_attention
from fcdm_keras.recipes import MODEL_SIZES

BASELINES = GOLDEN / "baselines"
HEADS = {"dit": 3, "sit": 2, "uvit": 3}
NAMES = ["dit", "sit", "uvit", "dico", "dic", "dig"]


def load(name, weights="model", **options):
    path = BASELINES / name / ("1.ckpt" if name == "uvit" else "checkpoint.pt")
    arguments = {"num_heads": HEADS[name]} if name in HEADS else {}
    return load_torch_checkpoint(path, weights, **{**arguments, **options})


@pytest.fixture(scope="module", params=NAMES)
def network(request, golden):
    """Name, backbone with the weights `model`, and the reference's results."""
    return request.param, load(request.param), golden(f"baselines/{request.param}/forward")


def called(backbone, arrays, times="t"):
    return backbone({"x_t": nhwc(arrays["x"]), "timesteps": arrays[times], "labels": arrays["y"].astype("int32")})


def test_forward_pass(network):
    _, backbone, arrays = network
    assert type(backbone).__name__.removesuffix("Backbone").lower() == network[0]
    assert relative_error(called(backbone, arrays, "t_frac"), nhwc(arrays["out_t_frac"])) < 5e-5
    assert relative_error(called(backbone, arrays), nhwc(arrays["out"])) < 5e-4


def test_forward_pass_of_the_average(network):
    name, _, arrays = network
    assert relative_error(called(load(name, "ema"), arrays), nhwc(arrays["out_ema"])) < 5e-4


def test_guidance(network):
    name, backbone, arrays = network
    rows = 2  # conditional; then those of the null class, which U-ViT's code adds by itself
    x_t, times, labels = nhwc(arrays["cfg_x"])[:rows], arrays["cfg_t"][:rows], arrays["cfg_y"][:rows]
    scale, mode = float(arrays["cfg_scale"]), "first_three"
    if name == "uvit":
        scale, mode = 1 + scale, "all"
    predict = guidance.guide(
        lambda x, t, y: backbone({"x_t": x, "timesteps": t, "labels": y}),
        ops.convert_to_tensor(labels, "int32"),
        backbone.conditioning.null(rows),
        scale,
        mode,
    )
    output = predict(ops.convert_to_tensor(x_t), ops.convert_to_tensor(times))
    assert relative_error(output, nhwc(arrays["cfg_out"])[:rows]) < 5e-4


def gradients(backbone, x_t, others, cotangent):
    """Of the scalar sum(output · cotangent): to `x_t`, and to the trainable variables."""
    variables = backbone.trainable_variables

    def scalar(x):
        return ops.sum(backbone({"x_t": x, **others}) * ops.convert_to_tensor(cotangent))

    if keras.backend.backend() == "torch":
        import torch

        x = torch.tensor(x_t, requires_grad=True)
        scalar(x).backward()
        return x.grad.numpy(), [v.value.grad.numpy() for v in variables]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x_t)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = scalar(x)
        found = tape.gradient(value, [x, *(v.value for v in variables)])
        return to_numpy(found[0]), [to_numpy(tf.convert_to_tensor(g)) for g in found[1:]]
    import jax

    def stateless(x, values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return scalar(x)

    to_x, to_weights = jax.jit(jax.grad(stateless, (0, 1)))(x_t, [v.value for v in variables])
    return np.asarray(to_x), [np.asarray(g) for g in to_weights]


def test_gradients(network, golden):
    name, backbone, arrays = network
    expected = golden(f"baselines/{name}/grads")
    others = {"timesteps": arrays["t_frac"], "labels": arrays["y"].astype("int32")}
    to_x, to_weights = gradients(backbone, nhwc(arrays["x"]), others, nhwc(expected["cotangent"]))
    assert relative_error(to_x, nhwc(expected["grad_x"])) < 1e-3
    by_variable = {id(v): g for v, g in zip(backbone.trainable_variables, to_weights, strict=True)}
    parameters = ARCHITECTURES[name].parameters(backbone)
    assert {f"grad/{key}" for key in parameters} == {key for key in expected if key.startswith("grad/")}
    for key, (variable, _, to_torch) in parameters.items():
        assert relative_error(to_torch(by_variable[id(variable)]), expected[f"grad/{key}"]) < 1e-3, key


SIZES = json.loads((BASELINES / "sizes.json").read_text())
LATENTS = {  # rows of the published sizes that are ours under another name or with other arguments
    "U-ViT-H/2": ("uvit-h/2", {"out_channels": 4}),
    "U-ViT-L/2": ("uvit-l/2", {"out_channels": 4}),
    "U-ViT-H/4": ("uvit-h/4", {"out_channels": 4}),
    "U-ViT-L/4": ("uvit-l/4", {"out_channels": 4}),
    "U-ViT-L/4 (pixels)": ("uvit-l/4", {"in_channels": 3, "out_channels": 3, "num_classes": 999}),
    "U-ViT-M/4 (pixels)": ("uvit-m/4", {"in_channels": 3, "out_channels": 3, "num_classes": 999}),
}


@pytest.fixture
def shapes_alone():
    """Variables that are made in a test have shapes and no numbers."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    keras.utils.clear_session()


@pytest.mark.no_backend
@pytest.mark.parametrize("published", [name for name in SIZES if not name.startswith("FCDM")])
def test_costs_of_every_published_size(published):
    name, options = LATENTS.get(published, (published.lower(), {}))
    sides = [key for key in SIZES[published] if "x" in key]
    assert sides
    for key in sides:
        side, expected = int(key.split("x")[0]), SIZES[published][key]
        costs = costs_of(MODEL_SIZES[name], side, side, **options)
        found = (costs.parameters, costs.plain_macs, costs.macs)
        assert found == (expected["trainable_parameters"], expected["macs"], expected["torchprofile"])


@pytest.mark.no_backend
@pytest.mark.parametrize("published", [name for name in SIZES if not name.startswith("FCDM")])
def test_parameters_of_every_published_size(published, shapes_alone):
    name, options = LATENTS.get(published, (published.lower(), {}))
    size = MODEL_SIZES[name]
    backbone = BACKBONES[size.network](size.hidden_channels, size.depths, **{**size.options, **options})
    trainable = sum(math.prod(variable.shape) for variable in backbone.trainable_variables)
    for sides, row in SIZES[published].items():
        if sides == "official_name":
            continue
        assert trainable == row["trainable_parameters"]
        fixed = 0  # positions, which are computed here and stored there
        if size.network in ("dit", "sit", "dig"):
            fixed = math.prod(backbone.positions(*(int(s) // backbone.patch_size for s in sides.split("x"))).shape)
        assert trainable + fixed == row["parameters"]


SMALL = {
    "dit": (8, (1,), {"num_heads": 2}),
    "sit": (8, (1,), {"num_heads": 2}),
    "dig": (8, (2,), {"num_heads": 2}),
    "uvit": (8, (2,), {"num_heads": 2, "input_size": 8}),
    "dico": (4, (1, 0, 1, 0, 1), {}),
    "dic": (4, (1, 0, 1, 0, 1), {}),
}


def small(name, **options):
    """A small network in which no weight is zero."""
    width, depths, more = SMALL[name]
    backbone = BACKBONES[name](width, depths, **{"num_classes": 10, "in_channels": 2, **more, **options})
    generator = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        variable.assign(0.2 * generator.standard_normal(variable.shape, dtype="float32"))
    return backbone


@pytest.mark.parametrize("name", SMALL)
def test_presets_mixed_precision_and_checkpointing(name, tmp_path):
    backbone = small(name)
    before = to_numpy(backbone(inputs()))
    backbone.save_to_preset(str(tmp_path))
    loaded = DiffusionBackbone.from_preset(str(tmp_path))
    assert type(loaded) is BACKBONES[name]
    np.testing.assert_array_equal(to_numpy(loaded(inputs())), before)
    mixed = BACKBONES[name].from_config({**backbone.get_config(), "dtype": "mixed_bfloat16"})
    mixed.set_weights(backbone.get_weights())
    output = mixed(inputs())
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    assert relative_error(output, before) < 0.3
    backbone.gradient_checkpointing = True
    np.testing.assert_allclose(to_numpy(backbone(inputs(), training=True)), before, rtol=1e-4, atol=1e-5)


def test_gated_linear_attention_is_the_quadratic_form():
    """Also where the last chunk is not full, and where states decay as fast as they can."""
    generator = np.random.default_rng(0)
    q, k, v = (generator.normal(size=(2, 37, 3, width)) for width in (4, 4, 5))
    g = -np.minimum(generator.exponential(1.0, size=q.shape), 5.0)
    sums = np.cumsum(g, axis=1)
    decays = np.exp(np.minimum(sums[:, :, None] - sums[:, None], 0)) * np.tri(37)[:, :, None, None]
    expected = np.einsum("bihd,bijhd,bjhd,bjhe->bihe", q, decays, k, v) / 2
    ours = gated_linear_attention(*(ops.convert_to_tensor(a, "float32") for a in (q, k, v, g)))
    assert relative_error(ours, expected) < 1e-5


@pytest.mark.parametrize("name", ["dit", "uvit", "dig"])
def test_positions_of_another_size_are_interpolated_with_a_word(name):
    backbone = small(name, input_size=8)
    with pytest.warns(UserWarning, match="made for x_t of 8×8. Received: 12×16"):
        assert tuple(backbone(inputs(height=12, width=16)).shape) == (2, 12, 16, backbone.out_channels)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dit", {"num_heads": 3}, "num_heads must divide hidden_channels=8. Received: num_heads=3"),
        ("uvit", {"num_heads": 3}, "num_heads must divide"),
        ("dig", {"num_heads": 8}, "2 · num_heads must divide hidden_channels=8. Received: num_heads=8"),
        ("dit", {"patch_size": 3, "input_size": 8}, "input_size must be divisible by patch_size=3. Received: 8"),
        ("dit", {"depths": (1, 2)}, r"depths must be 1 integers \(blocks\)"),
        ("dico", {"depths": (1, 2)}, "depths must be 5 integers"),
        ("dic", {"depths": (1, 0, 1, 0, 4)}, "must be the same in encoder and decoder"),
        ("dic", {"hidden_channels": 6}, "hidden_channels must be divisible by 4"),
        ("dico", {"hidden_channels": 5}, "hidden_channels must be even. Received: 5"),
        ("uvit", {"depths": (3,)}, "must be even"),
    ],
)
def test_sizes_that_make_no_network_are_refused(name, options, message):
    width, depths, more = SMALL[name]
    with pytest.raises(ValueError, match=message):
        BACKBONES[name](**{"hidden_channels": width, "depths": depths, **more, **options})


@pytest.mark.no_backend
def test_a_size_that_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="must be divisible by 4. Received: 8×6"):
        small("dit", patch_size=4)(inputs(width=6))


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "dit",
            {"num_heads": None},
            r"tensors do not tell num_heads: give num_heads=… \(--num-heads\)",
        ),
        ("dit", {"architecture": "dico"}, 'looks like DiT, not like DiCo: give architecture="dit"'),
        ("dic", {"architecture": "fcdm"}, "looks like DiC, not like FCDM"),
        ("dig", {"num_heads": 2}, "holds DiG, whose tensors tell all arguments but none. Received: num_heads"),
        ("sit", {"architecture": "sit-xl"}, "architecture must be one of fcdm, dico, .* Received: 'sit-xl'"),
        ("uvit", {"num_heads": 5}, "is not read as U-ViT: num_heads must divide hidden_channels=24"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(name, options, message):
    given = {**({"num_heads": HEADS[name]} if name in HEADS else {}), **options}
    path = BASELINES / name / ("1.ckpt" if name == "uvit" else "checkpoint.pt")
    with pytest.raises(ValueError, match=message):
        load_torch_checkpoint(path, **{key: value for key, value in given.items() if value is not None})


@pytest.mark.no_backend
def test_the_command_converts_them(tmp_path, capsys):
    main([str(BASELINES / "uvit" / "1.ckpt"), str(tmp_path / "preset"), "--num-heads", "3", "--weights", "model"])
    assert "UViT with 39,812 parameters, model weights" in capsys.readouterr().out
    loaded, expected = DiffusionBackbone.from_preset(str(tmp_path / "preset")), load("uvit")
    for a, b in zip(loaded.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
