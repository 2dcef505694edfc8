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
    parts = []
    for start in range(0, len(images), batch_size):
        mean, _ = autoencoder.encode(images[start : start + batch_size])
        parts.append(ops.convert_to_numpy(to_uint8(autoencoder.decode(mean))))
    return np.concatenate(parts)


def latent_moments(autoencoder, images, batch_size=16):
    """Mean and standard deviation over all numbers of the latents drawn for uint8 images, as floats.

    `E[z] = E[mean]` and `Var[z] = Var[mean] + E[exp(logvar)]`: no noise has to be drawn.
    """
    means, variances = [], []
    for start in range(0, len(images), batch_size):
        mean, logvar = autoencoder.encode(images[start : start + batch_size])
        means.append(ops.convert_to_numpy(mean).astype(np.float64).ravel())
        variances.append(np.exp(ops.convert_to_numpy(logvar).astype(np.float64)).ravel())
    means, variances = np.concatenate(means), np.concatenate(variances)
    return float(means.mean()), float(np.sqrt(means.var() + variances.mean()))
