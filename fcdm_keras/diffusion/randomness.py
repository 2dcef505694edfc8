"""Counter-based random numbers: every draw is a pure function of (seed, purpose, step, sample index).

There is no generator state, so nothing has to be saved, a resumed run repeats exactly, a sample does not depend on its
batch or on the number of devices, and JAX, PyTorch and TensorFlow draw the same numbers (bits exactly, normals to
float32 rounding). The generator is Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), written in `keras.ops` so that it compiles with the step that uses it.
"""

import math

import keras
import numpy as np
from keras import ops

# One number per use, so that no two uses share a stream.
(
    TIMESTEPS, NOISE, LABEL_DROP, INITIAL_NOISE, STEP_NOISE, EVAL_TIMESTEPS, EVAL_NOISE, POSTERIOR_NOISE, LABELS
) = range(9)  # fmt: skip

_MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key, counter):
    """Threefry-2x32-20 of two key words and two counter words, each an integer tensor or int below 2³².

    Returns:
        Two tensors of random 32-bit words, broadcast over key and counter.
    """
    key = (_word(key[0]), _word(key[1]))
    keys = (*key, ops.bitwise_xor(ops.bitwise_xor(*key), _word(_PARITY)))
    x, y = _add(_word(counter[0]), keys[0]), _add(_word(counter[1]), keys[1])
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = _add(x, y)
            y = ops.bitwise_xor(_rotate_left(y, rotation), x)
        x = _add(x, keys[(group + 1) % 3])
        y = _add(_add(y, keys[(group + 2) % 3]), _word(group + 1))
    return x, y


def seed_words(seed):
    """The two 32-bit words of an integer seed in [0, 2⁶⁴), low word first, as ints. Raises ValueError for others."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be an integer in [0, 2**64). Received: {seed!r}")
    return int(seed) & _MASK, int(seed) >> 32


def word_tensors(words):
    """Words as scalar tensors, to pass to a compiled function that is to serve every seed."""
    return tuple(_word(word) for word in words)


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
    count = math.prod(shape)
    first, second = _words(keys, (count + 1) // 2)
    radius = ops.sqrt(-2.0 * ops.log(_unit(first) + 2.0**-25))  # the argument lies in (0, 1)
    angle = (2.0 * math.pi) * _unit(second)
    values = ops.concatenate([radius * ops.cos(angle), radius * ops.sin(angle)], axis=1)
    return ops.reshape(values[:, :count], (-1, *shape))


def _words(keys, count):
    """Two `(B, count)` tensors of random words."""
    return threefry((keys[0][:, None], keys[1][:, None]), (ops.arange(count)[None, :], 0))


def _unit(words):
    """Words to float32 in [0, 1), from their upper 24 bits."""
    return ops.cast(ops.right_shift(words, _word(8)), "float32") * 2.0**-24


def _word(value):
    # JAX has no 64-bit integers by default and PyTorch little arithmetic on unsigned ones; both wrap to 32 bits alike.
    dtype = "uint32" if keras.backend.backend() == "jax" else "int64"
    return ops.cast(value, dtype) if ops.is_tensor(value) else ops.convert_to_tensor(value, dtype)


def _add(x, y):
    return ops.bitwise_and(x + y, _word(_MASK))


def _rotate_left(x, bits):
    rotated = ops.bitwise_or(ops.left_shift(x, _word(bits)), ops.right_shift(x, _word(32 - bits)))
    return ops.bitwise_and(rotated, _word(_MASK))
