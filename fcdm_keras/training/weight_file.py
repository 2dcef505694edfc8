"""What a trainer's `.weights.h5` holds beside Keras's layout: which weight each average and moment belongs to.

Keras numbers the variables of a layer and of an optimizer. Each average and each optimizer variable has its weight's
`path` and `place` (in the model's `weights`) as attributes in the file, and what it is of that weight, its `kind`.
Files of earlier versions have none: there the order of the trained weights says what belongs where.

Keras writes the kernels of adapted layers with their adapters merged; the parts are in `adapters`, by the layer's path.
"""

import warnings

import h5py
import keras
import ml_dtypes
import numpy as np
from keras import ops

from fcdm_keras.network import adapters, weights

RATE = "learning_rate"


def annotate(file, trainer):
    """Adds the attributes to a file that `trainer.save_weights` wrote."""
    model = trainer.ema.model
    places = {id(v): place for place, v in enumerate(model.weights)}
    with h5py.File(file, "r+") as content:
        stored = trainer.ema.stored()
        for i, (source, _) in enumerate(stored, start=len(stored)):
            _describe(content[f"ema/vars/{i}"], weights.path_in(model, source), places[id(source)], "average")
        for path, parts in _parts(model).items():
            for i, part in enumerate(parts):
                content[f"adapters/{path}/{i}"] = adapters.array(part)
        if getattr(trainer, "optimizer", None) is None:
            return
        group = content["optimizer/vars"]
        for i, (place, kind) in enumerate(_labels(trainer.optimizer, model)):
            path = "" if place < 0 else weights.path_in(model, model.weights[place])
            _describe(group[str(i)], path, place, kind)
        group.attrs["class"] = type(_inner(trainer.optimizer)).__name__
        group.attrs[RATE] = rate(trainer.optimizer)


def _describe(dataset, path, place, kind):
    dataset.attrs["path"], dataset.attrs["place"], dataset.attrs["kind"] = path, place, kind


def is_of_trainer(file, trainer):
    """Whether a file was written by a trainer, rather than by the model that it trains."""
    with h5py.File(file, "r") as content:
        return trainer.trained in content


def load(file, trainer, load_model):
    """Loads a trainer's weights, averages and optimizer state from a file.

    Args:
        file: path of a `.weights.h5`.
        trainer: a `StepTrainer`.
        load_model: `load_model()` loads all but averages and optimizer state.

    Raises:
        ValueError: averages or optimizer state do not fit; nothing was loaded.
    """
    check_adapters(file, trainer.ema.model)
    with h5py.File(file, "r") as content:
        model, optimizer = trainer.ema.model, getattr(trainer, "optimizer", None)
        averages, moments = _averages(content), _datasets(content, "optimizer/vars")
        places = _places(averages, trainer.ema)
        state = optimizer and moments and _State(moments, content["optimizer/vars"].attrs, optimizer, trainer.ema)
        load_model()
        if "adapters" in content:
            for path, parts in _parts(model).items():
                for i, part in enumerate(parts):
                    part.assign(content[f"adapters/{path}/{i}"][()])
        if averages:
            trainer.ema.assign(places, [_value(dataset) for dataset in averages])
        else:
            trainer.ema.reset()
        if state:
            state.assign(file, model)


def _parts(model):
    """Path of each adapted layer → variables of its kernel, `a` and `b`."""
    return {path: [adapters.base(x), *adapters.factors(x)] for path, x in adapters.adapted(model).items()}


def check_adapters(file, model):
    """Raises ValueError unless a model has the adapters that a file has, if it has any."""
    with h5py.File(file, "r") as content:
        groups = adapters.groups(content.get("adapters", {}), "1")
        found = {path: group["1"].shape[-1] for path, group in groups.items()}
    own = {path: layer.lora_rank for path, layer in adapters.adapted(model).items()}
    if found and found != own:
        here = f"others, of rank {next(iter(own.values()))} on {len(own)} layers" if own else "none"
        names = sorted({path.rpartition("/")[2] for path in found})
        raise ValueError(
            f"{file} holds adapters for {len(found)} layers, and {model.name} has {here}: call "
            f"enable_lora({next(iter(found.values()))}, {names}) on a new one, compile, then load."
        )


def _datasets(content, name):
    group = content.get(name, {})
    return [group[str(i)] for i in range(len(group))]


