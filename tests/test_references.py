"""What `evaluate` knows before the first image: references in full, images by their content, warnings, memory."""

import json
import shutil
import warnings

import keras
import numpy as np
import pytest
from helpers import tiny_backbone
from PIL import Image

from fcdm_keras import evaluate
from fcdm_keras.evaluation import checks, suite
from fcdm_keras.evaluation.features import KerasExtractor, Pixels
from fcdm_keras.evaluation.image_sets import ArrayImages, ImageFile, ImageFolder
from fcdm_keras.evaluation.metrics import frechet_distance, mean_and_covariance
from fcdm_keras.sampling.tasks import ClassToImage, ImageTask

pytestmark = pytest.mark.no_backend
D = 8 * 8 * 3
FID = ("--metrics", "fid")


@pytest.fixture
def score(tmp_path):
    """`score(samples, "--reference", …)`: the JSON that the command writes, of pixel features."""

    def run(*flags):
        flags = [*map(str, flags), *(() if "--features" in flags else ("--features", "pixels"))]
        evaluate.main([*flags, "--json", str(tmp_path / "scores.json")])
        return json.loads((tmp_path / "scores.json").read_text())

    return run


def images(count=30, seed=0, side=8, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels)).astype("uint8")


def file_of(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    ClassToImage(tiny_backbone((0, 0, 0, 0, 0), in_channels=3), image_size=8).save_to_preset(str(folder))
    return folder


def covariance(**entries):
    sigma = np.eye(D)
    for name, value in entries.items():
        row, column = map(int, name.removeprefix("at_").split("_"))
        sigma[row, column] = value
    return sigma


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(D), covariance(at_3_4=np.nan), "sigma of .* is not finite: of 36,864 values, 1 are NaN"),
        (np.full(D, np.inf), np.eye(D), "mu of .* is not finite: of 192 values, 0 are NaN and 192 infinite"),
        (np.zeros((1, D)), np.eye(D), r"must be \(D,\) and \(D, D\). Received: shapes \(1, 192\)"),
        (np.zeros(D), np.ones(D), r"Received: shapes \(192,\) and \(192,\)"),
        (np.zeros(D), np.eye(D) + 0j, "sigma of .* must hold floating-point numbers. Received: complex128"),
        (np.zeros(0), np.zeros((0, 0)), r"Received: shapes \(0,\)"),
        (np.zeros(64), np.eye(64), "statistics for fid must have 192 features. Received: 64"),
        (np.zeros(D), covariance(at_0_1=0.5), "must be symmetric"),
        (np.zeros(D), covariance(at_5_5=-0.5), "no negative eigenvalues. Received: -0.5"),
        (np.zeros(D), covariance(at_0_1=2, at_1_0=2), "no negative eigenvalues. Received: -1"),
    ],
)
def test_a_reference_is_refused_before_an_image_is_drawn(score, preset, tmp_path, monkeypatch, mu, sigma, message):
    drawn, draw = [], ImageTask.draw
    monkeypatch.setattr(ImageTask, "draw", lambda self, c, *a, **o: drawn.extend(c) or draw(self, c, *a, **o))
    path = file_of(tmp_path / "reference.npz", mu=mu, sigma=sigma)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        score(preset, "--num-samples", 9, "--num-sampling-steps", 2, "--reference", path, *FID)
    assert not drawn


def test_images_of_another_size_are_refused_where_features_are_pixels(score, tmp_path):
    small, large = file_of(tmp_path / "4.npz", arr_0=images(side=4)), file_of(tmp_path / "8.npz", arr_0=images())
    for metric in ("fid", "kid", "precision"):
        with pytest.raises(SystemExit, match=f"reference's images for {metric} must have 48 features. Received: 192"):
            score(small, "--reference", large, "--metrics", metric)


