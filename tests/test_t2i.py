"""Text to image: the conditioning module, the task, and the real script on the embedded recipe, in small."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import processes
import pytest
from helpers import tiny_backbone, to_numpy
from PIL import Image
from small_run import SMALL
from test_tasks import almost_equal
from text_helpers import score_few, share_processes

import train_coco
from fcdm_keras import sample
from fcdm_keras.recipes import MODEL_SIZES
from fcdm_keras.reporting.tables import model_size, read_run
from fcdm_keras.runs import build, load
from fcdm_keras.runs.folder import stored_config
from t2i import data, recipes
from t2i import load as text_models
from t2i import sample as sample_prompts
from t2i.conditioning import TextConditioning
from t2i.shapes import report
from t2i.tasks import TextToImage
from t2i.text_encoder import OpenCLIPTextEncoder

DIM = 16
OPTIONS = {"num_steps": 2, "seed": 3, "guidance_scale": 3.0, "batch_size": 4}


def embeddings(count, seed=0):
    return np.random.default_rng(seed).normal(3.0, 2.0, (count, DIM)).astype("float32")


def text_backbone(**options):
    return tiny_backbone((1, 0, 1, 0, 0), conditioning=TextConditioning(DIM, name="conditioning"), **options)


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as monkeypatch:
        share_processes(monkeypatch)
        monkeypatch.setitem(MODEL_SIZES, "XS", SMALL)
        score_few(monkeypatch.setattr)
        yield monkeypatch


@pytest.fixture(scope="module")
def encoder(patched, tiny_clip):
    return OpenCLIPTextEncoder(tiny_clip, None)


def test_vectors_are_an_mlp_of_standardised_embeddings():
    backbone = text_backbone()
    conditioning, known = backbone.conditioning, embeddings(500) @ embeddings(DIM, seed=2)  # correlated
    known[:, 5] = 7.0  # a feature that says nothing
    conditioning.adapt(known, np.full(DIM, 2.5, "float32"))
    asked = known[:3] + 1.0
    mean, std = known.mean(axis=0, dtype="float64"), known.std(axis=0, dtype="float64")
    std[5] = 1.0
    _, sizes, directions = np.linalg.svd((known - mean) / std / np.sqrt(len(known)))
    standard = (asked - mean) / std @ directions.T / (sizes + 0.3) @ directions
    for vector, hidden, out in zip(conditioning(asked), conditioning.hidden, conditioning.out):
        x = standard @ to_numpy(hidden.kernel) + to_numpy(hidden.bias)
        expected = (x / (1 + np.exp(-x))) @ to_numpy(out.kernel) + to_numpy(out.bias)
        np.testing.assert_allclose(to_numpy(vector), expected, rtol=1e-4, atol=1e-4)
    assert [tuple(vector.shape) for vector in conditioning(asked)] == [(3, 8), (3, 16), (3, 32)]
    assert [layer.units for layer in conditioning.hidden] == [16, 16, 32]


def test_dropped_prompts_are_the_empty_one_at_all_widths():
    conditioning = text_backbone().conditioning
    conditioning.adapt(embeddings(50), np.arange(DIM, dtype="float32"))
    asked, mask = embeddings(4), np.array([True, False, False, True])
    dropped = to_numpy(conditioning.drop(asked, keras.ops.convert_to_tensor(mask)))
    np.testing.assert_array_equal(dropped[mask], [np.arange(DIM)] * 2)
    np.testing.assert_array_equal(dropped[~mask], asked[~mask])
    np.testing.assert_array_equal(to_numpy(conditioning.null(2)), [np.arange(DIM)] * 2)
    with pytest.raises(ValueError, match=r"label_dropout_mode must be 'joint'. Received: a mask of shape \(4, 3\)"):
        conditioning.drop(asked, keras.ops.ones((4, 3), dtype="bool"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (np.zeros((2, 7), "float32"), rf"must have shape \(B, {DIM}\), .*Received: \(2, 7\)"),
        (np.zeros((2, DIM), "int32"), "must be floating-point numbers. Received: dtype int32"),
        (np.full((2, DIM), np.nan, "float32"), "must be finite"),
    ],
)
def test_embeddings_that_cannot_be_right_are_refused(asked, message):
    backbone = text_backbone()
    with pytest.raises(ValueError, match=message):
        backbone({"x_t": np.zeros((2, 8, 8, 2), "float32"), "timesteps": np.zeros(2), "text_embeddings": asked})
    with pytest.raises(ValueError, match="embedding_dim must be a positive integer. Received: 0"):
        TextConditioning(0)


def names(backbone):
    own = {id(variable) for variable in backbone.conditioning.variables}
    paths = (v.path.partition("/")[2] for v in backbone.variables if id(v) not in own)
    return list(paths)


def test_text_and_class_models_share_every_name_of_the_backbone_and_its_weights(tmp_path):
    classes = tiny_backbone((1, 0, 1, 0, 0), name="backbone")
    text = text_backbone(name="backbone")
    assert names(classes) == names(text) and len(names(text)) > 20
    classes.save_to_preset(str(tmp_path / "classes"))
    before = [to_numpy(v).copy() for v in text.conditioning.variables]
    done = build.copy_weights(text_models.load_backbone(tmp_path / "classes"), text)
    made = len(text.conditioning.variables)
    assert done == f"{len(text.variables) - made} tensors are kept, the {made} of the conditioning are made anew"
    for a, b in zip(before, text.conditioning.variables):
        np.testing.assert_array_equal(a, to_numpy(b))
    np.testing.assert_array_equal(to_numpy(text.x_embedder.kernel), to_numpy(classes.x_embedder.kernel))
    text.save_to_preset(str(tmp_path / "text"))
    loaded = text_models.load_backbone(tmp_path / "text")
    for a, b in zip(text.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), err_msg=a.path)


@pytest.fixture(scope="module")
def task(encoder):
    backbone = text_backbone(in_channels=3)
    known = encoder.encode(["a red circle", "a blue square", "two green crosses"])
    backbone.conditioning.adapt(known, encoder.encode([""])[0])
    return TextToImage(backbone, image_size=8, text_encoder=encoder)


@pytest.fixture(scope="module")
def images(task):
    return task.generate(["a red circle", "a blue square", ""], **OPTIONS)


def test_prompts_are_a_list_a_string_or_a_dict(task, images):
    assert images.dtype == np.uint8 and images.shape == (3, 8, 8, 3)
    assert almost_equal(task.generate("a red circle", **OPTIONS), images[:1])
    prompts = ["a red circle", "a blue square", ""]
    assert almost_equal(task.generate({"prompts": prompts}, **OPTIONS), images)
    assert almost_equal(task.predict(prompts, verbose=0, **OPTIONS), images)
    assert not almost_equal(task.generate(["a blue square"] * 3, **OPTIONS)[:1], images[:1])


def test_negative_prompts_stand_where_no_prompt_stood(task, images):
    prompts = ["a red circle", "a blue square", ""]
    assert almost_equal(task.generate(prompts, negative_prompts="", **OPTIONS), images)
    negative = task.generate({"prompts": prompts, "negative_prompts": ["", "a red circle", ""]}, **OPTIONS)
    assert almost_equal(negative[::2], images[::2]) and not almost_equal(negative[1:2], images[1:2])
    # Away from what is asked for there is no way to go: the scale does not matter.
    same = [task.generate("a cat", **{**OPTIONS, "guidance_scale": s}, negative_prompts="a cat") for s in (3.0, 9.0)]
    assert almost_equal(*same) and not almost_equal(same[0], task.generate("a cat", **OPTIONS))
    with pytest.raises(ValueError, match="^Negative prompts .* no effect: guidance_scale is 1"):
        task.generate("a cat", **{**OPTIONS, "guidance_scale": 1}, negative_prompts="a dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "Received: an empty list"),
        ({"prompts": 3}, "must be a list of strings. Received: int"),
        ({"prompts": {"prompt": "a"}}, r"A dict must have prompts, .*Received: \['prompt'\]"),
        ({"negative_prompts": ["a", "b"]}, "one negative prompt per prompt, 1. Received: 2"),
        ({"negative_prompts": 3}, "must be a list of strings. Received: int"),
        ({"num_steps": 0}, "num_steps must be an integer"),
        ({"guidance_scale": -1}, "guidance_scale must be at least 0"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(task, change, message):
    with pytest.raises(ValueError, match=message):
        task.generate(**{"prompts": ["a"], **OPTIONS, **change})


def test_a_preset_keeps_the_text_encoder_and_all_weights(task, encoder, tmp_path):
    task.save_to_preset(str(tmp_path))
    stored = json.loads((tmp_path / "task.json").read_text())["config"]
    assert stored["text_encoder"] == encoder.settings() and stored["text_identity"] == encoder.identity()
    loaded = TextToImage.from_preset(str(tmp_path))
    loaded.save_weights(tmp_path / "all.weights.h5")  # reads every attribute
    assert loaded._encoder is None  # lazily
    for a, b in zip(task.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), err_msg=a.path)
    np.testing.assert_array_equal(loaded.embed(["a red circle", ""]), task.embed(["a red circle", ""]))
    other = TextToImage.from_preset(str(tmp_path), text_encoder={**encoder.settings(), "seed": 1})
    with pytest.raises(ValueError, match="The model is of another text encoder .weights_hash"):
        other.generate("a", **OPTIONS)
    with pytest.raises(ValueError, match="damaged or of another kind of model: it holds a TextToImage"):
        load.load_task(tmp_path)


def test_a_task_needs_its_own_kind_of_model(encoder, tmp_path):
    with pytest.raises(ValueError, match="conditioned on text_embeddings. Received: one conditioned on labels"):
        TextToImage(tiny_backbone((0, 0, 1, 0, 0)))
    wide = tiny_backbone((0, 0, 1, 0, 0), conditioning=TextConditioning(DIM + 1))
    with pytest.raises(ValueError, match="embeddings of 17 numbers. Received: a text encoder with 16"):
        TextToImage(wide, text_encoder=encoder)
    alone = TextToImage(text_backbone(in_channels=3), image_size=8)
    with pytest.raises(ValueError, match="no text encoder: give text_encoder="):
        alone.generate("a", **OPTIONS)


def flags(results, clip):
    small = ["--global-batch-size=4", "--num-sampling-steps=2", "--num-captions=12", "--log-every=1", "--steps=4"]
    return [
        *small,
        "--autoencoder-steps=2",
        "--ckpt-every=2",
        "--sample-every=4",
        "--cfg-scale=1",
        f"--text-encoder={clip}",
        f"--results-dir={results}",
    ]


@pytest.fixture(scope="module")
def run(patched, tiny_clip, tmp_path_factory):
    """A run of recipe `shapes` that was killed after step 3 of 4; the same command completed it."""
    results = tmp_path_factory.mktemp("results")
    program = [sys.executable, str(Path(__file__).with_name("small_run.py")), "train_coco.py"]
    environment = {**os.environ, "KILL_AT": "0:3"}
    killed = processes.run([*program, *flags(results, tiny_clip)], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = results / "shapes"
    assert (folder / "checkpoints").exists() and not (folder / "preset").exists()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        train_coco.main(flags(results, tiny_clip))
    assert "4 steps of 4 images, resumed at step 2" in output.getvalue()
    return folder


@pytest.mark.no_backend
def test_a_killed_and_resumed_run_ends_as_one_that_was_not(run, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(data.ShapesData, "score", lambda *args: {})  # what is drawn changes no weight
    train_coco.main([*flags(tmp_path, tiny_clip), "--sample-every=0"])
    whole, resumed = (TextToImage.from_preset(folder) for folder in (tmp_path / "shapes", run))
    assert whole.autoencoder.weights_hash() == resumed.autoencoder.weights_hash()
    for a, b in zip(whole.backbone.variables, resumed.backbone.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), err_msg=a.path)


def test_a_run_writes_scores_and_a_captioned_grid_and_goes_on(run):
    scores = json.loads((run / "scores.json").read_text())
    kinds = ("seen", "heldout", "seen_two", "heldout_two")
    assert {f"{name}_accuracy_{kind}" for name in report.SCORES for kind in kinds} <= scores.keys()
    assert [point["scale"] for point in scores["guidance"]] == [1.0] and (run / "scored.png").exists()
    assert scores["checker_accuracy_real"] == 1.0 and scores["seconds"] > 0
    with open(run / "log.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]
    width, height = Image.open(run / "samples.png").size
    assert width > 4 * 128 and height > 128 + 15
    assert (run / "preset" / "task.json").exists() and (run / "embeddings.npz").exists()


@pytest.mark.no_backend
def test_the_report_counts_a_text_model(run):
    parameters, _ = model_size(read_run(run))
    assert round(parameters * 1e6) == TextToImage.from_preset(run).backbone.count_params()


@pytest.mark.no_backend
def test_commands_of_class_models_say_that_a_run_is_none(run, tmp_path):
    with pytest.raises(ValueError, match="holds a TextToImage, and a ClassToImage is needed"):
        load.load_task(run)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(ValueError, match='is damaged or of another kind: it has the unknown field "autoencoder_steps"'):
        load.load_task(tmp_path)


@pytest.mark.no_backend
def test_a_run_keeps_to_its_text_encoder(run, tiny_clip):
    with pytest.raises(SystemExit, match="^error: .* was trained with another text encoder"):
        train_coco.main([*flags(run.parent, tiny_clip), "--text-seed=1"])


def test_prompts_are_drawn_from_a_run_and_gone_on_with(run, tmp_path, capsys):
    drawing = [str(run), "a red circle", "", "--num-sampling-steps=2", f"--output={tmp_path}", "--npz"]
    sample_prompts.main(drawing)
    sample_prompts.main(drawing)
    assert "2 images of 32×32 pixels" in capsys.readouterr().out
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (2, 32, 32, 3) and arrays["arr_1"].tolist() == ["a red circle", ""]
    assert Image.open(tmp_path / "grid.png").size[0] > 2 * 128
    for change, message in (
        (["--seed=1"], "seed=0 there, 1 now"),
        (["--negative-prompt=a"], "negative_prompt=None there, 'a' now"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*other settings .*{message}"):
            sample_prompts.main([*drawing, *change])
    with pytest.raises(SystemExit, match="^error: .*it holds a TextToImage"):
        sample.main([str(run), f"--output={tmp_path / 'x'}"])


@pytest.mark.no_backend
def test_flags_of_prompts_are_checked_at_once(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    for arguments, message in (
        ([], "give prompts, or a file of them"),
        (["a", "--prompts=x"], "one of the two"),
        ([f"--prompts={tmp_path / 'empty.txt'}"], "holds no prompts"),
        ([f"--prompts={tmp_path / 'no.txt'}"], "no.txt cannot be read: No such file"),
    ):
        with pytest.raises(SystemExit):
            sample_prompts.parse(["run", "--output=x", *arguments])
        assert message in capsys.readouterr().err


def test_an_unfinished_run_is_loaded_from_its_checkpoint(run, tmp_path):
    (run / "preset").rename(tmp_path / "preset")
    try:
        task = TextToImage.from_preset(run)
    finally:
        (tmp_path / "preset").rename(run / "preset")
    whole = TextToImage.from_preset(run)
    assert (
        task.image_size == whole.image_size
        and task.get_config()["text_identity"] == json.loads((run / "text.json").read_text())["identity"]
    )
    for a, b in zip(task.backbone.variables, whole.backbone.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), err_msg=a.path)


def test_a_run_that_starts_from_another_keeps_the_conditioning_of_the_same_encoder_only(run):
    config = stored_config(run, recipes.TextTrainConfig)
    identity = json.loads((run / "text.json").read_text())["identity"]
    backbone = text_models.build_backbone(config, DIM)
    made = [to_numpy(v).copy() for v in backbone.conditioning.variables]
    other = SimpleNamespace(text={"identity": {**identity, "weights_hash": "0"}})
    assert "the 15 of the conditioning are made anew" in data.TextData.start_from(other, run, backbone)
    for a, b in zip(made, backbone.conditioning.variables, strict=True):
        np.testing.assert_array_equal(a, to_numpy(b), err_msg=b.path)
    same = SimpleNamespace(text={"identity": identity})
    assert data.TextData.start_from(same, run, backbone).startswith("all ")
    start = TextToImage.from_preset(run).backbone.conditioning
    for a, b in zip(start.variables, backbone.conditioning.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), err_msg=b.path)


@pytest.mark.no_backend
def test_recipes_and_their_flags():
    config = recipes.RECIPES["coco256-xl"]
    assert (config.model, config.steps, config.global_batch_size, config.image_size) == ("XL", 100_000, 256, 256)
    assert (config.learning_rate, config.weight_decay, config.ema_decay) == (1e-4, 0.0, 0.9999)
    assert (config.label_dropout, config.label_dropout_mode, config.precision) == (0.1, "joint", "float32")
    without = {"recipe", "dataset", "num_classes", "cache", "source", "data_dir", "label_dropout_mode"}
    assert {field.name for field in dataclasses.fields(config) if field.metadata["help"] is None} == without