def _averages(content):
    """The averages in a file, which follow their weights."""
    datasets = _datasets(content, "ema/vars")
    return datasets[len(datasets) // 2 :]


def _value(dataset):
    value = dataset[()]
    return value.view(ml_dtypes.bfloat16) if dataset.attrs.get("dtype") == "bfloat16" else value  # as Keras marks it


def _places(averages, ema):
    if averages and "path" not in averages[0].attrs:
        return ema.in_order([dataset.shape for dataset in averages])
    entries = [(d.attrs["path"], int(d.attrs["place"]), d.shape) for d in averages]
    return weights.matched(entries, ema.model, "The averages in the file")


def _inner(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)


def rate(optimizer):
    """The present learning rate as a float, computed by this process alone."""
    inner = _inner(optimizer)
    own = [(v, ops.convert_to_tensor(ops.convert_to_numpy(v))) for v in inner.variables if not v.shape]
    with keras.StatelessScope(own):
        return float(ops.convert_to_numpy(inner.learning_rate))


def _labels(optimizer, model):
    """(place of its weight, kind) of each optimizer variable; the place is −1 where it belongs to none."""
    flat = {v.path.replace("/", "_") + "_": place for place, v in enumerate(model.weights)}
    longest = sorted(flat, key=len, reverse=True)
    outer = len(optimizer.variables) - len(_inner(optimizer).variables)
    labels = []
    for i, variable in enumerate(optimizer.variables):
        name = variable.name
        owner = next((start for start in longest if name.startswith(start)), None)
        if owner is None:
            labels.append((-1, f"loss_scale/{name}" if i < outer else name))
        else:
            labels.append((flat[owner], name.removeprefix(owner)))
    return labels


class _State:
    """Optimizer state in a file, each variable under what it is: (place of its weight, kind)."""

    def __init__(self, datasets, attributes, optimizer, ema):
        self.optimizer, self.attributes = optimizer, attributes
        self.own = dict(zip(_labels(optimizer, ema.model), optimizer.variables))
        if "path" in datasets[0].attrs:
            labels = _described(datasets, ema.model)
        else:
            labels = _guessed([d.shape for d in datasets], list(self.own), ema)
        ours, theirs = _kinds(self.own), _kinds(labels or [])
        if labels is None or ours != theirs:
            raise ValueError(
                f"The file holds the state of {self._written_by(theirs)}, this trainer is compiled with "
                f"{type(_inner(optimizer)).__name__} ({', '.join(sorted(ours)) or 'no state per weight'}): compile it "
                "with the same optimizer, or start anew from its weights (trainer.ema.copy_to)."
            )
        self.found = dict(zip(labels, datasets))

    def _written_by(self, kinds):
        name = self.attributes.get("class", "another optimizer")
        return f"{name} ({', '.join(sorted(kinds)) or 'no state per weight'})" if "class" in self.attributes else name

    def assign(self, file, model):
        """Sets all that is there but the learning rate, which stays as compiled; says what differs."""
        before = self.attributes.get(RATE)
        if before is None and (-1, RATE) in self.found:
            before = self.found[-1, RATE][()]
        for label, variable in self.own.items():
            if label in self.found and label[1] not in (RATE, f"loss_scale/{RATE}"):
                variable.assign(_value(self.found[label]))
        self._warn_of_rate(file, before)
        new = {place for place, _ in self.own} - {place for place, _ in self.found} - {-1}
        if new:
            first = weights.path_in(model, model.weights[min(new)])
            warnings.warn(
                f"{len(new)} of the weights trained now, {first} first, were not trained when {file} was written: "
                "their optimizer state starts afresh.",
                stacklevel=5,
            )

    def _warn_of_rate(self, file, before):
        now = rate(self.optimizer)
        if before is None:
            if (-1, RATE) in self.own:
                warnings.warn(
                    f"{file} was written with a learning rate schedule; it goes on at {now:g}, as compiled.",
                    stacklevel=6,
                )
        elif not np.isclose(float(before), now, rtol=1e-5, atol=0):
            warnings.warn(
                f"{file} was written at a learning rate of {float(before):g}; it goes on at {now:g}, as compiled.",
                stacklevel=6,
            )


def _kinds(labels):
    return {kind for place, kind in labels if place >= 0}


def _described(datasets, model):
    """Labels of datasets with attributes, in this model's places."""
    entries = {int(d.attrs["place"]): (d.attrs["path"], int(d.attrs["place"]), d.shape) for d in datasets}
    entries.pop(-1, None)
    here = weights.matched(list(entries.values()), model, "The optimizer state in the file")
    place_of = {-1: -1, **dict(zip(entries, here))}
    return [(place_of[int(d.attrs["place"])], d.attrs["kind"]) for d in datasets]


def _guessed(shapes, own, ema):
    """Labels by the orders in which earlier versions wrote; `None` where none has these shapes."""
    every = ema.model.weights
    kinds = list(dict.fromkeys(kind for place, kind in own if place >= 0))
    head = [(-1, f"loss_scale/{name}") for name in ("iteration", RATE, "step_counter", "dynamic_scale")]
    inner = [label for label in own if label not in head]
    shared, slots = [label for label in inner if label[0] < 0], [label for label in inner if label[0] >= 0]
    orders = [slots]
    if slots == [(place, kind) for place in dict.fromkeys(p for p, _ in slots) for kind in kinds]:
        orders += [[(p, kind) for p in places for kind in kinds] for places in ema.orders()]
    plain = [label for label in shared if label[1] != RATE]
    with_rate = [*plain[:1], (-1, RATE), *plain[1:]]
    for order in orders:
        for start in (shared, plain, with_rate, head + plain, head + with_rate):
            labels = [*start, *order]
            if [tuple(every[p].shape) if p >= 0 else () for p, _ in labels] == [tuple(shape) for shape in shapes]:
                return labels
    return None
