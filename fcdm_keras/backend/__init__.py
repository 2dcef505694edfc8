"""What the three backends do differently, one file each behind one contract.

Each `on_<backend>.py` has the same names. They know the job (`fcdm_keras.backend.job`), and neither a network nor
`fcdm_keras.distribution`, which hands them what they need.

Training and inference:

- `TrainStep`: a mixin with `train_step` and `test_step` for `StepTrainer`, in the form that the backend's Keras trainer
  calls. What a step computes is in `fcdm_keras.training.step`; here is only how gradients are taken. Its
  `check_optimizer()` raises ValueError for an optimizer that the engine cannot use as it is.
- `interpolate(averages, variables, weight)`: each average moves by `weight` towards its variable, in place.
- `rows(count)`: within a step, the places of its `count` samples in the global batch, int32 `(count,)`.
- `gathered(losses)`: within a step, per-sample losses of the global batch from those of the samples at hand.
- `feed(batches)`: batches of this process's rows in the form that `fit` takes.
- `placed(batch)`: one of them in the form that `train_on_batch` takes, where it is cut over this process's devices.
- `same_keys()`: whether all batches of a data set must be dicts with the same keys.
- `compiled(function, variables, batched)`: `run(values, *args)` computes `function(*args)` with `variables` holding
  `values`, without gradients, compiled where the backend compiles. The rows of the arguments numbered in `batched` are
  spread over the devices of this process; the results then have rows too.
- `allow_tf32()`: float32 matrix products on GPUs in TF32, as the paper trains (JAX and TensorFlow do so by default).
- `full_precision()`: a context in which float32 products and convolutions keep all digits on GPUs too.

Processes and devices, for `fcdm_keras.distribution`:

- `connect(launcher, place, timeout, heartbeat, hosts)`: joins the other processes; returns (process index, process
  count). `launcher` is the name of what started this process, `""` where it is alone; `place` has its `index`, `count`
  and `address` where the environment says them outright, and is `None` elsewhere; `hosts` knows this host's addresses.
- `devices()`: names of all processes' devices.
- `check_devices(asked, count)`: raises ValueError if so many devices cannot be had by asking, of `count` at hand.
- `CUTS_MODELS`: whether one copy of a model can be cut over several devices.
- `FREES_MEMORY`: whether the engine gives a step's memory back on CPUs, and asks for it again (`machine.allocator`).
- `advice()`: what a process that is alone could do to use more of its host, a phrase, or `""`.
- `start(used, model_parallel, layout_map)`: spreads what is built from now on over the devices named `used`; returns a
  function that ends it. `layout_map(mesh)` says how variables are cut.
- `disconnect(launcher)`, `barrier()`.
- `gather(array)`: every process's `array`, all of one shape, stacked by process.
- `host_arrays(values)`: tensors or variables as NumPy arrays; all processes must call it together.
- `assign(variables, values)`: sets variables, also those of which every replica has one of its own.
- `readable(variables)`: a context in which this process can read the variables whole.
- `writing()`: a context for the process that writes; `accompany(write)` is what the others do meanwhile.
- `device_bytes(variables)`: bytes of the variables that one device holds, and of all of them.
"""

import importlib

import keras

from fcdm_keras.backend import hub  # noqa: F401  (Keras imports TensorFlow in `fit`: by then its GPUs are hidden)

_on_backend = importlib.import_module(f"fcdm_keras.backend.on_{keras.backend.backend()}")

TrainStep = _on_backend.TrainStep
interpolate = _on_backend.interpolate
rows = _on_backend.rows
gathered = _on_backend.gathered
feed = _on_backend.feed
placed = _on_backend.placed
same_keys = _on_backend.same_keys
compiled = _on_backend.compiled
allow_tf32 = _on_backend.allow_tf32
full_precision = _on_backend.full_precision

connect = _on_backend.connect
devices = _on_backend.devices
check_devices = _on_backend.check_devices
CUTS_MODELS = _on_backend.CUTS_MODELS
FREES_MEMORY = _on_backend.FREES_MEMORY
advice = _on_backend.advice
start = _on_backend.start
disconnect = _on_backend.disconnect
barrier = _on_backend.barrier
gather = _on_backend.gather
host_arrays = _on_backend.host_arrays
assign = _on_backend.assign
readable = _on_backend.readable
writing = _on_backend.writing
accompany = _on_backend.accompany
device_bytes = _on_backend.device_bytes
