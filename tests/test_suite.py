"""The command that scores: ADM's results from its own files, streams, references of ours, and bad input."""

import argparse
import json
import zipfile

import keras
import numpy as np
import pytest
from helpers import tiny_backbone
from PIL import Image

from fcdm_keras import evaluate
from fcdm_keras.evaluation import features, suite
from fcdm_keras.evaluation.features import Inception, Pixels
from fcdm_keras.evaluation.metrics import frechet_distance, mean_and_covariance
from fcdm_keras.sampling.flags import add_request_flags
from fcdm_keras.sampling.request import Request
from fcdm_keras.sampling.tasks import ClassToImage

FILES = ("sample_batch", "ref_batch", "ref_batch_stats")


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Paths of ADM's batches, named as in `tests/golden/adm/graph`."""
    from conftest import GOLDEN

    return {name: GOLDEN / "adm" / "graph" / f"{name}.npz" for name in FILES}


@pytest.fixture(scope="module")
def score(inception, tmp_path_factory, module_patch):
    """`score(samples, "--reference", …)`: the JSON that the command writes. The network is compiled once."""
    module_patch.setattr(features, "Inception", lambda path, batch_size: inception)

    def run(*flags):
        path = tmp_path_factory.mktemp("scores") / "scores.json"
        evaluate.main([*map(str, flags), "--features-batch-size", "8", "--json", str(path)])
        return json.loads(path.read_text())

    return run


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize(
    ("reference", "key"),
    [("ref_batch", "images"), pytest.param("ref_batch_stats", "stats", marks=pytest.mark.no_backend)],
)
def test_scores_are_those_of_adms_evaluator(score, batches, golden, capsys, reference, key):
    expected = golden("adm/graph/results")
    scores = score(batches["sample_batch"], "--reference", batches[reference])
    for metric in ("fid", "sfid"):
        assert scores[metric] == pytest.approx(expected[f"{key}_{metric}"], rel=3e-4)
        assert scores[metric] == pytest.approx(expected[f"{key}_{metric}_closed_form_f64"], rel=3e-4)
    assert scores["inception_score"] == pytest.approx(expected[f"{key}_inception_score"], rel=1e-4)
    assert (scores["precision"], scores["recall"]) == (expected[f"{key}_precision"], expected[f"{key}_recall"])
    assert (scores["num_samples"], scores["num_reference_images"]) == (40, 48)
    assert str(scores["fid"]) in capsys.readouterr().out


@pytest.mark.no_backend
def test_a_reference_of_ours_is_laid_out_as_adms(score, batches, tmp_path, golden):
    path, acts = tmp_path / "reference.npz", golden("adm/graph/ref_acts")
    evaluate.main([str(batches["ref_batch"]), "--write-reference", str(path), "--reference-images", "12"])
    with np.load(path) as arrays, np.load(batches["ref_batch"]) as images:
        assert set(arrays) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s", "features"}
        np.testing.assert_array_equal(arrays["arr_0"], images["arr_0"][::4])
        for names, recorded in ((("mu", "sigma"), "pool_3"), (("mu_s", "sigma_s"), "mixed_6_conv_first7")):
            np.testing.assert_allclose(arrays[names[0]], acts[recorded].mean(0), atol=5e-3)
            np.testing.assert_allclose(arrays[names[1]], np.cov(acts[recorded], rowvar=False), atol=5e-3)
    with pytest.raises(SystemExit, match="are of inception features. Received: pixels"):
        score(batches["sample_batch"], "--reference", path, "--features", "pixels")


@pytest.mark.no_backend
def test_a_reference_of_ours_scores_as_its_images(score, tmp_path):
    samples, images = image_file(tmp_path / "a.npz"), image_file(tmp_path / "b.npz", seed=1)
    evaluate.main([str(images), "--write-reference", str(tmp_path / "reference.npz"), *PIXELS])
    ours, theirs = (score(samples, "--reference", path, *PIXELS) for path in (tmp_path / "reference.npz", images))
    for metric in ("fid", "precision", "recall", "kid"):
        assert ours[metric] == pytest.approx(theirs[metric], rel=1e-9)
    assert ours["reference_statistics"] == ["fid"]


@pytest.mark.no_backend
def test_a_judge_scores_as_the_command(score, tmp_path):
    samples, reference = image_file(tmp_path / "a.npz"), image_file(tmp_path / "b.npz", seed=1)
    judged = suite.Judge(reference, Pixels(7))(np.load(samples)["arr_0"])
    scored = score(samples, "--reference", reference, *PIXELS)
    assert judged == pytest.approx({metric: scored[metric] for metric in judged}, rel=1e-6)


