"""The Inception network of the scores: frozen TensorFlow graphs over `keras.ops`."""
