"""A small autoencoder for small images, which works on patches and trains in minutes on a CPU."""

import keras
import numpy as np
from keras import layers, ops

from fcdm_keras import kernels
from fcdm_keras.autoencoders.base import Autoencoder, SpaceToDepth
from fcdm_keras.network.layers import conv, linear


@keras.saving.register_keras_serializable("fcdm_keras")
class PatchAutoencoder(Autoencoder, layers.Layer):
    """Convolutions between f×f patches of pixels and a few latent channels.

    All layers run at 1/f of the resolution, so it costs little; `KLAutoencoder` has more detail. The latent vector of a
    patch has a fixed length and `AutoencoderTrainer` adds noise of a fixed size to it. So there is no divergence to
    weigh (`kl_weight=0`), and the decoder learns to bear what a diffusion model gets slightly wrong.

    Afterwards `adapt` takes the channels' mean and standard deviation; latents are standardised with them.

    Args:
        downsampling_factor: f, side of the patches in pixels.
        latent_channels: C.
        in_channels: channels of the images.
        hidden_channels: width of the network.
        posterior_std: standard deviation of the noise, above 0, in latents of mean square 1.

    Raises:
        ValueError: for sizes that make no autoencoder, and on call for images or latents that do not fit.

    Example:

    ```python
    autoencoder = PatchAutoencoder(4, 6)
    trainer = AutoencoderTrainer(autoencoder, loss="l2", kl_weight=0.0)
    trainer.compile(AdamW(3e-3))
    trainer.fit(images, batch_size=64)  # uint8 (N, H, W, 3)
    autoencoder.adapt(images[:1000])
    ```
    """

    def __init__(
        self,
        downsampling_factor=4,
        latent_channels=6,
        in_channels=3,
        hidden_channels=128,
        posterior_std=0.3,
        **kwargs,
    ):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.patches = SpaceToDepth(downsampling_factor, in_channels, name="patches")
        if not (latent_channels > 1 and hidden_channels > 0 and posterior_std > 0):
            raise ValueError(
                "latent_channels must be at least 2, hidden_channels at least 1, posterior_std above 0. "
                f"Received: {latent_channels}, {hidden_channels}, {posterior_std}"
            )
        self.downsampling_factor, self.in_channels = downsampling_factor, in_channels
        self.latent_channels, self.hidden_channels = latent_channels, hidden_channels
        self.posterior_std = posterior_std
        self.mean = self.add_weight(name="mean", shape=(latent_channels,), initializer="zeros", trainable=False)
        self.std = self.add_weight(name="std", shape=(latent_channels,), initializer="ones", trainable=False)
        size, width = self.patches.latent_channels, hidden_channels
        options = {"dtype": "float32"}
        self.encoder = [
            conv(width, name="encoder_1", **options),
            linear(width, name="encoder_2", **options),
            linear(latent_channels, name="encoder_3", **options),
        ]
        self.decoder = [
            conv(width, name="decoder_1", **options),
            linear(width, name="decoder_2", **options),
            conv(width, name="decoder_3", **options),
            linear(width, name="decoder_4", **options),
            linear(size, name="decoder_5", **options),
        ]
        for network, channels in ((self.encoder, size), (self.decoder, latent_channels)):
            network[0].build((None, None, None, channels))
            for layer in network[1:]:
                layer.build((None, None, None, width))
        self.built = True

    def adapt(self, images):
        """Takes the channels' statistics over the latents of images, uint8 `(N, H, W, in_channels)`."""
        self.mean.assign(np.zeros(self.latent_channels, np.float32))
        self.std.assign(np.ones(self.latent_channels, np.float32))
        latents = ops.convert_to_numpy(self.encode(images.astype(np.float32) / 127.5 - 1.0)[0])
        self.mean.assign(latents.mean(axis=(0, 1, 2)))
        self.std.assign(np.maximum(latents.std(axis=(0, 1, 2)), 1e-3))

    def posterior(self, images):
        """Mean and log-variance of the latents of float images in [−1, 1]."""
        latents = _residual(self.encoder, self.patches.encode(images)[0])
        latents = latents * ops.rsqrt(ops.mean(ops.square(latents), axis=-1, keepdims=True) + 1e-6)
        mean, std = ops.convert_to_tensor(self.mean), ops.convert_to_tensor(self.std)
        logvar = ops.broadcast_to(2.0 * ops.log(self.posterior_std / std), ops.shape(latents))
        return (latents - mean) / std, logvar

    def encode(self, images):
        """As `posterior`, compiled."""
        return self._run("posterior", ops.cast(images, "float32"))

    def reconstruct(self, latents):
        """Images of latents."""
        latents = latents * ops.convert_to_tensor(self.std) + ops.convert_to_tensor(self.mean)
        return self.patches.decode(ops.tanh(_residual(self.decoder, latents)))

    def decode(self, latents, batch_size=None):
        """Images of latents, float32 in [−1, 1]; `batch_size` is not needed here."""
        return self._run("reconstruct", ops.cast(latents, "float32"))

    def call(self, images):
        return self.reconstruct(self.posterior(images)[0])

    def get_config(self):
        names = ("downsampling_factor", "latent_channels", "in_channels", "hidden_channels", "posterior_std")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _residual(network, x):
    """The first layer, GELU; then layers added to what they take, with GELU; then the last layer."""
    first, *middle, last = network
    x = kernels.gelu(first(x))
    for layer in middle:
        x = x + kernels.gelu(layer(x))
    return last(x)
