"""Weights of one model found in another of the same architecture, in a file, or in a list.

They are matched by path, which begins behind the model's own name. Where paths differ, because a layer without a name
is numbered by Keras (`dense_1` in one model, `dense_3` in the next) or the model was renamed, they are matched by
place in `model.weights`, which does not depend on what is frozen.
"""

from collections import Counter


def paths(model):
    """Paths of `model.weights` behind the model's own name, such as `x_embedder/kernel`."""
    return [path_in(model, variable) for variable in model.weights]


def path_in(model, variable):
    """The path of a variable behind the model's own name."""
    return behind(model, variable.path)


def behind(model, path):
    """A path of a variable or layer without the model's own, which stays where the model's name changes."""
    return path.removeprefix(f"{model.path or model.name}/")


def matched(entries, model, what):
    """Where in `model.weights` each of `entries` belongs.

    Args:
        entries: (path, place in its own model's weights, shape) of each.
        model: a built Keras model or layer.
        what: what the entries are, for the error.

    Returns:
        Places in `model.weights`, one per entry.

    Raises:
        ValueError: they are of another architecture; it names what does not match.
    """
    shapes, own = [tuple(v.shape) for v in model.weights], paths(model)
    count = Counter(own)
    place_of = {path: place for place, path in enumerate(own) if count[path] == 1}
    missing = [path for path, _, _ in entries if path not in place_of]
    by_path = [] if missing else [place_of[path] for path, _, _ in entries]
    if not missing and all(shapes[i] == tuple(shape) for i, (_, _, shape) in zip(by_path, entries)):
        return by_path
    by_place = [place for _, place, _ in entries]
    if missing and all(i < len(shapes) and shapes[i] == tuple(s) for i, (_, _, s) in zip(by_place, entries)):
        return by_place
    if missing:
        wrong = f"{missing[0]} is not among its {len(own)} weights"
    else:
        place, (path, _, shape) = next((i, e) for i, e in zip(by_path, entries) if shapes[i] != tuple(e[2]))
        wrong = f"{path} is {tuple(shape)} there and {shapes[place]} in this one"
    raise ValueError(f"{what} belong to another network than {model.name}: {wrong}.")


class Values(list):
    """Values of a model's trainable weights, in order, that know where they belong, those of frozen weights too.

    Args:
        model: the model they are values of.
        values: variable's id → tensor.
    """

    def __init__(self, model, values):
        super().__init__(values[id(v)] for v in model.trainable_variables if id(v) in values)
        found = [(i, v) for i, v in enumerate(model.weights) if id(v) in values]
        self.entries = [(path_in(model, v), i, tuple(v.shape)) for i, v in found]
        self.values = [values[id(v)] for _, v in found]
        self.ids = [id(v) for _, v in found]


def resolved(values, model):
    """Values for `model.variables`, in order: the given ones, and the model's own for what is not given.

    Args:
        values: `None`, `Values`, a dict by path, or a list in the order of `model.trainable_variables` or, where it has
            another length, of `model.weights`.
        model: a built Keras model.

    Raises:
        ValueError: they do not fit the model.
    """
    given = {} if values is None else _by_id(values, model)
    return [given.get(id(v), v.value) for v in model.variables]


def _by_id(values, model):
    if isinstance(values, Values):
        if set(values.ids) <= {id(v) for v in model.weights}:
            return dict(zip(values.ids, values.values))
        entries, values = values.entries, values.values
    elif isinstance(values, dict):
        places = {path: place for place, path in enumerate(paths(model))}
        names = [behind(model, name) for name in values]
        values = list(values.values())
        entries = [(name, places.get(name, len(places)), value.shape) for name, value in zip(names, values)]
    else:
        values = list(values)
        targets = next((t for t in (model.trainable_variables, model.weights) if len(t) == len(values)), None)
        if targets is None:
            raise ValueError(
                f"weights must hold {len(model.trainable_variables)} values, one per trainable weight of {model.name}, "
                f"or {len(model.weights)}, one per weight. Received: {len(values)}"
            )
        place_of = {id(v): place for place, v in enumerate(model.weights)}
        own = [(path_in(model, v), place_of[id(v)]) for v in targets]
        entries = [(path, place, value.shape) for (path, place), value in zip(own, values)]
    weights = model.weights
    return {id(weights[i]): value for i, value in zip(matched(entries, model, "The values given"), values)}
