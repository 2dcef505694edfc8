"""The latent store: made, killed, made on, verified, read, trained from; and everything that can be wrong with it."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
from conftest import GOLDEN
from helpers import to_numpy

from fcdm_keras import encode, evaluate
from fcdm_keras.autoencoders import KLAutoencoder, to_uint8
from fcdm_keras.data.batches import training_batches
from fcdm_keras.data.latent_store import LatentStore, StoreSource, check_fit, read_metadata
from fcdm_keras.data.latent_writer import ShardWriter, StoreEncoder
from fcdm_keras.data.sources import FolderSource
from fcdm_keras.data.transforms import center_crop
from fcdm_keras.evaluation.reconstruction import psnr
from fcdm_keras.recipes import RECIPES

ROOT = Path(__file__).parents[1]
VAE = str(GOLDEN / "vae")
SIZE, COUNT = 32, 11


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven crops of a photograph, 40 pixels and one of 20, in three class folders."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    root, photo = tmp_path_factory.mktemp("photos"), load_sample_image("china.jpg")
    for i in range(COUNT):
        side = 20 if i == 4 else 40
        place = root / f"class_{i % 3}"
        place.mkdir(exist_ok=True)
        Image.fromarray(photo[100 : 100 + side, 40 * i : 40 * i + side]).save(place / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def vae():
    return KLAutoencoder.from_diffusers(VAE)


def make(folder, photos, vae, **options):
    options = {"image_size": SIZE, "shard_size": 4, "batch_size": 3, **options}
    return StoreEncoder(folder, FolderSource(photos), vae, autoencoder_name=VAE, **options).run()


@pytest.fixture(scope="module")
def store(photos, vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    make(folder, photos, vae)
    return LatentStore(folder)


def contents(folder):
    """All that a store holds, flips included."""
    store = LatentStore(folder)
    indices = np.arange(len(store))
    reads = [store.read(indices, np.full(len(store), flip)) for flip in (False, True)]
    return store.metadata, [part for read in reads for part in read]


def assert_same_contents(a, b):
    (metadata, parts), (other_metadata, other_parts) = contents(a), contents(b)
    assert metadata == other_metadata
    for part, other in zip(parts, other_parts, strict=True):
        np.testing.assert_array_equal(part, other)


def test_latents_are_the_autoencoders_own(store, photos, vae):
    images = np.stack([center_crop(e.decoded(), SIZE) for e in FolderSource(photos).read(0, COUNT)])
    for flipped in (False, True):
        mean, std, labels, keys = store.read(np.arange(COUNT), np.full(COUNT, flipped))
        views = images[:, :, ::-1] if flipped else images
        expected, logvar = map(to_numpy, vae.encode(views.astype("float32") / 127.5 - 1))
        assert mean.dtype == std.dtype == np.float16 and mean.shape == (COUNT, 4, 4, 4)
        np.testing.assert_allclose(mean, expected, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(std, np.exp(logvar / 2), rtol=4e-3, atol=1e-6)
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert keys[4] == "class_1/01.png"


def test_a_flip_is_decoded_to_the_mirror_image(photos, tmp_path):
    """With a trained autoencoder: as near to the mirrored image as the plain latents are to the plain one."""
    trained = KLAutoencoder.from_diffusers(GOLDEN / "photos_vae")
    make(tmp_path, photos, trained)
    store, indices = LatentStore(tmp_path), np.arange(COUNT)
    images = np.stack([center_crop(e.decoded(), SIZE) for e in FolderSource(photos).read(0, COUNT)])
    plain, flipped = (
        to_numpy(to_uint8(trained.decode(store.read(indices, np.full(COUNT, flip))[0].astype("float32"))))
        for flip in (False, True)
    )
    quality, mirrored = psnr(images, plain).mean(), psnr(images[:, :, ::-1], flipped).mean()
    assert mirrored > 22 and abs(mirrored - quality) < 1
    assert psnr(images, flipped).mean() < mirrored - 4


@pytest.mark.no_backend
def test_metadata_tell_what_was_done(store):
    m = store.metadata
    assert (m.num_images, m.num_classes, m.image_size, m.latent_shape) == (COUNT, 3, SIZE, (4, 4, 4))
    assert (m.scale, m.shift, m.flips, m.skipped, m.enlarged) == (0.18215, 0.0, True, 0, 1)
    assert m.class_names == ("class_0", "class_1", "class_2") and m.autoencoder == VAE
    assert [shard.images for shard in m.shards] == [4, 4, 3]
    assert store.damaged_shards() == []


@pytest.mark.no_backend
def test_a_killed_encoding_goes_on_to_the_same_store(store, photos, tmp_path, capsys):
    """The command, killed (-9) as soon as a shard is finished; then run again. Finished shards are not touched."""
    command = [sys.executable, "-m", "fcdm_keras.encode", f"--source={photos}", f"--vae={VAE}", f"--image-size={SIZE}"]
    command += ["--shard-size=4", "--batch-size=3", f"--output={tmp_path / 'latents'}"]
    process = processes.start(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = tmp_path / "latents" / "shard-00000.json"
    while not first.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(FileNotFoundError, match="unfinished latent store; run the same"):
        LatentStore(tmp_path / "latents")
    written = first.with_suffix(".array_record").stat().st_mtime_ns
    encode.main(command[3:])
    output = capsys.readouterr().out
    assert "11 images of 3 classes at 32 px as 4×4×4 posteriors, each with its mirror image" in output
    assert "1 images were smaller than 32 px and were enlarged" in output
    assert first.with_suffix(".array_record").stat().st_mtime_ns == written
    assert_same_contents(store.folder, tmp_path / "latents")


@pytest.mark.no_backend
def test_processes_share_the_shards(store, photos, vae, tmp_path):
    options = {"image_size": SIZE, "shard_size": 4, "batch_size": 3, "autoencoder_name": VAE}
    encoders = [StoreEncoder(tmp_path, FolderSource(photos), vae, **options) for _ in range(2)]
    assert encoders[1].run(1, 2) is None
    assert not (tmp_path / "shard-00000.json").exists() and (tmp_path / "shard-00001.json").exists()
    assert encoders[0].run(0, 2) == store.metadata
    assert_same_contents(store.folder, tmp_path)


@pytest.mark.no_backend
def test_unreadable_images_are_named_and_left_out_up_to_a_limit(photos, vae, tmp_path):
    source = tmp_path / "images"
    shutil.copytree(photos, source)
    (source / "class_0" / "00.png").write_bytes(b"no image")
    (source / "class_2" / "05.png").write_bytes((source / "class_2" / "05.png").read_bytes()[:100])
    metadata = make(tmp_path / "latents", source, vae, max_unreadable=2)
    assert (metadata.num_images, metadata.skipped) == (COUNT - 2, 2)
    named = [json.loads((tmp_path / "latents" / f"shard-{i:05d}.json").read_text())["skipped"] for i in range(3)]
    assert [[key for key, _ in part] for part in named] == [["class_0/00.png"], [], ["class_2/05.png"]]
    assert LatentStore(tmp_path / "latents").read([0])[3] == ["class_0/03.png"]
    with pytest.raises(ValueError, match="More than 1 images cannot be read, the last one class_2/05.png"):
        make(tmp_path / "other", source, vae, max_unreadable=1)
    assert (tmp_path / "other" / "shard-00001.json").exists()  # finished shards are kept


@pytest.mark.no_backend
def test_an_image_that_vanished_is_unreadable_and_no_full_disk(photos, vae, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    source = FolderSource(tmp_path / "photos")
    gone = next(source.read(0, 1))
    gone.image.unlink()
    options = {"autoencoder_name": VAE, "image_size": SIZE, "batch_size": 4}
    with pytest.raises(ValueError, match=f"More than 0 images .* {gone.key} .No such file or directory."):
        StoreEncoder(tmp_path / "store", source, vae, max_unreadable=0, **options).run()
    assert StoreEncoder(tmp_path / "store", source, vae, **options).run().skipped == 1


@pytest.mark.no_backend
@pytest.mark.parametrize("value", [np.nan, np.inf, 7e4])
def test_latents_that_are_not_finite_are_not_stored(photos, vae, tmp_path, monkeypatch, value):
    """Also those that float16 cannot hold."""
    source = FolderSource(photos)
    key = next(source.read(0, 1)).key
    kernel = vae.encoder.conv_out.bias
    before = to_numpy(kernel).copy()
    try:
        kernel.assign(np.full_like(before, value))
        encoder = StoreEncoder(tmp_path, source, vae, autoencoder_name=VAE, image_size=SIZE, batch_size=4)
        with pytest.raises(ValueError, match=f"The latents of {key} are not finite, or beyond ±65,504, and are not"):
            encoder.run()
    finally:
        kernel.assign(before)
    assert not list(tmp_path.glob("shard-*"))


@pytest.mark.no_backend
def test_labels_that_are_no_classes_are_refused(photos, vae, store, tmp_path):
    """When they are encoded, of any source, and where a store of an earlier version holds them, when they are read."""

    class Labelled(FolderSource):
        def __init__(self, label):
            super().__init__(photos)
            self.label = label

        def read(self, start, stop):
            for place, example in enumerate(super().read(start, stop), start):
                yield dataclasses.replace(example, label=self.label if place == 5 else np.int64(2))

    options = {"autoencoder_name": VAE, "image_size": SIZE, "shard_size": 4, "batch_size": 3}
    for label in (-1, 3, 1.5, "2", None):
        told = f"split train: class_1/04.png has the label {label!r}, and labels are numbers of classes, 0 to 2"
        with pytest.raises(ValueError, match=re.escape(told)):
            StoreEncoder(tmp_path / "latents", Labelled(label), vae, **options).run()
    assert [file.name for file in (tmp_path / "latents").glob("shard-*.json")] == ["shard-00000.json"]
    fewer = LatentStore(damaged(store, tmp_path / "fewer", lambda folder: rewrite(folder, class_names=["a", "b"])))
    assert StoreSource(fewer, seed=0).take([0, 4], [0, 1])["labels"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="latent store .*fewer: class_2/02.png has the label 2, .* 0 to 1; mend"):
        StoreSource(fewer, seed=0).take([0, 8], [0, 1])


@pytest.mark.no_backend
def test_training_reads_every_image_once_per_epoch_and_flips_half(store):
    source = StoreSource(store, seed=3)
    batches = training_batches(source, 4, 110, seed=3)
    labels = np.concatenate([batch["labels"] for batch in batches])
    for epoch in labels.reshape(-1, COUNT):
        assert sorted(epoch) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    still = StoreSource(store, seed=3, sample_posterior=False)
    flipped = 0
    for place in range(400):
        latents = still.take(np.array([5]), np.array([place]))["latents"]
        plain, mirror = (np.float32(0.18215) * store.read([5], [flip])[0].astype("float32") for flip in (False, True))
        assert np.array_equal(latents, plain) != np.array_equal(latents, mirror)
        flipped += np.array_equal(latents, mirror)
    assert 160 < flipped < 240  # 200 ± 4 standard deviations


@pytest.mark.no_backend
def test_the_posterior_is_drawn_anew_at_each_read(store):
    drawn = StoreSource(store, seed=0, flips=False)
    reads = np.stack([drawn.take(np.array([0]), np.array([place]))["latents"][0] for place in range(300)])
    mean, std = (part[0].astype("float32") * np.float32(0.18215) for part in store.read([0])[:2])
    normalised = (reads - mean) / std
    assert abs(normalised.mean()) < 0.03 and abs(normalised.std() - 1) < 0.03
    again = drawn.take(np.array([0]), np.array([7]))["latents"][0]
    np.testing.assert_array_equal(again, reads[7])
    off = StoreSource(store, seed=0, sample_posterior=False, flips=False)
    np.testing.assert_allclose(off.take(np.array([0]), np.array([9]))["latents"][0], mean, rtol=1e-6)


@pytest.mark.no_backend
def test_worker_processes_and_resumed_readers_give_the_same_batches(store):
    whole = list(training_batches(StoreSource(store, seed=1), 4, 8, seed=1))
    rest = list(training_batches(StoreSource(store, seed=1), 4, 8, seed=1, start=3, workers=2))
    assert len(rest) == 5
    for a, b in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(a["latents"], b["latents"])
        np.testing.assert_array_equal(a["labels"], b["labels"])


@pytest.mark.no_backend
def test_a_store_without_flips(photos, vae, tmp_path):
    make(tmp_path, photos, vae, flips=False)
    store = LatentStore(tmp_path)
    assert not store.metadata.flips and len(store.read(np.arange(COUNT))[3]) == COUNT
    assert not StoreSource(store, seed=0).flips
    with pytest.raises(ValueError, match="holds no flipped images: it was encoded with --no-flips"):
        store.read([0], [True])


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 256}, "images of a side of 32, and the run asks for 256; pass --image-size 32"),
        ({"latent_channels": 16}, "latent channels: 4, and the run asks for 16"),
        ({"num_classes": 1000}, "classes: 3, and the run asks for 1000; pass --num-classes 3"),
        ({"latent_scale": 0.13025}, "the latent scale 0.18215, and the run asks for 0.13025"),
    ],
)
def test_a_store_that_does_not_fit_the_run_is_refused(store, changes, message):
    fitting = {"image_size": 32, "num_classes": 3, "latents": str(store.folder)}
    config = dataclasses.replace(RECIPES["imagenet256-s"], **fitting)
    check_fit(store.metadata, config)
    with pytest.raises(ValueError, match=message):
        check_fit(store.metadata, dataclasses.replace(config, **changes))


def damaged(store, folder, change):
    shutil.copytree(store.folder, folder)
    change(folder)
    return folder


def rewrite(folder, **changes):
    file = folder / "store.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.no_backend
def test_damaged_stores_are_refused_in_one_sentence(store, tmp_path, capsys):
    def cut(folder):
        os.truncate(folder / "shard-00001.array_record", 1000)

    for name, change, message in (
        ("cut", cut, "shard-00001.array_record has 1,000 bytes, and .* were written: the store is incomplete"),
        ("gone", lambda f: (f / "shard-00000.array_record").unlink(), "shard-00000.array_record is missing"),
        ("version", lambda f: rewrite(f, version=7), "latent store of version 7, and this program reads version 1"),
        ("json", lambda f: (f / "store.json").write_text("{"), "store.json is damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            LatentStore(damaged(store, tmp_path / name, change))
    with pytest.raises(FileNotFoundError, match="There is no latent store at .*; make one with"):
        LatentStore(tmp_path / "nothing")

    def flip_a_bit(folder):
        data = bytearray((folder / "shard-00002.array_record").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "shard-00002.array_record").write_bytes(data)

    encode.main(["--verify", str(store.folder)])
    assert "all 3 shards match their checksums" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: .*shard-00002.array_record: the contents do not match"):
        encode.main(["--verify", str(damaged(store, tmp_path / "bit", flip_a_bit))])


@pytest.mark.no_backend
def test_another_command_does_not_go_on_with_a_store(store, photos, vae, tmp_path):
    folder = damaged(store, tmp_path / "x", lambda f: None)
    with pytest.raises(ValueError, match="made otherwise .image_size=32 there, 64 now; latent_shape="):
        make(folder, photos, vae, image_size=64)
    with pytest.raises(ValueError, match="shard_size=4 there, 5 now"):
        make(folder, photos, vae, shard_size=5)
    with pytest.raises(ValueError, match="must be a multiple of 32: .* Received: 48"):
        make(tmp_path / "y", photos, vae, image_size=48)
    assert read_metadata(folder) == store.metadata


@pytest.mark.no_backend
def test_a_store_that_does_not_fit_on_the_disk_is_refused_at_once(photos, vae, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="needs .* GiB more, and the disk has 0.0 GiB free; make room"):
        make(tmp_path / "latents", photos, vae)


@pytest.mark.no_backend
def test_a_full_disk_while_encoding_keeps_finished_shards(photos, tmp_path, monkeypatch):
    """The system lets no file grow beyond 20,000 bytes from the second shard on."""
    arguments = [f"--source={photos}", f"--vae={VAE}", f"--image-size={SIZE}", "--shard-size=4", "--batch-size=3"]
    begin, limits = ShardWriter.__init__, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self, folder, index):
        if index == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        begin(self, folder, index)

    monkeypatch.setattr(ShardWriter, "__init__", limited)
    try:
        with pytest.raises(SystemExit) as end:
            encode.main([*arguments, f"--output={tmp_path}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(end.value.code).startswith(f"error: Shard 1 could not be written to {tmp_path}")
    assert "Finished shards are kept; make room and run the same command again." in str(end.value.code)
    assert (tmp_path / "shard-00000.json").exists() and not (tmp_path / "shard-00001.json").exists()


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source=x", "--output=y"], "--vae is needed"),
        (
            ["--source=x", "--vae=v", "--output=y", "--image-size=0"],
            r"--image-size must lie in \[1, 65536\]. Received: '0'",
        ),
        (["--source=x", "--vae=v", "--output=y", "--process-index=2"], r"--process-index must lie in \[0, 0\]"),
    ],
)
def test_bad_flags_are_refused_at_once(flags, message, capsys):
    with pytest.raises(SystemExit):
        encode.parse(flags)
    assert re.search(message, capsys.readouterr().err)


def test_a_store_is_scored_as_the_images_that_it_decodes_to(store, vae, tmp_path, monkeypatch):
    """A reference file is written from it; its pixels are the decoder's."""
    monkeypatch.chdir(tmp_path)
    evaluate.main([str(store.folder), "--write-reference=ref.npz", "--features=pixels"])
    decoded = to_numpy(to_uint8(vae.decode(store.read(np.arange(COUNT))[0].astype("float32"))))
    with np.load("ref.npz") as reference:
        images, mu = reference["arr_0"], reference["mu"]
    assert np.abs(images.astype(int) - decoded).max() <= 1
    np.testing.assert_allclose(mu, images.reshape(COUNT, -1).mean(axis=0) / 255, atol=1e-6)
