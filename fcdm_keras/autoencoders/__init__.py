"""Autoencoders between images and the latents that are diffused, one contract.

- `encode(images)`: images `(B, H, W, 3 or 1)` in [−1, 1] → `mean` and `logvar` of the latents' normal distribution,
  both float32 `(B, H/f, W/f, C)`, as the autoencoder defines them ("unscaled").
- `decode(latents)`: unscaled latents `(B, H/f, W/f, C)` → float32 images about in [−1, 1], not clipped.
- `to_diffusion(latents)`: `(latents − shift) · scale`, about of unit variance: what a diffusion model is trained on.
  `from_diffusion` is the inverse. So an image is drawn as `decode(from_diffusion(sample))`.
- `downsampling_factor` is f, `latent_channels` is C, `in_channels` are the images'; `clip_denoised` tells samplers
  whether latents lie in [−1, 1] and may be clipped there; `weights_hash()` tells two autoencoders apart.
"""

from fcdm_keras.autoencoders.identity import Identity, to_uint8
from fcdm_keras.autoencoders.kl import KLAutoencoder, sample_posterior
from fcdm_keras.autoencoders.patch import PatchAutoencoder
from fcdm_keras.autoencoders.space_to_depth import SpaceToDepth

__all__ = ["Identity", "KLAutoencoder", "PatchAutoencoder", "SpaceToDepth", "sample_posterior", "to_uint8"]