def image_file(path, count=30, seed=0, **arrays):
    images = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3)).astype("uint8")
    np.savez(path, **{"arr_0": images, **arrays})
    return path


PIXELS = ("--features", "pixels")


@pytest.mark.no_backend
def test_a_folder_scores_as_the_file_of_its_images(score, tmp_path):
    samples, reference = image_file(tmp_path / "a.npz"), image_file(tmp_path / "b.npz", seed=1)
    (tmp_path / "images" / "class").mkdir(parents=True)
    for i, image in enumerate(np.load(samples)["arr_0"]):
        folder = tmp_path / "images" / ("class" if i < 10 else "")
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    Image.fromarray(np.zeros((9, 9, 3), "uint8")).save(tmp_path / "images" / "grid.png")
    (tmp_path / "images" / "settings.json").write_text("{}")  # so that it is the grid of our own samples
    of_file, of_folder = (score(path, "--reference", reference, *PIXELS) for path in (samples, tmp_path / "images"))
    assert set(of_file) >= {"fid", "precision", "recall", "kid"} and "sfid" not in of_file
    for metric in ("fid", "precision", "recall", "kid"):
        assert of_file[metric] == pytest.approx(of_folder[metric], rel=1e-6)


@pytest.mark.no_backend
def test_scores_do_not_depend_on_the_batch_size_and_compressed_files_are_read(tmp_path):
    samples = image_file(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "small.npz", arr_0=np.load(samples)["arr_0"])
    sets = [suite.open_set(tmp_path / name) for name in ("a.npz", "small.npz")]
    for size in (1, 7, 64):
        for images in sets:
            collected = suite.collect(images, Pixels(size), ["fid", "kid"], batch_size=size)
            np.testing.assert_allclose(collected.statistics["fid"][1], np.cov(collected.pool, rowvar=False), rtol=1e-9)


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    ClassToImage(tiny_backbone((0, 0, 0, 0, 0), in_channels=3), image_size=8).save_to_preset(str(folder))
    return folder


