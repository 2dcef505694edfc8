"""The small autoencoder of patches, and the one that the recipe `shapes` trains with it."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import tiny_backbone, to_numpy

from fcdm_keras.autoencoders import PatchAutoencoder
from fcdm_keras.data.embedded import load_photos
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training import callbacks
from fcdm_keras.training.autoencoder import AutoencoderTrainer
from fcdm_keras.training.optimizer import AdamW
from t2i.recipes import RECIPES
from t2i.shapes import autoencoder as shapes
from t2i.shapes import draw_all, random_scene


@pytest.fixture(scope="module")
def crops():
    return load_photos("train", 16, 24)[0][:64]


@pytest.fixture(scope="module")
def autoencoder():
    keras.utils.set_random_seed(0)
    return PatchAutoencoder(4, 6, hidden_channels=8)


def test_it_is_the_network_that_it_is_said_to_be(autoencoder, crops):
    """Against PyTorch's own layers."""
    import torch
    import torch.nn.functional as F

    def run(network, x):
        for i, layer in enumerate(network):
            kernel, bias = torch.tensor(to_numpy(layer.kernel)), torch.tensor(to_numpy(layer.bias))
            kernel = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T[:, :, None, None]
            y = F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2)
            y = y if i == len(network) - 1 else F.gelu(y)
            x = x + y if 0 < i < len(network) - 1 else y
        return x

    images = crops[:2].astype("float32") / 127.5 - 1
    blocks = images.reshape(2, 4, 4, 4, 4, 3).transpose(0, 2, 4, 5, 1, 3).reshape(2, 48, 4, 4)
    latents = run(autoencoder.encoder, torch.tensor(blocks))
    latents = latents / latents.square().mean(dim=1, keepdim=True).sqrt()
    mean, logvar = (to_numpy(part) for part in autoencoder.encode(images))
    np.testing.assert_allclose(mean, latents.permute(0, 2, 3, 1).numpy(), atol=1e-4)
    np.testing.assert_allclose(np.exp(0.5 * logvar), 0.3, rtol=1e-5)
    decoded = torch.tanh(run(autoencoder.decoder, latents)).numpy()
    decoded = decoded.reshape(2, 4, 4, 3, 4, 4).transpose(0, 4, 1, 5, 2, 3).reshape(2, 16, 16, 3)
    np.testing.assert_allclose(to_numpy(autoencoder.decode(mean)), decoded, atol=1e-4)


def test_adapted_latents_are_standard_and_decode_to_the_same(autoencoder, crops):
    adapted = PatchAutoencoder.from_config(autoencoder.get_config())
    adapted.set_weights(autoencoder.get_weights())
    assert adapted.weights_hash() == autoencoder.weights_hash()
    adapted.adapt(crops)
    images = crops.astype("float32") / 127.5 - 1
    mean, logvar = (to_numpy(part) for part in adapted.encode(images))
    np.testing.assert_allclose(mean.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(mean.std(axis=(0, 1, 2)), 1, atol=1e-4)
    raw = to_numpy(autoencoder.encode(images)[0])
    np.testing.assert_allclose(np.exp(0.5 * logvar[0, 0, 0]), 0.3 / raw.std(axis=(0, 1, 2)), rtol=1e-3)
    expected = to_numpy(autoencoder.decode(raw))
    np.testing.assert_allclose(to_numpy(adapted.decode(mean)), expected, atol=1e-4)
    assert adapted.weights_hash() != autoencoder.weights_hash()
    adapted.adapt(crops)  # once more changes nothing
    np.testing.assert_allclose(to_numpy(adapted.encode(images)[0]), mean, atol=1e-4)


def test_it_learns(autoencoder, crops):
    copy = PatchAutoencoder.from_config(autoencoder.get_config())
    trainer = AutoencoderTrainer(copy, loss="l2", kl_weight=0.0)
    trainer.compile(AdamW(1e-2))
    before = float(trainer.test_on_batch(crops, return_dict=True)["loss"])
    for _ in range(15):
        trainer.train_on_batch(crops)
    trainer.reset_metrics()
    assert float(trainer.test_on_batch(crops, return_dict=True)["loss"]) < 0.7 * before


def test_a_task_keeps_it(autoencoder, tmp_path):
    task = ClassToImage(tiny_backbone((0, 0, 0, 0, 0), in_channels=6), autoencoder, image_size=16)
    options = {"num_steps": 1, "seed": 0, "sampler": "ddim", "guidance_scale": 1.0}
    images = task.generate([1, 2], **options)
    assert images.shape == (2, 16, 16, 3) and images.std() > 5
    task.save_to_preset(str(tmp_path))
    loaded = ClassToImage.from_preset(str(tmp_path))
    assert loaded.autoencoder.weights_hash() == autoencoder.weights_hash()
    assert np.abs(loaded.generate([1, 2], **options).astype(int) - images).max() <= 1


@pytest.mark.parametrize("options", [{"latent_channels": 1}, {"hidden_channels": 0}, {"posterior_std": 0}])
def test_sizes_that_make_none_are_refused(options):
    with pytest.raises(ValueError, match="latent_channels must be at least 2, hidden_channels at least 1"):
        PatchAutoencoder(**options)


def config(**changes):
    return dataclasses.replace(RECIPES["shapes"], autoencoder_steps=6, global_batch_size=4, **changes)


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(shapes, "PatchAutoencoder", lambda *sizes: PatchAutoencoder(*sizes, hidden_channels=8))
        monkeypatch.setattr(shapes, "CHECKPOINT_EVERY", 2)
        yield monkeypatch


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, shapes.open_autoencoder(config(), folder)


@pytest.mark.no_backend
def test_it_is_trained_once_and_its_latents_are_standard(trained):
    folder, autoencoder = trained
    assert [path.name for path in folder.iterdir()] == ["autoencoder.npz"]
    scenes = draw_all([random_scene(0, index) for index in range(1000)]).astype("float32") / 127.5 - 1
    latents = to_numpy(autoencoder.encode(scenes)[0])
    np.testing.assert_allclose([latents.mean(), latents.std()], [0, 1], atol=1e-4)
    again = shapes.open_autoencoder(config(), folder)
    assert again.weights_hash() == autoencoder.weights_hash()


@pytest.mark.no_backend
def test_training_that_was_stopped_ends_as_if_it_was_not(trained, tmp_path, monkeypatch):
    on_step = callbacks.Checkpoint.on_step

    def stopping(self, logs):
        on_step(self, logs)
        if self.step == 5:  # the last checkpoint is of step 4
            raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(callbacks.Checkpoint, "on_step", stopping)
        patch.setattr(callbacks.Checkpoint, "on_train_end", lambda self, logs=None: None)
        shapes.open_autoencoder(config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["autoencoder"]
    resumed = shapes.open_autoencoder(config(), tmp_path)
    assert resumed.weights_hash() == trained[1].weights_hash()


def test_a_damaged_file_is_named(tmp_path, small):
    (tmp_path / "autoencoder.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"autoencoder.npz is damaged \(.*\): remove it, and it is trained again"):
        shapes.open_autoencoder(config(), tmp_path)
