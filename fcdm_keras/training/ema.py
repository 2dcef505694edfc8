"""Exponential moving average of a model's weights: float32, and never swapped into the model that trains."""

import keras
import numpy as np
from keras import ops

from fcdm_keras import backend
from fcdm_keras.arguments import check_bool, check_share
from fcdm_keras.network import adapters, weights


@keras.saving.register_keras_serializable("fcdm_keras")
class EMA(keras.layers.Layer):
    """Keeps `average ← decay · average + (1 − decay) · weight` for each floating-point weight of a built model.

    An average belongs to a variable, whether it is frozen or not: freezing a layer, unfreezing it or another order
    changes nothing. The average of a weight that does not move is that weight, exactly. Statistics that layers keep
    themselves, such as BatchNormalization's, are averaged too; state that is no floating-point number is copied.

    It starts at the model's weights as they are at the first training step, and holds its averages as non-trainable
    float32 weights, so that they are saved with whatever model owns this layer. Call `reset` after weights were loaded
    into the model itself later on; a trainer's `load_weights` does so where a file has no averages.

    Args:
        model: a built Keras model or layer.
        decay: in [0, 1).
        warmup: use min(decay, (1 + n) / (10 + n)) at update n, so that a short run forgets its start.
    """

    def __init__(self, model, decay=0.9999, warmup=False, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.decay = check_share("The EMA decay", decay)
        self.warmup = check_bool("The EMA's warmup", warmup)
        self._trained = lambda: model  # an attribute that Keras would track as a layer of ours
        self._at_first = frozenset(id(v) for v in model.trainable_variables)
        object.__setattr__(self, "_sources", ())
        self.averages = []
        self.follow()
        self.fresh = True  # whether the averages may still start anew
        self.built = True

    @property
    def model(self):
        """The model whose weights are averaged."""
        return self._trained()

    def follow(self):
        """Takes up weights that the model has got since, such as those of LoRA; they start as they are."""
        known = {id(source): average for source, average in zip(self._sources, self.averages)}
        sources = tuple(v for v in self.model.weights if _is_float(v))
        averages = [known.get(id(source)) for source in sources]
        if [id(source) for source in sources] != [id(source) for source in self._sources]:
            self.averages = [self._new(s) if a is None else a for s, a in zip(sources, averages)]
            object.__setattr__(self, "_sources", sources)  # Keras would track them as weights of ours

    def _new(self, source):
        return self.add_weight(
            name=source.path.replace("/", "_"),
            shape=source.shape,
            initializer=lambda shape, dtype: _copied(source),
            trainable=False,
        )

    def reset(self):
        """Starts anew from the present weights."""
        self.follow()
        for average, source in zip(self.averages, self._sources):
            average.assign(_apart(source, "float32"))
        self.fresh = True

    def begin(self):
        """Before a training step: starts from the weights as they are now, unless it has begun or was restored."""
        if self.fresh:
            self.reset()
            self.fresh = False

    def update(self, step, moved=None):
        """Moves every average once; `step` counts the updates, this one included (int or scalar tensor).

        `moved` is 0.0 where there was no update after all, and 1.0 elsewhere, which is the default.
        """
        decay = self.decay
        if self.warmup:
            step = ops.cast(step, "float32")
            decay = ops.minimum(self.decay, (1.0 + step) / (10.0 + step))
        weight = 1.0 - decay if moved is None else (1.0 - decay) * moved
        backend.interpolate(self.averages, self._sources, weight)

    def values(self):
        """The averages as tensors, in the order of the model's `trainable_variables`.

        The list knows where each belongs, and has the averages of frozen weights beside it: `draw(weights=…)` takes it
        whatever is frozen before or after.
        """
        pairs = zip(self._sources, self.averages)
        return weights.Values(self.model, {id(source): average.value for source, average in pairs})

    def copy_to(self, model):
        """Assigns the averages, and the state that is not averaged, to another model of the same architecture.

        The trained model itself may be given too. A model without adapters gets those of this one merged.

        Raises:
            ValueError: the architectures differ; nothing was assigned.
        """
        values = self._merged() if adapters.adapted(self.model) and not adapters.adapted(model) else self._values()
        own, target = self.model, model.weights
        entries = [(weights.path_in(own, v), i, tuple(v.shape)) for i, (v, _) in enumerate(values)]
        for place, (_, value) in zip(weights.matched(entries, model, "The averages"), values):
            if value is not target[place]:
                target[place].assign(_apart(value, target[place].dtype))

    def _values(self):
        """Pairs of a weight and its average, or itself where it has none."""
        averages = {id(source): average for source, average in zip(self._sources, self.averages)}
        return [(v, averages.get(id(v), v)) for v in self.model.weights]

    def _merged(self):
        """As `_values`, with the averages of adapters in those of the kernels."""
        average = {id(v): value for v, value in self._values()}
        layers = adapters.adapted(self.model).values()
        kernels = {id(adapters.base(x)): adapters.merged(x, lambda v: average[id(v)].value) for x in layers}
        factors = {id(v) for layer in layers for v in adapters.factors(layer)}
        return [(v, kernels.get(id(v), value)) for v, value in self._values() if id(v) not in factors]

    def stored(self):
        """What a file needs: pairs of a weight and its average, of those that are or were trained, in order."""
        trained = self._at_first | {id(v) for v in self.model.trainable_variables}
        return [
            (source, average)
            for source, average in zip(self._sources, self.averages)
            if id(source) in trained or not np.array_equal(*map(ops.convert_to_numpy, (source, average)))
        ]

    def save_own_variables(self, store):
        """The weights, then their averages, as earlier versions wrote them and, where they read this file, expect."""
        for i, variable in enumerate(variable for part in zip(*self.stored()) for variable in part):
            store[str(i)] = variable

    def in_order(self, shapes):
        """Places in `model.weights` of averages that are known by number alone.

        Raises:
            ValueError: no order that an earlier version wrote has these shapes.
        """
        for places in self.orders():
            if [tuple(self.model.weights[place].shape) for place in places] == [tuple(shape) for shape in shapes]:
                return places
        count = len(self.model.trainable_variables)
        raise ValueError(
            f"The file holds {len(shapes)} averages, and {count} weights are trained now: "
            "it was written with other layers frozen. Freeze the same ones, load, then unfreeze and compile again."
        )

    def orders(self):
        """The orders in which earlier versions wrote averages: places of the weights trained now, at first, and all."""
        every = [(place, v) for place, v in enumerate(self.model.weights) if _is_float(v)]
        now, first = {id(v) for v in self.model.trainable_variables}, self._at_first
        for ids in (now, first, first | now, {id(v) for _, v in every}):
            yield [place for place, v in every if id(v) in ids]

    def assign(self, places, values):
        """Sets the averages of the weights at `places` of `model.weights`; others become those weights."""
        given = {id(self.model.weights[place]): value for place, value in zip(places, values)}
        for source, average in zip(self._sources, self.averages):
            average.assign(given[id(source)] if id(source) in given else _apart(source, "float32"))
        self.fresh = False


def _is_float(variable):
    return "float" in keras.backend.standardize_dtype(variable.dtype)


def _apart(variable, dtype):
    """The value in memory of its own: JAX donates the variable's buffer to the training step."""
    return ops.cast(getattr(variable, "value", variable), dtype) * 1


def _copied(variable):
    return ops.convert_to_tensor(np.array(ops.convert_to_numpy(variable)), "float32")
