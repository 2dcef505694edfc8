"""Kinds of arrays, weights and pictures: binary files that we or others wrote."""

import dataclasses
import functools

import keras
import numpy as np
import torch
from fuzz_frame import Kind
from helpers import store_metadata, tiny_backbone
from picture_kinds import COLOUR, saved
from safetensors.numpy import save_file
from test_graph import Builder

from fcdm_keras.autoencoders.weight_files import read_tensors
from fcdm_keras.data.latent_store import LatentStore
from fcdm_keras.data.latent_writer import ShardWriter
from fcdm_keras.data.pictures import FORMATS, decode_image, shorter_side
from fcdm_keras.data.store_metadata import Shard
from fcdm_keras.evaluation.features import load_extractor
from fcdm_keras.evaluation.image_sets import ImageFile
from fcdm_keras.evaluation.inception.graph import FrozenGraph
from fcdm_keras.evaluation.sides import open_set
from fcdm_keras.network.base import DiffusionBackbone
from fcdm_keras.network.reference import load_torch_checkpoint, save_torch_state_dict
from fcdm_keras.training.trainer import DiffusionTrainer

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (3, 4, 4, 3)).astype("uint8")
TENSORS = {name: RANDOM.standard_normal((4, 3), "float32") for name in ("a.weight", "b.weight")}


def file(name, write):
    """`write` of one file, by a function of its path."""

    def written(folder):
        write(folder / name)
        return folder / name

    return written


def arrays(**content):
    return file("x.npz", lambda path: np.savez(path, **content))


def read_images(folder):
    (path,) = folder.iterdir()
    return list(ImageFile(path).batches(2))


@functools.cache
def network():
    return new_network()


def trainer():
    trained = DiffusionTrainer(network())
    trained.compile()
    return trained


def preset(folder):
    network().save_to_preset(folder)
    return folder / "model.weights.h5"


def adapters(path):
    adapted = new_network()
    adapted.enable_lora(1)
    adapted.save_lora_weights(path)


def keras_model(path):
    keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 3)]).save(path)


def graph(path):
    builder = Builder(3)
    builder.build(8, 8)
    path.write_bytes(builder.graph.SerializeToString())


def run_graph(folder):
    loaded = FrozenGraph.load(folder / "x.pb")
    loaded.function("image:0", [list(loaded.nodes)[-1]])(np.zeros((8, 8, 3), "uint8"))


def store(folder):
    writer = ShardWriter(folder, 0)
    for i in range(3):
        writer.write([RANDOM.random((2, 4, 4, 4))], i % 2, f"{i}.png")
    writer.finish()
    (folder / "shard-00000.json").unlink()
    return folder / "shard-00000.array_record"


def read_store(folder):
    """As if it had been damaged before its bytes were counted."""
    size = (folder / "shard-00000.array_record").stat().st_size
    shard = Shard(file="shard-00000.array_record", images=3, sha256="0" * 64, bytes=size)
    metadata = dataclasses.replace(store_metadata((4, 4, 4), ("a", "b")), num_images=3, shards=(shard,))
    (folder / "store.json").write_text(metadata.to_json())
    LatentStore(folder).check_numbers()


def picture_of(form):
    return file(f"x.{form.lower()}", lambda path: path.write_bytes(saved(COLOUR, form)))


def read_picture(folder):
    (path,) = folder.iterdir()
    shorter_side(path)
    decode_image(path, 4)


def state_dict(path):
    torch.save({name: torch.tensor(value) for name, value in TENSORS.items()}, path)


def read_weights(folder):
    read_tensors(list(folder.iterdir()))


def new_network():
    return tiny_backbone((0, 0, 1, 0, 0), num_classes=2)


KINDS = {
    "images-npz": Kind(arrays(arr_0=IMAGES, arr_1=np.arange(3)), read_images),
    "images-compressed": Kind(file("x.npz", lambda path: np.savez_compressed(path, IMAGES)), read_images),
    "images-npy": Kind(file("x.npy", lambda path: np.save(path, np.asfortranarray(IMAGES))), read_images),
    "statistics": Kind(arrays(mu=np.zeros(3), sigma=np.eye(3)), lambda folder: open_set(folder / "x.npz")),
    "torch": Kind(file("x.pt", state_dict), read_weights),
    "safetensors": Kind(file("x.safetensors", lambda path: save_file(TENSORS, path)), read_weights),
    "torch-checkpoint": Kind(
        file("x.pt", lambda path: save_torch_state_dict(network(), path)),
        lambda folder: load_torch_checkpoint(folder / "x.pt"),
        0.3,
    ),
    "preset-weights": Kind(preset, DiffusionBackbone.from_preset, 0.3),
    "trainer-weights": Kind(
        file("x.weights.h5", lambda path: trainer().save_weights(path)),
        lambda folder: trainer().load_weights(folder / "x.weights.h5"),
        0.3,
    ),
    "adapters": Kind(
        file("x.lora.h5", adapters), lambda folder: new_network().load_lora_weights(folder / "x.lora.h5"), 0.2
    ),
    "keras-model": Kind(file("x.keras", keras_model), lambda folder: load_extractor(str(folder / "x.keras")), 0.3),
    "graph": Kind(file("x.pb", graph), run_graph, 0.5),
    "latents": Kind(store, read_store, 0.5),
    **{f"picture-{form.lower()}": Kind(picture_of(form), read_picture, 0.3) for form in FORMATS},
}
