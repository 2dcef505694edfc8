"""The examples of `docs/extending.md`, run as they stand, and then used by the real commands."""

import dataclasses
import re

import numpy as np
import pytest
from small_run import SMALL
from test_cli import ROOT

import train_imagenet
from fcdm_keras import ClassToImage, recipes
from fcdm_keras.diffusion import objectives, samplers
from fcdm_keras.network.backbones import BACKBONES
from fcdm_keras.runs import datasets

pytestmark = pytest.mark.no_backend


@pytest.fixture(scope="module")
def extended():
    """The names that the page's examples define; the tables are as before afterwards."""
    tables = (samplers.SAMPLERS, objectives.OBJECTIVES, datasets.DATASETS, recipes.RECIPES, recipes.MODEL_SIZES)
    tables = (*tables, BACKBONES)
    before, names = [dict(table) for table in tables], {}
    recipes.MODEL_SIZES["XS"] = SMALL  # the network is not the subject
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL):
        exec(code, names)
    yield names
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.fixture(scope="module")
def train(extended, tmp_path_factory):
    """`train(model)` trains the new recipe with the real command. Returns the run folder."""

    def run(model):
        # Flags offer what was in the tables at import; a file of the library would have been read before that.
        recipes.RECIPES["colours"] = dataclasses.replace(recipes.RECIPES["colours"], model=model)
        results = tmp_path_factory.mktemp(model)
        train_imagenet.main(["--recipe=colours", f"--results-dir={results}"])
        return results / "colours"

    return run


def test_an_objective_and_a_conditioning_module_train(extended):
    trainer = extended["trainer"]
    assert trainer.steps_done == 2 and [metric.name for metric in trainer.metrics] == ["loss"]
    assert set(trainer.get_metrics_result()) == {"loss"}


def test_a_data_set_trains_and_a_sampler_draws(extended, train):
    folder = train("XS")
    assert (folder / "samples.png").exists() and len((folder / "log.csv").read_text().splitlines()) >= 1
    images = ClassToImage.from_preset(str(folder / "preset")).generate([0, 1, 2], sampler="one_jump", seed=0)
    assert images.shape == (3, 8, 8, 3) and images.dtype == np.uint8


def test_a_data_set_refuses_in_its_own_words(extended, capsys):
    with pytest.raises(SystemExit):
        train_imagenet.main(["--recipe=colours", "--num-classes=4"])
    assert "there are three colours; leave out --num-classes. Received: 4" in capsys.readouterr().err


def test_a_backbone_trains_and_its_preset_draws(extended, train):
    folder = train("Plain")
    task = ClassToImage.from_preset(str(folder / "preset"))
    assert type(task.backbone).__name__ == "PlainBackbone"
    assert task.generate([1], num_steps=2, guidance_scale=1.0, seed=0).shape == (1, 8, 8, 3)
