"""AdamW with the ε of the published algorithm, so that runs match those of PyTorch step by step."""

import keras
from keras import ops

# On PyTorch `keras.optimizers.AdamW(...)` is an instance of a fused subclass; this is that class on every backend.
# `__new__` alone picks it: an optimizer that is set up has variables, and these start the devices.
_KerasAdamW = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))


@keras.saving.register_keras_serializable("fcdm_keras")
class AdamW(_KerasAdamW):
    """`keras.optimizers.AdamW` with the paper's defaults, dividing by √v̂ + ε (Kingma and Ba, algorithm 1).

    Keras computes the variant that divides by √v + ε ("ε̂", section 2 of the same paper), whose ε is up to 30 times
    larger in the first steps. Everything else is Keras's.

    Args:
        learning_rate: step size or schedule.
        weight_decay, beta_1, beta_2, epsilon, …: as in `keras.optimizers.AdamW`.
    """

    def __init__(self, learning_rate=1e-4, weight_decay=0.0, beta_1=0.9, beta_2=0.999, epsilon=1e-8, **kwargs):
        super().__init__(learning_rate, weight_decay, beta_1, beta_2, epsilon, **kwargs)
        self._plain_epsilon = epsilon

    def apply(self, grads, trainable_variables=None):
        # √v̂ + ε = (√v + ε·√(1 − β₂ᵗ)) / √(1 − β₂ᵗ)
        step = ops.cast(ops.convert_to_tensor(self.iterations) + 1, "float32")
        # TensorFlow's replicas run this in turns, each up to the update that they make together.
        self.epsilon = self._plain_epsilon * ops.sqrt(1.0 - self.beta_2**step)
        try:
            return super().apply(grads, trainable_variables)
        finally:
            self.epsilon = self._plain_epsilon
