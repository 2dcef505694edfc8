"""The training step on JAX: a pure function of the state, whose buffers Keras donates."""

import contextlib
import functools

import jax
import keras

from fcdm_keras.backend.job import job


class TrainStep:
    def train_step(self, state, data):
        trainable, non_trainable, optimizer, metrics = state
        frozen = [*zip(self.non_trainable_variables, non_trainable), *zip(self.optimizer.variables, optimizer)]
        moving = self._moving_variables()

        @functools.partial(jax.grad, has_aux=True)
        def gradients_of(values, moved, batch):
            known = [*frozen, *zip(self.trainable_variables, values), *zip(moving, moved)]
            with keras.StatelessScope(known, collect_losses=True) as scope:
                losses = self.weighed_losses(batch, training=True)
                loss = self.optimizer.scale_loss(self.minimised(losses))
                return loss, (losses, [scope.get_current_value(variable) for variable in moving])

        with keras.StatelessScope(frozen) as scope:
            before = self.updates()
            batch = self.prepare(data, training=True)
            moved = [scope.get_current_value(variable) for variable in moving]
        gradients, losses, moved = self._accumulated(gradients_of, trainable, moved, batch)
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        logs, non_trainable, metrics = _stateless(
            self.finish_step,
            losses,
            before,
            constant=[*zip(self.trainable_variables, trainable), *zip(self.optimizer.variables, optimizer)],
            updated=((self.non_trainable_variables, non_trainable), (self.metrics_variables, metrics)),
            changed=zip(moving, moved),
        )
        return logs, (trainable, non_trainable, optimizer, metrics)

    def test_step(self, state, data):
        trainable, non_trainable, metrics = state

        def evaluate():
            return self.track(self.weighed_losses(self.prepare(data, training=False), training=False))

        logs, non_trainable, metrics = _stateless(
            evaluate,
            constant=zip(self.trainable_variables, trainable),
            updated=((self.non_trainable_variables, non_trainable), (self.metrics_variables, metrics)),
        )
        return logs, (trainable, non_trainable, metrics)

    def fit(self, *args, **kwargs):
        with self._kept():
            history = super().fit(*args, **kwargs)
        # Where the optimizer's own averages have become the weights, they share memory, which the next step gives away.
        for variable in self.trainable_variables:
            variable.assign(variable.value.copy())
        return history

    def evaluate(self, *args, **kwargs):
        with self._kept():
            return super().evaluate(*args, **kwargs)

    def check_optimizer(self):
        pass  # all of Keras's work

    def _moving_variables(self):
        """What layers may assign in a step: state that is not trained, but for the averages and the step."""
        own = {id(variable) for variable in (*self.ema.variables, self.step)}
        return [variable for variable in self.non_trainable_variables if id(variable) not in own]

    @contextlib.contextmanager
    def _kept(self):
        """Keras takes the values out of the variables before it asks for a batch, which may be refused."""
        variables = [*self.variables, *self.optimizer.variables, *self.metrics_variables]
        values = [variable.value for variable in variables]
        try:
            yield
        except BaseException:
            self.jax_state_sync()  # those after the last step, if there was one
            for variable, value in zip(variables, values):
                # There is no public way to ask. Checked with Keras 3.15; tests/test_private_apis.py fails first.
                if variable._value is None and not value.is_deleted():
                    variable.assign(value)
            raise

    def _accumulated(self, gradients_of, trainable, moved, batch):
        """Mean gradients over the micro-batches, in one loop, the losses of all samples, and the state after them."""
        if self.accumulation_steps == 1:
            gradients, (losses, moved) = gradients_of(trainable, moved, batch)
            return gradients, losses, moved
        self.check_divisible(batch)
        stacked = jax.tree.map(self._stacked, batch)

        def add(carried, micro_batch):
            total, moved = carried
            gradients, (losses, moved) = gradients_of(trainable, moved, micro_batch)
            return (jax.tree.map(lambda t, g: t + g / self.accumulation_steps, total, gradients), moved), losses

        start = (jax.tree.map(jax.numpy.zeros_like, trainable), moved)
        (gradients, moved), losses = jax.lax.scan(add, start, stacked)
        return gradients, jax.tree.map(lambda loss: loss.reshape(-1), losses), moved

    def _stacked(self, rows):
        """Rows `(B, …)` as micro-batches `(steps, B / steps, …)`, to which every device brings rows of its own."""
        devices = job().data_parallel
        parts = rows.reshape(devices, self.accumulation_steps, -1, *rows.shape[1:])
        return parts.swapaxes(0, 1).reshape(self.accumulation_steps, -1, *rows.shape[1:])


def _stateless(function, *args, constant, updated, changed=()):
    """Calls `function` with variables holding given values. Returns its result and the updated ones' new values.

    `changed` are values of updated variables that replace those in `updated`.
    """
    known = [*constant, *(pair for group in updated for pair in zip(*group)), *changed]
    scope = keras.StatelessScope(known, collect_losses=True)
    with scope:
        result = function(*args)
    return result, *([scope.get_current_value(v) for v in variables] for variables, _ in updated)
