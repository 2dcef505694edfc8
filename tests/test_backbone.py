import keras
import numpy as np
import pytest
from helpers import gradient_of, inputs, quick_on_torch, relative_error, tiny_backbone, to_numpy
from keras import ops

from fcdm_keras.backend.hub import keras_hub
from fcdm_keras.model_table import rows
from fcdm_keras.network.conditioning import ClassConditioning
from fcdm_keras.network.costs import count
from fcdm_keras.network.fcdm import FCDMBackbone
from fcdm_keras.network.layers import GRN, FCDMBlock, TimestepEmbedding
from fcdm_keras.network.resampling import pixel_shuffle, pixel_unshuffle
from fcdm_keras.recipes import MODEL_SIZES, ModelSize


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def test_parameters_and_macs_of_the_papers_table():
    for row in rows():
        size = MODEL_SIZES[row["name"]]
        assert row["parameters"] == size.parameters
        assert round(row["gmacs_256"], 1) == size.gmacs_256
        assert size.gmacs_512 is None or round(row["gmacs_512"], 1) == size.gmacs_512


def test_macs_equal_torchprofile_on_the_reference():
    # torchprofile on the reference's FCDM-S, one 32×32×4 latent
    assert count(MODEL_SIZES["S"])[1] == pytest.approx(3_082_699_540, rel=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 3, "in_channels": 1, "out_channels": 5, "expansion_ratio": 2, "kernel_size": 3}]
)
def test_counted_parameters_are_those_of_the_network(options):
    size = ModelSize(6, (2, 1, 0, 3, 1))
    assert FCDMBackbone(6, size.depths, **options).count_params() == count(size, **options)[0]


@pytest.mark.parametrize(("height", "width"), [(4, 4), (12, 20)])
def test_any_height_and_width_divisible_by_four(backbone, height, width):
    output = backbone(inputs(height=height, width=width))
    assert tuple(output.shape) == (2, height, width, 4)
    assert np.isfinite(to_numpy(output)).all()


def test_sizes_are_free():
    backbone = FCDMBackbone(
        6, (0, 1, 0, 2, 1), num_classes=3, in_channels=1, out_channels=5, expansion_ratio=2, kernel_size=3
    )
    output = backbone({**inputs(channels=1), "labels": np.array([0, 3])})
    assert tuple(output.shape) == (2, 8, 8, 5)


def test_a_new_network_gives_zero_and_its_blocks_are_the_identity():
    backbone = FCDMBackbone(8, (1, 1, 1, 1, 1), num_classes=10, in_channels=2)
    assert not to_numpy(backbone(inputs())).any()
    x, c = np.random.randn(2, 4, 4, 8).astype("float32"), np.random.randn(2, 8).astype("float32")
    np.testing.assert_array_equal(to_numpy(backbone.encoder_1[0](x, c)), x)


@pytest.mark.quick
def test_initial_weights_follow_the_published_rules_and_the_seed():
    keras.utils.set_random_seed(7)
    first = FCDMBackbone(64, (1, 0, 0, 0, 1), num_classes=1000)
    keras.utils.set_random_seed(7)
    second = FCDMBackbone(64, (1, 0, 0, 0, 1), num_classes=1000)
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    block = first.encoder_1[0]
    for kernel, fans in (
        (block.pwconv1.kernel, 64 + 192),
        (block.dwconv.kernel, 49 * 65),
        (first.up_1.conv.kernel, 9 * 384),
    ):
        limit = np.sqrt(6 / fans)
        assert 0.98 * limit < np.abs(to_numpy(kernel)).max() <= limit
    assert not np.array_equal(to_numpy(block.pwconv1.kernel), to_numpy(first.decoder_1[0].pwconv1.kernel))
    for normal in (first.conditioning.tables[0], first.time_embeddings[1].hidden.kernel):
        assert np.std(to_numpy(normal)) == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("extension", ["keras", "weights.h5", "preset"])
def test_saving_and_loading_keeps_every_output(backbone, tmp_path, extension):
    path, before = str(tmp_path / f"model.{extension}"), to_numpy(backbone(inputs()))
    if extension == "keras":
        backbone.save(path)
        loaded = keras.saving.load_model(path)
    elif extension == "weights.h5":
        backbone.save_weights(path)
        loaded = FCDMBackbone.from_config(backbone.get_config())
        loaded.load_weights(path)
    else:
        backbone.save_to_preset(path)
        loaded = keras_hub.models.Backbone.from_preset(path)
    assert isinstance(loaded, FCDMBackbone)
    np.testing.assert_array_equal(to_numpy(loaded(inputs())), before)


