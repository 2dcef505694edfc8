"""Autoencoders between images and the latents that are diffused: their contract, and the two without a network.

- `encode(images)`: images `(B, H, W, 3 or 1)` in [−1, 1] → `mean` and `logvar` of the latents' normal distribution,
  both float32 `(B, H/f, W/f, C)`, as the autoencoder defines them ("unscaled").
- `decode(latents, batch_size=None)`: unscaled latents `(B, H/f, W/f, C)` → float32 images about in [−1, 1], not
  clipped; at most `batch_size` at once, where that saves memory.
- `to_diffusion(latents)`: `(latents − shift) · scale`, about of unit variance: what a diffusion model is trained on.
  `from_diffusion` is the inverse. So an image is drawn as `decode(from_diffusion(sample))`.
- `downsampling_factor` is f, `latent_channels` is C, `in_channels` are the images'; `clip_denoised` tells samplers
  whether latents lie in [−1, 1] and may be clipped there; `weights_hash()` tells two autoencoders apart.

Those that are trained also have `posterior(images)` and `reconstruct(latents)`, which are `encode` and `decode` to
differentiate or to trace.
"""

import hashlib

import keras
import numpy as np
from keras import ops

from fcdm_keras import backend
from fcdm_keras.arguments import check_integer


class Autoencoder:
    """What autoencoders share: a mixin of Keras layers, to be named before them."""

    clip_denoised = False
    scale, shift = 1.0, 0.0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._compiled = {}  # methods, by name

    def to_diffusion(self, latents):
        """Unscaled latents to about unit variance: `(latents − shift) · scale`."""
        return latents if self._plain else (latents - self.shift) * self.scale

    def from_diffusion(self, latents):
        """The inverse of `to_diffusion`."""
        return latents if self._plain else latents / self.scale + self.shift

    @property
    def _plain(self):
        """Whether scaled latents are the unscaled ones, which then stay as they are to the sign of a zero."""
        return (self.scale, self.shift) == (1.0, 0.0)

    def weights_hash(self):
        """SHA-256 of all weights, hexadecimal."""
        digest = hashlib.sha256()
        for variable in self.weights:
            digest.update(np.ascontiguousarray(ops.convert_to_numpy(variable)).tobytes())
        return digest.hexdigest()

    def compute_output_shape(self, input_shape):
        return input_shape

    def _run(self, method, tensor):
        """`method`, by name, of a batch: compiled, with the weights as they are now, spread over the devices."""
        if method not in self._compiled:
            self._compiled[method] = backend.compiled(getattr(self, method), tuple(self.weights), (0,))
        return self._compiled[method]([v.value for v in self.weights], tensor)


@keras.saving.register_keras_serializable("fcdm_keras")
class Identity(Autoencoder, keras.layers.Layer):
    """The autoencoder of diffusion in pixel space: latents are the images.

    Args:
        latent_channels: channels of the images.
    """

    downsampling_factor = 1
    clip_denoised = True

    def __init__(self, latent_channels=3, **kwargs):
        super().__init__(**kwargs)
        self.latent_channels = self.in_channels = latent_channels
        self.built = True

    def encode(self, images):
        """Images as the mean, and a log-variance of −30, the lowest there is."""
        images = ops.cast(images, "float32")
        return images, ops.full_like(images, -30.0)

    def decode(self, latents, batch_size=None):
        """The images themselves; `batch_size` is not needed here."""
        return ops.cast(latents, "float32")

    def call(self, images):
        return self.decode(images)

    def get_config(self):
        return {**super().get_config(), "latent_channels": self.latent_channels}


@keras.saving.register_keras_serializable("fcdm_keras")
class SpaceToDepth(Autoencoder, keras.layers.Layer):
    """The autoencoder that only rearranges: each f×f block of pixels is one latent pixel of f²·C channels.

    Channels are ordered by row in the block, column in the block, image channel, as in TensorFlow's `space_to_depth`.
    The network then runs at 1/f of the resolution, at about 1/f² of the cost.

    Args:
        downsampling_factor: f ≥ 1; height and width of the images must be divisible by it.
        in_channels: C, channels of the images.

    Raises:
        ValueError: for a factor or a number of channels below 1, and on call for images or latents that do not fit.
    """

    clip_denoised = True

    def __init__(self, downsampling_factor, in_channels=3, **kwargs):
        super().__init__(**kwargs)
        self.downsampling_factor = check_integer("downsampling_factor", downsampling_factor)
        self.in_channels = check_integer("in_channels", in_channels)
        self.latent_channels = in_channels * downsampling_factor**2
        self.built = True

    def encode(self, images):
        """Rearranged images as the mean, and a log-variance of −30, the lowest there is."""
        images, factor = ops.cast(images, "float32"), self.downsampling_factor
        self._check(images, self.in_channels, factor)
        _, height, width, channels = images.shape
        height, width = height // factor, width // factor
        blocks = ops.reshape(images, (-1, height, factor, width, factor, channels))
        latents = ops.reshape(ops.transpose(blocks, (0, 1, 3, 2, 4, 5)), (-1, height, width, self.latent_channels))
        return latents, ops.full_like(latents, -30.0)

    def decode(self, latents, batch_size=None):
        """The inverse of `encode`; `batch_size` is not needed here."""
        latents, factor = ops.cast(latents, "float32"), self.downsampling_factor
        self._check(latents, self.latent_channels, 1)
        _, height, width, _ = latents.shape
        blocks = ops.reshape(latents, (-1, height, width, factor, factor, self.in_channels))
        shape = (-1, height * factor, width * factor, self.in_channels)
        return ops.reshape(ops.transpose(blocks, (0, 1, 3, 2, 4, 5)), shape)

    def weights_hash(self):
        """SHA-256 of the factor, hexadecimal: there are no weights."""
        return hashlib.sha256(f"space_to_depth {self.downsampling_factor}".encode()).hexdigest()

    def call(self, images):
        return self.decode(self.encode(images)[0])

    def get_config(self):
        sizes = {"downsampling_factor": self.downsampling_factor, "in_channels": self.in_channels}
        return {**super().get_config(), **sizes}

    def _check(self, array, channels, multiple):
        shape = tuple(array.shape)
        if len(shape) != 4 or shape[3] != channels or shape[1] % multiple or shape[2] % multiple:
            sides = f", H and W divisible by {multiple}" if multiple > 1 else ""
            raise ValueError(f"Expected shape (B, H, W, {channels}){sides}. Received: {shape}")


def sample_posterior(mean, logvar, noise):
    """`mean + exp(logvar / 2) · noise`, all of one shape: float32 tensor."""
    mean, logvar, noise = (ops.cast(part, "float32") for part in (mean, logvar, noise))
    return mean + ops.exp(0.5 * logvar) * noise


def to_uint8(images):
    """Images in [−1, 1] to uint8 as the reference does: `clip(127.5 · x + 128, 0, 255)`, truncated."""
    return ops.cast(ops.clip(127.5 * images + 128.0, 0.0, 255.0), "uint8")
