"""Hostile arrays, weights and pictures end in one sentence that names the file, before much memory is taken."""

import io
import json
import os
import re
import resource
import struct
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
import torch
from helpers import small_autoencoder, tiny_backbone
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_graph import Builder

from fcdm_keras import convert, encode, evaluate
from fcdm_keras.autoencoders import KLAutoencoder
from fcdm_keras.data.latent_store import LatentStore
from fcdm_keras.data.latent_writer import ShardWriter
from fcdm_keras.data.pictures import LARGEST_FILE, UnreadableImageError, decode_image
from fcdm_keras.evaluation.inception.graph import FrozenGraph
from fcdm_keras.formats import hdf5
from fcdm_keras.formats.npz import NpzArray, load_small
from fcdm_keras.formats.numbers import on_host
from fcdm_keras.machine import memory
from fcdm_keras.network.base import DiffusionBackbone
from fcdm_keras.network.reference import load_torch_checkpoint, save_torch_state_dict

pytestmark = pytest.mark.no_backend
IMAGES = np.arange(2 * 4 * 4 * 3, dtype="uint8").reshape(2, 4, 4, 3)


@pytest.fixture
def refused(tmp_path):
    """`refused(read, file, message)`: within two seconds and 512 MiB, in one line that names the file."""

    def check(read, file, message):
        began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises((ValueError, OSError), match=message) as raised:
            read(file)
        text = str(raised.value)
        assert "\n" not in text and str(file) in text, text
        assert time.process_time() - began < 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19

    return check


def read_all(path):
    return [load_small(path, "arr_0"), *NpzArray(path).batches(1)]


def zipped(path, content=None, name="arr_0.npy", method=zipfile.ZIP_STORED, times=1):
    data = io.BytesIO()
    np.save(data, IMAGES if content is None else content, allow_pickle=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for _ in range(times):
            archive.writestr(name, data.getvalue())
    return path.read_bytes()


def patched(path, place, form, value, **options):
    """An archive with a number changed in its central directory, `place` bytes behind the entry's beginning."""
    data = bytearray(zipped(path, **options))
    struct.pack_into(form, data, data.index(b"PK\x01\x02") + place, value)
    path.write_bytes(data)


def header(path, shape, dtype="|u1", data=b""):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)


