"""What the paper looks at inside a network: the spectrum of the predicted noise, and the diversity of channels.

Both run a network on x_t of real latents (q_sample), with noise drawn from (seed, timestep, sample index). `curves` and
`write` do so for several models, as `python -m fcdm_keras.analyze` asks.
"""

import contextlib
import csv
import os
from pathlib import Path

import msgspec
import numpy as np
from keras import ops
from tqdm import tqdm

from fcdm_keras import backend
from fcdm_keras.data.embedded import load_digits
from fcdm_keras.data.pictures import shown
from fcdm_keras.diffusion import randomness
from fcdm_keras.diffusion.gaussian import GaussianDiffusion
from fcdm_keras.files import replacing
from fcdm_keras.formats.documents import read_json
from fcdm_keras.formats.npz import NpzArray, array_names, load_small
from fcdm_keras.formats.numbers import check_finite
from fcdm_keras.network.layers import GRN
from fcdm_keras.runs.folder import CONFIG
from fcdm_keras.runs.load import load_task
from fcdm_keras.training.plots import plot_curves

LABELS = {
    "spectrum": ("timestep", "spectral energy of the predicted noise"),
    "activations": ("block", "channel diversity (cosine distance)"),
}


class _Trained(msgspec.Struct):
    """What is read of a run's configuration here; a preset's, which has the same name, tells of no data."""

    dataset: str = ""


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
    """Mean pairwise cosine distance of the channels behind GRN, or the variant's CCA, per block (figure 7).

    Channel i of a sample is the vector x_i of its H·W activations. The distance is that of ConvNeXt V2 (section 3),
    (1 / C²) Σ_i Σ_j (1 − cos(x_i, x_j)) / 2: 0 if all channels are alike, about 1/2 if they are unrelated.

    Args:
        backbone, latents, condition, timesteps, seed, batch_size: as in `spectral_energy`.
        with_grn: `False` makes every GRN the identity (γ = β = 0); all else stays as it was trained.

    Returns:
        float64 `(blocks,)`, averaged over samples and timesteps, in the order in which the blocks run.

    Raises:
        ValueError: for a variant whose blocks have neither, and for one without GRN where it is to be the identity.
    """
    kind = _response(backbone)
    if not with_grn and kind is not GRN:
        raise ValueError(f"The blocks of {backbone.name} have {kind.__name__} and no GRN that could be the identity.")

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


def _response(backbone):
    """The class of what makes channels diverse in a backbone's blocks: GRN, or CCA in a variant."""
    kinds = {type(block.grn) for block in backbone.blocks if hasattr(block, "grn")}
    if not kinds:
        raise ValueError(f"The blocks of {backbone.name} have neither GRN nor CCA, behind which channels are compared.")
    return kinds.pop()


@contextlib.contextmanager
def _recorded(blocks):
    """Within the context, the list it gives gets the output of each block's GRN or CCA."""
    outputs = []

    def recording(grn):
        def call(x):
            outputs.append(type(grn).call(grn, x))
            return outputs[-1]

        return call

    try:
        for block in blocks:
            block.grn.call = recording(block.grn)
        yield outputs
    finally:
        for block in blocks:
            del block.grn.call


def load_samples(source, task, options):
    """Latents `(N, H, W, C)` and conditions `(N,)` to analyse a task with. Raises ValueError if there are none."""
    if options.data:
        return _samples_of_file(options, task)
    config = Path(source) / CONFIG
    if not config.exists() or read_json(config, _Trained).dataset != "digits":
        raise ValueError(f"{source} is not known to be trained on the digits: give samples with --data FILE.npz.")
    latents, labels = load_digits("held_out")
    if len(latents) < options.num_samples:
        raise ValueError(f"There are {len(latents)} held-out digits. Received: --num-samples {options.num_samples}")
    return latents[: options.num_samples], np.asarray(labels[: options.num_samples], np.int32)


def _samples_of_file(options, task):
    array = NpzArray(options.data)
    if len(array.shape) != 4 or array.dtype.kind not in "uf" or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
        raise ValueError(
            f"arr_0 of {options.data} must be images (uint8) or latents (float), (N, H, W, C). "
            f"Received: {array.dtype} of shape {array.shape}"
        )
    if len(array) < options.num_samples:
        raise ValueError(f"{options.data} holds {len(array)} samples. Received: --num-samples {options.num_samples}")
    latents = next(array.batches(options.num_samples))
    check_finite(str(array), latents)
    if array.dtype == np.uint8:
        parts = np.array_split(latents / np.float32(127.5) - np.float32(1), -(-len(latents) // options.batch_size))
        means = (task.autoencoder.encode(part)[0] for part in parts)
        latents = np.concatenate([ops.convert_to_numpy(task.autoencoder.to_diffusion(mean)) for mean in means])
    if latents.shape[-1] != task.backbone.in_channels or latents.shape[1] % 4 or latents.shape[2] % 4:
        raise ValueError(
            f"The latents must have {task.backbone.in_channels} channels, height and width divisible by 4. "
            f"Received: shape {latents.shape}"
        )
    if "arr_1" not in array_names(options.data):
        return latents, ops.convert_to_numpy(task.backbone.conditioning.null(len(latents)))
    labels = load_small(options.data, "arr_1", "iu")[: len(latents)]
    task.backbone.conditioning.check(labels)
    return latents, labels.astype(np.int32)


def curves(options):
    """Yields the name and the (x, y) of each curve that the command's flags ask for.

    Raises:
        ValueError, OSError: a model cannot be loaded, or there are no samples that fit it.
    """
    timesteps = np.unique(np.linspace(0, 999, options.num_timesteps).round().astype(int))
    keywords = {"seed": options.seed, "batch_size": options.batch_size}
    for source in options.sources:
        task = load_task(source)
        if task.objective != "iddpm":
            raise ValueError(f"{shown(source)} was trained on the objective {task.objective}; analyses are of iddpm's.")
        samples = load_samples(source, task, options)
        if options.analysis == "spectrum":
            bar = tqdm(timesteps, desc=source, unit="timestep", mininterval=0.2 if os.isatty(2) else 15)
            yield shown(source), (timesteps, spectral_energy(task.backbone, *samples, bar, **keywords))
        else:
            kind = _response(task.backbone)
            for with_grn in (True, False) if kind is GRN else (True,):
                name = f"{shown(source)}, {'with' if with_grn else 'without'} {kind.__name__}"
                values = channel_diversity(task.backbone, *samples, timesteps, with_grn=with_grn, **keywords)
                yield name, (np.arange(1, len(values) + 1), values)


def write(options, found):
    """Writes the CSV and the PNG, each in one step. Returns their paths."""
    folder = Path(options.output)
    x_label, y_label = LABELS[options.analysis]
    numbers, picture = (folder / f"{options.analysis}.{kind}" for kind in ("csv", "png"))
    with replacing(numbers, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("model", x_label, y_label))
        writer.writerows((name, int(x), float(y)) for name, curve in found.items() for x, y in zip(*curve))
    with replacing(picture) as file:
        plot_curves(found, file, x_label, y_label, marker="o" if options.analysis == "activations" else "")
    return numbers, picture
