"""The paper's ablations: variants of the backbone against networks built from the reference by exchanging one part."""

import contextlib
import dataclasses
import json
import tarfile

import keras
import numpy as np
import pytest
from conftest import GOLDEN
from helpers import nhwc, relative_error, to_numpy
from keras import ops

import train_coco
import train_imagenet
from fcdm_keras import FCDMBackbone, convert, kernels, load_torch_checkpoint, model_table, save_torch_state_dict
from fcdm_keras.backend.hub import keras_hub
from fcdm_keras.network import torch_names
from fcdm_keras.network.costs import MAPS, costs_of
from fcdm_keras.network.layers import FCDMBlock
from fcdm_keras.network.variants import BLOCKS, NeighborhoodAttention
from fcdm_keras.recipes import MODEL_SIZES, RECIPES, ModelSize
from fcdm_keras.recipes.ablations import VARIANTS, sized, variant_of
from fcdm_keras.reporting import architectures
from fcdm_keras.reporting.analysis import channel_diversity
from fcdm_keras.reporting.tables import model_size, read_run
from fcdm_keras.runs.build import check_start
from fcdm_keras.runs.fit import fit_run
from fcdm_keras.runs.folder import open_run
from fcdm_keras.runs.load import load_task

COUNTS = json.loads((GOLDEN / "ablations" / "counts.json").read_text())
PARTS = ("cca_feedforward", "resnet", "neighborhood", "isotropic")  # between them, every part that FCDM has not
QUICK = kernels.plain if keras.backend.backend() == "jax" else contextlib.nullcontext
HEADS = {"neighborhood": {"head_width": 4}}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablations")
    with tarfile.open(GOLDEN / "ablations" / "checkpoints.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def arrays():
    """`arrays(variant)`: its reference arrays by name."""
    with np.load(GOLDEN / "ablations" / "arrays.npz") as stored:
        everything = dict(stored)
    return lambda variant: {
        name.removeprefix(f"{variant}/"): array for name, array in everything.items() if name.startswith(f"{variant}/")
    }


@pytest.fixture(scope="session")
def loaded(checkpoints):
    """`loaded(variant)`: the backbone of its reference checkpoint."""
    found = {}

    def load(variant):
        if variant not in found:
            options = {"variant": variant, **HEADS.get(variant, {})}
            found[variant] = load_torch_checkpoint(checkpoints / f"{variant}.pt", **options)
        return found[variant]

    return load


def inputs_of(reference):
    return {"x_t": nhwc(reference["x"]), "timesteps": reference["t"], "labels": reference["y"].astype("int32")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients(variant, loaded, arrays):
    """Forward and backward; with gradient checkpointing where a block has parts that FCDM has not."""
    backbone, reference = loaded(variant), arrays(variant)
    cotangent = ops.convert_to_tensor(nhwc(reference["cotangent"]))
    backbone.gradient_checkpointing = variant in PARTS
    # Programs of plain operations take JAX half the time to compile; those of all parts are as they are.
    with contextlib.nullcontext() if variant in PARTS else QUICK():
        output, of_x, of_weights = pulled_back(backbone, inputs_of(reference), cotangent)
    assert relative_error(output, nhwc(reference["out"])) < 5e-5
    assert relative_error(of_x, nhwc(reference["grad_x"])) < 1e-3
    ours = {id(v): g for v, g in zip(backbone.trainable_variables, of_weights, strict=True)}
    compared = 0
    for name, (variable, _, to_torch) in torch_names.parameters(backbone).items():
        if f"grad/{name}" in reference:
            assert relative_error(to_torch(to_numpy(ours[id(variable)])), reference[f"grad/{name}"]) < 1e-3, name
            compared += 1
    assert compared == sum(name.startswith("grad/") for name in reference) > 25


def pulled_back(backbone, inputs, cotangent):
    """Output, and the gradients of sum(output · cotangent) to x_t and to the trainable weights."""
    engine = keras.backend.backend()
    if engine == "jax":
        import jax

        def output_of(x_t, weights):
            return backbone.stateless_call(weights, [], {**inputs, "x_t": x_t}, training=True)[0]

        @jax.jit
        def pull(x_t, weights):
            output, back = jax.vjp(output_of, x_t, weights)
            return output, *back(cotangent)

        return pull(inputs["x_t"], [v.value for v in backbone.trainable_variables])
    if engine == "torch":
        import torch

        x_t, weights = torch.tensor(inputs["x_t"], requires_grad=True), [v.value for v in backbone.trainable_variables]
        output = backbone({**inputs, "x_t": x_t}, training=True)
        of_x, *of_weights = torch.autograd.grad(output, [x_t, *weights], cotangent)
        return output.detach(), of_x, of_weights
    import tensorflow as tf

    with tf.GradientTape() as tape:
        x_t = tf.convert_to_tensor(inputs["x_t"])
        tape.watch(x_t)
        output = backbone({**inputs, "x_t": x_t}, training=True)
    of_x, *of_weights = tape.gradient(output, [x_t, *(v.value for v in backbone.trainable_variables)], cotangent)
    return output, of_x, of_weights


@pytest.mark.no_backend
@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_checkpoints_there_and_back(variant, loaded, checkpoints, tmp_path):
    """The variant is told from the tensors where they differ from FCDM's in more than sizes."""
    backbone, heads = loaded(variant), HEADS.get(variant, {})
    save_torch_state_dict(backbone, tmp_path / "back.pt")
    again = load_torch_checkpoint(tmp_path / "back.pt", weights="model", **heads)
    only_sizes = variant_of(variant).block == "fcdm" and variant_of(variant).network == "fcdm"
    assert again.variant == (None if only_sizes else variant)
    for ours, theirs in zip(again.weights, backbone.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))
    state = torch_names.parameters(backbone)
    assert sum(np.prod(v.shape) for v, *_ in state.values()) == backbone.count_params()


@pytest.mark.no_backend
@pytest.mark.parametrize("variant", PARTS)
def test_presets_keep_variants(variant, loaded, arrays, tmp_path):
    backbone, inputs = loaded(variant), inputs_of(arrays(variant))
    backbone.save_to_preset(str(tmp_path / "preset"))
    again = keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"))
    assert isinstance(again, FCDMBackbone) and again.get_config() == backbone.get_config()
    assert again.variant == variant and again.head_width == backbone.head_width
    np.testing.assert_array_equal(to_numpy(again(inputs)), to_numpy(backbone(inputs)))
    for block in (backbone.blocks[0], backbone.final_layer):
        assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(block)).get_config() == (
            block.get_config()
        )


