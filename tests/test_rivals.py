"""The networks that FCDM is compared with, against their published code's results."""

import json
import math

import keras
import numpy as np
import pytest
from conftest import GOLDEN
from helpers import nhwc, relative_error, to_numpy
from keras import ops

from fcdm_keras.diffusion import guidance
from fcdm_keras.network.architectures import ARCHITECTURES
from fcdm_keras.network.backbones import BACKBONES
from fcdm_keras.network.reference import load_torch_checkpoint
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
