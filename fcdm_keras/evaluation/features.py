"""From uint8 images to the features that scores compare, on the active Keras backend.

An extractor has a `name`, which reference files keep, and `extract(images)`: uint8 `(B, H, W, 3 or 1)` → a dict of
float32 arrays with `pool` `(B, D)`, and, if the network gives them, `spatial` `(B, S)` for sFID and `probabilities`
`(B, classes)` for the Inception score. Gray images are read as RGB. `widths(shape)` tells D and S without images.
"""

import hashlib
from pathlib import Path

import keras
import numpy as np
from keras import ops

from fcdm_keras import backend
from fcdm_keras.backend.hub import keras_hub
from fcdm_keras.evaluation.arrays import LOOKED_AT, check_images
from fcdm_keras.evaluation.inception.graph import FrozenGraph
from fcdm_keras.formats.hdf5 import check_keras_file
from fcdm_keras.machine import memory

INCEPTION_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/classify_image_graph_def.pb"
SPATIAL_CHANNELS = 7


class Extractor:
    """Base of the extractors: checks, gray to RGB, and batches of one size, so that the network is compiled once.

    Args:
        name: as kept in reference files.
        batch_size: images computed at once; a smaller batch is filled up.

    Attributes:
        gives: names of the features that `extract` returns.
    """

    gives = ("pool",)

    def __init__(self, name, batch_size=64):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: {batch_size}")
        self.name = name
        self.batch_size = batch_size
        self._widths = {}

    def extract(self, images, first=0):
        """Features of uint8 images `(B, H, W, 3 or 1)`, a dict of float32 arrays, see above.

        `first` is the number of the first of them, for messages.

        Raises:
            ValueError: images of another type or shape, or features that are not finite.
        """
        images = np.asarray(images)
        check_images(images.shape, images.dtype, lambda: images[:LOOKED_AT])
        self._check_memory(images.shape[1:])
        parts = [
            self._padded(images[start : start + self.batch_size], first + start)
            for start in range(0, len(images), self.batch_size)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def widths(self, shape):
        """Features of an image of this shape, `(H, W, 3 or 1)`: their number by their name. One batch is computed."""
        if shape[:2] not in self._widths:
            self._check_memory(shape)
            features = self.compute(np.zeros((self.batch_size, *shape[:2], 3), "float32"))
            self._widths[shape[:2]] = {name: value.shape[1] for name, value in features.items()}
        return self._widths[shape[:2]]

    def _check_memory(self, shape):
        """Raises ValueError if a batch, uint8 and float32, does not fit into memory."""
        what = f"A batch of {self.batch_size:,} images of {shape[0]:,}×{shape[1]:,}"
        memory.check(5 * self.batch_size * shape[0] * shape[1] * 3, what, "use a smaller --features-batch-size")

    def compute(self, images):
        """Features of float32 RGB images `(batch_size, H, W, 3)`, 0 … 255, as a dict of tensors."""
        raise NotImplementedError

    def _padded(self, images, first):
        missing = self.batch_size - len(images)
        batch = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="edge").astype("float32")
        batch = np.repeat(batch, 3, axis=-1) if images.shape[-1] == 1 else batch
        features = {name: ops.convert_to_numpy(value)[: len(images)] for name, value in self.compute(batch).items()}
        for name, value in features.items():
            bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
            if len(bad):
                raise ValueError(
                    f"The {name} features of {self.name} must be finite. Received: NaN or infinity from {len(bad)} of "
                    f"{len(images)} images, first from image {first + bad[0]} (from 0 on); its weights are damaged or "
                    "do not fit the images."
                )
        return features


