"""What all trainers share: one optimizer step on a batch, EMA, metrics, and randomness that follows from the step."""

import keras
from keras import ops

from fcdm_keras import backend, distribution
from fcdm_keras.diffusion import randomness
from fcdm_keras.formats import hdf5
from fcdm_keras.training import checks, weight_file
from fcdm_keras.training.batches import Batches
from fcdm_keras.training.ema import EMA
from fcdm_keras.training.optimizer import AdamW
from fcdm_keras.training.streams import checked_stream, is_stream, plain_errors, split

MARKS = ("sample_weight", "real")  # of a batch, see `fcdm_keras.training.batches`

_NO_CONFIG = (
    "A {name} is not made from a configuration, so it cannot be saved whole, copied, cloned or pickled: use "
    "trainer.save_weights and load_weights, or fcdm_keras.training.checkpoint.CheckpointManager, with a trainer made "
    "in the same way; trainer.{trained} can be saved and copied, and a task of it saved by save_to_preset."
)


class StepTrainer(backend.TrainStep, keras.Model):
    """Base of trainers with their own loss, trained by `compile` and `fit`.

    A subclass names in `trained` the attribute that holds its model, and has the methods

    - `named(x, y)`: what is given as a batch as a dict by name, whatever its type;
    - `check_batch(batch)`: raises ValueError for a dict of NumPy arrays that does not fit, a batch or a whole data set;
    - `unpack(data)`: a batch as a dict of tensors, with `row`, each sample's place in the global batch
      (`backend.rows`);
    - `draw(batch)`, `draw_for_evaluation(batch)`: the batch with what is random in a step, without `row`;
    - `losses(batch, training)`: per-sample losses `(B,)` by the names in `losses`; `loss` is minimised, with the
      losses that layers add (`add_loss`, regularizers). `sample_weight` and `class_weight` multiply the per-sample
      losses, whose means are over the number of samples, as in Keras.

    Batches stay float32; the model casts what it needs. They are the global ones: on any number of devices, `fit`,
    `evaluate` and the methods for one batch compute the same, and a short last batch counts as what it is.

    Args:
        model: the built model that is trained.
        losses: names of the losses, `loss` among them.
        name: name of the trainer.
        ema_decay: decay of the weights' moving average, `self.ema`.
        ema_warmup: ramp the decay up from 0.1, for short runs.
        accumulation_steps: micro-batches per optimizer step. The batch size must be divisible by it; batches of
            another size, as the last of a data set, are filled up with samples that do not count.
        seed: integer in [0, 2⁶⁴).

    Raises:
        ValueError: for values out of range.
    """

    trained = None
    conditioning = None  # the module that knows a batch's condition, where there is one
    drawn_by = "its model"  # what does what `predict` would

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

    def compile(self, optimizer=None, loss=None, loss_weights=None, metrics=None, weighted_metrics=None, **kwargs):
        """As `keras.Model.compile`; the default optimizer is the paper's (AdamW, 1e-4, no decay), the loss is fixed.

        Raises:
            ValueError: for losses or metrics, an optimizer that cannot be used here, and where nothing is trainable.
        """
        foreign = {"loss": loss, "loss_weights": loss_weights, "metrics": metrics, "weighted_metrics": weighted_metrics}
        given = [name for name, value in foreign.items() if value]
        if given:
            raise ValueError(
                f"{type(self).__name__} has its own losses and reports {', '.join(self._means)}: leave out "
                f"{' and '.join(f'{name}=' for name in given)} (a loss of your own is an objective or a trainer)."
            )
        if not self.trainable_variables:
            raise ValueError(
                f"No weight of {self.ema.model.name} is trainable: unfreeze what shall be trained "
                f"(trainer.{self.trained}.trainable = True) before `compile`."
            )
        if optimizer is None:
            optimizer = AdamW()
        trained = tuple(map(id, self.trainable_variables))
        if self.compiled and optimizer is self.optimizer and trained != self._compiled_for:
            raise ValueError("Other weights are trained than before: give `compile` a new optimizer.")
        super().compile(optimizer=optimizer, **kwargs)
        self.ema.follow()
        self._compiled_for = trained
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)  # before any weights are loaded
        self.check_optimizer()

    def make_train_function(self, force=False):
        checks.check_trainable(self.ema.model)
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
            return
        loader = super().load_weights
        with hdf5.checked(filepath, finite=False):  # moments may be infinite where weights are not
            if not weight_file.is_of_trainer(filepath, self):
                self.ema.model.load_weights(filepath)
                self.ema.reset()
            else:
                parts = [self.ema, *([self.optimizer] if self.optimizer else [])]
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

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
    ):
        """As `keras.Model.fit`, with batches that are checked before the first step, or as they come.

        The order of arrays with `shuffle` follows from the seed and the steps done.

        Raises:
            ValueError: for data that does not fit.
        """
        self._check_ready()
        options = {"epochs": epochs, "initial_epoch": initial_epoch, "verbose": verbose, "callbacks": callbacks}
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = split((x, y, sample_weight), validation_split)
        given = (x, y, sample_weight)
        batches = Batches(self, True, class_weight)
        data, steps_per_epoch, shuffle = self._fed(batches, given, batch_size, steps_per_epoch, shuffle)
        if validation_data is not None:
            given = keras.utils.unpack_x_y_sample_weight(validation_data)
            size = validation_batch_size or batch_size
            held_out, validation_steps, _ = self._fed(Batches(self, False), given, size, validation_steps)
            held_out = {"validation_data": (held_out["x"],), "validation_steps": validation_steps}
            options |= {**held_out, "validation_freq": validation_freq}
        with plain_errors():
            return super().fit(**data, shuffle=shuffle, steps_per_epoch=steps_per_epoch, **options)

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """As `keras.Model.evaluate`, with batches that are checked as in `fit`."""
        options = {"verbose": verbose, "callbacks": callbacks, "return_dict": return_dict, **kwargs}
        if kwargs:  # from within `fit`, with data that it has made
            return super().evaluate(x, steps=steps, **options)
        self._check_ready()
        data, steps, _ = self._fed(Batches(self, False), (x, y, sample_weight), batch_size, steps)
        with plain_errors():
            return super().evaluate(**data, steps=steps, **options)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """As `keras.Model.train_on_batch`, with a batch that is checked; of several processes, each gives all of it."""
        self._check_ready()
        batch = Batches(self, True, class_weight).alone((x, y, sample_weight))
        return super().train_on_batch(backend.placed(batch), return_dict=return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """As `keras.Model.test_on_batch`, with a batch that is checked; of several processes, each gives all of it."""
        self._check_ready()
        batch = Batches(self, False).alone((x, y, sample_weight))
        return super().test_on_batch(backend.placed(batch), return_dict=return_dict)

    def predict(self, *args, **kwargs):
        raise ValueError(f"{type(self).__name__} trains and evaluates; {self.drawn_by} instead of `predict`.")

    predict_on_batch = predict

    def prepare(self, data, training):
        """What a step computes losses of: a batch with what is random about it, and with its `MARKS`."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        marks = {} if weight is None else {"sample_weight": weight}
        if isinstance(x, dict):
            marks.update((name, x[name]) for name in MARKS if name in x)
            x = {name: ops.convert_to_tensor(value) for name, value in x.items() if name not in MARKS}
        batch = self.unpack((x, y))
        batch = self.draw(batch) if training else self.draw_for_evaluation(batch)
        return {**batch, **{name: ops.cast(mark, "float32") for name, mark in marks.items()}}

    def weighed_losses(self, batch, training):
        """Per-sample losses `(B,)` of a batch from `prepare`, weighed, with what layers add, and with its `real`."""
        losses = self.losses({name: value for name, value in batch.items() if name not in MARKS}, training=training)
        losses = {name: losses[name] for name in self._means}
        if "sample_weight" in batch:
            losses = {name: loss * batch["sample_weight"] for name, loss in losses.items()}
        # `losses` is a method here; Keras's property of that name is every layer's.
        added = keras.Model.losses.fget(self)
        if added:
            losses["loss"] = losses["loss"] + sum(ops.cast(loss, "float32") for loss in added)
        if "real" in batch:
            losses["real"] = batch["real"]
        return losses

    def minimised(self, losses):
        """The mean of `loss` over the samples that are real, from `weighed_losses`."""
        return ops.mean(losses["loss"] * losses["real"] if "real" in losses else losses["loss"])

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

    def updates(self):
        """The number of updates that the optimizer has made, where that may be fewer than steps; else `None`."""
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        return ops.convert_to_tensor(self.optimizer.iterations) + 0 if scaled or self._steps_per_update() > 1 else None

    def finish_step(self, losses, before=None):
        """After the optimizer: counts the step, moves the EMA, adds to the metrics. Returns the logs.

        Args:
            losses: what `weighed_losses` gave for the whole batch.
            before: what `updates()` was before the optimizer.
        """
        self.step.assign(self.step.value + 1)
        moved = None if before is None else ops.cast(self.updates() != before, "float32")
        self.ema.update(self.step.value // self._steps_per_update(), moved)
        return self.track(losses)

    def track(self, losses):
        """Adds per-sample losses, those of the whole global batch, to the metrics and returns their means."""
        losses = backend.gathered(losses)
        real = ops.cast(losses["real"] > 0, "float32") if "real" in losses else None
        for name, mean in self._means.items():
            mean.update_state(losses[name], sample_weight=real)
        return {name: mean.result() for name, mean in self._means.items()}

    def _steps_per_update(self):
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        return optimizer.gradient_accumulation_steps or 1

    def _check_ready(self):
        if self.compiled and tuple(map(id, self.trainable_variables)) != self._compiled_for:
            raise ValueError(
                "Layers were frozen or unfrozen since `compile`: call `compile` again, with a new optimizer."
            )

    def _fed(self, batches, given, batch_size, steps, shuffle=False):
        """Data as arguments of Keras's `fit`, and what becomes of `steps` and `shuffle`."""
        x, y, weight = given
        if is_stream(x):
            return {"x": checked_stream(x, batches), "y": y, "sample_weight": weight}, steps, shuffle
        arrays = batches.of_arrays((x, y, weight), batch_size, steps, shuffle)
        fed = backend.feed(arrays)
        return {"x": fed}, steps if fed is arrays else steps or len(arrays), False
