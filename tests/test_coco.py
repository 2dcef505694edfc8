"""MS-COCO in its real formats, on a few images: read, encoded with captions, trained from; and what can be wrong."""

import dataclasses
import json
import re

import numpy as np
import pytest
from conftest import GOLDEN
from helpers import to_numpy
from PIL import Image
from text_helpers import share_processes

import train_coco
from fcdm_keras import FCDMBackbone
from fcdm_keras.data.latent_store import LatentStore, StoreSource
from fcdm_keras.recipes import MODEL_SIZES, ModelSize
from t2i import encode
from t2i.caption_store import CaptionedSource, CaptionStore
from t2i.coco import open_coco
from t2i.datasets import dataset_of
from t2i.recipes import RECIPES
from t2i.tasks import TextToImage
from t2i.text_encoder import OpenCLIPTextEncoder

pytestmark = pytest.mark.no_backend

VAE, SIZE, COUNT = str(GOLDEN / "vae"), 32, 5
CAPTIONS = {
    "000000000009.jpg": ["A red bus.", "A bus turns left."],
    "000000000025.jpg": ["Two dogs on a beach", "dogs", "Dogs playing"],
    "000000000030.jpg": ["The cat to the RIGHT of a bowl"],
    "000000000034.jpg": ["A bright leftover dinner"],
    "000000000036.jpg": ["a", "b", "c", "d", "e"],
}


def picture(i):
    pixels = np.random.default_rng(i).integers(0, 256, (5, 6, 3), "uint8").repeat(8, 0).repeat(8, 1)
    return Image.fromarray(pixels)


def official(root, captions=CAPTIONS, change=lambda content: None):
    """The official files: images in `train2017`, annotations in no order."""
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    for i, name in enumerate(CAPTIONS):
        picture(i).save(root / "train2017" / name)
    images = [{"id": int(name[:-4]), "file_name": name, "height": 40, "width": 48} for name in captions]
    pairs = [(int(name[:-4]), text) for name, texts in captions.items() for text in texts]
    annotations = [{"image_id": image, "id": i, "caption": text + "\n"} for i, (image, text) in enumerate(pairs)]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    change(content)
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """With a blank caption, which is none."""
    blank = {"image_id": 25, "id": 99, "caption": " \n"}
    root = tmp_path_factory.mktemp("data") / "coco"
    return official(root, change=lambda content: content["annotations"].insert(4, blank))


@pytest.fixture(scope="module")
def clip(tiny_clip):
    with pytest.MonkeyPatch.context() as monkeypatch:
        share_processes(monkeypatch)
        monkeypatch.setitem(MODEL_SIZES, "XS", ModelSize(8, (0, 0, 1, 0, 0)))
        yield tiny_clip


def encoding(source, clip, output, *more):
    arguments = [f"--source={source}", f"--vae={VAE}", f"--image-size={SIZE}", "--shard-size=2", "--batch-size=2"]
    return [*arguments, f"--text-encoder={clip}", "--text-weights=none", f"--output={output}", *more]


@pytest.fixture(scope="module")
def store(coco, clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    encode.main(encoding(coco, clip, folder))
    return folder


def test_official_files_are_read(coco):
    source = open_coco(str(coco))
    assert source.split == "train2017" and len(source) == COUNT and source.captions() == CAPTIONS
    examples = list(source.read(1, 3))
    assert [example.key for example in examples] == list(CAPTIONS)[1:3]
    np.testing.assert_array_equal(examples[0].decoded(), np.asarray(Image.open(coco / "train2017" / examples[0].key)))


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_tensorflow_datasets_are_read(coco, tmp_path, file_format):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(
                {
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "id": np.int64,
                    "is_crowd": np.bool_,
                    "label": tfds.features.ClassLabel(num_classes=80),
                }
            ),
        }
    )
    box = {"area": 3, "bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0), "id": 1, "is_crowd": False, "label": 1}
    examples = [
        (
            i,
            {
                "captions": [{"id": 10 * i + j, "text": text} for j, text in enumerate(texts)],
                "image": str(coco / "train2017" / name),
                "image/filename": name,
                "image/id": int(name[:-4]),
                "objects": [box],
            },
        )
        for i, (name, texts) in enumerate(CAPTIONS.items())
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="coco_captions",
        version="1.1.0",
        config="2014",
        features=features,
        split_datasets={"train": examples},
        data_dir=tmp_path,
        file_format=file_format,
        disable_shuffling=True,
    )
    source = open_coco("coco_captions", "train", str(tmp_path))
    assert len(source) == COUNT and source.captions() == CAPTIONS
    (example,) = source.read(4, 9)
    assert example.key == "000000000036.jpg" and example.decoded().shape == (40, 48, 3)
    with pytest.raises(ValueError, match="coco_captions has the splits train. Received: 'val'"):
        open_coco("coco_captions", "val", str(tmp_path))


@pytest.mark.parametrize("name", ["coco_captions", "/nowhere/coco", "nonsense"])
def test_missing_coco_says_how_to_get_it(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="Download train2017.zip .*cocodataset.org.*tfds build coco_captions"):
        open_coco(name, "train", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no folder train2017 or train2014 of images. Download"):
        open_coco(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.pop("annotations"),
            r'missing required field `annotations`. Received: .* "info", "licenses", "images"; expected',
        ),
        (
            lambda c: c["images"].append({"id": 7, "file_name": "7.jpg"}),
            "1 of the 6 images of .* have no caption, .*7.jpg",
        ),
        (lambda c: c["images"].pop(), "has 5 captions of images that it does not list, the first of image 36"),
        (lambda c: c["annotations"].pop(3).update(), None),
        (
            lambda c: (
                c["images"].append({"id": 7, "file_name": "7.jpg"}),
                c["annotations"].append({"image_id": 7, "caption": "x"}),
            ),
            "1 of the 6 images of .* are not in .*train2017, the first 7.jpg",
        ),
    ],
)
def test_caption_files_that_do_not_fit_are_refused(tmp_path, change, message):
    root = official(tmp_path / "coco", change=change)
    if message is None:
        assert sum(map(len, open_coco(str(root)).captions().values())) == 11
        return
    with pytest.raises(ValueError, match=message):
        open_coco(str(root))


