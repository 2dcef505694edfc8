"""Our models beside functional ones of KerasHub, for which Keras rewrites the bases of KerasHub's classes."""

import copy

import keras
import numpy as np
import pytest
from helpers import inputs, tiny_backbone, to_numpy

from fcdm_keras.backend.hub import Independent, keras_hub
from fcdm_keras.network.fcdm import FCDMBackbone
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training.trainer import DiffusionTrainer

DRAWING = {"num_steps": 1, "seed": 3, "sampler": "ddim", "guidance_scale": 1.0}
TOKENS = {"token_ids": np.arange(10).reshape(2, 5), "segment_ids": np.zeros((2, 5)), "padding_mask": np.ones((2, 5))}
TOKENS = {name: value.astype("int32") for name, value in TOKENS.items()}


def classifier():
    """A small functional task with its functional backbone."""
    sizes = {"num_layers": 1, "num_heads": 1, "hidden_dim": 4, "intermediate_dim": 4, "max_sequence_length": 5}
    return keras_hub.models.BertTextClassifier(keras_hub.models.BertBackbone(10, **sizes), num_classes=2)


def works(bert, expected):
    np.testing.assert_allclose(to_numpy(bert(TOKENS)), expected, atol=1e-6)
    assert bert.inputs and bert.backbone.inputs  # as functional models have them


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Ours and theirs, made in turn: ours, theirs, ours; ours are saved before theirs are made."""
    folder = tmp_path_factory.mktemp("beside")
    backbone = tiny_backbone((0, 0, 0, 0, 0))
    task = ClassToImage(backbone, image_size=8)
    output, images = to_numpy(backbone(inputs())), task.generate([1, 2], **DRAWING)
    task.save_to_preset(folder / "task")
    backbone.save(folder / "backbone.keras")
    bert = classifier()
    expected = to_numpy(bert(TOKENS))
    later = tiny_backbone((0, 0, 0, 0, 0))
    works(bert, expected)
    return folder, (task, ClassToImage(later, image_size=8)), (output, images), (bert, expected)


def test_both_are_called_and_draw(beside):
    _, tasks, (output, images), (bert, expected) = beside
    for task in tasks:
        np.testing.assert_array_equal(to_numpy(task.backbone(inputs())), output)
        np.testing.assert_array_equal(task.generate([1, 2], **DRAWING), images)
        lines = []
        for model in (task, task.backbone):
            model.summary(print_fn=lines.append)
        assert "final_layer" in "".join(lines)
    works(bert, expected)


def test_ours_are_loaded_and_copied(beside):
    folder, (task, _), (output, images), (bert, expected) = beside
    loaded = ClassToImage.from_preset(folder / "task")
    np.testing.assert_array_equal(loaded.generate([1, 2], **DRAWING), images)
    clone = keras.models.clone_model(task.backbone)
    clone.set_weights(task.backbone.get_weights())
    hubs = keras_hub.models.Backbone.from_preset(str(folder / "task"))
    for model in (clone, hubs, keras.saving.load_model(folder / "backbone.keras"), copy.deepcopy(task.backbone)):
        assert type(model) is FCDMBackbone
        np.testing.assert_array_equal(to_numpy(model(inputs())), output)
    works(bert, expected)


def test_ours_are_trained_and_theirs_stay(beside, tmp_path):
    bert, expected = beside[-1]
    trainer = DiffusionTrainer(tiny_backbone((0, 0, 0, 0, 0)))
    trainer.compile()
    before = to_numpy(trainer.backbone.trainable_variables[-1])
    trainer.fit(np.ones((2, 8, 8, 2), "float32"), np.array([1, 2]), verbose=0)
    assert np.abs(to_numpy(trainer.backbone.trainable_variables[-1]) - before).max() > 0
    bert.backbone.save_to_preset(str(tmp_path))
    loaded = keras_hub.models.BertBackbone.from_preset(str(tmp_path))
    for name, value in bert.backbone(TOKENS).items():
        np.testing.assert_allclose(to_numpy(loaded(TOKENS)[name]), to_numpy(value), atol=1e-6)
    works(bert, expected)


def test_classes_that_are_made_later_are_as_independent(beside):
    class Late(keras_hub.models.Backbone, metaclass=Independent):
        def call(self, x):
            return 2 * x

    assert not {"Functional", "Function"} & {cls.__name__ for cls in Late.__mro__}
    assert float(Late()(np.float32(3.0))) == 6.0