@pytest.mark.parametrize("variant", PARTS if keras.backend.backend() != "jax" else PARTS[1:2])  # which compiles each
def test_mixed_precision_stays_close(variant, loaded, arrays):
    backbone, inputs = loaded(variant), inputs_of(arrays(variant))
    mixed = FCDMBackbone.from_config({**backbone.get_config(), "dtype": "mixed_bfloat16"})
    mixed.set_weights(backbone.get_weights())
    output = mixed(inputs)
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    expected = nhwc(arrays(variant)["out"])
    assert np.sqrt(np.mean((to_numpy(output) - expected) ** 2)) < 0.06 * expected.std()


def test_a_window_is_the_nearest_that_lies_inside():
    """Against the definition, position by position, in float64."""
    rng, width, heads = np.random.default_rng(0), 6, 2
    layer = NeighborhoodAttention(3, width // heads)
    layer.build((None, None, None, width))
    for variable in layer.weights:
        variable.assign(rng.normal(size=variable.shape))
    x = rng.normal(size=(1, 4, 5, width)).astype("float32")
    qkv = (x[0].astype("float64") @ to_numpy(layer.qkv.kernel) + to_numpy(layer.qkv.bias)).reshape(4, 5, 3, heads, -1)
    expected = np.zeros((4, 5, heads, width // heads))
    for i, j, head in np.ndindex(4, 5, heads):
        top, left = min(max(i - 1, 0), 1), min(max(j - 1, 0), 2)
        key, value = (qkv[top : top + 3, left : left + 3, part, head].reshape(9, -1) for part in (1, 2))
        scores = np.exp(key @ qkv[i, j, 0, head] / np.sqrt(width // heads))
        expected[i, j, head] = scores / scores.sum() @ value
    expected = expected.reshape(4, 5, width) @ to_numpy(layer.proj.kernel) + to_numpy(layer.proj.bias)
    np.testing.assert_allclose(to_numpy(layer(x))[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.no_backend
def test_fused_kernels_are_asked_for_by_the_block_of_fcdm_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "fused_residual", lambda x, hidden: asked.append(hidden))
    for kind, block_class in BLOCKS.items():
        block = block_class(3, 3, **({"head_width": 4} if kind == "neighborhood" else {}))
        x = np.ones((1, 4, 4, 4), "float32")
        block.build(x.shape)
        np.testing.assert_array_equal(to_numpy(block(x, np.ones((1, 4), "float32"))), x)  # the gates start at zero
        assert len(asked) == 1, kind
    assert type(FCDMBackbone(8, (0, 0, 1, 0, 0)).blocks[0]) is FCDMBlock


@pytest.mark.no_backend
@pytest.mark.parametrize("name", COUNTS)
def test_costs_at_full_size(name):
    """Exact parameters; counts to the digits that are stored."""
    variant = "" if name == "default" else "asymmetric" if name.startswith("asymmetric") else name
    for width, depths, parameters, gmacs, torchprofile in COUNTS[name]:
        size = ModelSize(width, tuple(depths), network=variant_of(variant).network, variant=variant)
        costs = costs_of(size)
        assert costs.parameters == parameters
        assert (round(costs.plain_macs / 1e9, 3), round(costs.macs / 1e9, 3)) == (gmacs, torchprofile)


@pytest.mark.no_backend
@pytest.mark.parametrize("variant", VARIANTS)
def test_counted_parameters_are_those_of_the_network(variant):
    size = sized(ModelSize(32, (2, 1, 1, 0, 1)), variant)
    if variant == "asymmetric":
        size = dataclasses.replace(size, depths=(1, 0, 0, 1, 1))
    options = {"num_classes": 3, "in_channels": 1, "out_channels": 5}
    backbone = FCDMBackbone(size.hidden_channels, size.depths, variant=variant, **options)
    assert backbone.count_params() == costs_of(size, **options).parameters


@pytest.mark.no_backend
def test_variants_beside_l_have_the_papers_widths():
    widths = {name: sized(MODEL_SIZES["L"], name).hidden_channels for name in VARIANTS}
    assert all(widths[name] == 512 for name in ("kernel3", "kernel5", "kernel9", "kernel11", "asymmetric"))
    assert (widths["cca"], widths["resnet"], widths["neighborhood"], widths["uniform"]) == (510, 336, 416, 600)
    assert (widths["feedforward"], widths["no_inverted_bottleneck"]) == (424, 688)
    assert sized(MODEL_SIZES["XL"], "asymmetric").depths == (3, 5, 12, 7, 3)
    assert {row.size.variant for rows in architectures.tables().values() for row in rows if row.size} == {*VARIANTS, ""}
    gmacs = {name: costs_of(sized(MODEL_SIZES["S"], name)).macs / costs_of(MODEL_SIZES["S"]).macs for name in VARIANTS}
    assert all(0.8 < ratio < 1.15 for name, ratio in gmacs.items() if not name.startswith(("uni", "iso", "neigh"))), (
        gmacs
    )


@pytest.mark.no_backend
def test_every_disagreement_of_the_tables_has_a_note(capsys):
    model_table.main([])
    text = capsys.readouterr().out
    titles = [line for line in text.splitlines() if line.startswith("Table")]
    assert [int(title.split()[1].rstrip(":")) for title in titles] == [2, 3, 5, 6, 10, 12, 13, 14, 15, 16]
    differ = set()
    for row in (row for rows in architectures.tables().values() for row in rows if row.size):
        counted = round(row.costs.macs / 1e9, 1)
        if row.paper_gflops not in (None, counted):
            differ.add(row.model)
            assert architectures.NOTES[row.note] in text
        if row.paper_parameters:
            assert row.paper_parameters == pytest.approx(row.costs.parameters / 1e6, abs=0.5)
    assert {"kernel5", "feedforward", "no_inverted_bottleneck", "uniform"} <= differ
    assert "MDT-XL/2" in text and "Not built here" in text


@pytest.mark.no_backend
def test_estimates_of_memory_follow_the_variant():
    def kept(variant):
        size = sized(MODEL_SIZES["S"], variant)
        return MAPS[size.network](dataclasses.replace(size, hidden_channels=64), 1024)

    whole, checkpointed = kept("")
    assert whole == 14 * 64 * (2 * 1024 + 4 * 512 + 8 * 256 + 4 * 512 + 2 * 1024) > 5 * checkpointed
    assert kept("no_inverted_bottleneck")[0] == whole * 8 // 14
    assert kept("resnet")[0] < whole < kept("feedforward")[0] == kept("cca_feedforward")[0]
    assert kept("isotropic")[0] == 14 * 64 * 20 * 256


@pytest.mark.no_backend
def test_channels_are_compared_behind_channel_attention_too(loaded):
    samples = np.zeros((2, 8, 8, 4), "float32"), np.zeros(2, "int32"), [10]
    values = channel_diversity(loaded("cca"), *samples)
    assert values.shape == (5,) and ((values > 0) & (values < 1)).all()
    with pytest.raises(ValueError, match="have CCA and no GRN"):
        channel_diversity(loaded("cca"), *samples, with_grn=False)
    with pytest.raises(ValueError, match="have neither GRN nor CCA"):
        channel_diversity(loaded("resnet"), *samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "ccaa"}, "no variant 'ccaa': did you mean cca"),
        ({"variant": "transformer-xyz"}, "no variant 'transformer-xyz': there are kernel3, kernel5"),
        ({"variant": 3}, "no variant 3"),
        ({"variant": "kernel3", "kernel_size": 5}, "kernel_size of the variant kernel3 is 3: leave it out"),
        ({"variant": "resnet", "expansion_ratio": 3}, "expansion_ratio of the variant resnet is 1"),
        ({"variant": "asymmetric"}, "must have more blocks in the decoder than in the encoder. Received: .1, 1, 1, 1"),
        ({"variant": "uniform", "depths": (1, 1, 2, 1, 1)}, "must be equal on all levels"),
        ({"variant": "isotropic"}, "depths must be 1 non-negative integers"),
        ({"variant": "neighborhood"}, "head_width must divide the width 8 of the blocks.*Received: 32"),
        ({"variant": "cca", "head_width": 4}, "head_width is of the variant neighborhood: leave it out"),
        ({"head_width": 4}, "head_width is of the variant neighborhood: leave it out"),
    ],
)
@pytest.mark.no_backend
def test_what_makes_no_variant_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FCDMBackbone(8, **{"depths": (1, 1, 1, 1, 1), **options})


def test_maps_smaller_than_a_window_are_refused(loaded):
    inputs = {"timesteps": np.zeros(1), "labels": np.zeros(1, "int32")}
    with pytest.raises(ValueError, match="Height and width of x_t must be at least 28. Received: 24×28"):
        loaded("neighborhood")({"x_t": np.zeros((1, 24, 28, 4), "float32"), **inputs})
    with pytest.raises(ValueError, match="feature maps of at least 7×7, its window: .* Received: 7×6"):
        NeighborhoodAttention(7, 4)(np.zeros((1, 7, 6, 4), "float32"))


@pytest.mark.no_backend
def test_a_checkpoint_of_another_variant_is_refused(checkpoints, golden_checkpoint, tmp_path, capsys):
    for file, variant, message in (
        (
            checkpoints / "cca.pt",
            "feedforward",
            "of the variant feedforward: .* the variant cca or cca_no",
        ),
        (golden_checkpoint, "cca", "no checkpoint of the variant cca: by its tensors it is one of FCDM"),
        (checkpoints / "cca.pt", "cca_no_inverted_bottleneck", "its expansion_ratio is 3, and the variant's is 1"),
        (golden_checkpoint, "kernel3", "its kernel_size is 7, and the variant's is 3"),
        (golden_checkpoint, "uniform", "depths of the variant uniform must be equal"),
        (checkpoints / "neighborhood.pt", None, "head_width must divide"),
    ):
        with pytest.raises(ValueError, match=message):
            load_torch_checkpoint(file, variant=variant)
    convert.main([str(checkpoints / "neighborhood.pt"), str(tmp_path / "preset"), "--head-width=4"])
    assert FCDMBackbone.from_preset(tmp_path / "preset").variant == "neighborhood"
    with pytest.raises(SystemExit):
        convert.main([str(checkpoints / "cca.pt"), str(tmp_path / "other"), "--variant=feedforward"])


@pytest.mark.parametrize("variant", ["isotropic"])
def test_a_run_trains_a_variant_and_keeps_it(variant, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODEL_SIZES, "XS", ModelSize(8, (0, 0, 1, 0, 0)))
    flags = ["--global-batch-size=8", "--sample-every=0", "--log-every=1", f"--results-dir={tmp_path}"]
    parse = [*flags, "--steps=2", f"--variant={variant}", "--gradient-checkpointing", "--seed=5"]
    config, _ = train_imagenet.parse(parse)
    folder = open_run(config)
    fit_run(config, folder)
    assert f"FCDM-XS ({variant})" in capsys.readouterr().out
    task = load_task(folder)
    assert task.backbone.variant == variant and np.isfinite(to_numpy(task.generate([3], num_steps=2))).all()
    assert model_size(read_run(folder))[0] == task.backbone.count_params() / 1e6
    with pytest.raises(ValueError, match=f"variant='{variant}' there, '' now"):
        open_run(dataclasses.replace(config, variant=""))


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--variant=neighbourhood",), "There is no variant 'neighbourhood': did you mean neighborhood?"),
        (("--variant=kernel7",), "There is no variant 'kernel7': did you mean kernel9 or kernel5 or kernel3?"),
    ],
)
def test_flags_name_variants(flags, message, capsys):
    for script in (train_imagenet, train_coco):
        with pytest.raises(SystemExit):
            script.parse(flags)
        assert message in capsys.readouterr().err


@pytest.mark.no_backend
def test_a_run_on_maps_smaller_than_the_window_is_refused_at_once(tmp_path):
    config, _ = train_imagenet.parse(["--variant=neighborhood", f"--results-dir={tmp_path}"])
    with pytest.raises(ValueError, match="neighborhood needs latents of at least 28×28: .* Received: 8×8"):
        fit_run(config, open_run(config))


@pytest.mark.no_backend
def test_weights_to_start_from_must_be_of_the_same_parts(loaded):
    check_start(loaded("kernel3"), FCDMBackbone(4, (1,) * 5, kernel_size=3))  # the same network by another name
    with pytest.raises(ValueError, match="variant cca there, fcdm here"):
        check_start(loaded("cca"), FCDMBackbone(6, (1,) * 5))


@pytest.mark.no_backend
def test_a_variant_of_a_model_of_another_network_is_refused(monkeypatch):
    monkeypatch.setitem(MODEL_SIZES, "Other", ModelSize(8, (1,), network="other"))
    with pytest.raises(ValueError, match="variants are FCDM's; leave out variant 'cca'"):
        dataclasses.replace(RECIPES["digits"], model="Other", variant="cca").check()
