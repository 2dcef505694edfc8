"""What the three backends do differently: the training step, EMA's update, and compiling a function for inference.

Each `on_<backend>.py` offers the same names:

- `TrainStep`: a mixin with `train_step` and `test_step` for `DiffusionTrainer`, in the form that the backend's Keras
  trainer calls. What a step computes is in `fcdm_keras.trainer`; here is only how gradients are taken.
- `interpolate(averages, variables, weight)`: each average moves by `weight` towards its variable, in place.
- `compiled(function, variables)`: `run(values, *args)` computes `function(*args)` with `variables` holding `values`,
  without gradients, compiled where the backend compiles.
- `allow_tf32()`: float32 matrix products on GPUs in TF32, as the paper trains (JAX and TensorFlow do so by default).
- `full_precision()`: a context in which float32 products and convolutions keep all digits on GPUs too.
"""

import importlib

import keras

import fcdm_keras.hub  # noqa: F401  (Keras imports TensorFlow in `fit`: by then its GPUs are hidden)

_engine = importlib.import_module(f"fcdm_keras.engine.on_{keras.backend.backend()}")

TrainStep = _engine.TrainStep
interpolate = _engine.interpolate
compiled = _engine.compiled
allow_tf32 = _engine.allow_tf32
full_precision = _engine.full_precision