def test_a_model_is_scored_without_writing_images(score, preset, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype("uint8")
    np.savez(tmp_path / "reference.npz", arr_0=images)
    drawing_flags = ["--num-samples", "10", "--num-sampling-steps", "2", "--labels", "random", "--batch-size", "4"]
    scores = score(preset, "--reference", tmp_path / "reference.npz", *PIXELS, *drawing_flags)
    parser = argparse.ArgumentParser()
    add_request_flags(parser, None)
    drawing = Request(ClassToImage.from_preset(str(preset)), parser.parse_args(drawing_flags))
    drawn = np.concatenate([batch for _, batch in drawing.batches()])
    sides = [mean_and_covariance(side.reshape(len(side), -1) / 255.0) for side in (drawn, images)]
    assert scores["fid"] == pytest.approx(frechet_distance(*sides[0], *sides[1]), rel=1e-5)
    assert scores["num_samples"] == 10 and scores["drawn_with"]["num_steps"] == 2


def broken(tmp_path, name):
    """An input that is wrong in the way its name says."""
    path = tmp_path / f"{name}.npz"
    images = np.zeros((5, 4, 4, 3), "uint8")
    if name == "no_arr_0":
        np.savez(path, arr=images)
    elif name == "float":
        np.savez(path, arr_0=images / 1.0)
    elif name == "int64":
        np.savez(path, arr_0=images.astype("int64"))
    elif name == "nchw":
        np.savez(path, arr_0=images.transpose(0, 3, 1, 2))
    elif name == "empty":
        np.savez(path, arr_0=images[:0])
    elif name == "objects":
        np.savez(path, arr_0=np.array([None, 1], dtype=object))
    elif name == "one":
        np.savez(path, arr_0=images[:1])
    elif name == "three":
        np.savez(path, arr_0=images[:3])
    elif name == "cut":
        np.savez(path, arr_0=images)
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "flipped":
        np.savez(path, arr_0=np.random.default_rng(0).integers(0, 256, (150, 4, 4, 3)).astype("uint8"))
        content = bytearray(path.read_bytes())
        content[6000] ^= 1
        path.write_bytes(content)
    elif name == "text":
        path.write_text("hello")
    elif name == "short":
        with zipfile.ZipFile(path, "w") as archive:
            np.save(tmp_path / "whole.npy", images)
            archive.writestr("arr_0.npy", (tmp_path / "whole.npy").read_bytes()[:-7])
    elif name == "statistics":
        np.savez(path, mu=np.zeros(48), sigma=np.eye(48))
    elif name == "other_size":
        np.savez(path, mu=np.zeros(7), sigma=np.eye(7), arr_0=images)
    elif name == "nan":
        np.savez(path, mu=np.zeros(48), sigma=np.full((48, 48), np.nan), arr_0=images)
    return path


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_arr_0", r"must hold images \(arr_0, .*Received: arr$"),
        (
            "float",
            r"must be uint8 images \(N, H, W, 3\), 0 to 255. Received: float64 .*; they lie in 0 … 1: multiply by",
        ),
        ("int64", "Received: int64 of shape"),
        ("nchw", r"Received: uint8 of shape \(5, 3, 4, 4\)"),
        ("empty", r"Received: uint8 of shape \(0, 4, 4, 3\)"),
        ("objects", "must hold floating-point numbers or .*Received: object"),
        ("one", "needs at least 2 images of each. Received: 1 samples"),
        ("three", "precision needs at least 4 images of each. Received: 3 samples"),
        ("cut", "is no .npz file, or is cut short"),
        ("flipped", "is damaged: it does not fit its checksum"),
        ("text", "is no .npz file"),
        ("short", "arr_0 of .* is cut short"),
        ("statistics", "precision, recall, kid need images, but .* holds no arr_0; choose --metrics fid."),
        ("nan", "sigma of .* is not finite: of 2,304 values, 2,304 are NaN"),
        ("nowhere", "There are no images at .*nowhere: expected an .npz file, a folder, or a run folder"),
    ],
)
def test_bad_samples_end_in_one_sentence(score, tmp_path, name, message):
    path = tmp_path / name if name == "nowhere" else broken(tmp_path, name)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        score(path, "--reference", image_file(tmp_path / "reference.npz"), *PIXELS)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("statistics", (), "precision, recall, kid need images, but .* holds no arr_0; choose --metrics fid."),
        ("other_size", ("--metrics", "fid"), "statistics for fid must have 48 features. Received: 7"),
        ("three", ("--metrics", "recall"), "recall needs at least 4 images of each. Received: 3 reference"),
        ("three", ("--metrics", "sfid"), "sfid needs spatial features, which pixels does not give"),
        ("three", ("--metrics", "fid", "--num-samples", "99"), "holds 30 images. Received: 99 asked for"),
    ],
)
def test_bad_references_end_in_one_sentence(score, tmp_path, name, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        score(image_file(tmp_path / "a.npz"), "--reference", broken(tmp_path, name), *PIXELS, *flags)


@pytest.mark.no_backend
def test_metrics_that_need_no_images_do_without(score, tmp_path):
    scores = score(
        image_file(tmp_path / "a.npz"), "--reference", broken(tmp_path, "statistics"), *PIXELS, "--metrics", "fid"
    )
    assert scores["fid"] > 0 and scores["num_reference_images"] is None and "kid" not in scores


@pytest.mark.no_backend
def test_another_resolution_is_warned_of(score, tmp_path, capsys):
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    model.save(tmp_path / "mean.keras")
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((6, 8, 8, 3), "uint8"))
    flags = ("--features", tmp_path / "mean.keras", "--metrics", "fid")
    score(image_file(tmp_path / "a.npz"), "--reference", tmp_path / "large.npz", *flags)
    assert "warning: The samples are 4×4 pixels and the reference images 8×8" in capsys.readouterr().err


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a.npz",), "give either --reference"),
        (("a.npz", "--reference", "b.npz", "--metrics", "fid,iq"), "--metrics must be some of fid,"),
        (("a.npz", "--reference", "b.npz", "--json", "/nowhere/x.json"), "there is no folder /nowhere"),
        (("a.npz", "--reference", "b.npz", "--num-samples", "0"), "--num-samples must be at least 1"),
        (("a.npz", "--reference", "b.npz", "--features-batch-size", "0"), "--features-batch-size must be at least 1"),
    ],
)
def test_flags_that_make_no_evaluation(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(flags)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.no_backend
def test_a_missing_or_truncated_graph_is_named(tmp_path, inception_graph, monkeypatch):
    monkeypatch.setattr(features, "Inception", Inception)
    samples = str(image_file(tmp_path / "a.npz"))
    (tmp_path / "cut.pb").write_bytes(inception_graph.read_bytes()[:999_999])
    for name, message in (("cut.pb", "cut.pb is no frozen TensorFlow graph"), ("none.pb", "No such file")):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            evaluate.main([samples, "--reference", samples, "--inception", str(tmp_path / name)])