ARRAYS = {
    "encrypted": (lambda p: patched(p, 8, "<H", 1), "arr_0.npy is encrypted; save it without"),
    "lzma": (lambda p: zipped(p, method=zipfile.ZIP_LZMA), "is compressed by method 14; save it uncompressed"),
    "bzip2": (lambda p: zipped(p, method=zipfile.ZIP_BZIP2), "is compressed by method 12"),
    "declares 4 GB": (
        lambda p: patched(p, 24, "<I", 2**32 - 2, method=zipfile.ZIP_DEFLATED),
        r"declares 4,294,967,294 bytes in \d+;",
    ),
    "declares more": (lambda p: patched(p, 24, "<I", 999), "declares 999 bytes, and holds 224"),
    "lies elsewhere": (lambda p: patched(p, 42, "<I", 10**6), "ends behind the file|is no .npz file"),
    "objects": (lambda p: zipped(p, np.array([{}, 1], object)), "must hold floating-point numbers or .* object"),
    "complex": (lambda p: zipped(p, np.ones(3, complex)), "Received: complex128"),
    "dates": (lambda p: zipped(p, np.zeros(3, "datetime64[s]")), r"Received: datetime64\[s\]"),
    "records": (lambda p: zipped(p, np.zeros(3, [("a", "f4")])), "Received: "),
    "infinite": (lambda p: zipped(p, np.array([1, np.inf, np.nan])), "arr_0 of .* 1 are NaN and 1 infinite"),
    "negative shape": (lambda p: header(p, (-2, -3), data=bytes(6)), "is cut short"),
    "no shape": (lambda p: header(p, "None"), "is no NumPy array"),
    "4 GB in a header": (lambda p: header(p, (2**32,)), "is cut short. Received: 0 bytes"),
    "nesting": (lambda p: header(p, "(" * 50), "is no NumPy array"),
    "a pipe": (os.mkfifo, "is a named pipe, and a file is needed"),
    "a folder": (os.mkdir, "is a folder, and a file is needed"),
    "a device": (lambda p: p.symlink_to("/dev/zero"), "is a device, and a file is needed"),
    "text": (lambda p: p.write_text("hello"), "is no .npz file, or is cut short"),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_arrays(kind, refused, tmp_path):
    write, message = ARRAYS[kind]
    write(tmp_path / "x")
    refused(read_all, tmp_path / "x", message)
    with pytest.raises(SystemExit, match="^error: [^\n]*$"):
        evaluate.main([str(tmp_path / "x"), "--reference", str(tmp_path / "x"), "--features", "pixels"])


def test_two_arrays_of_a_name_are_refused(refused, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(tmp_path / "x", times=2)
    refused(read_all, tmp_path / "x", "arr_0.npy is in it twice")


def test_arrays_in_fortran_order_are_read(tmp_path):
    for name, save in (("a.npy", np.save), ("a.npz", np.savez)):
        save(tmp_path / name, np.asfortranarray(IMAGES))
        np.testing.assert_array_equal(load_small(tmp_path / name), IMAGES)
        np.testing.assert_array_equal(np.concatenate(list(NpzArray(tmp_path / name).batches(1))), IMAGES)
    np.testing.assert_array_equal(NpzArray(tmp_path / "a.npy").mapped(), IMAGES)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    file = tmp_path_factory.mktemp("reference") / "x.pt"
    save_torch_state_dict(tiny_backbone((0, 0, 1, 0, 0)), file)
    return torch.load(file)["ema"]


def with_table(state, table):
    return {**state, **{f"y_embedder_{i}.embedding_table.weight": table(8 * 2**i // 2) for i in (1, 2, 3)}}


def itself(state):
    state = {"ema": dict(state), "list": []}
    state["list"].append(state["list"])
    state["again"] = state
    return state


QUANTISED = torch.quantize_per_tensor(torch.ones(8), 0.1, 0, torch.qint8)
CHECKPOINTS = {
    "10⁹ rows of stride 0": (
        lambda s: with_table(s, lambda d: torch.ones(1, d).expand(10**9, d)),
        r"has the shape \(1000000000, 8\), and only 32 bytes of it are in the file",
    ),
    "sparse": (lambda s: {**s, "x_embedder.bias": torch.ones(8).to_sparse()}, "is no full, dense tensor.* sparse_coo"),
    "meta": (lambda s: {**s, "x_embedder.bias": torch.ones(8, device="meta")}, "is no full, dense tensor.* meta"),
    "quantised": (lambda s: {**s, "x_embedder.bias": QUANTISED}, "is no full, dense tensor.* qint8"),
    "complex": (lambda s: {**s, "x_embedder.bias": torch.ones(8).to(torch.complex64)}, "holds complex64"),
    "NaN": (lambda s: {**s, "x_embedder.bias": torch.full((8,), torch.nan)}, "x_embedder.bias is not finite: of 8"),
    "too wide": (
        lambda s: {**s, "x_embedder.weight": torch.ones(10**5, 2, 3, 3)},
        "its shapes ask for .* numbers, and it holds",
    ),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(kind, refused, state, tmp_path):
    change, message = CHECKPOINTS[kind]
    torch.save({"ema": change(state)}, tmp_path / "x.pt")
    refused(load_torch_checkpoint, tmp_path / "x.pt", message)
    with pytest.raises(SystemExit, match="^error: [^\n]*$"):
        convert.main([str(tmp_path / "x.pt"), str(tmp_path / "preset")])
    assert not (tmp_path / "preset").exists()


def test_a_checkpoint_that_refers_to_itself_is_read(state, tmp_path):
    torch.save(itself(state), tmp_path / "x.pt")
    assert load_torch_checkpoint(tmp_path / "x.pt").hidden_channels == 8


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    small_autoencoder().save_diffusers(folder := tmp_path_factory.mktemp("vae"))
    return folder


def vae_with(source, folder, tensors=None, **config):
    folder.mkdir()
    stored = load_file(source / "diffusion_pytorch_model.safetensors")
    save_file({**stored, **(tensors or {})}, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({**json.loads((source / "config.json").read_text()), **config}))


def test_autoencoders(vae, refused, tmp_path):
    vae_with(vae, tmp_path / "nan", {"quant_conv.bias": np.full(8, np.nan, "float32")})
    refused(KLAutoencoder.from_diffusers, tmp_path / "nan", "safetensors: quant_conv.bias is not finite: of 8 values")
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "a" / "1.png")
    flags = ["--vae", str(tmp_path / "nan"), "--image-size", "32", "--output", str(tmp_path / "store")]
    with pytest.raises(SystemExit, match="^error: .*quant_conv.bias is not finite"):
        encode.main(["--source", str(tmp_path / "images"), *flags])
    assert not (tmp_path / "store").exists()
    vae_with(vae, tmp_path / "wide", block_out_channels=[65536, 65536])
    refused(KLAutoencoder.from_diffusers, tmp_path / "wide", r"asks for [\d,]+ numbers or more, and the weights")
    vae_with(vae, tmp_path / "deep", layers_per_block=60_000)
    refused(KLAutoencoder.from_diffusers, tmp_path / "deep", r"asks for [\d,]+ numbers or more")


def linked(kind):
    def write(file):
        if kind == "itself":
            file["again"] = file["/"]
        elif kind == "external":
            file["x"] = h5py.ExternalLink("/etc/passwd", "/")
        else:
            file["x"] = h5py.SoftLink("/layers")

    return write


def virtual(file):
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
    file.create_virtual_dataset("x", layout)


HDF5 = {
    "external link": (linked("external"), "x is a link to another place"),
    "soft link": (linked("soft"), "x is a link to another place"),
    "a group in itself": (linked("itself"), "lies in itself, or in two places"),
    "virtual": (virtual, "x lies in another file"),
    "external storage": (
        lambda f: f.create_dataset("x", (4,), "u1", external=[("/etc/passwd", 0, 4)]),
        "x lies in another file",
    ),
    "not stored": (lambda f: f.create_dataset("x", (2**40,), "f4"), "x declares 4,398,046,511,104 bytes, and 0 are"),
    "compressed": (
        lambda f: f.create_dataset("x", (2**40,), "f4", chunks=(2**20,), compression="gzip"),
        "x declares 4,398,046,511,104 bytes",
    ),
    "complex": (lambda f: f.create_dataset("x", data=np.ones(2, complex)), "Received: complex128"),
    "text": (lambda f: f.create_dataset("x", data=["a"]), "x must hold floating-point .* object"),
    "infinite": (lambda f: f.create_dataset("x", data=[np.inf]), "x is not finite: of 1 values, 0 are NaN and 1"),
}


@pytest.mark.parametrize("kind", HDF5)
def test_hdf5(kind, refused, tmp_path):
    write, message = HDF5[kind]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write(file)
    refused(hdf5.check_weights, tmp_path / "x.h5", message)


def test_presets_of_damaged_weights_are_refused(tmp_path):
    network = tiny_backbone((0, 0, 1, 0, 0))
    network.save_to_preset(tmp_path)
    file = tmp_path / "model.weights.h5"
    whole = file.read_bytes()
    with h5py.File(file, "r+") as content:
        content["layers/conv2d/vars/0"][...] = np.nan
    with pytest.raises(ValueError, match="model.weights.h5: layers/conv2d/vars/0 is not finite"):
        DiffusionBackbone.from_preset(tmp_path)
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="^[^\n]*model.weights.h5 is no HDF5 file, or is damaged"):
        DiffusionBackbone.from_preset(tmp_path)
    file.write_bytes(whole)
    config = (tmp_path / "config.json").read_text()
    for name, value in (("hidden_channels", 65_536), ("num_classes", 10**6), ("depths", [0, 0, 4096, 0, 0])):
        changed = re.sub(rf'("{name}": )(\d+|\[[^]]*\])', rf"\g<1>{value}", config)
        assert changed != config
        (tmp_path / "config.json").write_text(changed)
        with pytest.raises(ValueError, match=r"config.json asks for [\d,]+ numbers or more, and the weights beside it"):
            DiffusionBackbone.from_preset(tmp_path)
    (tmp_path / "config.json").write_text(config)
    assert DiffusionBackbone.from_preset(tmp_path, load_weights=False).hidden_channels == 8


def test_a_keras_model_that_is_not_finite_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
    model.layers[0].kernel.assign(np.full((3, 3, 3, 2), np.nan))
    model.save(tmp_path / "x.keras")
    np.save(tmp_path / "x.npy", IMAGES)
    flags = ["--reference", str(tmp_path / "x.npy"), "--features", str(tmp_path / "x.keras")]
    with pytest.raises(SystemExit, match="^error: .*x.keras: layers/conv2d/vars/0 is not finite: of 54 values, 54 are"):
        evaluate.main([str(tmp_path / "x.npy"), *flags])


def graph_of(change):
    builder = Builder(0)
    image = builder.node("Placeholder", name="image")
    builder.node("Mul", image, builder.constant([1.5, 2.5]), name="y")
    change({node.name: node for node in builder.graph.node}, builder)
    return builder.graph.SerializeToString()


def constant(nodes):
    return next(node for node in nodes.values() if node.op == "Const").attr["value"].tensor


def huge(nodes, _):
    tensor = constant(nodes)
    tensor.ClearField("tensor_content")
    tensor.ClearField("float_val")
    tensor.float_val.append(1.0)
    tensor.tensor_shape.dim[0].size = 10**10


def not_finite(nodes, _):
    tensor = constant(nodes)
    tensor.ClearField("float_val")
    tensor.tensor_content = np.array([np.nan, 1], "<f4").tobytes()


def cycle(nodes, _):
    nodes["y"].input[1] = "y"


def long_cycle(nodes, builder):
    builder.node("Identity", "second", name="first")
    builder.node("Identity", "first", name="second")
    nodes["y"].input[1] = "first"


GRAPHS = {
    "a node of itself": (cycle, "refers to itself: y → y"),
    "a circle": (long_cycle, "refers to itself: .*first"),
    "10¹⁰ values": (huge, "must hold 10000000000 values"),
    "NaN": (not_finite, "constant 'Const_1' is not finite: of 2 values, 1 are NaN"),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs(kind, refused, tmp_path):
    change, message = GRAPHS[kind]
    (tmp_path / "x.pb").write_bytes(graph_of(change))
    refused(lambda path: FrozenGraph.load(path).function("image:0", ["y:0"]), tmp_path / "x.pb", message)


def test_constants_in_a_circle_are_refused(tmp_path):
    (tmp_path / "x.pb").write_bytes(graph_of(long_cycle))
    with pytest.raises(ValueError, match="must be a constant"):
        FrozenGraph.load(tmp_path / "x.pb").constant("first")


def test_pictures_of_40_gb_and_bombs_are_unreadable(tmp_path):
    for name in ("sparse.png", "sparse.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        os.truncate(tmp_path / name, 40 * 2**30)
        with pytest.raises(UnreadableImageError, match=f"has 42,949,672,960 bytes; .* at most {LARGEST_FILE:,}"):
            decode_image(tmp_path / name)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UnreadableImageError, match="it has more than 178,956,970 pixels"):
        decode_image(tmp_path / "bomb.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError, match="is a named pipe"):
        decode_image(tmp_path / "pipe.png")


@pytest.fixture
def store(tmp_path):
    """`store(numbers)` writes a store whose latents hold these."""

    def write(numbers):
        writer = ShardWriter(tmp_path, 0)
        for i in range(3):
            writer.write([(np.full((2, 2, 4), numbers), np.ones((2, 2, 4)))], 0, f"{i}.png")
        writer.finish()
        shard = json.loads((tmp_path / "shard-00000.json").read_text())
        facts = {"source": "x", "split": "train", "autoencoder": "v", "autoencoder_hash": "0", "scale": 1.0}
        facts |= {
            "shift": 0.0,
            "image_size": 16,
            "latent_shape": [2, 2, 4],
            "flips": False,
            "class_names": ["a"],
            "version": 1,
        }
        (tmp_path / "store.json").write_text(json.dumps({**facts, "num_images": 3, "shards": [shard], "version": 1}))
        return tmp_path

    return write


def test_verify_finds_a_store_of_nan(store, capsys):
    encode.main(["--verify", str(store(0.5))])
    assert "all 1 shards match" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^error: .*the latent of 0.png is not finite: of 32 values, 16 are NaN"):
        encode.main(["--verify", str(store(np.nan))])


def test_shards_that_change_while_they_are_read_are_told(store):
    opened = LatentStore(store(0.5))
    file = opened.folder / "shard-00000.array_record"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ValueError, match="is damaged .*--verify"):
        LatentStore(opened.folder).read([0, 1])
    file.unlink()
    with pytest.raises(ValueError, match="is damaged .*--verify"):
        opened.read([0, 1])


class Ragged(list):
    row_splits = ()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3).to_sparse(), "a tensor of layout torch.sparse_coo"),
        (QUANTISED, "a tensor that is quantized"),
        (torch.ones(3, device="meta"), "a tensor that is meta"),
        (torch.ones(3, dtype=torch.complex64), "a Tensor of torch.complex64"),
        (np.array([1, "a"]), "Received: <U"),
        (np.array([None]), "Received: object"),
        ([[1], [1, 2]], "of unequal parts"),
        (Ragged(), "a Ragged"),
        (torch.ones(1, 4).expand(10**9, 4), r"repeats what it holds to the shape \(1000000000, 4\)"),
        (np.broadcast_to(np.float32(1), (10**6, 10**6)), "repeats what it holds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_in_memory(value, message):
    with pytest.raises(ValueError, match=f"^latents .*{message}"):
        on_host(value, "latents")


def test_memory_is_compared_with_both_numbers():
    assert 2**26 < memory.available() < 2**50
    memory.check(2**20, "A small array", "do nothing")
    with pytest.raises(ValueError, match=r"^A batch needs 1,048,576.0 GiB of memory, and .* are free: take less\.$"):
        memory.check(2**50, "A batch", "take less")