@pytest.mark.quick
def test_layers_survive_a_round_trip_of_their_config(backbone):
    for layer in (*backbone.blocks, backbone.down_1, backbone.up_1, backbone.final_layer, backbone.conditioning, GRN()):
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert copy.get_config() == layer.get_config()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_stays_close_and_gives_float32(backbone, policy):
    mixed = FCDMBackbone.from_config({**backbone.get_config(), "dtype": policy})
    mixed.set_weights(backbone.get_weights())
    output = mixed(inputs())
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    assert mixed.encoder_1[0].pwconv1.compute_dtype == policy.removeprefix("mixed_")
    assert relative_error(output, to_numpy(backbone(inputs()))) < (0.15 if policy == "mixed_bfloat16" else 0.02)


@pytest.mark.quick
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_timesteps_are_exact_under_mixed_precision(policy):
    exact, mixed = TimestepEmbedding(8), TimestepEmbedding(8, dtype=policy)
    times = np.array([997.0, 998.0, 999.0, 0.123456], "float32")  # bfloat16 has no 997, 998, 999
    exact.build((None,)), mixed.build((None,))
    mixed.set_weights(exact.get_weights())
    np.testing.assert_array_equal(to_numpy(mixed(times)), to_numpy(exact(times)))


@pytest.mark.quick
def test_grn_statistics_do_not_overflow_in_float16():
    x = np.full((1, 8, 8, 4), 100.0, "float16")  # the sum of squares is 640,000: float16 ends at 65,504
    grn = GRN(dtype="mixed_float16")
    grn.build(x.shape)
    grn.gamma.assign(np.ones(4, "float32"))
    np.testing.assert_allclose(to_numpy(grn(x)).astype("float32"), 200.0, rtol=1e-3)


@pytest.mark.quick
def test_grn_of_small_inputs_against_float64():
    """Where both floors would show: channels of responses near 3e-4 beside an eps of 1e-6."""
    x = (1e-4 * np.random.default_rng(0).standard_normal((2, 3, 3, 4))).astype("float32")
    grn = GRN()
    grn.build(x.shape)
    grn.gamma.assign(np.ones(4, "float32"))
    response = np.sqrt((x.astype("float64") ** 2).sum(axis=(1, 2), keepdims=True))
    expected = x * response / (response.mean(axis=-1, keepdims=True) + 1e-6) + x
    np.testing.assert_allclose(to_numpy(grn(x)), expected, rtol=1e-4)


@pytest.mark.quick
def test_grn_has_finite_gradients_where_a_channel_is_zero():
    x = np.random.randn(2, 4, 4, 3).astype("float32")
    x[..., 1] = 0.0
    grn = GRN()
    grn.build(x.shape)
    grn.gamma.assign(np.ones(3, "float32"))
    gradient = gradient_of(lambda value: ops.sum(ops.square(grn(value))), x)
    assert np.isfinite(gradient).all()


@quick_on_torch
def test_gradient_checkpointing_recomputes_every_block_in_training_only(monkeypatch):
    """What it saves is memory, which no number shows."""
    backbone, recomputed = tiny_backbone((1, 1, 2, 1, 1)), []
    monkeypatch.setattr(keras, "remat", lambda function: recomputed.append(function) or function)
    for enabled, training, expected in ((False, True, 0), (True, False, 0), (True, True, 6)):
        backbone.gradient_checkpointing = enabled
        recomputed.clear()
        backbone(inputs(), training=training)
        assert len(recomputed) == expected


def test_gradient_checkpointing_changes_nogradient_of():
    block = FCDMBlock()
    block.build((None, None, None, 4))
    generator = np.random.default_rng(0)
    block.set_weights([generator.standard_normal(w.shape).astype("float32") for w in block.weights])
    c = generator.standard_normal((2, 4), dtype="float32")
    x = generator.standard_normal((2, 8, 8, 4), dtype="float32")

    def loss(value):
        return ops.sum(ops.square(block(value, ops.convert_to_tensor(c), training=True)))

    plain = gradient_of(loss, x)
    block.gradient_checkpointing = True
    np.testing.assert_allclose(gradient_of(loss, x), plain, rtol=1e-5, atol=1e-4)


@pytest.mark.quick
def test_the_switch_for_gradient_checkpointing_reaches_every_block(backbone):
    assert not backbone.gradient_checkpointing
    backbone.gradient_checkpointing = True
    assert all(block.gradient_checkpointing for block in backbone.blocks)
    backbone.gradient_checkpointing = False
    assert not any(block.gradient_checkpointing for block in backbone.blocks)


