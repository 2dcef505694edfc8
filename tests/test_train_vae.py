"""Training an autoencoder: data, loss, command."""

import json
import os
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import SMALL_AUTOENCODER, signal_at, to_numpy
from PIL import Image

from fcdm_keras import train_vae
from fcdm_keras.autoencoders import KLAutoencoder, sample_posterior
from fcdm_keras.data import crops, embedded
from fcdm_keras.evaluation.reconstruction import latent_moments, psnr
from fcdm_keras.runs import autoencoder
from fcdm_keras.training.autoencoder import AutoencoderTrainer

ROOT = Path(__file__).parent.parent
FLAGS = ["--image-size=16", "--block-out-channels=8", "--norm-num-groups=4", "--batch-size=4", "--log-every=2"]
FLAGS += ["--ckpt-every=2"]


def coordinates(height, width):
    """An image in which every pixel tells its place."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y % 256, x % 256, 16 * (y // 256) + x // 256], -1).astype("uint8")


def places(images):
    """The places of all pixels of crops of `coordinates`, `(…, 2)`."""
    y, x, high = np.moveaxis(images.astype(int), -1, 0)
    return np.stack([y + 256 * (high // 16), x + 256 * (high % 16)], -1)


@pytest.mark.no_backend
def test_photographs_are_cut_by_source():
    images, labels, names = embedded.load_photos("train", 64)
    assert images.dtype == np.uint8 and images.shape == (len(labels), 64, 64, 3)
    assert names == ("china", "flower", "grace_hopper")
    wide, high = (23, 21), (18, 29)  # (side − 64) // 16 + 1 of 427 × 384 and of 344 × 512
    assert np.bincount(labels).tolist() == [np.prod(wide), np.prod(wide), np.prod(high)]
    np.testing.assert_array_equal(images[1], embedded.load_regions("train")[0][:64, 16:80])
    held_out, labels, _ = embedded.load_photos("held_out", 64, stride=64)
    assert np.bincount(labels).tolist() == [6 * 4, 6 * 4, 4 * 8]
    assert min(image.std() for image in held_out) > 1


@pytest.mark.no_backend
def test_no_pixel_is_in_both_splits(monkeypatch):
    shapes = [(427, 640), (427, 640), (600, 512)]
    monkeypatch.setattr(embedded, "_photographs", lambda: [coordinates(*shape) for shape in shapes])
    seen = {}
    for split in embedded.SPLITS:
        images, labels, _ = embedded.load_photos(split, 32, stride=31)
        for label in range(3):
            seen[split, label] = set(map(tuple, places(images[labels == label]).reshape(-1, 2)))
    for label, (height, width) in enumerate(shapes):
        train, held_out = seen["train", label], seen["held_out", label]
        assert not train & held_out
        assert len(train) + len(held_out) > 0.8 * height * width


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test", 32), 'split must be "train" or "held_out". Received: \'test\''),
        (("train", 257), r"size must be an integer in \[1, 256\]. Received: 257"),
        (("train", 0), "size must be an integer"),
        (("train", 32, 0), "stride must be at least 1"),
    ],
)
def test_photographs_that_are_not_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        embedded.load_photos(*arguments)


@pytest.mark.no_backend
def test_crops_follow_from_seed_and_step():
    images = [coordinates(40, 300), coordinates(24, 24)]
    source = crops.RandomCrops(images, 24, 64, 5, seed=3)
    batch = source[2]["images"]
    assert batch.shape == (64, 24, 24, 3) and batch.dtype == np.uint8 and len(source) == 5
    np.testing.assert_array_equal(batch, crops.RandomCrops(images, 24, 64, 9, seed=3)[2]["images"])
    assert not np.array_equal(batch, source[3]["images"])
    assert not np.array_equal(batch, crops.RandomCrops(images, 24, 64, 5, seed=4)[2]["images"])
    steps = np.diff(places(batch), axis=2)[..., 1]  # +1 to the right, −1 in mirrored crops
    assert set(np.unique(steps)) == {-1, 1} and (steps.std(axis=(1, 2)) == 0).all()
    assert 16 < (steps[:, 0, 0] == 1).sum() < 48
    corners = places(batch)[:, 0].min(axis=1)
    assert corners[:, 0].max() == 16 and corners[:, 1].max() > 200
    whole = (corners == 0).all(axis=1).sum()  # those of the small image
    assert 16 < whole < 48


def image_folder(folder):
    """A folder of images in all kinds, and what is left out of it."""
    (folder / "deep" / "er").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(8):
        image = Image.fromarray(generator.integers(0, 256, (40, 60 + i, 3), dtype="uint8"))
        image.convert(("RGB", "L", "CMYK", "RGB")[i % 4]).save(folder / "deep" / f"{i}.{('png', 'jpg')[i % 4 == 2]}")
    Image.fromarray(np.zeros((12, 50, 3), "uint8")).save(folder / "deep" / "er" / "small.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    image.save(folder / "cut.png")
    os.truncate(folder / "cut.png", os.path.getsize(folder / "cut.png") // 2)  # its header is whole
    return folder


@pytest.mark.no_backend
def test_a_folder_of_images(tmp_path):
    images, held_out, notes = crops.open_images(str(image_folder(tmp_path)), 16)
    assert notes.pop() == "1 entry is left out: 1 no pictures."
    cut = f"{tmp_path}/cut.png is left out: image file is truncated"
    assert notes[:2] == [
        "1 of 11 images are left out, which cannot be read: broken.jpg",
        "1 of 11 images are left out, smaller than 16 pixels: small.png",
    ]
    assert held_out.shape == (1, 16, 16, 3) and len(images) == 9 - 1 - len(notes[2:])
    pictures = [images[i] for i in range(len(images))]
    assert all(picture.shape[0] == 40 and picture.shape[2] == 3 for picture in pictures)
    assert notes[2:] == [cut] or [file.name for file in images.skipped] == ["cut.png"]
    smaller, _, _ = crops.open_images(str(tmp_path), 16, resize=20)
    assert {smaller[i].shape[0] for i in range(len(smaller))} == {20}


@pytest.mark.no_backend
def test_an_image_that_cannot_be_read_stands_for_the_next(tmp_path):
    folder = image_folder(tmp_path)
    files = [folder / "deep" / "0.png", folder / "cut.png", folder / "broken.jpg", folder / "deep" / "1.png"]
    images = crops.ImageFiles(files, 16)
    np.testing.assert_array_equal(images[1], images[3])
    assert list(images.skipped) == files[1:3] and len(images) == 4
    with pytest.raises(ValueError, match="None of 1 images can be read, such as .*broken.jpg: it is no image"):
        crops.ImageFiles(files[2:3], 16)[0]


def only_damaged(folder):
    for name in ("a", "b"):
        (image_folder(folder / name) / "cut.png").rename(folder / f"{name}.png")
        shutil.rmtree(folder / name)
    return folder


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder / "nowhere", "There is no folder .*nowhere; give a folder of images"),
        (lambda folder: folder, "holds no images"),
        (only_damaged, r"1 of 2 images cannot be read, such as .*(a|b).png: image file is truncated"),
        (lambda folder: image_folder(folder) / "deep" / "er", r"at least two images .*Received: 0 \(1 of 1 images"),
    ],
)
def test_folders_that_cannot_be_trained_on(prepare, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        crops.open_images(str(prepare(tmp_path)), 16)


@pytest.mark.no_backend
def test_psnr_is_that_of_its_definition():
    images = np.full((2, 4, 4, 3), 100, "uint8")
    shifted = images + np.array([0, 10], "uint8")[:, None, None, None]
    np.testing.assert_allclose(psnr(images, shifted), [np.inf, 20 * np.log10(25.5)])
    assert psnr(images[:1], images[:1] - 120)[0] == psnr(images[:1] - 120, images[:1])[0]


@pytest.fixture(scope="module")
def trainer():
    keras.utils.set_random_seed(0)
    trainer = AutoencoderTrainer(KLAutoencoder(**SMALL_AUTOENCODER), loss="l2", kl_weight=0.1, seed=5)
    trainer.compile()
    return trainer


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype="uint8")


def divergence(mean, logvar):
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)) by summing over a fine grid."""
    x = np.linspace(-30, 30, 200_001)
    log_p = -0.5 * (x - mean) ** 2 / np.exp(logvar) - 0.5 * logvar
    return float(np.sum(np.exp(log_p) * (log_p + 0.5 * x**2)) * (x[1] - x[0]) / np.sqrt(2 * np.pi))


