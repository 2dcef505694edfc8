"""What can be wrong with the arrays that are given to `fit`: each function raises a ValueError in one sentence.

They look at NumPy arrays on the host, whole data sets or one batch; what a batch is made of is a trainer's affair.
"""

import numpy as np

CHUNK = 4096  # samples that are looked at together
LARGEST = 2**32  # bytes up to which all numbers are looked at


def check_sizes(batch):
    """All arrays of a batch or data set have the same number of samples, at least one. Returns the number."""
    sizes = {name: len(array) if array.ndim else 0 for name, array in batch.items()}
    if len(set(sizes.values())) != 1:
        listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise ValueError(f"All arrays must have the same number of samples. Received: {listed}")
    if not next(iter(sizes.values())):
        raise ValueError(f"There must be at least one sample. Received: none in {', '.join(sizes)}")
    return next(iter(sizes.values()))


def check_latents(
    latents, channels, multiple, name="latents", cure="; `encode` of an autoencoder makes them of images"
):
    """`latents` are floating-point `(N, H, W, channels)`, with sides that `multiple` divides."""
    _check_layout(latents, channels, multiple, name)
    if latents.dtype.kind != "f":
        raise ValueError(f"{name} must be floating-point numbers{cure}. Received: dtype {latents.dtype}")


def check_trainable(model):
    """`model` has no quantized layers, whose weights gradients cannot move."""
    mode = next((layer.quantization_mode for layer in model._flatten_layers() if layer.quantization_mode), None)
    if mode:
        raise ValueError(
            f"{model.name} is quantized to {mode}, and so its weights cannot be trained: train a model that is not, "
            "and quantize it afterwards."
        )


def check_noise(noise, latents):
    if noise.shape != latents.shape or noise.dtype.kind != "f":
        raise ValueError(
            f"noise must be floating-point and of the latents' shape {latents.shape}. "
            f"Received: {noise.dtype}, {noise.shape}"
        )


def check_images(images, channels, multiple):
    """`images` are uint8, or floats in [−1, 1], `(N, H, W, channels)`, with sides that `multiple` divides."""
    _check_layout(images, channels, multiple, "images")
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f":
        raise ValueError(
            f"images must be uint8, or floating-point in [-1, 1]. Received: dtype {images.dtype}; "
            'give images.astype("uint8"), if they lie in [0, 255]'
        )
    low, high = images.min(), images.max()
    if max(-low, high) > 1.1:
        cure = "images / 127.5 - 1, or uint8" if low >= 0 else "them scaled to that range"
        raise ValueError(
            f"Floating-point images must lie in [-1, 1]. Received: values from {low:g} to {high:g}; give {cure}"
        )
    if len(images) >= 4 and 0 <= low < 0.05 and high > 0.95:
        raise ValueError(
            f"Floating-point images must lie in [-1, 1]. Received: values from {low:g} to {high:g}, as if in [0, 1]; "
            "give images * 2 - 1"
        )


def check_finite(arrays):
    """All numbers of a data set's arrays are finite; only arrays of up to 4 GiB are looked at."""
    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.nbytes > LARGEST:
            continue
        for start in range(0, len(array), CHUNK):
            part = array[start : start + CHUNK]
            if not np.isfinite(part).all():
                wrong = start + np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(axis=1))[0]
                raise ValueError(f"{name} must be finite. Received: nan or inf in sample {wrong}; leave it out")


def sample_weights(weights):
    """Weights of samples as float32 `(N,)`."""
    weights = weights[:, 0] if weights.ndim == 2 and weights.shape[1] == 1 else weights
    if weights.ndim != 1 or weights.dtype.kind not in "fiub":
        raise ValueError(
            f"sample_weight must be one number for each sample, (N,). Received: {weights.dtype}, {weights.shape}"
        )
    weights = weights.astype("float32")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(
            f"sample_weight must be finite and not negative. Received: values from {weights.min()} to {weights.max()}"
        )
    return weights


def check_class_weight(class_weight, num_classes):
    """`class_weight` is a dict of weights by class; classes that it leaves out weigh 1, as in Keras."""
    if num_classes is None:
        raise ValueError("class_weight needs class labels, which this model does not take: give sample_weight.")
    if not isinstance(class_weight, dict):
        raise ValueError(
            f"class_weight must be a dict from classes to weights, such as {{0: 0.5}}. Received: {class_weight!r}"
        )
    for key, weight in class_weight.items():
        known = isinstance(key, (int, np.integer)) and 0 <= key < num_classes
        if not known or not np.isscalar(weight) or not 0 <= float(weight) < np.inf:
            raise ValueError(
                f"class_weight must give classes 0 to {num_classes - 1} finite weights that are not negative. "
                f"Received: {key!r}: {weight!r}"
            )


def _check_layout(array, channels, multiple, name):
    shape = array.shape
    if len(shape) == 4 and shape[1] == channels != shape[3]:
        raise ValueError(
            f"{name} must have shape (N, H, W, {channels}). Received: {shape}, as if channels came first; "
            f"give {name}.transpose(0, 2, 3, 1)"
        )
    if len(shape) != 4 or shape[3] != channels:
        one = "; one sample is a batch of its own, array[None]" if len(shape) == 3 and shape[2] == channels else ""
        raise ValueError(f"{name} must have shape (N, H, W, {channels}). Received: {shape}{one}")
    if shape[1] % multiple or shape[2] % multiple:
        raise ValueError(f"Height and width of {name} must be divisible by {multiple}. Received: {shape[1]}×{shape[2]}")