@pytest.mark.quick
def test_pixel_shuffle_orders_channels_as_pytorch():
    import torch

    x = np.random.randn(2, 4, 6, 8).astype("float32")
    nchw = torch.tensor(np.moveaxis(x, -1, 1))
    for ours, theirs in (
        (pixel_shuffle, torch.nn.functional.pixel_shuffle),
        (pixel_unshuffle, torch.nn.functional.pixel_unshuffle),
    ):
        expected = np.moveaxis(theirs(nchw, 2).numpy(), 1, -1)
        np.testing.assert_array_equal(to_numpy(ours(ops.convert_to_tensor(x))), expected)


@keras.saving.register_keras_serializable("tests")
class VectorConditioning(keras.layers.Layer):
    """A user's own module: one vector per sample, a linear map per width."""

    input_name = "vectors"

    def __init__(self, size, widths=None, **kwargs):
        super().__init__(**kwargs)
        self.size, self.widths = size, widths and tuple(widths)

    def build(self, input_shape=None):
        self.maps = [self.add_weight(shape=(self.size, width), name=f"map_{width}") for width in self.widths]

    def call(self, vectors):
        return tuple(ops.matmul(vectors, weights) for weights in self.maps)

    def check(self, vectors):
        if vectors.shape[1:] != (self.size,):
            raise ValueError(f"Vectors must have size {self.size}. Received: {vectors.shape}")

    def get_config(self):
        return {**super().get_config(), "size": self.size, "widths": self.widths}


def test_the_conditioning_module_is_swappable(backbone, tmp_path):
    other = FCDMBackbone(8, (1, 1, 1, 1, 1), in_channels=2, conditioning=VectorConditioning(5))
    names = lambda model: {w.path.split("/", 1)[1] for w in model.weights if "conditioning" not in w.path}  # noqa: E731
    assert names(other) == names(backbone)
    given = {**inputs(), "vectors": np.random.randn(2, 5).astype("float32")}
    del given["labels"]
    assert tuple(other(given).shape) == (2, 8, 8, 4)
    other.save_to_preset(str(tmp_path))
    loaded = FCDMBackbone.from_preset(str(tmp_path))
    np.testing.assert_array_equal(to_numpy(loaded(given)), to_numpy(other(given)))


@pytest.mark.quick
def test_labels_choose_rows_of_the_tables_and_may_differ_per_level():
    conditioning = ClassConditioning(3, widths=(2, 4, 8))
    conditioning.build(None)
    tables = [to_numpy(table) for table in conditioning.tables]
    joint = conditioning(np.array([0, 3]))
    per_level = conditioning(np.array([[0, 1, 3], [2, 2, 0]]))
    for level in range(3):
        np.testing.assert_array_equal(to_numpy(joint[level]), tables[level][[0, 3]])
        np.testing.assert_array_equal(to_numpy(per_level[level]), tables[level][[[0, 2], [1, 2], [3, 0]][level]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_t": np.zeros((2, 6, 8, 2), "float32")}, "divisible by 4. Received: 6×8"),
        ({"x_t": np.zeros((2, 8, 8, 3), "float32")}, r"must have shape \(B, H, W, 2\). Received: \(2, 8, 8, 3\)"),
        ({"labels": np.array([0, 11])}, "Labels must lie in .* from 0 to 11"),
        ({"labels": np.array([-1, 0])}, "Labels must lie in .* from -1 to 0"),
        ({"labels": np.array([0.5, 1.0])}, "Labels must be integers .*Received: dtype float64"),
        ({"labels": None}, "keys x_t, timesteps, labels"),
        ({"label": np.array([0, 1])}, "keys x_t, timesteps, labels"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_sentence(backbone, change, message):
    given = {key: value for key, value in {**inputs(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        backbone(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 2, 3)}, r"5 non-negative integers .* Received: \(1, 2, 3\)"),
        ({"depths": (1, 1, 1, 1, -1)}, "5 non-negative integers"),
        ({"hidden_channels": 7}, "even integer. Received: 7"),
        ({"kernel_size": 4}, "odd integer. Received: 4"),
        ({"num_classes": 0}, "a positive integer. Received: 0"),
        ({"conditioning": ClassConditioning(4, widths=(1, 2, 3))}, r"must have widths \(8, 16, 32\)"),
    ],
)
def test_sizes_that_make_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FCDMBackbone(**{"hidden_channels": 8, "depths": (1, 1, 1, 1, 1), **options})
