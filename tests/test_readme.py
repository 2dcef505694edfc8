"""The README's own code: every Python block is run in order, every command is read by its own parser."""

import argparse
import importlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, VAE
from helpers import tiny_backbone
from text_helpers import share_processes

from fcdm_keras import ClassToImage
from t2i import OpenCLIPTextEncoder, TextConditioning, TextToImage

pytestmark = pytest.mark.no_backend
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
# What stands in the README, and what runs here: the same names and arguments, smaller numbers and local files.
SMALLER = {
    "hidden_channels=128, depths=(2, 4, 8, 4, 2)": "hidden_channels=8, depths=(0, 0, 1, 0, 0)",
    "FCDMBackbone(128, (2, 4, 8, 4, 2)": "FCDMBackbone(8, (0, 0, 1, 0, 0)",
    "batch_size=256, epochs=10": "batch_size=4, epochs=1",
    "batch_size=256, num_steps=50": "batch_size=4, num_steps=2",
    "num_steps=50": "num_steps=2",
    "num_steps=25": "num_steps=2",
    '"negative_prompts": ["a red bus"]}': '"negative_prompts": ["a red bus"]}, num_steps=2',
    '"ViT-L-14", "openai"': "TOWER, None",
    '"stabilityai/sd-vae-ft-ema"': "VAE",
    "image_size=256": "image_size=32",
}


FLAG = r"(?<![\w-])--[a-z][a-z-]+"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def smaller(block):
    for there, here in SMALLER.items():
        block = block.replace(there, here)
    return block


@pytest.fixture
def supplied(tmp_path, monkeypatch, tiny_clip):
    """What the text around the blocks says is there: files in the working folder, and variables for each block."""
    monkeypatch.chdir(tmp_path)
    share_processes(monkeypatch)
    digits = ClassToImage(tiny_backbone((0, 0, 1, 0, 0), in_channels=1), image_size=8)
    digits.save_to_preset("runs/digits/preset")
    encoder = OpenCLIPTextEncoder(tiny_clip, None)
    backbone = tiny_backbone((0, 0, 1, 0, 0), in_channels=3, conditioning=TextConditioning(encoder.embedding_dim))
    TextToImage(backbone, image_size=8, text_encoder=encoder).save_to_preset("runs/shapes/preset")
    shutil.copy(GOLDEN / "fcdm" / "fcdm_checkpoint.pt", "checkpoint.pt")
    generator = np.random.default_rng(0)
    normal = lambda *shape: generator.standard_normal(shape, dtype="float32")  # noqa: E731
    training = {"latents": normal(8, 8, 8, 4), "labels": np.arange(8, dtype="int32") % 10}
    pixels = {"images": generator.integers(0, 256, (2, 32, 32, 3), "uint8"), "noise": normal(2, 4, 4, 4)}
    import fcdm_keras.evaluation.metrics as metrics

    features = {"features": normal(20, 6), "another": metrics.FeatureStatistics().update(normal(20, 6))}
    return {"TOWER": tiny_clip, "VAE": str(VAE), **training, **pixels, **features}


def test_every_python_block_runs(supplied):
    """In one namespace, as a reader who types them all; what was supplied is there anew for each."""
    found, namespace = blocks("python"), {}
    assert len(found) >= 7 and all(any(text in block for block in found) for text in SMALLER)
    for number, block in enumerate(found, start=1):
        namespace.update(supplied)
        exec(compile(smaller(block), f"README.md, Python block {number}", "exec"), namespace)
    assert namespace["embeddings"].shape == (2, 16) and namespace["mu"].shape == (6,)
    inputs = {"x_t": np.zeros((2, 8, 8, 4)), "timesteps": np.zeros(2), "vectors": np.zeros((2, 768))}
    assert tuple(namespace["backbone"](inputs).shape) == (2, 8, 8, 8)
    assert Path("back.pt").exists()


def commands():
    """(program, arguments) of every call of ours in the README's shell blocks."""
    for block in blocks("bash"):
        text = ""
        for line in block.replace("\\\n", " ").splitlines():
            text += line + "\n"
            try:
                words = shlex.split(text, comments=True)
            except ValueError:  # a quotation that ends on a later line
                continue
            text = ""
            if words and (words[0].startswith("KERAS_BACKEND=") or words[0] == "python"):
                yield split(words)


def split(words):
    places = [i for i, word in enumerate(words) if word == "-m" or re.fullmatch(r"train_\w+\.py", word)]
    assert places, words
    start = places[0] + (words[places[0]] == "-m")
    return words[start].removesuffix(".py"), [word for word in words[start + 1 :] if word != "…"]


class Understood(BaseException):
    """Ends a command when its flags have been read."""


@pytest.fixture
def only_parse(monkeypatch):
    """Lets every command read its flags and stop."""
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def stopping(self, *arguments, parse=parse, **options):
            raise Understood(parse(self, *arguments, **options))

        monkeypatch.setattr(argparse.ArgumentParser, name, stopping)


def test_every_command_is_understood(only_parse, capsys):
    calls = list(commands())
    programs = {program for program, _ in calls}
    assert len(calls) >= 20 and {"train_imagenet", "train_coco", "t2i.sample", "fcdm_keras.convert"} <= programs
    for program, arguments in calls:
        try:
            with pytest.raises(Understood):
                importlib.import_module(program).main(arguments)
        except SystemExit:
            pytest.fail(f"{program} {shlex.join(arguments)}: {capsys.readouterr().err}")


def test_every_flag_in_the_text_is_one_of_a_command(capsys):
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    flags = set(re.findall(FLAG, " ".join(re.findall(r"`[^`\n]+`", prose))))
    known = {"--max-restarts", "--nnodes", "--nproc-per-node", "--nodes", "--ntasks-per-node", "--gpus-per-node"}
    for program in {program for program, _ in commands()}:
        with pytest.raises(SystemExit, match="^0$"):
            importlib.import_module(program).main(["--help"])
        known |= set(re.findall(FLAG, capsys.readouterr().out))
    for file in (Path(__file__).parents[1] / "benchmarks").glob("*.py"):
        known |= set(re.findall(FLAG, file.read_text(encoding="utf-8")))
    assert len(flags) > 25 and not flags - known, flags - known
