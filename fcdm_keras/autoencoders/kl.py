"""The KL autoencoder of latent diffusion (Rombach et al., 2022, "High-Resolution Image Synthesis with Latent Diffusion
Models", appendix G), with the structure and the published weights of Stable Diffusion's."""

import hashlib
import math
import warnings

import keras
import numpy as np
from keras import ops

from fcdm_keras.autoencoders import diffusers
from fcdm_keras.autoencoders.base import Autoencoder
from fcdm_keras.autoencoders.kl_layers import Decoder, Encoder
from fcdm_keras.formats.numbers import check_dense
from fcdm_keras.network.layers import linear

LOGVAR_RANGE = (-30.0, 20.0)
UPCAST = (
    "The autoencoder computes in float32 instead of {}: its configuration has force_upcast, since activations may "
    "overflow in float16."
)


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
        encoder_attention: levels of the encoder with attention after every residual block, by their number, from 0, the
            full resolution.
        decoder_attention: the same of the decoder, whose level i has the resolution of the encoder's.
        force_upcast: whether a dtype policy that computes in float16 is replaced by float32, with a warning: the
            activations of some published autoencoders, such as Stable Diffusion XL's, overflow in float16.

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
        encoder_attention=(),
        decoder_attention=(),
        force_upcast=True,
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
        self.encoder_attention, self.decoder_attention = (
            tuple(sorted(a)) for a in (encoder_attention, decoder_attention)
        )
        self.force_upcast = force_upcast
        self._check()
        if force_upcast and self.compute_dtype == "float16":
            warnings.warn(UPCAST.format(self.dtype_policy.name), stacklevel=2)
            self.dtype_policy = "float32"
        self.autocast = False  # the first layer of each half casts
        self._make_layers()
        self.built = True

    def _make_layers(self):
        widths, channels, images = self.block_out_channels, self.latent_channels, self.in_channels
        shared, own = (self.norm_num_groups, self.mid_block_add_attention), {"dtype": self.dtype_policy}
        levels = self.encoder_attention, self.decoder_attention
        self.encoder = Encoder(widths, self.layers_per_block, 2 * channels, *shared, levels[0], name="encoder", **own)
        self.decoder = Decoder(widths, self.layers_per_block, images, *shared, levels[1], name="decoder", **own)
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
    def from_diffusers(
        cls, source, *, revision=None, dtype=None, scaling_factor=None, shift_factor=None, norm_num_groups=None
    ):
        """Loads a published autoencoder: diffusers' `AutoencoderKL`, or latent-diffusion's.

        Args:
            source: a folder with `config.json` and weights, or with such a folder `vae/`; a weight file
                (`.safetensors`, `.bin`, `.ckpt`, `.pt`), or a folder with one; or the id of a repository on the Hugging
                Face Hub such as `"stabilityai/sd-vae-ft-ema"`. What exists locally takes precedence. Weights under
                latent-diffusion's names, also inside a checkpoint of a whole model, need no `config.json`. Nothing in
                the files is executed.
            revision: branch, tag or commit of the Hub's repository.
            dtype: dtype policy of the autoencoder; the weights are float32 under each mixed policy.
            scaling_factor, shift_factor: override what the files say. Where they say nothing, the scale is 0.18215 at
                factor 8 with 4 channels, else 1, and a warning says so.
            norm_num_groups: overrides `config.json`; 32 where there is none.

        Raises:
            FileNotFoundError: there is no such folder, file or repository, or it has no weights.
            ValueError: a file is damaged, holds numbers that are not finite or are quantized, or does not hold the
                weights that its configuration asks for.
        """
        given = {"scaling_factor": scaling_factor, "shift_factor": shift_factor, "norm_num_groups": norm_num_groups}
        given = {name: value for name, value in given.items() if value is not None}
        tensors, options = diffusers.read(source, revision, given, cls.check_sizes)
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
        latents = self._checked(latents, "latents", self.latent_channels, 1)
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
        return self._checked(images, "images", self.in_channels, self.downsampling_factor)

    def _checked(self, tensor, name, channels, multiple):
        check_dense(f"The {name}", tensor)
        tensor = ops.convert_to_tensor(tensor)
        shape = tuple(tensor.shape)
        fits = len(shape) == 4 and shape[3] == channels
        if not fits or any(side is not None and (side < 1 or side % multiple) for side in shape[1:3]):
            sides = f", height and width multiples of {multiple}" if multiple > 1 else ""
            raise ValueError(f"The {name} must have shape (B, height, width, {channels}){sides}. Received: {shape}")
        return tensor

    def _check(self):
        sizes = ("layers_per_block", "latent_channels", "in_channels", "norm_num_groups", "decode_batch_size")
        self.check_sizes(self.block_out_channels, **{name: getattr(self, name) for name in sizes})
        scale, shift = self.scaling_factor, self.shift_factor
        if not (scale > 0 and math.isfinite(scale) and math.isfinite(shift)):
            raise ValueError(
                f"scaling_factor must be positive and finite, shift_factor finite. Received: {scale}, {shift}"
            )
        levels = range(len(self.block_out_channels))
        for name in ("encoder_attention", "decoder_attention"):
            if not set(getattr(self, name)) <= set(levels):
                found = list(getattr(self, name))
                raise ValueError(f"{name} must name levels from 0 to {levels[-1]}. Received: {found}")

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
            "encoder_attention": list(self.encoder_attention),
            "decoder_attention": list(self.decoder_attention),
            "force_upcast": self.force_upcast,
        }