def test_a_judge_refuses_a_reference_before_training(tmp_path):
    path = file_of(tmp_path / "reference.npz", mu=np.zeros(D), sigma=np.eye(D))
    with pytest.warns(UserWarning, match=r"fewer images than features \(20 of the samples and 192 for fid\)"):
        judge = suite.Judge(path, Pixels(), ["fid"], expected=(20, 8, 8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert judge(images(20)).keys() == {"fid"}
    with pytest.raises(ValueError, match="must have 768 features. Received: 192"):
        suite.Judge(path, Pixels(), ["fid"], expected=(20, 16, 16, 3))


def test_what_a_file_is_its_content_says(score, tmp_path):
    samples, everything = file_of(tmp_path / "a.npz", arr_0=images()), file_of(tmp_path / "b.npz", arr_0=images(200, 1))
    scores = []
    for name in ("ref.npz", "ref", "ref.stats", "REF.NPZ"):
        flags = ("--features", "pixels", "--reference-images", "9")
        evaluate.main([str(everything), "--write-reference", str(tmp_path / name), *flags])
        scores.append(score(samples, "--reference", tmp_path / name, *FID))
        assert scores[-1]["reference_statistics"] == ["fid"]
    np.save(tmp_path / "b.npy", images(200, 1))
    shutil.copy(tmp_path / "b.npy", tmp_path / "b.images")
    scores += [score(samples, "--reference", tmp_path / name, *FID) for name in ("b.npz", "b.npy", "b.images")]
    assert [s["fid"] for s in scores] == pytest.approx([scores[0]["fid"]] * len(scores), rel=1e-9)
    assert score(tmp_path / "b.images", "--reference", samples, *FID)["num_samples"] == 200


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{}, None]), "must hold floating-point numbers or .* Received: object"),
        (np.zeros(5, "uint8"), r"must be uint8 images .* Received: uint8 of shape \(5,\)"),
        (np.float64(3.0), r"Received: float64 of shape \(\)"),
    ],
)
def test_npy_files_without_images(score, tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(SystemExit, match=f"^error: arr_0 of .*{message}"):
        score(tmp_path / "a.npy", "--reference", file_of(tmp_path / "b.npz", arr_0=images()))


def test_an_archive_of_pictures_is_to_be_unpacked(score, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(images(1)[0]).save(tmp_path / "pictures" / "0.png")
    archive = shutil.make_archive(str(tmp_path / "pictures"), "zip", tmp_path / "pictures")
    with pytest.raises(SystemExit, match="Received: no arrays, but 0.png and 1 files in all; unpack"):
        score(archive, "--reference", archive)


WANTED = images(40)


@pytest.mark.parametrize(
    ("given", "advice", "converted"),
    [
        (WANTED / 255, "lie in 0 … 1: multiply by 255, round", lambda x: np.rint(255 * x)),
        (WANTED / 127.5 - 1, r"convert them with clip\(127.5 · x \+ 128, 0, 255\)", lambda x: 127.5 * x + 128),
        (1.05 * (WANTED / 127.5 - 1), r"convert them with clip\(127.5 · x \+ 128", lambda x: 127.5 * x / 1.05 + 128),
        (WANTED.astype("float32"), r'round them and take .astype\("uint8"\)', np.rint),
        (WANTED.astype("int64"), r'take .astype\("uint8"\): they lie in 0 … 255', lambda x: x),
        (WANTED.astype("uint16") * 257, "divide them by 257", lambda x: x / 257),
        (WANTED > 99, "multiply them by 255", None),
        (WANTED - 1000.0, "lie in -1000 … -745: scale them", None),
        (np.where(WANTED == 7, np.nan, WANTED), "not all of their values are finite", None),
        (WANTED.transpose(0, 3, 1, 2), r"channels first: transpose\(0, 2, 3, 1\)", None),
        (WANTED.transpose(0, 3, 1, 2) / 255, r"channels first: .*; they lie in 0 … 1", None),
        (WANTED[0], "it is one image: add an axis in front", None),
        (WANTED[..., 0], r"add an axis for the channel, \[..., None\]", None),
        (np.concatenate([WANTED, WANTED[..., :1]], axis=-1), "transparency, over white", None),
    ],
)
def test_advice_follows_from_the_values(tmp_path, given, advice, converted):
    """Also where the first images are dark."""
    given = np.concatenate([given[:10] * 0, given[10:]]) if given.dtype == np.float32 else given
    for read in (lambda: ImageFile(tmp_path / "a.npz"), lambda: Pixels().extract(given), lambda: ArrayImages(given)):
        np.savez_compressed(tmp_path / "a.npz", arr_0=given)
        with pytest.raises(ValueError, match=f"must be uint8 .*Received: {given.dtype} of shape .*{advice}"):
            read()
    if converted:
        np.testing.assert_array_equal(np.clip(converted(given), 0, 255).astype("uint8")[10:], WANTED[10:])


def numbered(count):
    return np.broadcast_to(np.arange(count, dtype="uint8")[:, None, None, None], (count, 2, 2, 3))


def test_part_of_a_set_is_spread_over_it(tmp_path):
    whole = numbered(23)
    np.savez_compressed(tmp_path / "a.npz", arr_0=whole)
    np.save(tmp_path / "a.npy", whole)
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(whole):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{i:02d}.png")
    files = [ImageFile(tmp_path / name) for name in ("a.npz", "a.npy")]
    for of in (*files, ArrayImages(whole), ImageFolder(tmp_path / "pictures")):
        for count in (1, 2, 7, 22, 23):
            for size in (1, 4, 64):
                batches = list(of.batches(size, count))
                assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
                expected = [i * 23 // count for i in range(count)]
                assert np.concatenate(batches)[:, 0, 0, 0].tolist() == expected


def test_num_samples_of_a_class_folder_takes_some_of_each(score, tmp_path):
    reference = file_of(tmp_path / "reference.npz", arr_0=images(seed=1))
    pictures = images(40) // 8 + 50 * np.repeat(np.arange(4, dtype="uint8"), 10)[:, None, None, None]
    for i, image in enumerate(pictures):
        (tmp_path / "pictures" / f"class{i // 10}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "pictures" / f"class{i // 10}" / f"{i:02d}.png")
    scores = score(tmp_path / "pictures", "--reference", reference, *FID, "--num-samples", 8)
    sides = [mean_and_covariance(side.reshape(len(side), -1) / 255.0) for side in (pictures[::5], images(seed=1))]
    assert scores["fid"] == pytest.approx(frechet_distance(*sides[0], *sides[1]), rel=1e-5)
    assert scores["num_samples"] == 8
    flags = ("--features", "pixels", "--num-samples", "8")
    evaluate.main([str(tmp_path / "pictures"), "--write-reference", str(tmp_path / "ref"), *flags])
    np.testing.assert_array_equal(np.load(tmp_path / "ref")["arr_0"], pictures[::5])


def test_statistics_are_of_all_images_and_not_of_a_part(score, tmp_path):
    given = {"mu": np.zeros(D), "sigma": np.eye(D)}
    samples = file_of(tmp_path / "a.npz", arr_0=images(), **given)
    reference = file_of(tmp_path / "b.npz", arr_0=images(seed=1))
    assert score(samples, "--reference", reference, *FID)["sample_statistics"] == ["fid"]
    part = score(samples, "--reference", reference, *FID, "--num-samples", 10)
    of_part = score(file_of(tmp_path / "c.npz", arr_0=images()[::3]), "--reference", reference, *FID)
    assert part["sample_statistics"] == [] and part["fid"] == pytest.approx(of_part["fid"], rel=1e-9)
    with pytest.raises(SystemExit, match="holds statistics and no images, so 5 cannot be chosen"):
        score(file_of(tmp_path / "d.npz", **given), "--reference", reference, *FID, "--num-samples", 5)


def test_poor_comparisons_are_warned_of_once(score, tmp_path, capsys):
    few, many = file_of(tmp_path / "few.npz", arr_0=images()), file_of(tmp_path / "many.npz", arr_0=images(200, 1))
    score(few, "--reference", many, "--metrics", "fid,kid")
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1
    assert "warning: There are fewer images than features (30 of the samples and 192 for fid), so the" in err
    (tmp_path / "link.npz").symlink_to(many)
    scores = score(many, "--reference", tmp_path / "link.npz")
    out, err = capsys.readouterr()
    assert err.count("warning: ") == 1 and f"warning: {many} is scored against itself." in err
    assert 0 <= scores["fid"] < 1e-6 and scores["kid"] < 0 and f"{'KID':16} 0.0 ± 0" in out and " -" not in out
    score(many, "--reference", file_of(tmp_path / "other.npz", arr_0=images(200, 2)))
    assert "warning: " not in capsys.readouterr().err


def test_statistics_of_an_unnamed_network_are_warned_of(tmp_path):
    """As pytorch-fid and clean-fid write them: mu and sigma only."""
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    reference = suite.open_set(file_of(tmp_path / "fid.npz", mu=np.zeros(D), sigma=np.eye(D)))
    samples = suite.open_set(file_of(tmp_path / "a.npz", arr_0=images(200)))
    with pytest.warns(UserWarning, match="fid.npz does not say of which network its statistics are"):
        suite.warn(samples, reference, KerasExtractor(model, name="inception"), ["fid"])


def test_what_memory_cannot_hold_is_refused_with_the_numbers(score, tmp_path):
    large = file_of(tmp_path / "512.npz", arr_0=np.zeros((4, 512, 512, 3), "uint8"))
    needed = r"fid would take 36,864.0 GiB of memory for covariances of 786,432 × 786,432 .*Received: [\d.]+ GiB"
    with pytest.raises(SystemExit, match=needed):
        score(large, "--reference", large, *FID)
    with pytest.raises(SystemExit, match=needed):
        evaluate.main([str(large), "--write-reference", str(tmp_path / "ref"), "--features", "pixels"])
    assert score(large, "--reference", large, "--metrics", "recall")["recall"] == 1.0
    with pytest.raises(ValueError, match="recall, kid would take 11,718.8 GiB of memory for features of 2,000,000"):
        checks.check_memory({"recall": 786_432, "kid": 786_432}, ["recall", "kid"], [1_000_000, 1_000_000])


def test_a_set_that_gives_fewer_images_than_it_has_is_no_score():
    class Shrinking(ArrayImages):
        def batches(self, size):
            return super().batches(size, 29)

    with pytest.raises(ValueError, match="the images must give 30 images. Received: 29"):
        suite.collect(suite.ImageSet("a", Shrinking(images())), Pixels(), ["kid"])


def test_names_of_metrics_as_people_write_them(score, tmp_path):
    samples, reference = (file_of(tmp_path / f"{i}.npz", arr_0=images(seed=i)) for i in range(2))
    scores = score(samples, "--reference", reference, "--metrics", " KID, Fid,fid,")
    assert {"fid", "kid", "kid_std"} <= set(scores) and "recall" not in scores
    options = evaluate.parse(["a", "--reference", "b", "--metrics", "Inception score"])
    assert options.metrics == ["inception_score"]


def test_gray_images_are_their_rgb(score, tmp_path):
    gray = images(channels=1)
    one, three = (file_of(tmp_path / f"{n}.npz", arr_0=gray.repeat(n, -1)) for n in (1, 3))
    assert score(one, "--reference", three, *FID)["fid"] < 1e-9
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    extractor = KerasExtractor(model, name="gray")
    np.testing.assert_array_equal(extractor.extract(gray)["pool"], gray.reshape(30, -1))
    luma = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images()])
    assert np.abs(extractor.extract(images())["pool"] - luma.reshape(30, -1)).max() < 1.01


def test_the_image_whose_features_are_not_finite_is_named(tmp_path):
    place = keras.Input((None, None, 3))
    logarithm = KerasExtractor(keras.Model(place, keras.ops.log(keras.ops.mean(place, (1, 2)))), name="log")
    given = images(40)
    given[[17, 30]] = 0
    side = suite.open_set(file_of(tmp_path / "a.npz", arr_0=given))
    with pytest.raises(ValueError, match=r"from 1 of 10 images, first from image 17 \(from 0 on\)"):
        suite.collect(side, logarithm, ["kid"], batch_size=10)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="first from image 17"):
        warnings.simplefilter("ignore")
        suite.write_reference(tmp_path / "ref.npz", side.images, logarithm)
    assert not (tmp_path / "ref.npz").exists()