class Inception(Extractor):
    """The Inception network of ADM's evaluation suite, from its frozen graph.

    `pool` is `pool_3` (2048), `spatial` the first 7 channels of `mixed_6/conv` (17 · 17 · 7 = 2023, channel fastest),
    `probabilities` the softmax of `pool_3 @ softmax/weights`, without the biases, as the suite computes it. Images are
    resized inside the graph.

    Args:
        path: `classify_image_graph_def.pb`; `None` downloads it to Keras's cache.
        batch_size: images computed at once.

    Raises:
        ValueError: the file is no such graph.
        OSError: it cannot be read, or not be downloaded.
    """

    gives = ("pool", "spatial", "probabilities")

    def __init__(self, path=None, batch_size=64):
        super().__init__("inception", batch_size)
        graph = FrozenGraph.load(path or download_inception())
        self._weights = ops.convert_to_tensor(graph.constant(graph.input("softmax/logits/MatMul", 1)))
        self._run = graph.function("ExpandDims:0", ["pool_3:0", "mixed_6/conv:0"])
        self._classify = backend.compiled(lambda pool, weights: ops.softmax(ops.matmul(pool, weights)), [], (0,))

    def compute(self, images):
        pool, spatial = self._run(images)
        pool = ops.reshape(pool, (len(images), -1))
        with backend.full_precision():
            probabilities = self._classify([], pool, self._weights)
        spatial = ops.reshape(spatial[..., :SPATIAL_CHANNELS], (len(images), -1))
        return {"pool": pool, "spatial": spatial, "probabilities": probabilities}


def download_inception():
    """Path of OpenAI's Inception graph in Keras's cache, downloaded if needed. Raises OSError without a network."""
    try:
        return keras.utils.get_file("classify_image_graph_def.pb", INCEPTION_URL, cache_subdir="fcdm_keras")
    except Exception as error:  # get_file raises a plain Exception for HTTP errors
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"The Inception graph could not be downloaded ({reason}): get {INCEPTION_URL} where there is a network, "
            "and give its place with --inception PATH."
        ) from None


class KerasExtractor(Extractor):
    """Any Keras model of images: `pool` is its output, averaged over height and width if it is a map.

    If the output is a vector of probabilities (its last layer is a softmax), it is `probabilities` as well.

    Args:
        model: takes float `(B, height, width, 3 or 1)`; one channel is the images' luma (BT.601).
        preprocess: function of float32 images in 0 … 255 before the model, such as
            `keras.applications.resnet50.preprocess_input`; default none.
        image_size: (height, width) to resize to, bilinear with anti-aliasing; default the model's input shape if it is
            fixed, and else the images' own.
        layer: name of the layer whose output is used; default the model's last.
        name: as kept in reference files; default the model's name.
        batch_size: images computed at once.

    Raises:
        ValueError: the model has no such layer, or several inputs or outputs.
    """

    def __init__(self, model, preprocess=None, image_size=None, *, layer=None, name=None, batch_size=64):
        super().__init__(name or model.name, batch_size)
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ValueError(
                f"The model must have one input and one output. Received: {len(model.inputs)} and {len(model.outputs)}"
            )
        shape = tuple(model.inputs[0].shape)
        if len(shape) != 4 or shape[-1] not in (1, 3):
            raise ValueError(f"The model must take images (B, H, W, 3 or 1). Received: input shape {shape}")
        self._gray = shape[-1] == 1
        self._size = image_size or (shape[1:3] if None not in shape[1:3] else None)
        self._preprocess = preprocess or (lambda images: images)
        self.gives = ("pool", "probabilities") if layer is None and _ends_in_softmax(model) else ("pool",)
        self._model = model if layer is None else keras.Model(model.inputs, model.get_layer(layer).output)
        self._run = backend.compiled(self._features, self._model.variables, (0,))

    def compute(self, images):
        with backend.full_precision():
            values = [variable.value for variable in self._model.variables]
            output = self._run(values, ops.convert_to_tensor(images))
        return dict.fromkeys(self.gives, output)

    def _features(self, images):
        if self._gray:
            red, green, blue = (images[..., channel : channel + 1] for channel in range(3))
            images = red + 0.587 * (green - red) + 0.114 * (blue - red)  # exactly the gray of gray images
        if self._size and tuple(images.shape[1:3]) != tuple(self._size):
            images = ops.image.resize(images, self._size, antialias=True, data_format="channels_last")
        output = ops.cast(self._model(self._preprocess(images), training=False), "float32")
        return ops.mean(output, axis=(1, 2)) if len(output.shape) == 4 else output