@pytest.fixture(scope="module")
def constant():
    """An autoencoder of one posterior for all images: (autoencoder, mean, logvar, what the mean is decoded to)."""
    autoencoder = KLAutoencoder(**SMALL_AUTOENCODER)
    mean, logvar = np.array([0.5, -2.0, 0.0, 1.0]), np.array([0.0, 1.0, -3.0, 0.5])
    autoencoder.quant_conv.kernel.assign(0.0 * autoencoder.quant_conv.kernel)
    autoencoder.quant_conv.bias.assign(np.concatenate([mean, logvar]))
    return autoencoder, mean, logvar, to_numpy(autoencoder.decode(np.tile(mean.astype("float32"), (4, 8, 8, 1))))


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_loss_is_its_definition(constant, images, loss):
    autoencoder, mean, logvar, decoded = constant
    trainer = AutoencoderTrainer(autoencoder, loss=loss, kl_weight=0.1)
    trainer.compile()
    found = trainer.evaluate(images, batch_size=2, verbose=0, return_dict=True)
    kl = sum(map(divergence, mean, logvar)) * 8 * 8 / (16 * 16 * 3)
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-4)
    target = images / 127.5 - 1.0
    error = {"l1": np.abs, "l2": np.square}[loss](decoded - target).mean()
    np.testing.assert_allclose(found["reconstruction"], error, rtol=1e-4)
    np.testing.assert_allclose(found["loss"], error + 0.1 * kl, rtol=1e-4)


