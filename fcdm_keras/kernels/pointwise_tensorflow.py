"""GELU and LayerNorm on TensorFlow."""

import tensorflow as tf


def gelu(x):
    """Exact GELU."""
    return tf.nn.gelu(x, approximate=False)


def layer_norm(x):
    """LayerNorm over the last axis, no affine, eps 1e-6, in float32."""
    x = tf.cast(x, tf.float32)
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    return centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + 1e-6)
