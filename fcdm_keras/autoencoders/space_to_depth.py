"""Diffusion of pixels at a lower resolution: blocks of pixels become channels, and nothing is lost."""

import hashlib

import keras
from keras import ops


@keras.saving.register_keras_serializable("fcdm_keras")
class SpaceToDepth(keras.layers.Layer):
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
    scale, shift = 1.0, 0.0

    def __init__(self, downsampling_factor, in_channels=3, **kwargs):
        super().__init__(**kwargs)
        for name, value in (("downsampling_factor", downsampling_factor), ("in_channels", in_channels)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer. Received: {value!r}")
        self.downsampling_factor = downsampling_factor
        self.in_channels = in_channels
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

    def to_diffusion(self, latents):
        return latents

    def from_diffusion(self, latents):
        return latents

    def weights_hash(self):
        """SHA-256 of the factor, hexadecimal: there are no weights."""
        return hashlib.sha256(f"space_to_depth {self.downsampling_factor}".encode()).hexdigest()

    def call(self, images):
        return self.decode(self.encode(images)[0])

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        sizes = {"downsampling_factor": self.downsampling_factor, "in_channels": self.in_channels}
        return {**super().get_config(), **sizes}

    def _check(self, array, channels, multiple):
        shape = tuple(array.shape)
        if len(shape) != 4 or shape[3] != channels or shape[1] % multiple or shape[2] % multiple:
            sides = f", H and W divisible by {multiple}" if multiple > 1 else ""
            raise ValueError(f"Expected shape (B, H, W, {channels}){sides}. Received: {shape}")