def test_the_noise_follows_from_seed_step_and_row(trainer, images, monkeypatch):
    def noise():
        return to_numpy(trainer.draw(trainer.unpack(images))["noise"])

    first = noise()
    assert first.shape == (4, 8, 8, 4) and abs(first.std() - 1) < 0.1
    np.testing.assert_array_equal(first, noise())
    np.testing.assert_allclose(to_numpy(trainer.draw(trainer.unpack(images[:2]))["noise"]), first[:2], atol=1e-6)
    assert not np.allclose(first[0], first[1])
    trainer.step.assign(1)
    assert not np.allclose(first, noise())
    trainer.step.assign(0)
    logvar = np.full_like(first, 2.0)
    monkeypatch.setattr(trainer.autoencoder, "posterior", lambda images: (5.0 + 0 * first, logvar))
    monkeypatch.setattr(trainer.autoencoder, "reconstruct", lambda latents: latents)
    decoded, *_ = trainer({"images": images, "noise": first})
    np.testing.assert_allclose(to_numpy(decoded), 5.0 + np.e * first, rtol=1e-5)


def test_one_batch_is_learned(images):
    """With the settings of `finished`, whose step is compiled already."""
    config, _ = train_vae.parse([*FLAGS, "--output=none"])
    trainer = autoencoder.build_trainer(config)
    smooth = np.repeat(np.repeat(images[:, ::8, ::8], 8, axis=1), 8, axis=2)
    trainer.optimizer.learning_rate.assign(0.01)
    losses = []
    for _ in range(40):
        trainer.reset_metrics()
        losses.append(float(trainer.train_on_batch({"images": smooth}, return_dict=True)["reconstruction"]))
    assert losses[-1] < 0.3 * losses[0]
    assert int(to_numpy(trainer.step.value)) == 40


def test_moments_of_the_latents_are_those_of_drawn_latents(trainer):
    many = np.random.default_rng(1).integers(0, 256, (20, 16, 16, 3), dtype="uint8")
    mean, std = latent_moments(trainer.autoencoder, many, batch_size=7)
    noise = np.random.default_rng(2).standard_normal((20, 8, 8, 4))
    parts = [map(to_numpy, trainer.autoencoder.encode(many[i : i + 7])) for i in (0, 7, 13)]  # one shape to compile
    means, logvars = (np.delete(np.concatenate(part), 14, axis=0) for part in zip(*parts))  # where the last overlaps
    drawn = to_numpy(sample_posterior(means, logvars, noise))
    np.testing.assert_allclose([mean, std], [drawn.mean(), drawn.std()], rtol=0.05, atol=0.05 * drawn.std())


