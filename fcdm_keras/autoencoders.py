"""Autoencoders between images and the latents that are diffused, one contract.

`encode(images)`: `(B, H, W, 3 or 1)` in [−1, 1] → latents `(B, H/f, W/f, C)`, scaled to about unit variance.
`decode(latents)`: back, about in [−1, 1]. `downsampling_factor` is f, `latent_channels` is C. `clip_denoised` tells
samplers whether latents lie in [−1, 1] and may be clipped there.
"""

import keras
from keras import ops


@keras.saving.register_keras_serializable("fcdm_keras")
class Identity(keras.layers.Layer):
    """Diffusion in pixel space: latents are the images.

    Args:
        latent_channels: channels of the images.
    """

    downsampling_factor = 1
    clip_denoised = True

    def __init__(self, latent_channels=3, **kwargs):
        super().__init__(**kwargs)
        self.latent_channels = latent_channels
        self.built = True

    def encode(self, images):
        return ops.cast(images, "float32")

    def decode(self, latents):
        return ops.cast(latents, "float32")

    def call(self, images):
        return self.decode(self.encode(images))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "latent_channels": self.latent_channels}


def to_uint8(images):
    """Images in [−1, 1] to uint8 as the reference does: `clip(127.5 · x + 128, 0, 255)`, truncated."""
    return ops.cast(ops.clip(127.5 * images + 128.0, 0.0, 255.0), "uint8")
