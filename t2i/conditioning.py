"""Text conditioning (paper, appendix H and figure 9c): a pooled text embedding and an MLP where class tables stood."""

import keras
import numpy as np
from keras import layers, ops

from fcdm_keras.network.initializers import XavierUniform
from fcdm_keras.network.layers import Dense

SOFTNESS = 0.3  # of the whitening, in standard deviations of a feature


@keras.saving.register_keras_serializable("t2i")
class TextConditioning(layers.Layer):
    """One MLP per width (Linear, SiLU, Linear) on standardised text embeddings.

    A conditioning module as described in `fcdm_keras.network.conditioning`. `call` takes text embeddings
    `(B, embedding_dim)` and standardises them, for CLIP's pooled features share a mean much larger than their
    differences, and few directions, such as a prompt's length, take most of the variance: the mean is subtracted, each
    feature divided by its standard deviation, and each principal direction, of standard deviation s, by s + 0.3. The
    statistics and the embedding of the empty prompt, which means "no prompt", are weights that are not trained; `adapt`
    sets them.

    The paper gives neither the MLPs' hidden widths nor their first weights. Here the hidden layers are as wide as the
    embedding or as the vector, whichever is wider, and Xavier-uniform: as narrow and small as the timestep's, the MLPs
    pass on hardly any difference between prompts for thousands of steps.

    Args:
        embedding_dim: D, size of the pooled text embeddings.
        widths: widths of the vectors, finest level first. The backbone fills them in.
    """

    input_name = "text_embeddings"

    def __init__(self, embedding_dim, widths=None, **kwargs):
        super().__init__(**{"name": "text_conditioning", **kwargs, "dtype": "float32"})
        if not isinstance(embedding_dim, (int, np.integer)) or embedding_dim < 1:
            raise ValueError(f"embedding_dim must be a positive integer. Received: {embedding_dim!r}")
        self.embedding_dim = int(embedding_dim)
        self.widths = widths and tuple(widths)

    def build(self, input_shape=None):
        def statistic(name, initial, axes=1):
            return self.add_weight(name=name, shape=(self.embedding_dim,) * axes, initializer=initial, trainable=False)

        self.mean, self.whitening = statistic("mean", "zeros"), statistic("whitening", "identity", axes=2)
        self.null_embedding = statistic("null_embedding", "zeros")
        options = {"kernel_initializer": XavierUniform(), "dtype": "float32"}
        self.hidden, self.out = [], []
        for level, width in enumerate(self.widths, start=1):
            hidden_width = max(width, self.embedding_dim)
            self.hidden.append(Dense(hidden_width, name=f"hidden_{level}", **options))
            self.out.append(Dense(width, name=f"out_{level}", **options))
            self.hidden[-1].build((None, self.embedding_dim))
            self.out[-1].build((None, hidden_width))

    def adapt(self, embeddings, null_embedding):
        """Takes the statistics of embeddings, and what the empty prompt's is.

        Args:
            embeddings: those of the training captions, `(N, D)`.
            null_embedding: of the empty prompt, `(D,)`.

        Raises:
            ValueError: for other shapes, or numbers that are not finite.
        """
        if not len(embeddings):
            raise ValueError("There must be at least one text embedding. Received: none")
        null_embedding = np.asarray(null_embedding)
        self.check(null_embedding[None])
        total, products = np.zeros(self.embedding_dim), np.zeros((self.embedding_dim, self.embedding_dim))
        for start in range(0, len(embeddings), 65536):  # they may lie on disk
            part = np.asarray(embeddings[start : start + 65536], np.float64)
            self.check(part)
            part = part - null_embedding
            total += part.sum(axis=0)
            products += part.T @ part
        mean = total / len(embeddings)
        covariance = products / len(embeddings) - np.outer(mean, mean)
        self.mean.assign((mean + null_embedding).astype(np.float32))
        self.whitening.assign(_whitening(covariance).astype(np.float32))
        self.null_embedding.assign(null_embedding.astype(np.float32))

    def call(self, embeddings):
        embeddings = ops.cast(embeddings, "float32")
        if len(embeddings.shape) != 2 or embeddings.shape[-1] != self.embedding_dim:
            raise ValueError(self._expected(tuple(embeddings.shape)))
        standard = ops.matmul(embeddings - self.mean, self.whitening)
        return tuple(out(ops.silu(hidden(standard))) for hidden, out in zip(self.hidden, self.out))

    def null(self, batch_size):
        """The embedding of the empty prompt for every sample, `(B, D)`."""
        return ops.broadcast_to(ops.convert_to_tensor(self.null_embedding), (batch_size, self.embedding_dim))

    def drop(self, embeddings, mask):
        """`embeddings` `(B, D)` with the empty prompt's where `mask` `(B,)` is true: for all widths at once.

        Raises:
            ValueError: for a mask `(B, levels)`.
        """
        if len(mask.shape) != 1:
            raise ValueError(
                "A prompt is dropped for all widths at once: label_dropout_mode must be 'joint'. "
                f"Received: a mask of shape {tuple(mask.shape)}, as of 'per_level'"
            )
        null_embedding = ops.convert_to_tensor(self.null_embedding)
        return ops.where(mask[:, None], null_embedding, ops.cast(embeddings, "float32"))

    def check(self, embeddings):
        """Raises ValueError unless `embeddings` are finite numbers `(B, D)`."""
        embeddings = np.asarray(embeddings)
        if embeddings.dtype.kind != "f":
            raise ValueError(f"Text embeddings must be floating-point numbers. Received: dtype {embeddings.dtype}")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ValueError(self._expected(embeddings.shape))
        if not np.isfinite(embeddings).all():
            raise ValueError("Text embeddings must be finite. Received: inf or nan")

    def _expected(self, shape):
        return (
            f"Text embeddings must have shape (B, {self.embedding_dim}), as of the text encoder that the model was "
            f"made for. Received: {shape}"
        )

    def get_config(self):
        return {**super().get_config(), "embedding_dim": self.embedding_dim, "widths": self.widths}


def _whitening(covariance):
    """The symmetric matrix that evens out the directions of standardised features with this covariance.

    A direction of standard deviation s is divided by s + `SOFTNESS`: those that hardly vary stay small.
    """
    stds = np.sqrt(np.diag(covariance))
    scale = 1.0 / np.where(stds > 1e-5, stds, 1.0)  # a constant feature says nothing
    variances, directions = np.linalg.eigh(covariance * np.outer(scale, scale))
    gains = 1.0 / (np.sqrt(np.maximum(variances, 0.0)) + SOFTNESS)
    return scale[:, None] * (directions * gains) @ directions.T
