"""Networks found in the content of PyTorch's files: which dict holds one, under which prefix, and of what kind."""

import re
from collections import deque

from fcdm_keras.formats.torch_files import Skipped, check_tensor, contents

_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGE = re.compile(r"(^|_)(ema|swa|avg|averaged?|shadow)(?=[_\d]|$)", re.IGNORECASE)
_MODEL = re.compile(r"(^|_)model(_|$)", re.IGNORECASE)


def state_dict(content, weights, anchors, path):
    """The tensors of the network that `weights` means, by their names in the published code.

    Args:
        content: of a file.
        weights: `"ema"` or `"model"`.
        anchors: names of tensors of which each network has one; what comes before it is a prefix of all names.
        path: of the file, for errors.

    Raises:
        ValueError: there is none, or several are meant.
    """
    dicts = dict(_state_dicts(content))
    networks = {
        (place, name.removesuffix(anchor)): inside
        for place, inside in dicts.items()
        for name in inside
        for anchor in anchors
        if f".{name}".endswith(f".{anchor}")
    }
    if not networks:
        raise ValueError(f"{path} {_no_network(content, dicts, weights, anchors)}.")
    chosen = _choose(networks, weights)
    shown = ", ".join(sorted("/".join((*place, prefix)).strip("/.") or "bare" for place, prefix in chosen or networks))
    if not chosen:
        other = "model" if weights == "ema" else "ema"
        raise ValueError(f'{path} has no {weights!r} weights, but {shown}; give weights="{other}" (--weights {other}).')
    if len(chosen) > 1:
        raise ValueError(f"{path} holds several networks as {weights!r} weights ({shown}); store one of them alone.")
    (_, prefix), inside = chosen.popitem()
    state = {name.removeprefix(prefix): tensor for name, tensor in inside.items() if name.startswith(prefix)}
    for name, tensor in state.items():
        check_tensor(f"{path}: {name}", tensor)
    return state


def _state_dicts(content):
    """The dicts of tensors in a file's content, outermost first: (the names that lead to it, its tensors by name)."""
    for place, inside in _walk(content):
        if tensors := {_WRAPPERS.sub("", n): v for n, v in inside.items() if isinstance(n, str) and _is_tensor(v)}:
            yield place, tensors


def _walk(content):
    """Whatever has named parts in a file's content, outermost first: (the names that lead to it, its parts)."""
    waiting, seen = deque([((), content, ())]), set()
    while waiting:
        place, value, above = waiting.popleft()
        if isinstance(value, Skipped) and not value:  # objects may hold each other
            if id(value) in seen:
                continue
            seen.add(id(value))
        if id(value) in above:  # a dict in itself; the same one in two places counts as two
            continue
        inside, above = contents(value), (*above, id(value))
        yield place, inside
        if len(place) < 8:
            waiting.extend(((*place, str(name)), item, above) for name, item in inside.items() if contents(item))


def _is_tensor(value):
    return hasattr(value, "detach") or (isinstance(value, Skipped) and "ensor" in type(value).kind)


def _choose(networks, weights):
    """Those of `networks`, by (the names that lead to the dict, prefix), that `weights` may mean."""

    def those(test):
        return {key: inside for key, inside in networks.items() if test(key[0], key[1].split("."))}

    def averaged(names):
        return any(map(_AVERAGE.search, names))

    def called_model(names):
        return any(map(_MODEL.search, names))

    if weights == "ema":
        groups = (
            those(lambda place, prefix: averaged(prefix)),
            those(lambda place, prefix: averaged(place)),
            those(lambda place, prefix: not called_model(place)),
        )
    else:
        networks = those(lambda place, prefix: not averaged((*place, *prefix)))
        groups = (those(lambda place, prefix: called_model(place)), networks)
    return next((group for group in groups if group), {})


def _no_network(content, dicts, weights, anchors):
    """What a file holds instead of a network, as the end of a sentence."""
    if not dicts:
        names = sorted(map(str, contents(content)))[:8]
        return (
            f"holds no state dict of tensors. Received: {f'a file with {names}' if names else type(content).__name__}"
        )
    place = next((place for place in dicts if weights in place), next(iter(dicts)))
    names = list(dicts[place])
    return (
        f"has no {weights!r} weights of a known network: no tensor {' or '.join(anchors)}, but {', '.join(names[:4])}"
    )


def settings(content, name):
    """The numbers that a file's content has under a name, wherever it lies."""
    found = (inside.get(name) for _, inside in _walk(content))
    return {value for value in found if isinstance(value, (int, float))}


def is_named(content, name):
    """Whether anything in a file's content has a name."""
    return any(name in inside for _, inside in _walk(content))
