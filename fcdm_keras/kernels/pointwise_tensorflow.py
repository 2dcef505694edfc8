"""Linear, GELU and LayerNorm on TensorFlow."""

import tensorflow as tf


def linear(x, kernel, bias):
    """`x` `(…, in)`, `kernel` `(in, out)`, `bias` `(out,)` → `(…, out)`; graphs fuse this form, MatMul and BiasAdd."""
    y = tf.nn.bias_add(tf.matmul(tf.reshape(x, (-1, x.shape[-1])), kernel), bias)
    return tf.reshape(y, [*(size or tf.shape(x)[axis] for axis, size in enumerate(x.shape[:-1])), kernel.shape[-1]])


def gelu(x):
    """Exact GELU, elementwise."""
    return tf.nn.gelu(x, approximate=False)


def layer_norm(x):
    """LayerNorm over the last axis, no affine, eps 1e-6, in float32."""
    x = tf.cast(x, tf.float32)
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    return centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + 1e-6)
