"""What all trainers share: one optimizer step on a batch, EMA, metrics, and randomness that follows from the step."""

import keras
from keras import ops

from fcdm_keras import backend, distribution
from fcdm_keras.diffusion import randomness
from fcdm_keras.training import weight_file
from fcdm_keras.training.ema import EMA
from fcdm_keras.training.optimizer import AdamW

_NO_CONFIG = (
    "A {name} is not made from a configuration, so it cannot be saved whole, copied, cloned or pickled: use "
    "trainer.save_weights and load_weights, or fcdm_keras.training.checkpoint.CheckpointManager, with a trainer made "
    "in the same way; trainer.{trained} can be saved and copied, and a task of it saved by save_to_preset."
)


class StepTrainer(backend.TrainStep, keras.Model):
    """Base of trainers with their own loss, trained by `compile` and `fit`.

    A subclass names in `trained` the attribute that holds its model, and has the methods

    - `unpack(data)`: a batch as a dict of tensors, with `row`, each sample's place in the global batch
      (`backend.rows`);
    - `draw(batch)`, `draw_for_evaluation(batch)`: the batch with what is random in a step, without `row`;
    - `losses(batch, training)`: per-sample losses `(B,)` by the names in `losses`; `loss` is minimised.

    Batches stay float32; the model casts what it needs.

    Args:
        model: the built model that is trained.
        losses: names of the losses, `loss` among them.
        name: name of the trainer.
        ema_decay: decay of the weights' moving average, `self.ema`.
        ema_warmup: ramp the decay up from 0.1, for short runs.
        accumulation_steps: micro-batches per optimizer step.
        seed: integer in [0, 2⁶⁴).

    Raises:
        ValueError: for values out of range.
    """

    trained = None

    def __init__(self, model, losses, *, name, ema_decay, ema_warmup, accumulation_steps, seed):
        super().__init__(dtype=model.dtype_policy, name=name)
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1. Received: {accumulation_steps}")
        self.autocast = False
        self.accumulation_steps = accumulation_steps
        self.seed = seed
        self._seed_words = randomness.seed_words(seed)
        # The names of these attributes and their order are the layout of a checkpoint.
        setattr(self, self.trained, model)
        self.ema = EMA(model, ema_decay, ema_warmup, name="ema")
        self.step = self.add_weight(name="step", shape=(), dtype="int32", initializer="zeros", trainable=False)
        self._means = {loss: keras.metrics.Mean(name=loss) for loss in losses}
        self.built = True

    def compile(self, optimizer=None, **kwargs):
        """As `keras.Model.compile`; the default optimizer is the paper's (AdamW, 1e-4, no decay), the loss is fixed."""
        if optimizer is None:
            optimizer = AdamW()
        super().compile(optimizer=optimizer, **kwargs)
        self.ema.follow()
        self.optimizer.build(self.trainable_variables)  # before any weights are loaded

    def make_train_function(self, force=False):
        self.ema.begin()
        return super().make_train_function(force)

    def save_weights(self, filepath, *args, **kwargs):
        """As `keras.Model.save_weights`: weights, EMA, optimizer and step, those of a layer that is frozen too."""
        super().save_weights(filepath, *args, **kwargs)
        if str(filepath).endswith(".weights.h5"):
            weight_file.annotate(filepath, self)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """As `keras.Model.load_weights`, of a trainer's file or of the trained model's own.

        Where the file has no averages, the EMA starts from the weights in it. Optimizer state is matched by weight, and
        the learning rate stays as compiled, with a warning where it was another.

        Raises:
            ValueError: averages or optimizer state do not fit; nothing was loaded.
        """
        if not str(filepath).endswith(".weights.h5") or skip_mismatch or kwargs:
            super().load_weights(filepath, skip_mismatch, **kwargs)
        elif not weight_file.is_of_trainer(filepath, self):
            self.ema.model.load_weights(filepath)
            self.ema.reset()
        else:
            parts = [self.ema, *([self.optimizer] if self.optimizer else [])]
            loader = super().load_weights
            weight_file.load(filepath, self, lambda: loader(filepath, objects_to_skip=parts))

    def save(self, *args, **kwargs):
        raise NotImplementedError(_NO_CONFIG.format(name=type(self).__name__, trained=self.trained))

    def get_config(self):
        raise NotImplementedError(_NO_CONFIG.format(name=type(self).__name__, trained=self.trained))

    @classmethod
    def from_config(cls, config):
        raise NotImplementedError(_NO_CONFIG.format(name=cls.__name__, trained=cls.trained))

    @property
    def steps_done(self):
        """Optimizer steps since the start of the run, as an int."""
        return int(distribution.host_arrays([self.step])[0])

    @property
    def metrics(self):
        return list(self._means.values())

    def check_divisible(self, batch):
        """Raises ValueError unless a batch can be cut into `accumulation_steps` equal parts, as far as is known."""
        size = next(iter(batch.values())).shape[0]
        if size is not None and size % self.accumulation_steps:
            raise ValueError(
                f"The batch size must be divisible by accumulation_steps={self.accumulation_steps}. Received: {size}"
            )

    def micro_batches(self, batch):
        """The batch cut into `accumulation_steps` equal parts."""
        self.check_divisible(batch)
        parts = {name: ops.split(value, self.accumulation_steps) for name, value in batch.items()}
        return [dict(zip(parts, values)) for values in zip(*parts.values())]

    def finish_step(self, losses):
        """After the optimizer: counts the step, moves the EMA, adds to the metrics. Returns the logs."""
        self.step.assign(self.step.value + 1)
        self.ema.update(self.step.value)
        return self.track(losses)

    def track(self, losses):
        """Adds per-sample losses, those of the whole global batch, to the metrics and returns their means."""
        losses = backend.gathered({name: losses[name] for name in self._means})
        for name, mean in self._means.items():
            mean.update_state(losses[name])
        return {name: mean.result() for name, mean in self._means.items()}
