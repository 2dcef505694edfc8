"""What the paper looks at inside a network: the spectrum of the predicted noise, and the diversity of channels.

Both run a network on x_t of real latents (q_sample), with noise drawn from (seed, timestep, sample index).
"""

import contextlib

import numpy as np
from keras import ops

from fcdm_keras import backend, randomness
from fcdm_keras.diffusion import GaussianDiffusion
from fcdm_keras.layers import GRN


def spectral_energy(backbone, latents, condition, timesteps, *, seed=0, batch_size=64):
    """Sum of the log-magnitude spectrum of the predicted noise at each timestep, averaged over samples (appendix F).

    Of each sample, log(1 + |FFT₂(ε)|) is summed over frequencies and channels.

    Args:
        backbone: an `FCDMBackbone`.
        latents: x_0, `(N, H, W, C)`.
        condition: `(N, …)`, such as labels.
        timesteps: integers in [0, 999], `(T,)`.
        seed: integer in [0, 2⁶⁴).
        batch_size: samples computed at once.

    Returns:
        float64 `(T,)`.
    """
    channels = latents.shape[-1]

    def predict(x_t, times, condition):
        return _network(backbone, x_t, times, condition)[..., :channels]

    def energy(noise):
        return np.log1p(np.abs(np.fft.fft2(noise.astype(np.float64), axes=(1, 2)))).sum(axis=(1, 2, 3))

    run = _at_timesteps(backbone, predict, latents, condition, seed, batch_size)
    return np.array([np.mean(np.concatenate([energy(part) for part in run(int(t))])) for t in timesteps])


def channel_diversity(backbone, latents, condition, timesteps, *, with_grn=True, seed=0, batch_size=64):
    """Mean pairwise cosine distance of the channels behind GRN, per block (figure 7).

    Channel i of a sample is the vector x_i of its H·W activations. The distance is that of ConvNeXt V2 (section 3),
    (1 / C²) Σ_i Σ_j (1 − cos(x_i, x_j)) / 2: 0 if all channels are alike, about 1/2 if they are unrelated.

    Args:
        backbone, latents, condition, timesteps, seed, batch_size: as in `spectral_energy`.
        with_grn: `False` makes every GRN the identity (γ = β = 0); all else stays as it was trained.

    Returns:
        float64 `(blocks,)`, averaged over samples and timesteps, in the order in which the blocks run.
    """

    def distances(x_t, times, condition):
        with _recorded(backbone.blocks) as activations:
            _network(backbone, x_t, times, condition)
        return ops.stack([cosine_distance(x) for x in activations], axis=1)  # (B, blocks)

    zeroed = set() if with_grn else {id(v) for block in backbone.blocks for v in block.grn.trainable_variables}
    run = _at_timesteps(backbone, distances, latents, condition, seed, batch_size, zeroed)
    return np.mean([np.mean(np.concatenate(run(int(t))), axis=0, dtype=np.float64) for t in timesteps], axis=0)


def cosine_distance(x):
    """Mean pairwise cosine distance of the channels of `(B, H, W, C)`, float32 `(B,)`; a zero channel has cosine 0."""
    x = ops.cast(x, "float32")
    units = x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=(1, 2), keepdims=True), 1e-30))
    # Σ_i Σ_j cos(x_i, x_j) = |Σ_i x_i / |x_i||²
    cosine = ops.sum(ops.square(ops.sum(units, axis=-1)), axis=(1, 2)) / x.shape[-1] ** 2
    return (1.0 - cosine) / 2.0


def _network(backbone, x_t, times, condition):
    inputs = {"x_t": x_t, "timesteps": times, backbone.conditioning.input_name: condition}
    return backbone(inputs, training=False)


def _at_timesteps(backbone, function, latents, condition, seed, batch_size, zeroed=frozenset()):
    """`run(t)` → list of NumPy results of `function(x_t, times, condition)` on batches of one size."""
    variables = backbone.trainable_variables
    values = [ops.zeros_like(v.value) if id(v) in zeroed else v.value for v in variables]
    words = randomness.word_tensors(randomness.seed_words(seed))
    diffusion = GaussianDiffusion()
    shape = tuple(latents.shape[1:])

    def noised(latents, condition, indices, timestep, *words):
        keys = randomness.sample_keys(words, randomness.EVAL_NOISE, timestep, indices)
        times = ops.broadcast_to(timestep, indices.shape)
        x_t = diffusion.q_sample(latents, times, randomness.normal(keys, shape))
        return function(x_t, times, condition)

    compiled = backend.compiled(noised, variables, (0, 1, 2))
    size = min(batch_size, len(latents))

    def run(timestep):
        results = []
        for start in range(0, len(latents), size):
            indices = np.minimum(np.arange(start, start + size), len(latents) - 1)  # a short batch is filled up
            batch = (latents[indices].astype("float32"), condition[indices], indices.astype("int32"))
            batch = [ops.convert_to_tensor(part) for part in (*batch, np.int32(timestep))]
            results.append(ops.convert_to_numpy(compiled(values, *batch, *words))[: len(latents) - start])
        return results

    return run


@contextlib.contextmanager
def _recorded(blocks):
    """Within the context, the list it gives gets the output of each block's GRN."""
    outputs = []

    def recording(grn):
        def call(x):
            outputs.append(GRN.call(grn, x))
            return outputs[-1]

        return call

    try:
        for block in blocks:
            block.grn.call = recording(block.grn)
        yield outputs
    finally:
        for block in blocks:
            del block.grn.call
