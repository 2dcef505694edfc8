"""The KL autoencoder of latent diffusion (Rombach et al., 2022, "High-Resolution Image Synthesis with Latent Diffusion
Models", appendix G), with the structure and the published weights of Stable Diffusion's."""

import hashlib
import math

import keras
import numpy as np
from keras import ops

from fcdm_keras.autoencoders import diffusers
from fcdm_keras.autoencoders.base import Autoencoder
from fcdm_keras.autoencoders.kl_layers import Decoder, Encoder
from fcdm_keras.network.layers import linear

LOGVAR_RANGE = (-30.0, 20.0)


@keras.saving.register_keras_serializable("fcdm_keras")
class KLAutoencoder(Autoencoder, keras.Model):
    """Images to normal distributions of latents and back; see `fcdm_keras.autoencoders.base` for the contract.

    `from_diffusers` loads published weights. `encode` and `decode` are compiled and without gradients; `posterior` and
    `reconstruct` are the same computations to differentiate or to trace. `call(images)` decodes the posterior's mean.
    Under a mixed dtype policy the moments, the images, the norms' statistics and the softmax stay float32.

    Args:
        block_out_channels: widths of the levels, from full resolution down; each level but the last halves the image.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        latent_channels: channels of the latents, C.
        in_channels: channels of the images.
        norm_num_groups: groups of the norms; divides every width.
        scaling_factor: `scale`, that makes latents of about unit variance.
        shift_factor: `shift`, subtracted before scaling.
        mid_block_add_attention: whether the middle blocks have attention.
        use_quant_conv: whether a 1×1 convolution follows the encoder.
        use_post_quant_conv: whether a 1×1 convolution precedes the decoder.
        decode_batch_size: latents that `decode` decodes at once, to bound its memory.

    Raises:
        ValueError: for sizes that make no network, and in `encode` and `decode` for shapes that do not fit.

    Example:

    ```python
    vae = KLAutoencoder.from_diffusers("stabilityai/sd-vae-ft-ema")  # or a local folder
    mean, logvar = vae.encode(images)  # (B, 256, 256, 3) in [−1, 1] → two of (B, 32, 32, 4)
    latents = vae.to_diffusion(sample_posterior(mean, logvar, noise))
    images = vae.decode(vae.from_diffusion(latents))
    ```
    """

    def __init__(
        self,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        in_channels=3,
        norm_num_groups=32,
        scaling_factor=0.18215,
        shift_factor=0.0,
        *,
        mid_block_add_attention=True,
        use_quant_conv=True,
        use_post_quant_conv=True,
        decode_batch_size=8,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.block_out_channels = tuple(block_out_channels)
        self.layers_per_block = layers_per_block
        self.latent_channels = latent_channels
        self.in_channels = in_channels
        self.norm_num_groups = norm_num_groups
        self.scaling_factor = float(scaling_factor)
        self.shift_factor = float(shift_factor)
        self.mid_block_add_attention = mid_block_add_attention
        self.use_quant_conv = use_quant_conv
        self.use_post_quant_conv = use_post_quant_conv
        self.decode_batch_size = decode_batch_size
        self.check_sizes(
            self.block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            in_channels=in_channels,
            norm_num_groups=norm_num_groups,
            decode_batch_size=decode_batch_size,
        )
        if not (self.scaling_factor > 0 and math.isfinite(self.scaling_factor) and math.isfinite(self.shift_factor)):
            raise ValueError(
                "scaling_factor must be positive and finite, shift_factor finite. "
                f"Received: {scaling_factor}, {shift_factor}"
            )
        self.autocast = False  # the first layer of each half casts
        self._make_layers()
        self.built = True

    def _make_layers(self):
        widths, channels, images = self.block_out_channels, self.latent_channels, self.in_channels
        shared, own = (self.norm_num_groups, self.mid_block_add_attention), {"dtype": self.dtype_policy}
        self.encoder = Encoder(widths, self.layers_per_block, 2 * channels, *shared, name="encoder", **own)
        self.decoder = Decoder(widths, self.layers_per_block, images, *shared, name="decoder", **own)
        self.quant_conv = linear(2 * channels, dtype="float32", name="quant_conv") if self.use_quant_conv else None
        self.post_quant_conv = (
            linear(channels, dtype="float32", name="post_quant_conv") if self.use_post_quant_conv else None
        )
        self.encoder.build((None, None, None, images))
        self.decoder.build((None, None, None, channels))
        if self.use_quant_conv:
            self.quant_conv.build((None, None, None, 2 * channels))
        if self.use_post_quant_conv:
            self.post_quant_conv.build((None, None, None, channels))

    @classmethod
    def from_diffusers(cls, source, *, revision=None, dtype=None):
        """Loads an autoencoder as diffusers publishes them (`AutoencoderKL`).

        Args:
            source: a folder with `config.json` and weights, or with such a folder `vae/`; a `.safetensors` or `.bin`
                file beside its `config.json`; or the id of a repository on the Hugging Face Hub such as
                `"stabilityai/sd-vae-ft-ema"`. What exists locally takes precedence. Nothing in the files is executed.
            revision: branch, tag or commit of the Hub's repository.
            dtype: dtype policy of the autoencoder; the weights are float32 under each mixed policy.

        Raises:
            FileNotFoundError: there is no such folder, file or repository, or it has no weights.
            ValueError: a file is damaged, or does not hold the weights that its configuration asks for.
        """
        tensors, options = diffusers.read(source, revision, cls.check_sizes)
        autoencoder = cls(**options, dtype=dtype)
        diffusers.assign(diffusers.parameters(autoencoder), tensors, source)
        return autoencoder

    def save_diffusers(self, folder):
        """Writes `config.json` and `diffusion_pytorch_model.safetensors`, which diffusers reads as `AutoencoderKL`.

        Each file is whole or absent at any moment.
        """
        diffusers.write(folder, diffusers.parameters(self), self.get_config())

    @property
    def downsampling_factor(self):
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def scale(self):
        return self.scaling_factor

    @property
    def shift(self):
        return self.shift_factor

    def encode(self, images):
        """The posterior of the latents, unscaled.

        Args:
            images: float in [−1, 1], or uint8 (mapped to `x / 127.5 − 1`), `(B, H, W, in_channels)`; H and W are
                multiples of `downsampling_factor`.

        Returns:
            `mean` and `logvar` (clipped to [−30, 20]), float32 `(B, H/f, W/f, latent_channels)`.
        """
        return self._run("posterior", self._checked_images(images))

    def decode(self, latents, batch_size=None):
        """Images of unscaled latents.

        Args:
            latents: float `(B, h, w, latent_channels)`.
            batch_size: latents decoded at once; default `decode_batch_size`.

        Returns:
            float32 `(B, f·h, f·w, in_channels)`, about in [−1, 1], not clipped.
        """
        latents = self._checked(ops.convert_to_tensor(latents), "latents", self.latent_channels, 1)
        size = self.decode_batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: {size}")
        count = latents.shape[0]
        if count is None or count <= size:
            return self._run("reconstruct", latents)
        parts = []
        for start in range(0, count, size):
            # The last slice reaches back instead of being short, so that one shape is compiled.
            first = min(start, count - size)
            parts.append(self._run("reconstruct", latents[first : first + size])[start - first :])
        return ops.concatenate(parts, axis=0)

    def posterior(self, images):
        """As `encode`, differentiable and not compiled by itself."""
        images = self._checked_images(images)
        integers = keras.backend.standardize_dtype(images.dtype) == "uint8"
        images = ops.cast(images, "float32")
        moments = self.encoder(images / 127.5 - 1.0 if integers else images)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = ops.split(moments, 2, axis=-1)
        return mean, ops.clip(logvar, *LOGVAR_RANGE)

    def reconstruct(self, latents):
        """As `decode`, all at once, differentiable and not compiled by itself."""
        latents = ops.cast(latents, "float32")
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)

    def call(self, images, training=None):
        return self.reconstruct(self.posterior(images)[0])

    def weights_hash(self):
        """SHA-256 over names, shapes and float32 values of all weights, hexadecimal; the same on all backends."""
        digest = hashlib.sha256()
        for name, (variable, _) in sorted(diffusers.parameters(self).items()):
            digest.update(f"{name} {tuple(variable.shape)}\n".encode())
            digest.update(np.ascontiguousarray(ops.convert_to_numpy(ops.cast(variable, "float32")), "<f4"))
        return digest.hexdigest()

    def _checked_images(self, images):
        return self._checked(ops.convert_to_tensor(images), "images", self.in_channels, self.downsampling_factor)

    def _checked(self, tensor, name, channels, multiple):
        shape = tuple(tensor.shape)
        fits = len(shape) == 4 and shape[3] == channels
        if not fits or any(side is not None and (side < 1 or side % multiple) for side in shape[1:3]):
            sides = f", height and width multiples of {multiple}" if multiple > 1 else ""
            raise ValueError(f"The {name} must have shape (B, height, width, {channels}){sides}. Received: {shape}")
        return tensor

    @staticmethod
    def check_sizes(block_out_channels, **sizes):
        """Raises ValueError, in one sentence, for sizes that make no network."""
        numbers = {**sizes, **{f"block_out_channels[{i}]": width for i, width in enumerate(block_out_channels)}}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer. Received: {value!r}")
        groups = sizes.get("norm_num_groups", 32)
        if not block_out_channels or any(width % groups for width in block_out_channels):
            raise ValueError(
                f"block_out_channels must be multiples of norm_num_groups={groups}. "
                f"Received: {list(block_out_channels)}"
            )

    def get_config(self):
        return {
            **super().get_config(),
            "block_out_channels": list(self.block_out_channels),
            "layers_per_block": self.layers_per_block,
            "latent_channels": self.latent_channels,
            "in_channels": self.in_channels,
            "norm_num_groups": self.norm_num_groups,
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor,
            "mid_block_add_attention": self.mid_block_add_attention,
            "use_quant_conv": self.use_quant_conv,
            "use_post_quant_conv": self.use_post_quant_conv,
            "decode_batch_size": self.decode_batch_size,
        }
