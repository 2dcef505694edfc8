"""Tasks: a backbone, an autoencoder and a sampler together, from condition to uint8 images."""

import secrets
import threading

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from fcdm_keras.autoencoders import Identity, to_uint8
from fcdm_keras.backend.hub import Independent, default_name, keras_hub
from fcdm_keras.data.classes import number_of
from fcdm_keras.diffusion import randomness
from fcdm_keras.diffusion.objectives import as_objective, check_channels, described
from fcdm_keras.network.backbones import BACKBONES  # noqa: F401  (registers all, for presets)
from fcdm_keras.network.base import AnyBackbone
from fcdm_keras.network.conditioning import ClassConditioning, as_labels
from fcdm_keras.network.presets import ReplacedWhole, reading
from fcdm_keras.network.weights import resolved
from fcdm_keras.sampling import loop
from fcdm_keras.sampling.draw_options import DrawOptions, check_memory
from fcdm_keras.sampling.finite import check_finite


class ImageTask(ReplacedWhole, keras_hub.models.Task, metaclass=Independent):
    """Base of tasks that draw one image per condition; a subclass says what conditions are.

    Args:
        backbone: an `FCDMBackbone`.
        autoencoder: see `fcdm_keras.autoencoders`; default `Identity` (pixels).
        image_size: side of the images in pixels, or (height, width).
        objective: what the backbone was trained on: a name in `fcdm_keras.diffusion.objectives.OBJECTIVES`, a dict of
            `name` and the objective's options, or an objective of these classes. Default `"flow"` where the network
            has as many channels out as in, else `"iddpm"`.
        name: default the class's in snake case, as `class_to_image`, for every task.

    Raises:
        ValueError: if the autoencoder's latents, the objective or the kind of condition do not fit the backbone.
    """

    backbone_cls = AnyBackbone
    input_name = None  # of the conditioning modules that a subclass takes
    _is_stored = False  # whether it was made of a configuration

    def __init__(self, backbone, autoencoder=None, image_size=256, objective=None, name=None, **kwargs):
        kwargs.pop("preprocessor", None)
        if objective is None:
            objective = "flow" if backbone.out_channels == backbone.in_channels else "iddpm"
        objective = as_objective(objective)
        autoencoder = autoencoder or Identity(backbone.in_channels)
        if autoencoder.latent_channels != backbone.in_channels:
            raise ValueError(
                f"The backbone takes {backbone.in_channels} channels. "
                f"Received: an autoencoder with {autoencoder.latent_channels}"
            )
        check_channels(objective, backbone)
        if self.input_name not in (None, backbone.conditioning.input_name):
            raise ValueError(
                f"{type(self).__name__} takes a backbone that is conditioned on {self.input_name}. "
                f"Received: one conditioned on {backbone.conditioning.input_name}"
            )
        super().__init__(compile=False, name=name or default_name(type(self)), **kwargs)
        self.backbone = backbone
        self.autoencoder = autoencoder
        self.objective = described(objective)
        self.sampler = getattr(objective, "sampler", "ddpm")
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self._latent_shape(self.image_size)
        self._loops, self._one_at_a_time = {}, threading.RLock()
        self.built = True  # all parts are, and a preset keeps the weights of the autoencoder

    def draw(self, conditions, num_steps=250, guidance_scale=1.5, seed=None, sampler=None, **options):
        """Draws one image per condition; image i depends on (seed, first_index + i), not on others or the batch size.

        Args:
            conditions: `(N, …)`, as the backbone's conditioning module takes them.
            num_steps: sampling steps, 1 … 1000.
            guidance_scale: classifier-free guidance s ≥ 0; 1 is none and halves the cost.
            seed: integer in [0, 2⁶⁴); `None` draws one.
            sampler: a name in `fcdm_keras.diffusion.samplers.SAMPLERS`; default the objective's, `"ddpm"` or
                `"euler_maruyama"`.
            **options: see `DrawOptions`.

        Returns:
            uint8 array `(N, H, W, channels)`.

        Raises:
            ValueError: for arguments out of range, before anything is computed.
            FloatingPointError: what was computed is not finite, of weights that are not, or by an overflow.
        """
        own = DrawOptions(**options)
        conditions, nulls = self._checked(conditions, own.null_conditions)
        sampler = sampler or self.sampler
        guidance_scale, solver = own.check(num_steps, guidance_scale, sampler, self.objective)
        own.check_indices(len(conditions))
        words = randomness.seed_words(secrets.randbits(64) if seed is None else seed)
        sizes = self.image_size if own.image_size is None else own.image_size
        shape = self._latent_shape(tuple(sizes) if np.iterable(sizes) else (sizes, sizes))
        check_memory(self, len(conditions), min(own.batch_size, len(conditions)), _pixels(self, shape))
        kind = loop.Loop(int(num_steps), sampler, solver, guidance_scale != 1, own.guidance_channels, shape)
        with self._one_at_a_time:
            run, weights = self._compiled(kind), resolved(own.weights, self.backbone)

        def latents(places):
            return run(
                weights,
                _tensor(conditions[places]),
                self.backbone.conditioning.null(len(places)) if nulls is None else _tensor(nulls[places]),
                ops.convert_to_tensor(own.first_index + places, "int32"),
                ops.convert_to_tensor(guidance_scale, "float32"),
                *randomness.word_tensors(words),
            )

        empty = np.zeros((0, *_pixels(self, shape), self.autoencoder.in_channels), "uint8")
        with self._one_at_a_time:  # of several threads; engines trace and swap weights in the whole process
            return np.concatenate([empty, *self._images(latents, len(conditions), own, guidance_scale, weights)])

    def _images(self, latents, count, own, guidance_scale, weights):
        """Yields uint8 images, `count` in all, batch by batch; `latents(places)` draws those at `places`."""
        size = min(int(own.batch_size), count)
        for start in tqdm(range(0, count, size or 1), desc="sampling", unit="batch", disable=not own.verbose):
            # A short last batch is filled up, so that the loop is compiled once.
            drawn = latents(np.minimum(np.arange(start, start + size), count - 1))
            decoded = self.autoencoder.decode(self.autoencoder.from_diffusion(drawn))
            check_finite(self, drawn, decoded, weights, guidance_scale)
            yield ops.convert_to_numpy(to_uint8(decoded))[: count - start]

    def _checked(self, conditions, nulls):
        """Both as arrays. Raises ValueError for conditions that cannot be right."""
        conditions = np.asarray(conditions)
        if not conditions.ndim:
            raise ValueError(f"Conditions must be (N, …), one per image. Received: {conditions}")
        self.backbone.conditioning.check(conditions)
        if nulls is None:
            return conditions, None
        nulls = np.asarray(nulls)
        self.backbone.conditioning.check(nulls)
        if len(nulls) != len(conditions):
            raise ValueError(f"Expected one null condition per condition, {len(conditions)}. Received: {len(nulls)}")
        return conditions, nulls

    def predict(self, x, batch_size=64, verbose="auto", **options):
        """As `generate(x, batch_size=batch_size, …)`, in the form of `keras.Model.predict`.

        Args:
            x: what `generate` takes.
            batch_size: images drawn at once.
            verbose: show a progress bar; `"auto"` does.
            **options: the other arguments of `generate`.

        Returns:
            uint8 array `(N, H, W, channels)`.
        """
        return self.generate(x, batch_size=batch_size, verbose=bool(verbose), **options)

    def _compiled(self, own):
        """The compiled function of a `loop.Loop`, kept for the next call."""
        key = (own, tuple(map(id, self.backbone.variables)))
        if key not in self._loops:
            clip = self.autoencoder.clip_denoised
            self._loops[key] = loop.compiled(own, self.backbone, as_objective(self.objective), clip)
        return self._loops[key]

    def _latent_shape(self, image_size):
        step = self.backbone.side_multiple * self.autoencoder.downsampling_factor
        whole = all(isinstance(side, (int, np.integer)) for side in image_size)
        if len(image_size) != 2 or not whole or any(side < step or side % step for side in image_size):
            raise ValueError(f"Image height and width must be multiples of {step}. Received: {image_size}")
        factor = self.autoencoder.downsampling_factor
        return (int(image_size[0]) // factor, int(image_size[1]) // factor, self.backbone.in_channels)

    def get_config(self):
        config = super().get_config()
        config.pop("preprocessor")
        autoencoder = keras.saving.serialize_keras_object(self.autoencoder)
        own = {"autoencoder": autoencoder, "image_size": list(self.image_size), "objective": self.objective}
        return {**config, **own}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("autoencoder"), dict):
            config["autoencoder"] = keras.saving.deserialize_keras_object(config["autoencoder"])
        task = super().from_config(config)
        task._is_stored = True
        return task

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """As the backbone's `quantize`: the autoencoder stays as it is."""
        self.backbone.quantize(mode, config=config, filters=filters, **kwargs)

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """A task from its preset, or from a backbone's with what is missing there: `autoencoder=`, `image_size=`.

        Args:
            preset: a folder, `hf://…` or `kaggle://…`.
            load_weights: as in KerasHub.
            **kwargs: arguments of this class that replace the preset's; `dtype`, the backbone's.

        Raises:
            ValueError: it is a backbone's preset, and neither is given.
        """
        with reading(preset, load_weights):
            task = super().from_preset(str(preset), load_weights, **kwargs)
        if not task._is_stored and not kwargs.keys() & {"autoencoder", "image_size"}:
            raise ValueError(
                f"{preset} is the preset of a backbone and not of a task: give autoencoder= and image_size= (pixels; "
                "without an autoencoder images are what the backbone draws)."
            )
        return task


