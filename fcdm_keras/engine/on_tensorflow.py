"""TensorFlow: steps are traced into one graph by Keras."""

import contextlib

import keras
import tensorflow as tf


class TrainStep:
    def train_step(self, data):
        # Keras runs one step more at the end of a finite data set and aborts it when no batch comes. Nothing of the
        # step may happen then, so all of it waits for the batch.
        with _after(data):
            batch = self.draw(self.unpack(data))
            gradients, losses = None, []
            for micro_batch in self.micro_batches(batch):
                with tf.GradientTape() as tape:
                    losses.append(self.losses(micro_batch, training=True))
                    loss = self.optimizer.scale_loss(tf.reduce_mean(losses[-1]["loss"]) / self.accumulation_steps)
                # Dense, also for the label tables: a sparse update would leave the moments of unused rows as they are.
                values = [v.value for v in self.trainable_variables]
                new = map(tf.convert_to_tensor, tape.gradient(loss, values, unconnected_gradients="zero"))
                gradients = list(new) if gradients is None else [a + b for a, b in zip(gradients, new)]
            self.optimizer.apply(gradients, self.trainable_variables)
            return self.finish_step({name: tf.concat([part[name] for part in losses], 0) for name in losses[0]})

    def test_step(self, data):
        with _after(data):
            return self.track(self.losses(self.draw_for_evaluation(self.unpack(data)), training=False))


def interpolate(averages, variables, weight):
    for average, variable in zip(averages, variables, strict=True):
        average.assign(average.value + weight * (tf.cast(variable.value, "float32") - average.value))


def compiled(function, variables):
    @tf.function(autograph=False)
    def run(values, *args):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(*args)

    return run


def allow_tf32():
    pass  # the default


@contextlib.contextmanager
def full_precision():
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def _after(data):
    return tf.control_dependencies([part for part in tf.nest.flatten(data) if part is not None])
