"""Features of images: ADM's Inception, any Keras model, DINOv2."""

import keras
import numpy as np
import pytest
from helpers import tiny_backbone

from fcdm_keras.backend.hub import keras_hub
from fcdm_keras.evaluation import features
from fcdm_keras.evaluation.features import DINOv2, Inception, KerasExtractor, Pixels, load_extractor


def test_activations_are_those_of_adms_evaluator(inception, golden):
    images, recorded = golden("adm/graph/sample_batch")["arr_0"], golden("adm/graph/sample_acts")
    ours = inception.extract(images[:13])  # a full and a short batch
    assert {name: value.dtype for name, value in ours.items()} == dict.fromkeys(ours, np.dtype("float32"))
    np.testing.assert_allclose(ours["pool"], recorded["pool_3"][:13], atol=5e-3)
    np.testing.assert_allclose(ours["spatial"], recorded["mixed_6_conv_first7"][:13], atol=5e-3)
    np.testing.assert_allclose(ours["probabilities"], recorded["softmax"][:13], atol=1e-4)
    assert np.abs(ours["pool"] - recorded["pool_3"][:13]).mean() < 1e-4


def test_an_image_has_the_same_features_in_any_batch(inception, golden):
    images = golden("adm/graph/sample_batch")["arr_0"][:9]
    whole = inception.extract(images)
    alone = inception.extract(images[8:])
    for name in whole:
        np.testing.assert_allclose(alone[name][0], whole[name][8], atol=1e-4)


def test_gray_images_are_read_as_rgb(inception):
    gray = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1)).astype("uint8")
    for name, value in inception.extract(gray).items():
        np.testing.assert_array_equal(value, inception.extract(gray.repeat(3, -1))[name])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), "float32"), r"must be uint8 \(N, H, W, 3\), 0 to 255. Received: float32"),
        (np.zeros((2, 3, 8, 8), "uint8"), r"Received: uint8 of shape \(2, 3, 8, 8\)"),
        (np.zeros((8, 8, 3), "uint8"), r"Received: uint8 of shape \(8, 8, 3\)"),
    ],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        Pixels().extract(images)


def test_features_that_are_not_finite_are_refused():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, name="out")])
    model.get_layer("out").bias.assign([0.0, np.nan])
    with pytest.raises(ValueError, match="pool features of mine must be finite"):
        KerasExtractor(model, name="mine").extract(np.zeros((3, 8, 8, 3), "uint8"))


def test_pixels_are_pixels():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype("uint8")
    np.testing.assert_allclose(Pixels(2).extract(images)["pool"], images.reshape(5, -1) / 255, rtol=1e-6)


def classifier():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, activation="relu", name="map"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, activation="softmax"),
        ]
    )


def test_a_keras_model_as_extractor():
    model = classifier()
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype("uint8")
    expected = model.predict(images.astype("float32"), verbose=0)
    ours = KerasExtractor(model, batch_size=2).extract(images)
    np.testing.assert_allclose(ours["probabilities"], expected, atol=1e-5)
    inner = KerasExtractor(model, layer="map", batch_size=3).extract(images)
    maps = keras.Model(model.inputs, model.get_layer("map").output).predict(images.astype("float32"), verbose=0)
    np.testing.assert_allclose(inner["pool"], maps.mean((1, 2)), atol=1e-5)
    assert set(inner) == {"pool"}


def test_a_model_of_keras_applications_with_its_preprocessing():
    model = keras.applications.MobileNet((32, 32, 3), 0.25, include_top=False, weights=None)
    preprocess = keras.applications.mobilenet.preprocess_input
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    ours = KerasExtractor(model, preprocess, batch_size=2).extract(images)["pool"]
    expected = model.predict(preprocess(images.astype("float32")), verbose=0).mean((1, 2))
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_saved_model_is_loaded_resized_for_and_named_by_its_content(tmp_path):
    path = tmp_path / "classifier.keras"
    classifier().save(path)
    extractor = load_extractor(str(path), batch_size=2)
    flat = np.full((3, 20, 12, 3), 77, "uint8")
    same = np.full((3, 8, 8, 3), 77, "uint8")
    np.testing.assert_allclose(extractor.extract(flat)["pool"], extractor.extract(same)["pool"], atol=1e-5)
    assert extractor.name.startswith("keras:") and extractor.name == load_extractor(str(path)).name
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="is no Keras model, or is cut short"):
        load_extractor(str(path))


def test_dinov2_is_the_class_token_of_normalised_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3)).astype("uint8")
    normalised = (images / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    backbone = keras_hub.models.DINOV2Backbone(
        patch_size=14,
        num_layers=1,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        image_shape=(28, 28, 3),
        position_embedding_shape=(28, 28, 3),
    )
    backbone.save_to_preset(str(tmp_path))
    expected = backbone.predict({"images": normalised.astype("float32")}, verbose=0)[:, 0]
    ours = DINOv2(str(tmp_path), batch_size=2, image_size=28)
    np.testing.assert_allclose(ours.extract(images)["pool"], expected, atol=1e-4)
    tiny_backbone((1, 0, 0, 0, 0))  # can still be made


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("vgg", ValueError, "must be inception, dinov2, dinov2:PRESET, pixels or a .keras file. Received: 'vgg'"),
        ("nowhere.keras", FileNotFoundError, "There is no model at nowhere.keras"),
        ("dinov2:./nowhere", OSError, "DINOv2 preset './nowhere' could not be loaded"),
    ],
)
def test_extractors_that_are_not_there(kind, error, message):
    with pytest.raises(error, match=message):
        load_extractor(kind)


def test_without_a_network_the_path_is_asked_for(monkeypatch):
    def unreachable(*arguments, **options):
        raise Exception("URL fetch failure on https://…: None -- Temporary failure in name resolution")

    monkeypatch.setattr(features.keras.utils, "get_file", unreachable)
    with pytest.raises(OSError, match="could not be downloaded .*give its place with --inception PATH"):
        Inception()
