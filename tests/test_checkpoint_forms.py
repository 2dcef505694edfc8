"""Checkpoints in the forms that people have: wrappers, containers, formats, numbers, label tables."""

import argparse
import collections
import json
import types
import warnings

import numpy as np
import pytest
import torch
from checkpoint_files import Part, assert_holds, loads, reference_states
from keras import ops
from safetensors.torch import save_file
from test_convert import message_of

from fcdm_keras.convert import main
from fcdm_keras.formats.torch_files import check_finite
from fcdm_keras.network.fcdm import FCDMBackbone
from fcdm_keras.network.reference import load_torch_checkpoint
from fcdm_keras.runs.load import load_backbone

pytestmark = pytest.mark.no_backend
TABLES = [f"y_embedder_{i}.embedding_table.weight" for i in (1, 2, 3)]


@pytest.fixture
def states():
    return reference_states()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


WRAPPERS = {
    "none": lambda module: module,
    "data parallel": torch.nn.DataParallel,
    "twice": lambda module: torch.nn.DataParallel(torch.nn.DataParallel(module)),
    "compile": torch.compile,
    "data parallel of compile": lambda module: torch.nn.DataParallel(torch.compile(module)),
    "compile of data parallel": lambda module: torch.compile(torch.nn.DataParallel(module)),
    "average": torch.optim.swa_utils.AveragedModel,
    "average of data parallel": lambda module: torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(module)),
    "trainer": lambda module: torch.nn.ModuleDict({"model": module, "loss": torch.nn.Linear(2, 2)}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_wraps_a_model_is_taken_off_its_names(wrapper, path, states):
    wrapped = WRAPPERS[wrapper](Part(states["ema"])).state_dict()
    loads(wrapped, states["ema"], path)
    loads({"model": states["model"], "ema": wrapped}, states["ema"], path)
    loads({"model": wrapped, "ema": states["model"]}, states["ema"], path, weights="model")


def test_a_wrapper_inside_the_model_is_taken_off(path, states):
    module = Part(states["ema"])
    module.latent = torch.compile(module.latent)
    assert any("latent._orig_mod." in name for name in module.state_dict())
    loads(module.state_dict(), states["ema"], path)


@pytest.mark.parametrize("wrapper", ["none", "data parallel", "average"])
def test_a_whole_module_is_read_without_its_class(wrapper, path, states):
    loads(WRAPPERS[wrapper](Part(states["ema"])), states["ema"], path)
    model, ema = Part(states["model"]), WRAPPERS[wrapper](Part(states["ema"]))
    loads({"model": model, "ema": ema}, states["ema"], path)
    loads({"model": model, "ema": ema}, states["model"], path, weights="model")


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "container",
    [
        lambda m, e: {"model": m, "model_ema": e, "epoch": 3},
        lambda m, e: {"model_state_dict": m, "ema_state_dict": e},
        lambda m, e: {"state_dict": m, "state_dict_ema": e},
        lambda m, e: {"params": m, "params_ema": e},
        lambda m, e: {"module": m, "ema": {"decay": 0.9999, "module": e, "updates": 7}},
        lambda m, e: {"model": m, "ema": {"shadow": e}},
        lambda m, e: {"model": m, "ema": {**prefixed("online_model.", m), **prefixed("ema_model.", e)}},
        lambda m, e: {"state_dict": {**prefixed("model.", m), **prefixed("ema_model.module.", e)}},
        lambda m, e: {"checkpoint": {"networks": {"model": m, "ema": e}}},
    ],
)
def test_both_networks_are_found_under_other_names(container, path, states):
    content = container(states["model"], states["ema"])
    loads(content, states["ema"], path)
    loads(content, states["model"], path, weights="model")


@pytest.mark.parametrize("name", ["state_dict", "module", "params", "weights"])
def test_weights_that_are_called_neither_count_as_both(name, path, states):
    for weights in ("ema", "model"):
        loads({name: states["ema"], "step": 1}, states["ema"], path, weights=weights)


@pytest.mark.parametrize("weights, name", [("ema", "model"), ("model", "ema"), ("ema", "model_state_dict")])
def test_weights_that_are_not_there_are_not_replaced(weights, name, path, states):
    torch.save({name: states["ema"], "opt": {}}, path)
    other = "model" if weights == "ema" else "ema"
    message = message_of(path, weights=weights)
    assert f'no {weights!r} weights, but {name}; give weights="{other}" (--weights {other})' in message


def test_several_networks_are_not_guessed_at(path, states):
    torch.save({"ema": {"0.999": states["ema"], "0.9999": states["model"]}}, path)
    assert "several networks as 'ema' weights (ema/0.999, ema/0.9999)" in message_of(path)


