"""Reference checkpoints to backbones and back, and what a file that is none of them brings about."""

import argparse
import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from keras import ops

from fcdm_keras.backend.hub import keras_hub
from fcdm_keras.convert import main
from fcdm_keras.network.fcdm import FCDMBackbone
from fcdm_keras.network.reference import load_torch_checkpoint, save_torch_state_dict

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "fcdm" / "fcdm_checkpoint.pt"


def read(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def model_state():
    return read(GOLDEN)["model"]


def output(backbone):
    """The output for one fixed input."""
    x_t = np.random.default_rng(0).normal(size=(1, 4, 4, backbone.in_channels)).astype("float32")
    return backbone.predict_on_batch({"x_t": x_t, "timesteps": np.array([700]), "labels": np.array([1])})


def assert_equal_weights(actual, expected):
    for a, e in zip(actual.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(e), err_msg=e.path)


def message_of(path, error=ValueError, **options):
    """The message of the error that loading `path` raises: one line, one sentence, with the file's name."""
    with pytest.raises(error) as raised:
        load_torch_checkpoint(path, **options)
    message = str(raised.value)
    assert str(path) in message and "\n" not in message
    assert len(re.split(r"\. (?!Received: )", message)) == 1, message
    return message


@pytest.mark.no_backend
def test_sizes_are_read_from_the_tensors(tmp_path):
    backbone = load_torch_checkpoint(GOLDEN)
    assert (backbone.hidden_channels, backbone.depths) == (8, (1, 2, 2, 2, 1))
    assert (backbone.in_channels, backbone.out_channels) == (4, 8)
    assert (backbone.conditioning.num_classes, backbone.expansion_ratio, backbone.kernel_size) == (10, 3, 7)
    other = FCDMBackbone(
        6, (0, 1, 2, 0, 3), num_classes=3, in_channels=2, out_channels=5, expansion_ratio=2.5, kernel_size=5
    )
    save_torch_state_dict(other, tmp_path / "other.pt")
    loaded = load_torch_checkpoint(tmp_path / "other.pt")
    names = ("hidden_channels", "depths", "in_channels", "out_channels", "expansion_ratio", "kernel_size")
    assert [getattr(loaded, name) for name in names] == [getattr(other, name) for name in names]
    assert loaded.conditioning.num_classes == 3


def test_round_trip_is_bit_exact(tmp_path, model_state):
    save_torch_state_dict(load_torch_checkpoint(GOLDEN, weights="model"), tmp_path / "ours.pt")
    written = read(tmp_path / "ours.pt")
    for weights in ("model", "ema"):
        assert written[weights].keys() == model_state.keys()
        for name, tensor in model_state.items():
            ours = written[weights][name]
            assert (ours.shape, ours.dtype) == (tensor.shape, torch.float32), name
            assert torch.equal(ours.view(torch.int32), tensor.view(torch.int32)), name
    assert_equal_weights(load_torch_checkpoint(tmp_path / "ours.pt"), load_torch_checkpoint(GOLDEN, weights="model"))


@pytest.mark.no_backend
def test_model_and_ema_are_told_apart():
    ema, model = (load_torch_checkpoint(GOLDEN, weights=weights) for weights in ("ema", "model"))
    reference = read(GOLDEN)
    biases = [ops.convert_to_numpy(backbone.x_embedder.bias) for backbone in (ema, model)]
    for bias, state in zip(biases, (reference["ema"], reference["model"]), strict=True):
        np.testing.assert_array_equal(bias, state["x_embedder.bias"].numpy())
    assert np.abs(biases[0] - biases[1]).max() > 1e-3


@pytest.mark.no_backend
@pytest.mark.parametrize("form", ["bare", "parameters", "legacy file"])
def test_other_forms_of_a_checkpoint_load(form, tmp_path, model_state):
    state = {name: torch.nn.Parameter(w) for name, w in model_state.items()} if form == "parameters" else model_state
    torch.save(state, tmp_path / "state.pt", _use_new_zipfile_serialization=form != "legacy file")
    assert_equal_weights(load_torch_checkpoint(tmp_path / "state.pt"), load_torch_checkpoint(GOLDEN, weights="model"))


@pytest.mark.no_backend
def test_weights_outlive_their_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(GOLDEN.read_bytes())
    backbone = load_torch_checkpoint(path)
    with open(path, "r+b") as file:  # in place, as whatever is mapped into memory would see it
        file.write(bytes(path.stat().st_size))
    assert_equal_weights(backbone, load_torch_checkpoint(GOLDEN))


class Malicious:
    def __init__(self, evidence):
        self.evidence = evidence

    def __reduce__(self):
        return os.system, (f"touch {self.evidence}",)


@pytest.mark.no_backend
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_executed(zipped, tmp_path, model_state):
    evidence = tmp_path / "evidence"
    payload = {"model": model_state, "ema": model_state, "args": Malicious(evidence)}
    torch.save(payload, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    assert "system, which is refused" in message_of(tmp_path / "evil.pt")
    assert not evidence.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert evidence.exists()  # the file does bite where it is let


@pytest.mark.no_backend
def test_damaged_files_are_refused(tmp_path, model_state):
    whole = GOLDEN.read_bytes()
    torch.save(model_state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    legacy = (tmp_path / "legacy.pt").read_bytes()
    path = tmp_path / "damaged.pt"
    contents = [b"", b"hello world\n", b"\x80\x02", bytes(4096)]
    contents += [data[: int(len(data) * share)] for data in (whole, legacy) for share in (0.001, 0.3, 0.9, 0.9999)]
    contents += [data[:200] + b"\x00\xff" * 100 + data[400:] for data in (whole, legacy)]
    for content in contents:
        path.write_bytes(content)
        assert "truncated, damaged or not a PyTorch checkpoint" in message_of(path)
    path.write_bytes(b'{"model": 1}')  # as an index of parts begins
    assert "missing required field `weight_map`. Received: an object with" in message_of(path)


@pytest.mark.no_backend
def test_other_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("readme.txt", "no tensors")
    assert "not a PyTorch checkpoint" in message_of(tmp_path / "archive.pt")


@pytest.mark.no_backend
@pytest.mark.parametrize(
    "content, message",
    [
        ({"weight": torch.zeros(2)}, "has no 'ema' weights"),
        ({"ema": {"weight": torch.zeros(2)}}, "no tensor x_embedder.weight"),
        ({"ema": [1, 2]}, "no state dict of tensors"),
        ({"ema": {3: torch.zeros(2)}}, "no state dict of tensors"),
        ([torch.zeros(2)], "no state dict of tensors"),
        (3, "no state dict of tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_torch_files_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    assert message in message_of(tmp_path / "other.pt")


@pytest.mark.no_backend
def test_a_missing_or_unknown_tensor_is_named(tmp_path, model_state):
    for name in ("output_layer.weight", "decoder_level_1.0.grn.beta"):
        torch.save({k: w for k, w in model_state.items() if k != name}, tmp_path / "x.pt")
        assert f"missing tensors ['{name}']" in message_of(tmp_path / "x.pt")
    torch.save({**model_state, "pos_embed": torch.zeros(2)}, tmp_path / "x.pt")
    assert "unknown tensors ['pos_embed']" in message_of(tmp_path / "x.pt")


@pytest.mark.no_backend
@pytest.mark.parametrize(
    "name, shape",
    [
        ("x_embedder.weight", (8,)),
        ("x_embedder.weight", (5, 4, 3, 3)),
        ("t_embedder_2.mlp.0.weight", (256, 16)),
        ("y_embedder_1.embedding_table.weight", (0, 8)),
        ("y_embedder_3.embedding_table.weight", (10, 32)),
        ("encoder_level_1.0.pwconv1.weight", (24, 8)),
        ("encoder_level_1.0.pwconv1.weight", (0, 0, 1, 1)),
        ("latent.1.pwconv2.weight", (32, 96)),
        ("latent.1.pwconv2.weight", (32, 96, 3, 3)),
        ("latent.0.grn.gamma", (1, 1, 96, 1)),
        ("latent.0.dwconv.weight", (32, 1, 5, 5)),
        ("latent.0.dwconv.bias", (32, 1)),
        ("down1_2.conv.0.weight", (8, 4, 1, 1)),
    ],
)
def test_a_tensor_of_wrong_shape_is_refused(name, shape, tmp_path, model_state):
    torch.save({**model_state, name: torch.zeros(shape)}, tmp_path / "x.pt")
    message = message_of(tmp_path / "x.pt")
    assert str(shape) in message and name in message or "hidden_channels" in message


@pytest.mark.no_backend
def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match='weights must be "ema" or "model". Received: \'best\''):
        load_torch_checkpoint(GOLDEN, weights="best")
    assert "no checkpoint file" in message_of(tmp_path / "none.pt", FileNotFoundError)
    assert "no checkpoint file" in message_of(tmp_path, FileNotFoundError)


def run(*arguments):
    command = [sys.executable, "-m", "fcdm_keras.convert", *map(str, arguments)]
    return processes.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.no_backend
def test_command_writes_a_preset(tmp_path, model_state):
    preset = tmp_path / "preset"
    done = run(GOLDEN, preset, "--weights", "model")
    assert done.returncode == 0, done.stderr
    count = sum(tensor.numel() for tensor in model_state.values())
    assert f"{count:,} parameters" in done.stdout and "model weights" in done.stdout
    expected = load_torch_checkpoint(GOLDEN, weights="model")
    ours, hubs = (cls.from_preset(str(preset)) for cls in (FCDMBackbone, keras_hub.models.Backbone))
    for backbone in (ours, hubs):
        assert isinstance(backbone, FCDMBackbone)
        assert_equal_weights(backbone, expected)
    np.testing.assert_array_equal(output(ours), output(expected))
    np.testing.assert_array_equal(output(hubs), output(expected))


@pytest.mark.no_backend
def test_command_fails_in_one_line(tmp_path):
    (tmp_path / "bad.pt").write_bytes(GOLDEN.read_bytes()[:100_000])
    done = run(tmp_path / "bad.pt", tmp_path / "out")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}/bad.pt is truncated") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.no_backend
def test_command_says_why_a_preset_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit, match="^error: .*file"):
        main([str(GOLDEN), str(tmp_path / "file")])
