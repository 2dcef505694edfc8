"""A sum of what layers cost, and what timestep and condition add to it. Standard library only."""

import dataclasses


@dataclasses.dataclass
class Costs:
    """A sum of what layers cost.

    Attributes:
        parameters: weights and biases.
        macs: what torchprofile, and so the paper, counts.
        plain_macs: multiply-accumulates of convolutions, linears and attention, and nothing else.
    """

    parameters: int = 0
    macs: int = 0
    plain_macs: int = 0

    def add(self, weights, biases, pixels, products=0, unseen=0):
        """A layer that applies each weight once at each of `pixels`.

        `products` are those that it writes out there elementwise, `unseen` those of matrices that torchprofile misses.
        """
        self.parameters += weights + biases
        self.macs += pixels * (weights + products)
        self.plain_macs += pixels * (weights + unseen)


def vectors(total, widths, num_classes, embedding_dim=None, frequency_dim=256):
    """What makes a vector of each width of the timestep and the condition."""
    for d in widths:
        total.add(frequency_dim * d, d, 1, products=frequency_dim)  # the frequencies, and they times the timestep
        total.add(d * d, d, 1)
    condition(total, widths, num_classes, embedding_dim)


def condition(total, widths, num_classes, embedding_dim):
    """What makes a vector of each width of a condition: tables of classes, or MLPs of an embedding."""
    for d in widths:
        if embedding_dim is None:
            total.add((num_classes + 1) * d, 0, 0)
        else:
            hidden = max(d, embedding_dim)
            total.add(embedding_dim * hidden, hidden, 1)
            total.add(hidden * d, d, 1)
    if embedding_dim is not None:  # whitening, mean and null embedding, which are not trained
        total.add(embedding_dim**2, 2 * embedding_dim, 1)