@pytest.mark.parametrize("options", [{"loss": "huber"}, {"kl_weight": -1.0}, {"ema_decay": 1.0}, {"seed": -1}])
def test_a_trainer_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="Received: "):
        AutoencoderTrainer(KLAutoencoder(**SMALL_AUTOENCODER), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "vae"
    train_vae.main([*FLAGS, "--steps=6", "--output", str(folder)])
    return folder


@pytest.mark.no_backend
def test_a_run_writes_an_autoencoder_that_others_read(finished):
    scores = json.loads((finished / "scores.json").read_text())
    autoencoder = KLAutoencoder.from_diffusers(finished)
    assert autoencoder.weights_hash() == scores["weights_hash"]
    assert keras.saving.load_model(finished / "autoencoder.keras").weights_hash() == scores["weights_hash"]
    assert autoencoder.scale == pytest.approx(1 / scores["latent_std"])
    assert autoencoder.shift == pytest.approx(scores["latent_mean"])
    crop, _, _ = embedded.load_photos("train", 16, stride=24)
    mean, logvar = map(to_numpy, autoencoder.encode(crop))
    drawn = autoencoder.to_diffusion(mean + np.exp(logvar / 2) * np.random.default_rng(0).standard_normal(mean.shape))
    assert abs(drawn.mean()) < 0.1 and abs(drawn.std() - 1) < 0.1
    assert Image.open(finished / "reconstructions.png").size == (16 * 34 + 2, 4 * 34 + 2)
    assert (finished / "loss.png").exists()
    assert not list(finished.glob(".*"))
    assert [line.split(",")[0] for line in (finished / "log.csv").read_text().split()] == ["step", "2", "4", "6"]


@pytest.mark.no_backend
def test_a_stopped_and_resumed_run_ends_as_one_that_was_not(finished, tmp_path, monkeypatch, capsys):
    command = [*FLAGS, "--steps=6", "--output", str(tmp_path)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        signal_at(patch, signal.SIGINT, 3)
        train_vae.main(command)
    assert ended.value.code == 130 and "step-000000003" in os.listdir(tmp_path / "checkpoints")
    assert "Stopped by SIGINT after step 3, which is saved" in capsys.readouterr().err
    train_vae.main(command)
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads((finished / "scores.json").read_text())
    steps = [[line.split(",")[:4] for line in (f / "log.csv").read_text().split()] for f in (tmp_path, finished)]
    assert steps[0] == steps[1]


@pytest.mark.no_backend
def test_a_finished_run_is_exported_again_and_other_settings_are_refused(finished, capsys):
    before = json.loads((finished / "scores.json").read_text())
    train_vae.main([*FLAGS, "--steps=6", "--output", str(finished)])
    assert json.loads((finished / "scores.json").read_text()) == before
    assert "resumed at step 6" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^error: .*another configuration .*loss='l1' there, 'l2' now"):
        train_vae.main([*FLAGS, "--loss=l2", "--output", str(finished)])
    train_vae.main([*FLAGS, "--steps=6", "--learning-rate=1e-4", "--accumulation-steps=2", "--output", str(finished)])
    assert "learning_rate 0.001 → 0.0001 from step 6 on" in capsys.readouterr().out
    assert json.loads((finished / "settings.json").read_text())["learning_rate"] == 1e-4
    with pytest.raises(SystemExit, match="^error: .*learning_rate=0.0001 there, 0.001 now.*--learning-rate 0.0001 "):
        train_vae.main([*FLAGS, "--steps=6", "--output", str(finished)])


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--image-size=18", "--block-out-channels=8,16,16"), "image_size must be a multiple of 4, .*Received: 18"),
        (
            ("--block-out-channels=8,12", "--norm-num-groups=8"),
            "must be multiples of norm_num_groups=8. Received: 8,12",
        ),
        (("--block-out-channels=8,x",), "expected positive widths such as 16,32,64. Received: '8,x'"),
        (("--loss=huber",), "invalid choice: 'huber'"),
        (("--steps=0",), "steps must be at least 1. Received: 0"),
        (("--learning-rate=nan",), "--learning-rate must be finite. Received: 'nan'"),
        (("--kl-weight=-1",), "kl_weight must be at least 0"),
        (("--resize=8",), "resize must be at least image_size=32. Received: 8"),
        (("--accumulation-steps=3",), "batch_size must be divisible by accumulation_steps=3. Received: 16"),
        (("--ema-decay=1",), r"ema_decay must lie in \[0, 1\). Received: 1.0"),
    ],
)
def test_flags_that_make_no_run_are_refused(flags, message, tmp_path, capsys):
    import re

    with pytest.raises(SystemExit):
        train_vae.main([*flags, "--output", str(tmp_path / "run")])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.no_backend
def test_a_source_that_is_not_there_ends_in_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="^error: There is no folder .*nowhere; give a folder of images"):
        train_vae.main(["--source", str(tmp_path / "nowhere"), "--output", str(tmp_path / "run")])
