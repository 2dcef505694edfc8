"""The text encoder against open_clip itself, its cache, and everything that can be wrong with its input."""

import concurrent.futures
import json
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import processes
import pytest
from text_helpers import write_config

from t2i.text_encoder import OpenCLIPTextEncoder, cached_embeddings

pytestmark = pytest.mark.no_backend
ROOT = Path(__file__).parents[1]
PROMPTS = ["a red bus", "", "two dogs on a beach", "word " * 100, "Äpfel & Birnen, 3 €"]

# In one process, for it takes seconds to start: what open_clip makes of the prompts, and what our side of it refuses.
ORACLE = """
import json, sys
import numpy as np, open_clip, torch
folder, source, prompts, refused = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
open_clip.add_model_config(f"{folder}/tiny_clip.json")
for seed, name in ((7, "trained"), (3, "untrained")):
    torch.manual_seed(seed)
    model = open_clip.create_model("tiny_clip").eval()
    torch.save(model.state_dict(), f"{folder}/{name}.pt")
    with torch.no_grad():
        np.save(f"{folder}/{name}.npy", model.encode_text(open_clip.get_tokenizer("tiny_clip")(prompts)).numpy())
sys.path.insert(0, source)
from open_clip_worker import TextTower
for model, pretrained in refused:
    try:
        TextTower(model, pretrained, 0, "cpu")
        print("accepted")
    except Exception as error:
        print(type(error).__name__, str(error))
"""
REFUSED = [
    ("ViT-L14", None, r"ValueError open_clip knows no model 'ViT-L14'.*such as ViT-L-14"),
    ("RN50", "opnai", r"ValueError pretrained must be a weights tag of RN50 \(openai, .*Received: 'opnai'"),
    ("{}/tiny_clip.json", "openai", r"ValueError pretrained must be a weights tag of tiny_clip \(none\)"),
    ("{}/tiny_clip.json", "{}/text.pt", "ValueError .*text.pt holds no weights of tiny_clip"),
]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """Weights files and embeddings made by open_clip alone, and the process's output."""
    folder = tmp_path_factory.mktemp("clip")
    write_config(folder)
    (folder / "text.pt").write_text("no weights")
    refused = [[name and name.format(folder) for name in case[:2]] for case in REFUSED]
    command = [sys.executable, "-c", ORACLE, str(folder), str(ROOT / "t2i"), json.dumps(PROMPTS), json.dumps(refused)]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}  # where a warm process has imported open_clip, too
    done = processes.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.splitlines()


@pytest.fixture(scope="module")
def folder(oracle):
    return oracle[0]


@pytest.fixture(scope="module")
def encoder(folder):
    with OpenCLIPTextEncoder(str(folder / "tiny_clip.json"), str(folder / "trained.pt")) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def untrained(folder):
    with OpenCLIPTextEncoder(str(folder / "tiny_clip.json"), None, seed=3, batch_size=2) as encoder:
        yield encoder


def test_embeddings_are_open_clips_own(encoder, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embeddings = encoder.encode(PROMPTS)
    assert embeddings.dtype == np.float32 and embeddings.shape == (len(PROMPTS), encoder.embedding_dim) == (5, 16)
    np.testing.assert_allclose(embeddings, np.load(folder / "trained.npy"), rtol=1e-5, atol=1e-5)


def test_an_untrained_tower_follows_from_its_seed_and_batches_do_not_matter(untrained, encoder, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embeddings = untrained.encode(PROMPTS)
    np.testing.assert_allclose(embeddings, np.load(folder / "untrained.npy"), rtol=1e-5, atol=1e-5)
    assert untrained.weights_hash() != encoder.weights_hash()


def test_several_threads_get_the_embeddings_of_their_own_prompts(untrained):
    prompts = [[f"thing number {i} {'word ' * i}"] * (1 + i % 3) for i in range(8)]
    alone = [untrained.encode(own) for own in prompts]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for own, together in zip(4 * alone, pool.map(untrained.encode, 4 * prompts)):
            np.testing.assert_allclose(together, own, rtol=1e-5, atol=1e-6)


def test_prompts_that_are_cut_are_named(encoder):
    fits, cut = "word " * 75, "word " * 76  # and the start and the end
    with pytest.warns(UserWarning, match=r"^2 of 4 prompts have more than 77 tokens and were cut: 'word .*, 'xxxx"):
        encoder.encode([fits, cut, "", "x" * 100_000])
    assert encoder.truncated == [1, 3]
    encoder.encode([fits])
    assert encoder.truncated == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "at least one string. Received: an empty list"),
        ("a red bus", "must be a list of strings. Received: str 'a red bus'"),
        (None, "must be a list of strings. Received: NoneType"),
        (["a", 3], r"must be strings. Received: 3 \(int\) as number 1"),
    ],
)
def test_what_is_no_list_of_strings_is_refused(encoder, prompts, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode(prompts)


def test_embeddings_from_the_file_are_the_fresh_ones(encoder, untrained, tmp_path):
    path = tmp_path / "new" / "embeddings.npz"
    fresh = cached_embeddings(encoder, PROMPTS[:3], path)
    written = path.read_bytes()
    np.testing.assert_array_equal(fresh, encoder.encode(PROMPTS[:3]))
    np.testing.assert_array_equal(cached_embeddings(encoder, PROMPTS[:3], path), fresh)
    with pytest.raises(ValueError, match="is of another text encoder .weights_hash .* there, .* here.: give"):
        cached_embeddings(untrained, PROMPTS[:3], path)
    with pytest.raises(ValueError, match="are of other captions: remove the file"):
        cached_embeddings(encoder, PROMPTS[:2], path)
    assert path.read_bytes() == written and [file.name for file in path.parent.iterdir()] == [path.name]
    path.write_bytes(written[:100])
    with pytest.raises(ValueError, match="cannot be read .* remove the file"):
        cached_embeddings(encoder, PROMPTS[:3], path)


def test_models_and_weights_that_cannot_be_had_are_refused_in_a_sentence(oracle):
    for line, (*_, message) in zip(oracle[1], REFUSED, strict=True):
        assert re.match(message, line), line


def test_a_process_that_ends_is_told(untrained):
    untrained._process.kill()
    with pytest.raises(OSError, match="The process of the text encoder .* ended with exit code -9"):
        untrained.encode(["a"])
