"""How well an autoencoder gives images back, and how its latents are distributed."""

import numpy as np
from keras import ops

from fcdm_keras.autoencoders import to_uint8


def psnr(images, reconstructions):
    """Peak signal-to-noise ratio in dB of each image.

    Args:
        images: uint8 `(N, H, W, C)`.
        reconstructions: uint8 of the same shape.

    Returns:
        float64 `(N,)`: `10 log₁₀(255² / mean squared error)`, infinite where the two are equal.
    """
    difference = images.astype(np.float64) - reconstructions.astype(np.float64)
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(255.0**2 / np.mean(np.square(difference), axis=(1, 2, 3)))


def reconstruct(autoencoder, images, batch_size=16):
    """uint8 `(N, H, W, C)` images encoded to the posterior's mean, decoded, and made uint8 again."""

    def there_and_back(batch):
        return ops.convert_to_numpy(to_uint8(autoencoder.decode(autoencoder.encode(batch)[0])))

    return _in_batches(there_and_back, images, batch_size)


def latent_moments(autoencoder, images, batch_size=16):
    """Mean and standard deviation over all numbers of the latents drawn for uint8 images, as floats.

    `E[z] = E[mean]` and `Var[z] = Var[mean] + E[exp(logvar)]`: no noise has to be drawn.
    """

    def moments(batch):
        mean, logvar = (ops.convert_to_numpy(part).astype(np.float64) for part in autoencoder.encode(batch))
        return np.stack([mean, np.exp(logvar)], axis=1)

    mean, variance = np.moveaxis(_in_batches(moments, images, batch_size), 1, 0)
    return float(mean.mean()), float(np.sqrt(mean.var() + variance.mean()))


def _in_batches(function, images, size):
    """`function` of all images; the last batch reaches back instead of being short, so that one shape is compiled."""
    parts = []
    for start in range(0, len(images), size):
        first = max(0, min(start, len(images) - size))
        parts.append(function(images[first : first + size])[start - first :])
    return np.concatenate(parts)
