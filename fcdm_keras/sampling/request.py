"""What is asked of a model: its labels, and images batch by batch that do not depend on the batches."""

import hashlib
import math

import numpy as np
from keras import ops

from fcdm_keras import distribution
from fcdm_keras.autoencoders import Identity
from fcdm_keras.data.classes import describe_classes, parse_classes
from fcdm_keras.diffusion import randomness
from fcdm_keras.machine import memory
from fcdm_keras.sampling.draw_options import check_memory
from fcdm_keras.sampling.finite import check_weights
from fcdm_keras.sampling.flags import SOLVER_FLAGS
from fcdm_keras.sampling.writers import grid


def draw_labels(order, classes, count, seed):
    """Labels of images 0 … `count` − 1, int32 `(count,)`.

    Args:
        order: `"balanced"` takes the classes in turn; `"random"` draws label i from (seed, i).
        classes: the classes to choose from.
        count: number of labels.
        seed: integer in [0, 2⁶⁴).
    """
    if order == "balanced":
        return np.resize(np.asarray(classes, np.int32), count)
    keys = randomness.sample_keys(randomness.seed_words(seed), randomness.LABELS, 0, ops.arange(count, dtype="int32"))
    return np.asarray(classes, np.int32)[ops.convert_to_numpy(randomness.integers(keys, len(classes)))]


# Of some samplers; stored where they were given, so that folders of earlier versions go on.
OWN_OPTIONS = [name for names in SOLVER_FLAGS.values() for name in names if name != "eta"]


class Request:
    """Images 0 … N − 1 of one model and one set of flags. Those of other conditions than classes derive from it.

    Args:
        task: a `ClassToImage`.
        options: what `add_request_flags` parsed.

    Attributes:
        labels: int32 `(N,)`.
        image_shape: `(H, W, channels)`.

    Raises:
        ValueError: the flags do not fit the model. Nothing has been computed then.
    """

    grid_limit = 256  # images shown in the grid

    def __init__(self, task, options):
        pixels = isinstance(task.autoencoder, Identity)
        if pixels and task.autoencoder.latent_channels not in (1, 3):
            raise ValueError(f"{options.source} draws latents, and holds no autoencoder to make images of them.")
        self.task = task
        self._batch_size = min(options.batch_size, options.num_samples)
        self._options = {
            "num_steps": options.num_sampling_steps,
            "guidance_scale": options.cfg_scale,
            "seed": options.seed,
            "sampler": options.sampler or task.sampler,
            "eta": options.eta or 0.0,
            "guidance_channels": options.cfg_channels,
            "batch_size": self._batch_size,
            "image_size": options.image_size,
            **{name: value for name in OWN_OPTIONS if (value := getattr(options, name)) is not None},
        }
        sides = (options.image_size,) * 2 if options.image_size else task.image_size
        check_memory(task, self._batch_size, self._batch_size, sides)  # images are written batch by batch
        memory.check(64 * options.num_samples, f"A list of {options.num_samples:,} labels", "draw fewer, in parts")
        self.labels = self.choose(options)
        self.draw(slice(0), 0)  # checks every option, draws nothing
        self.image_shape = (*sides, task.autoencoder.latent_channels if pixels else 3)

    def choose(self, options):
        """The labels."""
        num_classes = self.task.backbone.conditioning.num_classes
        self._classes = parse_classes(options.classes, num_classes, self.task.class_names)
        self._in_turn = options.label_order == "balanced" and len(self._classes) <= 16
        return draw_labels(options.label_order, self._classes, options.num_samples, options.seed)

    def draw(self, places, first):
        """Images of the labels at `places`, numbered from `first` on."""
        return self.task.generate(self.labels[places], first_index=first, **self._options)

    def describe(self):
        """What is drawn, in one line for the terminal; nothing where the classes have no names."""
        names = self.task.class_names
        named = names and list(names) != list(map(str, range(len(names))))
        return f"classes: {describe_classes(self._classes, names)}" if named else ""

    def grid(self, shown):
        """The first images, uint8 `(n, H, W, C)`, as one picture."""
        return grid(shown, len(self._classes) if self._in_turn else math.ceil(len(shown) ** 0.5))

    def __len__(self):
        return len(self.labels)

    def starts(self):
        """Indices of the batches' first images."""
        return range(0, len(self), self._batch_size)

    def batches(self, starts=None):
        """Yields (index of the first image, uint8 images `(B, H, W, C)`) for the given `starts`; default all.

        Batches begin at multiples of the batch size and are computed at full size, so that an image is the same bits
        in a run that was resumed.
        """
        size = self._batch_size
        for first in self.starts() if starts is None else starts:
            images = self.draw(np.minimum(np.arange(first, first + size), len(self) - 1), first)
            yield first, images[: len(self) - first]

    def settings(self):
        """All that decides the images, for JSON. Raises FloatingPointError for weights that are not finite."""
        return {**self._options, "image_shape": list(self.image_shape), "weights": fingerprint(self.task)}


def draw_together(task, conditions, **options):
    """As `task.draw`, shared out among the processes of a job; each gets all images.

    Args:
        task: an `ImageTask`.
        conditions: what is to be drawn, an array `(N, …)`.
        **options: passed to `task.draw`.

    Raises:
        FloatingPointError: in every process, if the images of one are not finite.
    """
    conditions, placed = np.asarray(conditions), distribution.job()
    own = np.array_split(np.arange(len(conditions)), placed.process_count)[placed.process_index]
    first = int(own[0]) if len(own) else 0
    drawn, failure = None, None
    try:
        drawn = task.draw(conditions[own], first_index=first, **options)
    except FloatingPointError as error:
        failure = error
    if distribution.gather(np.array([failure is not None], np.int32)).any():  # the others must not wait for these
        raise failure or FloatingPointError("Images of another process are not finite.")
    return distribution.gather(drawn)


def fingerprint(model):
    """A checksum of a model's weights, hexadecimal. Raises FloatingPointError for weights that are not finite."""
    checksum = hashlib.blake2b(digest_size=16)
    for variable in model.variables:
        array = distribution.host_arrays([variable])[0]
        check_weights([variable], [array])
        checksum.update(array.tobytes())
    return checksum.hexdigest()
