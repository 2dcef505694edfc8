"""JAX: steps are pure functions of the state, which Keras jits and whose buffers it donates."""

import functools

import jax
import keras
import numpy as np

from fcdm_keras import distribution
from fcdm_keras.distribution import on_jax


class TrainStep:
    def train_step(self, state, data):
        trainable, non_trainable, optimizer, metrics = state
        frozen = [*zip(self.non_trainable_variables, non_trainable), *zip(self.optimizer.variables, optimizer)]

        @functools.partial(jax.grad, has_aux=True)
        def gradients_of(values, batch):
            with keras.StatelessScope([*zip(self.trainable_variables, values), *frozen]):
                losses = self.losses(batch, training=True)
                return self.optimizer.scale_loss(losses["loss"].mean()), losses

        with keras.StatelessScope(frozen):
            batch = self.draw(self.unpack(data))
        gradients, losses = self._accumulated(gradients_of, trainable, batch)
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        logs, non_trainable, metrics = _stateless(
            self.finish_step,
            losses,
            constant=zip(self.trainable_variables, trainable),
            updated=((self.non_trainable_variables, non_trainable), (self.metrics_variables, metrics)),
        )
        return logs, (trainable, non_trainable, optimizer, metrics)

    def test_step(self, state, data):
        trainable, non_trainable, metrics = state

        def evaluate():
            return self.track(self.losses(self.draw_for_evaluation(self.unpack(data)), training=False))

        logs, metrics = _stateless(
            evaluate,
            constant=[*zip(self.trainable_variables, trainable), *zip(self.non_trainable_variables, non_trainable)],
            updated=((self.metrics_variables, metrics),),
        )
        return logs, (trainable, non_trainable, metrics)

    def _accumulated(self, gradients_of, trainable, batch):
        """Mean gradients over the micro-batches, in one loop, and the losses of all samples."""
        if self.accumulation_steps == 1:
            return gradients_of(trainable, batch)
        self.check_divisible(batch)
        stacked = jax.tree.map(self._stacked, batch)

        def add(total, micro_batch):
            gradients, losses = gradients_of(trainable, micro_batch)
            return jax.tree.map(lambda t, g: t + g / self.accumulation_steps, total, gradients), losses

        gradients, losses = jax.lax.scan(add, jax.tree.map(jax.numpy.zeros_like, trainable), stacked)
        return gradients, jax.tree.map(lambda loss: loss.reshape(-1), losses)

    def _stacked(self, rows):
        """Rows `(B, …)` as micro-batches `(steps, B / steps, …)`, to which every device brings rows of its own."""
        devices = distribution.job().data_parallel
        parts = rows.reshape(devices, self.accumulation_steps, -1, *rows.shape[1:])
        return parts.swapaxes(0, 1).reshape(self.accumulation_steps, -1, *rows.shape[1:])


def rows(count):
    """Places of a batch's samples in the global batch, which is what a step sees: int32 `(count,)`."""
    return jax.numpy.arange(count, dtype="int32")


def gathered(losses):
    return losses


def feed(batches):
    return batches


def interpolate(averages, variables, weight):
    for average, variable in zip(averages, variables, strict=True):
        average.assign(average.value + weight * (variable.value.astype("float32") - average.value))


def compiled(function, variables, batched=()):
    @jax.jit
    def run(values, *args):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(*args)

    def spread(values, *args):
        parts = on_jax.row_devices()
        if parts == 1 and distribution.job().process_count == 1:
            return run(values, *args)
        rows = len(args[batched[0]]) if batched else 0
        padded = -rows % parts
        args = [
            on_jax.split_rows(np.pad(np.asarray(value), [(0, padded)] + [(0, 0)] * (value.ndim - 1), mode="edge"))
            if i in batched
            else on_jax.whole(value)
            for i, value in enumerate(args)
        ]
        outputs = run(on_jax.local_arrays(values), *args)
        return jax.tree.map(lambda output: output[:rows], outputs) if padded else outputs

    return spread


def allow_tf32():
    pass  # the default


def full_precision():
    return jax.default_matmul_precision("highest")


def _stateless(function, *args, constant, updated):
    """Calls `function` with variables holding given values. Returns its result and the updated ones' new values."""
    scope = keras.StatelessScope([*constant, *(pair for group in updated for pair in zip(*group))])
    with scope:
        result = function(*args)
    return result, *([scope.get_current_value(v) for v in variables] for variables, _ in updated)