def test_captions_and_all_their_embeddings_lie_beside_the_latents(store, clip):
    captions = CaptionStore(store)
    assert captions.captions == list(CAPTIONS.values()) and len(LatentStore(store)) == COUNT
    encoder = OpenCLIPTextEncoder(clip, None)
    texts = [text for own in CAPTIONS.values() for text in own]
    np.testing.assert_allclose(captions.all_embeddings(), encoder.encode(texts), rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(captions.null_embedding(), encoder.encode([""])[0], rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(captions.read([1, 4], [2, 3]), captions.all_embeddings()[[4, 10]].astype("float32"))
    assert captions.encoder == encoder.identity() and captions.settings == encoder.settings()
    assert not (store / "captions.unfinished").exists()


def test_the_same_command_changes_nothing_and_another_encoder_is_refused(store, coco, clip, capsys):
    before = {file.name: file.read_bytes() for file in store.iterdir() if file.is_file()}
    encode.main(encoding(coco, clip, store))
    assert re.search("1 captions of .*captions_train2017.json are blank and are left out.", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="^error: .*captions.json is of another text encoder .weights_hash"):
        encode.main(encoding(coco, clip, store, "--text-seed=1"))
    assert {file.name: file.read_bytes() for file in store.iterdir() if file.is_file()} == before


def test_half_the_embeddings_are_gone_on_with(store, coco, clip, tmp_path, monkeypatch):
    """Stopped while captions are encoded: finished parts are not made again."""
    from t2i import caption_store

    monkeypatch.setattr(caption_store, "PART", 4)
    folder, encode_texts, calls = tmp_path / "store", OpenCLIPTextEncoder.encode, []
    folder.mkdir()
    for file in store.iterdir():
        if file.name not in ("captions.json", "embeddings.npy"):
            (folder / file.name).write_bytes(file.read_bytes())

    def stopping(self, texts):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode_texts(self, texts)

    monkeypatch.setattr(OpenCLIPTextEncoder, "encode", stopping)
    with pytest.raises(SystemExit, match="130"):  # as after Ctrl-C in any command
        encode.main(encoding(coco, clip, folder))
    with pytest.raises(FileNotFoundError, match="has no captions: make it, or finish it, with `python -m t2i.encode`"):
        CaptionStore(folder)
    encode.main(encoding(coco, clip, folder))
    assert calls == [4, 4, 4, 4, 1]
    assert (folder / "embeddings.npy").read_bytes() == (store / "embeddings.npy").read_bytes()


def captioned(store, **options):
    latents = LatentStore(store)
    return CaptionedSource(StoreSource(latents, seed=5, sample_posterior=False), CaptionStore(store), **options)


def test_one_caption_and_a_flip_are_drawn_at_every_read(store):
    """Each caption about as often as the others; never a mirror image of one with "left" or "right"."""
    source, captions, latents = captioned(store), CaptionStore(store), LatentStore(store)
    places = np.arange(4000)
    samples = places % COUNT
    batch = source.take(samples, places)
    scale = latents.metadata.scale
    seen = {}
    for sample, latent, embedding in zip(samples, batch["latents"], batch["text_embeddings"]):
        own = captions.read([sample] * len(captions.captions[sample]), range(len(captions.captions[sample])))
        text = captions.captions[sample][int(np.abs(own - embedding).sum(axis=1).argmin())]
        plain, mirrored = (latents.read([sample], [flip])[0][0].astype("float32") * scale for flip in (0, 1))
        flipped = np.abs(latent - mirrored).max() < 1e-6
        assert flipped or np.abs(latent - plain).max() < 1e-6
        count, flips = seen.get(text, (0, 0))
        seen[text] = (count + 1, flips + flipped)
    assert set(seen) == {text for texts in CAPTIONS.values() for text in texts}
    for sample, texts in enumerate(CAPTIONS.values()):
        for text in texts:
            count, flips = seen[text]
            assert abs(count - 800 / len(texts)) < 70, sample  # 5 standard deviations
            sided = text in ("A bus turns left.", "The cat to the RIGHT of a bowl")
            assert flips == 0 if sided else abs(flips - count / 2) < 70
    again = source.take(samples[::-1][:50], places[::-1][:50])
    for name in batch:
        np.testing.assert_array_equal(again[name], batch[name][::-1][:50])
    sided = captioned(store, mirror_sided=True).take(np.full(50, 2), np.arange(50))["latents"]
    assert len(np.unique(sided.reshape(50, -1), axis=0)) == 2


def config_of(store, tmp_path, *flags):
    arguments = ["--recipe=coco256-xl", f"--latents={store}", f"--image-size={SIZE}", "--model=XS", "--steps=1"]
    arguments += [
        f"--latent-scale={LatentStore(store).metadata.scale}",
        f"--results-dir={tmp_path}",
        "--data-workers=0",
    ]
    return [*arguments, "--global-batch-size=4", *flags]


def test_a_run_takes_latents_captions_and_the_text_encoder_from_the_store(store, clip, tmp_path):
    config, _ = train_coco.parse(config_of(store, tmp_path))
    assert (config.text_encoder, config.text_weights, config.text_seed) == (clip, "none", 0)
    data = dataset_of(config).open(config, tmp_path)
    backbone = data.build_backbone(config)
    embeddings = CaptionStore(store).all_embeddings().astype("float64")
    np.testing.assert_allclose(backbone.conditioning.mean, embeddings.mean(axis=0), rtol=1e-4, atol=1e-5)
    sizes = np.linalg.svd((embeddings - embeddings.mean(axis=0)) / embeddings.std(axis=0), compute_uv=False)
    sizes /= np.sqrt(len(embeddings))
    standard = (embeddings - embeddings.mean(axis=0)) @ to_numpy(backbone.conditioning.whitening)
    found = np.linalg.svd(standard, compute_uv=False) / np.sqrt(len(embeddings))
    np.testing.assert_allclose(found, sizes / (sizes + 0.3), rtol=1e-3, atol=1e-3)
    batch = next(iter(data.batches(config, 0)))
    assert batch["latents"].shape == (4, 4, 4, 4) and batch["text_embeddings"].shape == (4, 16)
    task = data.build_task(config, backbone)
    assert task._encoder is None and task.text_encoder.identity() == data.text["identity"]
    assert data.encoder is None and json.loads((tmp_path / "text.json").read_text()) == data.text
    captions, shown = data.spread(config, 3)
    assert captions == ["A red bus.", "The cat to the RIGHT of a bowl", "a"] and shown.shape == (3, 16)


def test_the_script_trains_from_a_store_and_starts_from_a_class_model(store, clip, tmp_path, capsys):
    classes = FCDMBackbone(8, (0, 0, 1, 0, 0), num_classes=3, in_channels=4)
    classes.save_to_preset(str(tmp_path / "classes"))
    flags = ["--sample-every=2", "--num-sampling-steps=2", "--cfg-scale=1", f"--init-from={tmp_path / 'classes'}"]
    train_coco.main(config_of(store, tmp_path, *flags, "--steps=2"))
    printed, run = capsys.readouterr().out, tmp_path / "coco256-xl"
    assert "the 15 of the conditioning are made anew" in printed
    assert "with 12 captions" in printed, printed
    assert Image.open(run / "samples.png").size[0] > SIZE and json.loads((run / "scores.json").read_text())["seconds"]
    images = TextToImage.from_preset(run).generate(["A red bus", ""], num_steps=2, guidance_scale=1.0, seed=0)
    assert images.shape == (2, SIZE, SIZE, 3) and images.dtype == np.uint8
    train_coco.main(config_of(store, tmp_path, *flags, "--steps=3"))
    assert "resumed at step 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--text-encoder=RN50"],
            "were encoded with text_encoder .*, and the run asks for RN50; leave out --text-encoder",
        ),
        (["--text-seed=4"], "were encoded with text_seed 0, and the run asks for 4"),
        (["--image-size=64"], "it holds images of a side of 32, and the run asks for 64"),
    ],
)
def test_a_store_that_does_not_fit_is_refused(store, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        train_coco.parse(config_of(store, tmp_path, *flags))
    assert re.search(message, capsys.readouterr().err)


def test_captions_that_do_not_fit_the_store_are_refused(store, tmp_path):
    for name in ("captions.json", "embeddings.npy"):
        (tmp_path / name).write_bytes((store / name).read_bytes())
    content = json.loads((store / "captions.json").read_text())
    content["encoder"]["embedding_dim"] = 7
    (tmp_path / "captions.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"must have the shape \(13, 7\). Received: \(13, 16\); remove it"):
        CaptionStore(tmp_path)
    (tmp_path / "captions.json").write_text("{")
    with pytest.raises(ValueError, match="captions.json is damaged .*run `python -m t2i.encode` again"):
        CaptionStore(tmp_path)
    config = dataclasses.replace(RECIPES["coco256-xl"], latents=str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="nothing has no captions"):
        dataset_of(config).open(config, tmp_path)
