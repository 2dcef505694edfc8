"""Counter-based random numbers: every draw is a pure function of (seed, purpose, step, sample index).

There is no generator state, so nothing has to be saved, a resumed run repeats exactly, a sample does not depend on its
batch or on the number of devices, and JAX, PyTorch and TensorFlow draw the same numbers (bits exactly, normals to
float32 rounding). The generator is Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), written in `keras.ops` so that it compiles with the step that uses it.
"""

import math
import operator
import types

import keras
import numpy as np
from keras import ops

from fcdm_keras.arguments import check_integer

# One number per use, so that no two uses share a stream.
(
    TIMESTEPS, NOISE, LABEL_DROP, INITIAL_NOISE, STEP_NOISE, EVAL_TIMESTEPS, EVAL_NOISE, POSTERIOR_NOISE, LABELS
) = range(9)  # fmt: skip

_ON_TORCH = keras.backend.backend() == "torch"
# JAX has no 64-bit integers by default and PyTorch little arithmetic on unsigned ones; both wrap to 32 bits alike.
_WORD = "uint32" if keras.backend.backend() == "jax" else "int64"
# On PyTorch a number of the host that becomes a tensor is a copy to the GPU that waits for all that runs there.
_bits = ops
if _ON_TORCH:
    _bits = types.SimpleNamespace(
        bitwise_and=operator.and_,
        bitwise_or=operator.or_,
        bitwise_xor=operator.xor,
        left_shift=operator.lshift,
        right_shift=operator.rshift,
    )
_MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key, counter):
    """Threefry-2x32-20 of two key words and two counter words, each an integer tensor, array or int below 2³².

    Returns:
        Two tensors of random 32-bit words, broadcast over key and counter; NumPy arrays where no tensor was given, so
        that what is known when a program is compiled is no part of it.
    """
    library, word = (_bits, _word) if any(map(ops.is_tensor, (*key, *counter))) else (np, np.int64)
    mask, sizes = word(_MASK), {bits: word(bits) for group in _ROTATIONS for r in group for bits in (r, 32 - r)}
    key = tuple(map(word, key))
    keys = (*key, library.bitwise_xor(library.bitwise_xor(*key), word(_PARITY)))
    x, y = word(counter[0]) + keys[0], library.bitwise_and(word(counter[1]) + keys[1], mask)
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x = x + y  # not cut to 32 bits until the end: 25 sums of such words fit into 64
            rotated = library.bitwise_or(library.left_shift(y, sizes[bits]), library.right_shift(y, sizes[32 - bits]))
            y = library.bitwise_and(library.bitwise_xor(rotated, x), mask)
        x = x + keys[(group + 1) % 3]
        y = library.bitwise_and(y + (keys[(group + 2) % 3] + word(group + 1)), mask)
    return library.bitwise_and(x, mask), y


def seed_words(seed):
    """The two 32-bit words of an integer seed in [0, 2⁶⁴), low word first, as ints. Raises ValueError for others."""
    seed = check_integer("seed", seed, 0, 2**64 - 1)
    return seed & _MASK, seed >> 32


def word_tensors(words):
    """Words as scalar tensors, to pass to a compiled function that is to serve every seed."""
    return tuple(ops.convert_to_tensor(word, _WORD) for word in words)


def sample_keys(seed, purpose, step, indices):
    """One key per sample.

    Args:
        seed: the two words of `seed_words`, ints or scalar tensors (to compile once for all seeds).
        purpose: one of this module's constants.
        step: integer or scalar tensor.
        indices: integer tensor `(B,)`, the samples' indices.
    """
    return threefry(threefry(seed, (purpose, 0)), (step, indices))


def uniform(keys, shape=()):
    """Uniform float32 in [0, 1), `(B, *shape)`, from `sample_keys` of B samples."""
    count = math.prod(shape)
    words, _ = _words(keys, count)
    return ops.reshape(_unit(words), (-1, *shape))


def integers(keys, maximum):
    """Integers in [0, maximum), int32 `(B,)`; the bias of the modulo is below `maximum / 2**32`."""
    words, _ = _words(keys, 1)
    return ops.cast(words[:, 0] % _word(maximum), "int32")


def normal(keys, shape):
    """Standard normal float32 `(B, *shape)` by the Box–Muller transform."""
    count = math.prod(shape)  # a tensor where TensorFlow's trace does not know the sizes
    first, second = _words(keys, (count + 1) // 2)
    radius = ops.sqrt(-2.0 * ops.log(_unit(first) + 2.0**-25))  # the argument lies in (0, 1)
    angle = (2.0 * math.pi) * _unit(second)
    values = ops.concatenate([radius * ops.cos(angle), radius * ops.sin(angle)], axis=1)
    return ops.reshape(values[:, :count], (-1, *shape))


def step_noise(given, noise, seed, indices):
    """`draw(k)`: the noise of a sampler's step k, given or drawn from (seed, k, image index).

    Args:
        given: `(steps, B, H, W, C)` in the order used, or `None`.
        noise: the noise that sampling starts from, `(B, H, W, C)`.
        seed: words of `seed_words`.
        indices: int `(B,)`, the images' indices; default 0 … B − 1.
    """
    shape = tuple(noise.shape)
    if given is not None:
        given = ops.convert_to_tensor(given, "float32")
        return lambda k: ops.take(given, k, axis=0)
    indices = ops.arange(ops.shape(noise)[0]) if indices is None else indices
    return lambda k: normal(sample_keys(seed, STEP_NOISE, k, indices), shape[1:])


def _words(keys, count):
    """Two `(B, count)` tensors of random words."""
    return threefry((keys[0][:, None], keys[1][:, None]), (ops.arange(count)[None, :], 0))


def _unit(words):
    """Words to float32 in [0, 1), from their upper 24 bits."""
    return ops.cast(_bits.right_shift(words, _word(8)), "float32") * 2.0**-24


def _word(value):
    if isinstance(value, (int, np.integer)) and _ON_TORCH:
        return int(value)
    return ops.cast(value, _WORD) if ops.is_tensor(value) else ops.convert_to_tensor(value, _WORD)
