"""How PyTorch and Keras lay out the same weights, and which name in a checkpoint means which variable."""

VECTOR = (lambda w: w, lambda w: w)  # each: (from torch, to torch)
LINEAR = (lambda w: w.T, lambda w: w.T)  # (out, in)
POINTWISE = (lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])  # (out, in, 1, 1)
CONV = (lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))  # (out, in, k, k)
DEPTHWISE = (lambda w: w.transpose(2, 3, 0, 1), lambda w: w.transpose(2, 3, 0, 1))  # (C, 1, k, k)
PER_CHANNEL = (lambda w: w.reshape(-1), lambda w: w[None, :, None, None])  # (1, C, 1, 1)
LEADING = (lambda w: w[0], lambda w: w[None])  # (1, …)


def patches(size):
    """A p×p convolution of stride p, `(out, in, p, p)`, which is a linear `(p·p·in, out)` on patches here."""

    def to_torch(w):
        return w.reshape(size, size, -1, w.shape[-1]).transpose(3, 2, 0, 1)

    return (lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]), to_torch)


class Parameters(dict):
    """Name in a checkpoint → (variable, from torch, to torch)."""

    def add(self, name, layer, layout=LINEAR):
        """Enters the kernel of a layer, and its bias if it has one."""
        self[f"{name}.weight"] = (layer.kernel, *layout)
        if layer.bias is not None:
            self[f"{name}.bias"] = (layer.bias, *VECTOR)

    def add_variable(self, name, variable, layout=VECTOR):
        """Enters a variable by its full name."""
        self[name] = (variable, *layout)

    def add_norm(self, name, norm):
        """Enters the scale and the offset of a norm."""
        self.add_variable(f"{name}.weight", norm.gamma)
        self.add_variable(f"{name}.bias", norm.beta)

    def add_time(self, name, embedding):
        """Enters the two linears of a `TimestepEmbedding`."""
        self.add(f"{name}.mlp.0", embedding.hidden)
        self.add(f"{name}.mlp.2", embedding.out)


class Shapes:
    """Shapes of a network's tensors, asked for by name.

    Args:
        state: name → tensor.
        what: what the file should hold and does not if one is missing, such as `x.pt is no FCDM checkpoint`.
    """

    def __init__(self, state, what):
        self.state, self.what = state, what

    def __call__(self, name, rank):
        """The shape of a tensor. Raises ValueError if it is missing, of another rank, or empty."""
        if name not in self.state:
            raise ValueError(f"{self.what}: it has no tensor {name}.")
        found = tuple(self.state[name].shape)
        if len(found) != rank or 0 in found:
            raise ValueError(f"{self.what}: {name} has shape {found}.")
        return found

    def count(self, level):
        """How many numbered parts a level has, as `blocks.0.…`, `blocks.1.…`."""
        return len({name[len(level) + 1 :].split(".")[0] for name in self.state if name.startswith(f"{level}.")})

    def has(self, part):
        """Whether `part` is in the name of a tensor."""
        return any(part in name for name in self.state)
