"""Names, flags and files that users, stored models and other people's scripts refer to stay what they were at 10a78ea.

More may come: what is recorded must be there still. `tests/golden/README.md` says how it was recorded.
"""

import contextlib
import importlib
import io
import json
import re
import sys
from pathlib import Path

import processes
import pytest
from conftest import GOLDEN

import fcdm_keras
import t2i

pytestmark = pytest.mark.no_backend
ROOT = Path(__file__).parents[1]
RECORDED = json.loads((GOLDEN / "compat" / "interface.json").read_text())


def help_of(command, monkeypatch):
    """What `command --help` prints, 120 columns wide and without colours."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "argv", [command])
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit, match="^0$"):
        importlib.import_module(command.removesuffix(".py")).main(["--help"])
    return printed.getvalue()


def entries(text):
    """Words of a help text: of what stands before the first option or argument, and of each of these by its name."""
    head, _, listed = text.partition("\n\n")
    description, *sections = re.split(r"^(?:positional arguments|options|[a-z ]+):$", listed, flags=re.MULTILINE)
    lines = "\n".join(sections)
    found = {"description": description}
    for entry in re.split(r"\n(?=  \S)", lines):
        if entry.strip():
            found[re.split(r"[ ,]", entry.strip(), maxsplit=1)[0]] = entry
    return {name: re.findall(r"[^\s,{}\[\]()]+", content) for name, content in found.items()}


def holds(words, recorded):
    """Whether all recorded words are there in their order, whatever came in between."""
    left = iter(words)
    return all(word in left for word in recorded)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse writes other help texts")
@pytest.mark.parametrize("command", RECORDED["help"])
def test_every_flag_is_there_with_its_choices_and_its_help(command, monkeypatch):
    recorded, present = entries(RECORDED["help"][command]), entries(help_of(command, monkeypatch))
    assert len(recorded) > 1 and not recorded.keys() - present.keys()
    for name, words in recorded.items():
        assert holds(present[name], words), (name, " ".join(words), " ".join(present[name]))


def test_exported_names_are_there():
    for package in (fcdm_keras, t2i):
        assert not set(RECORDED["exported"][package.__name__]) - set(package.__all__)
        for name in package.__all__:
            assert getattr(package, name) is not None


# What was nobody's to import: the work of commands, which stands behind them now, files of one backend, and parts of
# modules that were merged or given another form.
INNER = re.compile(
    r"fcdm_keras\.((analyze|encode|evaluate|report|sample|train_vae)\.\w+|(engine|distribution)\.on_.*"
    r"|kernels\.(depth|point)wise_.*|autoencoders\.(compiled|diffusers)\.\w+|autoencoders\.kl\.sample_posterior"
    r"|data\.latent_store\.(ShardWriter|pack_record)|distribution\.layout\.pattern"
    r"|data\.training_data\.(TrainingData|open_training_data)|fitting\.(ClassRun|drawing)"
    r"|drawing\.(Drawing|add_drawing_flags|check_drawing_flags)"
    r"|presets\.(add_config_flags|check_config|config_from_flags|config_from_json|config_to_json)"
    r"|launch\.(jax_variables|tf_config)|vae_config\..*|hub\.unchanged_backbones)|t2i\.(encode|sample|presets|runs)\.(?!main|TextTrainConfig).*"
)

# Modules of one backend import that one; PyTorch and TensorFlow bear each other in this order.
IMPORTS = """
import importlib, json, sys
import torch, jax
import t2i.open_clip_worker  # before TensorFlow, with which PyTorch's compiler crashes
import tensorflow
for path, names in json.load(sys.stdin).items():
    try:
        module = importlib.import_module(path)
    except Exception as error:
        print(f"{path}: {type(error).__name__} {error}")
    else:
        for name in names:
            if not hasattr(module, name):
                print(f"{path} has no {name}")
            elif getattr(module, name).__name__ != name:
                print(f"{path}.{name} is now {getattr(module, name).__name__}")
import fcdm_keras
import fcdm_keras.presets
if fcdm_keras.presets.MODEL_SIZES is not fcdm_keras.MODEL_SIZES:
    print("two MODEL_SIZES")
"""


def test_every_module_is_importable_and_holds_its_public_functions_and_classes():
    recorded = RECORDED["modules"].items()
    modules = {
        path: [name for name in names if not INNER.fullmatch(f"{path}.{name}")]
        for path, names in recorded
        if not INNER.fullmatch(path)
    }
    assert len(modules) > 80 and sum(map(len, modules.values())) > 250
    done = processes.run(
        [sys.executable, "-c", IMPORTS],
        input=json.dumps(modules),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr[-2000:]