def _ends_in_softmax(model):
    activation = getattr(model.layers[-1], "activation", None)
    return isinstance(model.layers[-1], keras.layers.Softmax) or activation is keras.activations.softmax


class DINOv2(Extractor):
    """DINOv2 by KerasHub, for FD-DINOv2 (arXiv:2306.04675): `pool` is the class token after the last norm.

    Images are resized to 224 × 224 (bicubic, anti-aliased) and normalised with ImageNet's mean and deviation.

    Args:
        source: a KerasHub preset such as `"dinov2_large"`, or its folder.
        batch_size: images computed at once.
        image_size: side of the resized images.

    Raises:
        OSError: the preset cannot be loaded.
    """

    MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, source="dinov2_large", batch_size=64, image_size=224):
        super().__init__("dinov2", batch_size)
        self._size = (image_size, image_size)
        try:
            self._network = keras_hub.models.DINOV2Backbone.from_preset(source, image_shape=(*self._size, 3))
        except Exception as error:  # the download's errors are of many kinds
            reason = str(error).partition("\n")[0]
            raise OSError(
                f"The DINOv2 preset {source!r} could not be loaded ({reason}): download it where there is a network, "
                "and give its folder."
            ) from None
        self._run = backend.compiled(self._features, self._network.variables, (0,))

    def compute(self, images):
        with backend.full_precision():
            values = [variable.value for variable in self._network.variables]
            return {"pool": self._run(values, ops.convert_to_tensor(images))}

    def _features(self, images):
        images = ops.image.resize(
            images, self._size, interpolation="bicubic", antialias=True, data_format="channels_last"
        )
        images = (ops.clip(images, 0.0, 255.0) / 255.0 - np.float32(self.MEAN)) / np.float32(self.DEVIATION)
        return ops.cast(self._network({"images": images}, training=False)[:, 0], "float32")


class Pixels(Extractor):
    """The pixels themselves, red, green and blue in 0 … 1: for small images."""

    def __init__(self, batch_size=64):
        super().__init__("pixels", batch_size)

    def compute(self, images):
        return {"pool": ops.convert_to_tensor(images.reshape(len(images), -1) / 255.0)}

    def widths(self, shape):
        return {"pool": 3 * shape[0] * shape[1]}


def load_extractor(kind, inception=None, batch_size=64):
    """An extractor as the commands name it.

    Args:
        kind: `"inception"`, `"dinov2"`, `"dinov2:PRESET"`, `"pixels"`, or the path of a `.keras` model, which does its
            own preprocessing of 0 … 255.
        inception: path of the Inception graph.
        batch_size: images computed at once.

    Raises:
        ValueError: for another kind, or a file that is damaged.
        OSError: the network's weights cannot be read.
    """
    if kind == "inception":
        return Inception(inception, batch_size)
    if kind == "pixels":
        return Pixels(batch_size)
    if kind == "dinov2" or kind.startswith("dinov2:"):
        return DINOv2(kind.partition(":")[2] or "dinov2_large", batch_size)
    if not kind.endswith(".keras"):
        raise ValueError(
            f"--features must be inception, dinov2, dinov2:PRESET, pixels or a .keras file. Received: {kind!r}"
        )
    if not Path(kind).is_file():
        raise FileNotFoundError(f"There is no model at {kind}: expected a .keras file.")
    check_keras_file(kind)
    try:
        model = keras.models.load_model(kind, compile=False)
    except Exception as error:  # whatever a damaged description makes Keras stumble over
        raise ValueError(f"{kind} is no Keras model, or is damaged: {str(error).partition(chr(10))[0]}") from None
    name = f"keras:{hashlib.blake2b(Path(kind).read_bytes(), digest_size=8).hexdigest()}"
    return KerasExtractor(model, name=name, batch_size=batch_size)
