"""Kinds of documents: JSON and tables that we or others wrote."""

import json
from types import SimpleNamespace

import keras
import numpy as np
from conftest import VAE
from fuzz_frame import Kind
from helpers import store_metadata, tiny_backbone

from fcdm_keras.autoencoders import diffusers
from fcdm_keras.data.latent_writer import StoreEncoder
from fcdm_keras.data.store_metadata import read_metadata
from fcdm_keras.distribution import launch
from fcdm_keras.formats.weight_index import read_parts
from fcdm_keras.options import to_json
from fcdm_keras.recipes import RECIPES, VAEConfig
from fcdm_keras.reporting import page
from fcdm_keras.runs import folder as run_folder
from fcdm_keras.runs import history
from fcdm_keras.runs.load import load_task
from fcdm_keras.runs.sample import check_settings, stored_settings
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training.checkpoint import CheckpointManager
from t2i.caption_store import CaptionStore
from t2i.captions import read_captions
from t2i.encoding import stored_captions
from t2i.load import read_text_settings, stored_identity

IDENTITY = {"model": "ViT-L-14", "weights_hash": "0" * 32, "embedding_dim": 2}
ENCODER = {"model": "ViT-L-14", "pretrained": "openai", "seed": 0}
LOG = "step,loss,mse,vb,images_per_second\n1,0.5,0.4,0.1,100.0\n2,0.25,0.2,nan,1e-05\n"


def written(name, content):
    """`write` of one file, of text or of what is made to JSON."""

    def write(folder):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
        return folder / name

    return write


def run(name, content):
    """`write` of a file in a run folder."""

    def write(folder):
        (folder / "config.json").write_text(to_json(RECIPES["digits"]))
        return written(name, content)(folder)

    return write


def vae_run(folder):
    (folder / "vae").mkdir()
    return written("settings.json", to_json(VAEConfig()))(folder)


def captions(folder):
    np.save(folder / "embeddings.npy", np.zeros((4, 2), np.float16))
    facts = {"encoder": IDENTITY, "settings": ENCODER, "hash": "0" * 32}
    return written("captions.json", {**facts, "captions": [["a red bus", ""], ["two cats"]]})(folder)


def preset(name):
    def write(folder):
        keras.utils.set_random_seed(0)
        ClassToImage(tiny_backbone((0, 0, 1, 0, 0), in_channels=1), image_size=8).save_to_preset(folder)
        return folder / name

    return write


def vae(folder):
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / file).symlink_to(VAE / file)
    config = (folder / "config.json").read_bytes()
    (folder / "config.json").unlink()
    (folder / "config.json").write_bytes(config)
    return folder / "config.json"


def checkpoint(folder):
    state = {"metrics": {"loss": [1.0, 2.0]}, "generators": [[1, 2]]}
    manifest = {"step": 3, "shapes": [[2, 3], []], "state": state, "keras": "3", "backend": "jax", "sha256": "0"}
    (folder / "step-000000003").mkdir()
    (folder / "step-000000003" / "trainer.weights.h5").write_bytes(b"")
    return written("step-000000003/checkpoint.json", manifest)(folder)


def read_checkpoint(folder):
    manager = CheckpointManager(folder, read_only=True)
    assert "\n" not in manager.damage(3)
    manager.metric_sums(3)


def index(folder):
    (folder / "model-1.bin").write_bytes(b"")
    return written("model.bin.index.json", {"metadata": {}, "weight_map": {"a": "model-1.bin"}})(folder)


class Source:
    name, split, class_names = "x", "train", ("a",)

    def __len__(self):
        return 3


def encoder(folder):
    autoencoder = SimpleNamespace(
        scale=1.0, shift=0.0, latent_channels=4, downsampling_factor=8, weights_hash=lambda: "0" * 8
    )
    return StoreEncoder(folder, Source(), autoencoder, autoencoder_name="vae", image_size=32)


def encoder_settings(folder):
    encoder(folder)
    return folder / "settings.json"


def sidecar(folder):
    entry = {"file": "shard-00000.array_record", "images": 1, "bytes": 100, "sha256": "0" * 64}
    return written("shard-00000.json", {**entry, "skipped": [["b", "no image"]], "enlarged": ["a"]})(folder)


def read_sidecar(folder):
    source = SimpleNamespace(captions=lambda: {"a": ["x"], "b": ["y"]})
    stored_captions(source, folder, store_metadata((4, 4, 4)))


def read_store_settings(folder):
    check_settings(folder, stored_settings(folder), {"num_samples": 2, "labels": [1, 2], "seed": 3})


def tf_config(folder):
    launch.place(launch.TF_CONFIG, {"TF_CONFIG": (folder / "x").read_text(encoding="utf-8", errors="replace")})


COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 2, "image_id": 1, "caption": "a bus"}]}
CHANGE = {"step": 3, "date": "2026-01-01", "setting": "learning_rate", "before": 0.1, "after": 0.01}
CLUSTER = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
STORED = written("store.json", store_metadata((4, 4, 4)).to_json())
SAMPLES = {"num_samples": 2, "labels": [1, 2], "seed": 3, "weights": "x"}

KINDS = {
    "run-config": Kind(run("config.json", to_json(RECIPES["digits"])), run_folder.stored_config),
    "vae-run-settings": Kind(vae_run, lambda folder: run_folder.open_vae_run(folder, VAEConfig())),
    "sample-settings": Kind(written("settings.json", SAMPLES), read_store_settings),
    "store": Kind(STORED, read_metadata),
    "store-settings": Kind(encoder_settings, encoder),
    "store-shard": Kind(sidecar, read_sidecar),
    "run-latents": Kind(written("latents.json", store_metadata((4, 4, 4)).to_json()), run_folder.stored_classes),
    "run-classes": Kind(written("classes.json", ["a", "b"]), run_folder.stored_classes),
    "run-history": Kind(written("history.json", [CHANGE]), history.read_history),
    "run-scores": Kind(run("scores.json", {"fid": 1.5, "seconds": 3}), lambda f: page.markdown([page.read_run(f)])),
    "evaluation": Kind(run("e.json", {"fid": 1.5, "num_samples": 3}), lambda f: page.markdown([page.read_run(f)])),
    "run-log": Kind(run("log.csv", LOG), lambda f: page.markdown([page.read_run(f)])),
    "run-text": Kind(written("text.json", {"settings": ENCODER, "identity": IDENTITY}), read_text_settings),
    "captions": Kind(captions, CaptionStore),
    "coco": Kind(written("x.json", COCO), lambda folder: read_captions(folder / "x.json")),
    "preset-config": Kind(preset("config.json"), load_task, 0.25),
    "preset-task": Kind(preset("task.json"), load_task, 0.25),
    "preset-metadata": Kind(preset("metadata.json"), load_task, 0.1),
    "preset-identity": Kind(preset("task.json"), stored_identity),
    "vae-config": Kind(vae, lambda folder: diffusers.read(folder, None, {}, lambda **_: None), 0.5),
    "weight-index": Kind(index, lambda folder: read_parts(folder / "model.bin.index.json")),
    "checkpoint": Kind(checkpoint, read_checkpoint),
    "tf-config": Kind(written("x", CLUSTER), tf_config),
}