@keras.saving.register_keras_serializable("fcdm_keras")
class ClassToImage(ImageTask):
    """Draws images of classes.

    Args:
        backbone: an `FCDMBackbone` with `ClassConditioning`.
        autoencoder, image_size, objective: as in `ImageTask`.
        class_names: the classes' names in the order of their numbers, if they have names.

    Raises:
        ValueError: also for another number of names than of classes.

    Example:

    ```python
    task = ClassToImage.from_preset("runs/digits/preset")
    images = task.generate([3, 1, 4], num_steps=50, guidance_scale=1.5, seed=0, sampler="ddim")  # uint8 (3, 8, 8, 1)
    ```
    """

    input_name = "labels"

    def __init__(self, backbone, autoencoder=None, image_size=256, objective=None, class_names=None, **kwargs):
        super().__init__(backbone, autoencoder, image_size, objective, **kwargs)
        self.class_names = class_names and tuple(map(str, class_names))
        classes = getattr(backbone.conditioning, "num_classes", None)
        if self.class_names and classes not in (None, len(self.class_names)):
            raise ValueError(f"class_names must be {classes}, one per class. Received: {len(self.class_names)}")

    def generate(self, labels, num_steps=250, guidance_scale=1.5, seed=None, sampler=None, **options):
        """Draws one image per label.

        Args:
            labels: class numbers in [0, num_classes], of which `num_classes` is no class: one, or `(N,)`, `(N, 1)`, or
                one per level `(N, levels)`; or names of classes.
            num_steps, guidance_scale, seed, sampler, **options: as in `ImageTask.draw`.

        Returns:
            uint8 array `(N, H, W, channels)`.

        Raises:
            ValueError: for arguments out of range, before anything is computed.
            FloatingPointError: as in `ImageTask.draw`.
        """
        return self.draw(self._labels(labels), num_steps, guidance_scale, seed, sampler, **options)

    def _labels(self, labels):
        """Numbers or names of classes as an array of numbers. Raises ValueError for anything else."""
        labels = [labels] if isinstance(labels, str) else labels
        listed = isinstance(labels, (list, tuple)) or (isinstance(labels, np.ndarray) and labels.ndim == 1)
        if listed and len(labels) and all(isinstance(label, str) for label in labels):
            labels = [number_of(name, self.class_names) for name in labels]
        module = self.backbone.conditioning
        if not isinstance(module, ClassConditioning):
            return np.atleast_1d(np.asarray(labels))
        return as_labels(labels, module.num_classes, len(module.widths))

    def _checked(self, conditions, nulls):
        """As in `ImageTask`; labels and nulls of one shape, `(N,)` or with a label per level."""
        labels, nulls = super()._checked(conditions, nulls)
        if not isinstance(self.backbone.conditioning, ClassConditioning):
            return labels, nulls
        labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
        if nulls is None and labels.ndim > 1:
            nulls = np.full_like(labels, self.backbone.conditioning.num_classes)
        if nulls is None or nulls.ndim == labels.ndim:
            return labels, nulls
        return np.broadcast_arrays(*(part[:, None] if part.ndim == 1 else part for part in (labels, nulls)))

    def get_config(self):
        return {**super().get_config(), "class_names": self.class_names and list(self.class_names)}


def _pixels(task, latent_shape):
    """Height and width of the images that latents of a shape become."""
    return tuple(side * task.autoencoder.downsampling_factor for side in latent_shape[:2])


def _tensor(array):
    return ops.convert_to_tensor(array, "int32" if array.dtype.kind in "iu" else "float32")