def test_another_network_is_named_by_its_tensors(path):
    other = {"cls_token": torch.zeros(1, 1, 8), "x_embedder.proj.weight": torch.zeros(8, 4, 2, 2)}
    torch.save({"model": other, "ema": other}, path)
    message = message_of(path)
    assert (
        "holds a network that is none of fcdm, dico, " in message
        and "sit: cls_token, x_embedder.proj.weight." in message
    )


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.ckpt", "a.pth", "a.bin", "a", "a.sft"])
def test_content_decides_and_not_the_ending(name, tmp_path, states):
    save_file(states["ema"], tmp_path / name)
    assert_holds(load_torch_checkpoint(tmp_path / name), states["ema"], tmp_path)
    for zipped in (True, False):
        loads({"ema": states["ema"]}, states["ema"], tmp_path / name, _use_new_zipfile_serialization=zipped)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:5000])
    assert "truncated, damaged" in message_of(tmp_path / name)


def test_a_command_takes_a_safetensors_file_as_a_model(tmp_path, states):
    save_file(states["ema"], tmp_path / "a.safetensors")
    assert_holds(load_backbone(tmp_path / "a.safetensors"), states["ema"], tmp_path)


def test_a_truncated_safetensors_file_is_refused(tmp_path, states):
    save_file(states["ema"], tmp_path / "whole")
    for length in (9, 100, 5000, -4):
        (tmp_path / "cut.pt").write_bytes((tmp_path / "whole").read_bytes()[:length])
        assert "truncated, damaged" in message_of(tmp_path / "cut.pt")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_pickle_protocol_is_read(protocol, zipped, path, states):
    content = {"ema": collections.OrderedDict(states["ema"]), "args": argparse.Namespace(sizes={1, 2})}
    loads(content, states["ema"], path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_parts_are_read_by_their_index(suffix, tmp_path, states):
    names = list(states["ema"])
    parts = {f"model-{i}.{suffix}": {name: states["ema"][name] for name in names[i::2]} for i in (0, 1)}
    for part, tensors in parts.items():
        (save_file if suffix == "safetensors" else torch.save)(tensors, tmp_path / part)
    index = tmp_path / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {name: part for part, tensors in parts.items() for name in tensors}}))
    assert_holds(load_torch_checkpoint(index), states["ema"], tmp_path)
    (tmp_path / f"model-1.{suffix}").unlink()
    assert f"lists model-1.{suffix}, which is not there" in message_of(index, FileNotFoundError)
    index.write_text('{"weight_map": [1]}')
    assert "at $.weight_map, expected `object`" in message_of(index)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs pointer, .*`git lfs pull`"),
        (b"/annex/objects/SHA256E-s3--0.pt\n", "git-annex pointer, .*`git annex get`"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
        (b"\n  <HTML lang='en'>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "is an HDF5 file"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "is a GGUF file"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "is an archive; unpack it"),
        (b"a.pt".ljust(257, b"\0") + b"ustar\x00" + bytes(700), "is an archive; unpack it"),
    ],
)
def test_files_of_other_kinds_are_called_what_they_are(content, message, path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_torch_checkpoint(path)
    assert message_of(path).count(";") == 1


def test_what_is_no_file_is_called_what_it_is(tmp_path):
    (tmp_path / "linked.pt").symlink_to(".git/annex/objects/x.pt")
    assert "a link to .git/annex/objects/x.pt, which is not there" in message_of(
        tmp_path / "linked.pt", FileNotFoundError
    )
    assert "it is a folder, with linked.pt; name the file" in message_of(tmp_path, FileNotFoundError)
    for name in ("config.json", "metadata.json"):
        (tmp_path / name).write_text("{}")
    assert "it is a Keras preset already" in message_of(tmp_path, FileNotFoundError)


def test_a_torchscript_program_is_refused(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "TorchScript program" in message_of(path)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_floats_of_every_width_are_read(kind, path, states):
    state = {name: tensor.to(getattr(torch, kind)) for name, tensor in states["ema"].items()}
    loads({"ema": state}, state, path)
    save_file(state, path)
    assert_holds(load_torch_checkpoint(path), state, path.parent)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int64", "bool", "complex64"])
def test_quantised_weights_are_refused(kind, path, states):
    for save in (torch.save, save_file):
        save(
            {**states["ema"], "latent.1.pwconv2.weight": torch.zeros((32, 96, 1, 1), dtype=getattr(torch, kind))}, path
        )
        assert f"latent.1.pwconv2.weight holds {kind}, as quantised copies do" in message_of(path)


@pytest.mark.parametrize(
    "make, kind",
    [
        (lambda w: w.to_sparse(), "sparse"),
        (lambda w: w.to("meta"), "meta"),
    ],
    ids=["sparse", "meta"],
)
@pytest.mark.parametrize("beside", [None, np.float64(1)])
def test_tensors_without_plain_numbers_are_refused(make, kind, beside, path, states):
    torch.save(
        {"ema": {**states["ema"], "output_layer.weight": make(states["ema"]["output_layer.weight"])}, "x": beside}, path
    )
    message = message_of(path)
    assert "output_layer.weight" in message and kind in message.split("output_layer.weight")[1]


@pytest.mark.parametrize(
    "values, counts",
    [([np.nan], "1 are NaN and 0 infinite"), ([np.inf, np.nan, -np.inf], "1 are NaN and 2 infinite")],
)
def test_weights_that_are_not_finite_are_refused(values, counts, path, states):
    bias = states["ema"]["latent.0.pwconv1.bias"].clone()
    bias[: len(values)] = torch.tensor(values)
    torch.save({"model": states["model"], "ema": {**states["ema"], "latent.0.pwconv1.bias": bias}}, path)
    assert f"latent.0.pwconv1.bias is not finite: of 96 values, {counts}" in message_of(path)
    load_torch_checkpoint(path, weights="model")


def test_weights_beyond_float32_are_refused(path, states):
    torch.save({**states["ema"], "x_embedder.bias": torch.full((8,), 1e300, dtype=torch.float64)}, path)
    assert "x_embedder.bias is not finite: of 8 values, 0 are NaN and 8 infinite" in message_of(path)


def test_finite_arrays_pass():
    for array in (np.zeros(3), np.full(3, np.finfo("float32").max), np.zeros((0, 2)), np.arange(3)):
        check_finite("array", array)


def test_views_ties_and_strides_are_read(path, states):
    flat = torch.cat([tensor.reshape(-1) for tensor in states["ema"].values()])
    parts = flat.split([tensor.numel() for tensor in states["ema"].values()])
    views = {n: part.view(w.shape) for (n, w), part in zip(states["ema"].items(), parts, strict=True)}
    loads({"ema": views, "fid": np.float64(1)}, states["ema"], path)
    strided = {name: w.t().contiguous().t() if w.ndim == 2 else w for name, w in states["ema"].items()}
    strided |= {name: w.to(memory_format=torch.channels_last) for name, w in strided.items() if w.ndim == 4}
    assert not all(tensor.is_contiguous() for tensor in strided.values())
    loads({"ema": strided}, states["ema"], path)
    one = torch.ones(32)
    tied = {name: one if name.startswith("latent.") and w.shape == (32,) else w for name, w in states["ema"].items()}
    loads({"ema": tied, "fid": np.float64(1)}, tied, path)


def without_null(state):
    """A state dict as of a model that was trained without label dropout: its tables end with the last class."""
    return {name: tensor[:-1].clone() if name in TABLES else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "args",
    [
        argparse.Namespace(num_classes=10),
        {"num_classes": 10, "class_dropout_prob": 0.0},
        types.SimpleNamespace(class_dropout_prob=0, lr=1e-4),
        {"data": {"num_classes": 10}, "seed": np.int64(1)},
        {"hyper_parameters": {"model": {"num_classes": 10}}},
    ],
)
def test_a_missing_row_for_no_class_is_told_by_the_files_arguments(args, path, states):
    torch.save({"ema": without_null(states["ema"]), "args": args}, path)
    with pytest.warns(UserWarning, match="trained without label dropout, so that guidance means nothing") as warned:
        backbone = load_torch_checkpoint(path)
    assert sum("label dropout" in str(warning.message) for warning in warned) == 1
    assert backbone.conditioning.num_classes == 10
    for table, name in zip(backbone.conditioning.tables, TABLES, strict=True):
        rows = states["ema"][name][:-1].numpy()
        np.testing.assert_array_equal(ops.convert_to_numpy(table)[:-1], rows)
        np.testing.assert_allclose(ops.convert_to_numpy(table)[-1], rows.astype("float64").mean(axis=0), atol=1e-7)


@pytest.mark.parametrize(
    "args",
    [None, {"num_classes": 10}, {"num_classes": 10, "class_dropout_prob": 0}, {"num_classes": 1000}, {"lr": 0}],
)
def test_tables_are_taken_to_have_a_row_for_no_class_otherwise(args, path, states):
    torch.save({"ema": states["ema"], "args": args}, path)
    with warnings.catch_warnings(action="error", category=UserWarning):
        assert load_torch_checkpoint(path).conditioning.num_classes == 10


def test_the_number_of_classes_may_be_given(path, states, tmp_path):
    torch.save(without_null(states["ema"]), path)
    assert load_torch_checkpoint(path, num_classes=9).conditioning.num_classes == 9
    message = message_of(path, num_classes=11)
    assert "label tables of 10 rows: num_classes is 9, or 10 without a row" in message and "Received: 11" in message
    with pytest.warns(UserWarning, match="without label dropout"):
        main([str(path), str(tmp_path / "preset"), "--num-classes", "10"])
    preset = FCDMBackbone.from_preset(str(tmp_path / "preset"))
    assert preset.conditioning.num_classes == 10
    table = ops.convert_to_numpy(preset.conditioning.tables[0])
    np.testing.assert_array_equal(table[:-1], states["ema"][TABLES[0]][:-1].numpy())
