"""What the three backends do differently: the training step, EMA's update, and compiling a function for inference.

Each `on_<backend>.py` offers the same names:

- `TrainStep`: a mixin with `train_step` and `test_step` for `DiffusionTrainer`, in the form that the backend's Keras
  trainer calls. What a step computes is in `fcdm_keras.trainer`; here is only how gradients are taken.
- `interpolate(averages, variables, weight)`: each average moves by `weight` towards its variable, in place.
- `rows(count)`: within a step, the places of its `count` samples in the global batch.
- `gathered(losses)`: within a step, per-sample losses of the global batch from those of the samples at hand.
- `feed(batches)`: batches of this process's rows in the form that `fit` takes.
- `compiled(function, variables, batched)`: `run(values, *args)` computes `function(*args)` with `variables` holding
  `values`, without gradients, compiled where the backend compiles. The rows of the arguments numbered in `batched` are
  spread over the devices of this process; the results then have rows too.
- `allow_tf32()`: float32 matrix products on GPUs in TF32, as the paper trains (JAX and TensorFlow do so by default).
- `full_precision()`: a context in which float32 products and convolutions keep all digits on GPUs too.
"""

import importlib

import keras

import fcdm_keras.distribution  # noqa: F401  (Keras imports TensorFlow in `fit`: by then its GPUs are hidden)

_engine = importlib.import_module(f"fcdm_keras.engine.on_{keras.backend.backend()}")

TrainStep = _engine.TrainStep
rows = _engine.rows
gathered = _engine.gathered
feed = _engine.feed
interpolate = _engine.interpolate
compiled = _engine.compiled
allow_tf32 = _engine.allow_tf32
full_precision = _engine.full_precision
