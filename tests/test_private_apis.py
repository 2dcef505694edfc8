"""What the package uses of other libraries that is not public: each test fails first when it vanishes or changes.

Checked with the versions of `constraints.txt`: Keras 3.15.1, KerasHub 0.32.0, PyTorch 2.14.1, TensorFlow 2.21.0.
"""

import inspect

import keras
import numpy as np
import pytest
from helpers import to_numpy
from keras import ops

from fcdm_keras.backend import hub
from fcdm_keras.training.optimizer import AdamW

BACKEND = keras.backend.backend()


def test_the_class_of_an_optimizer_is_known_without_making_one():
    """`fcdm_keras.training.optimizer`: `__new__` picks PyTorch's fused subclass."""
    assert AdamW.__mro__[1] is type(keras.optimizers.AdamW())
    assert BACKEND != "torch" or AdamW.__mro__[1] is not keras.optimizers.AdamW


def test_kerashub_has_keras_rewrite_the_bases_of_its_classes():
    """`backend.hub.Independent`: where no class is rewritten any more, it can go."""
    inputs = keras.Input((2,))
    hub.keras_hub.models.Backbone(inputs, keras.layers.Dense(1)(inputs))
    functional = type(keras.Model(inputs, inputs))
    assert functional in hub.keras_hub.models.Backbone.__mro__
    assert hub._PIPELINE.__name__ == "PipelineModel" and hub._PIPELINE.__bases__[0] in (keras.Model, functional)
    assert "PipelineModel.__bases__ = (keras.Model,)" in inspect.getsource(hub._PIPELINE.__init__)


if BACKEND == "torch":

    def test_lists_of_tensors_are_interpolated_in_place():
        """`backend.on_torch.interpolate`."""
        import torch

        averages = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
        weight = torch.tensor(0.25)
        torch._foreach_lerp_(averages, [torch.tensor([5.0, 2.0]), torch.tensor([-1.0])], [weight] * 2)
        assert [average.tolist() for average in averages] == [[2.0, 2.0], [2.0]]


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("clip", [{"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 0.5}])
    def test_an_optimizer_clips_gradients(clip):
        """`backend.on_tensorflow.TrainStep`."""
        gradients = [np.array([3.0, 4.0], "float32"), np.array([0.0, 12.0], "float32")]
        clipped = keras.optimizers.SGD(**clip)._clip_gradients([ops.convert_to_tensor(g) for g in gradients])
        expected = {
            "clipnorm": [[0.6, 0.8], [0.0, 1.0]],
            "global_clipnorm": [[3 / 13, 4 / 13], [0.0, 12 / 13]],
            "clipvalue": [[0.5, 0.5], [0.0, 0.5]],
        }[next(iter(clip))]
        for ours, theirs in zip(clipped, expected, strict=True):
            np.testing.assert_allclose(to_numpy(ours), theirs, rtol=1e-5)

    def test_keras_builds_models_through_the_method_that_is_overridden():
        """`backend.on_tensorflow.TrainStep._maybe_symbolic_build`."""
        from fcdm_keras.backend.on_tensorflow import TrainStep

        theirs = inspect.signature(keras.Model._maybe_symbolic_build)
        assert inspect.signature(TrainStep._maybe_symbolic_build) == theirs
        assert "_maybe_symbolic_build(" in inspect.getsource(keras.Model.fit)

    def test_code_can_tell_that_it_is_traced_for_xla():
        """`kernels.on_tensorflow`."""
        import tensorflow as tf

        from fcdm_keras.kernels import on_tensorflow

        seen = []

        def function(x):
            seen.append(on_tensorflow._under_xla())
            return x + 1

        function(tf.ones(1))
        tf.function(function)(tf.ones(1))
        tf.function(function, jit_compile=True)(tf.ones(1))
        assert seen == [False, False, True]
