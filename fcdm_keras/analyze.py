"""Look inside trained models, several at once.

    python -m fcdm_keras.analyze spectrum runs/digits --output analysis/
    python -m fcdm_keras.analyze activations runs/digits RUN --data validation.npz --output analysis/

spectrum: the sum of the log-magnitude spectrum of the predicted noise at each timestep, averaged over samples
(appendix F of the paper). activations: the mean pairwise cosine distance of the channels behind GRN in each block, with
GRN and with every GRN made the identity (figure 7). Both write a curve as PNG and its numbers as CSV.

The samples are held-out digits for models trained on them; for others give --data: an .npz file whose arr_0 holds
images (uint8, N×H×W×C) or latents (float), and arr_1, if it is there, their labels.
"""

import argparse
import csv
import os
import sys
from pathlib import Path


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fcdm_keras.analyze", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("analysis", choices=("spectrum", "activations"))
    parser.add_argument("sources", nargs="+", metavar="MODEL", help="run folder, preset folder, hf://… or kaggle://…")
    parser.add_argument("--data", metavar="FILE", help=".npz file of samples; default held-out digits")
    parser.add_argument("--num-samples", type=int, default=128, help="samples, the first of the data (default 128)")
    parser.add_argument(
        "--num-timesteps",
        type=int,
        default=None,
        help="timesteps, evenly spaced over 0 to 999 (default: all 1000 for spectrum, 10 for activations)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="samples computed at once (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    parser.add_argument("--output", required=True, help="folder to write")
    options = parser.parse_args(arguments)
    options.num_timesteps = options.num_timesteps or {"spectrum": 1000, "activations": 10}[options.analysis]
    for name in ("num_samples", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1. Received: {getattr(options, name)}")
    if not 1 <= options.num_timesteps <= 1000:
        parser.error(f"--num-timesteps must lie in [1, 1000]. Received: {options.num_timesteps}")
    if options.data and not Path(options.data).is_file():
        parser.error(f"--data {options.data}: there is no such file.")
    return options


def load_samples(source, task, options):
    """Latents `(N, H, W, C)` and conditions `(N,)` to analyse a task with. Raises ValueError if there are none."""
    import numpy as np

    from fcdm_keras.data.digits import load_digits

    if options.data:
        return _samples_of_file(options, task)
    config = Path(source) / "config.json"
    if not config.exists() or '"dataset": "digits"' not in config.read_text():
        raise ValueError(f"{source} is not known to be trained on the digits: give samples with --data FILE.npz.")
    latents, labels = load_digits("held_out")
    if len(latents) < options.num_samples:
        raise ValueError(f"There are {len(latents)} held-out digits. Received: --num-samples {options.num_samples}")
    return latents[: options.num_samples], np.asarray(labels[: options.num_samples], np.int32)


def _samples_of_file(options, task):
    import numpy as np
    from keras import ops

    from fcdm_keras.npz import NpzArray, array_names, load_small

    array = NpzArray(options.data)
    if len(array.shape) != 4 or array.dtype.kind not in "uf" or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
        raise ValueError(
            f"arr_0 of {options.data} must be images (uint8) or latents (float), (N, H, W, C). "
            f"Received: {array.dtype} of shape {array.shape}"
        )
    if len(array) < options.num_samples:
        raise ValueError(f"{options.data} holds {len(array)} samples. Received: --num-samples {options.num_samples}")
    latents = next(array.batches(options.num_samples))
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
    labels = load_small(options.data, "arr_1")[: len(latents)]
    task.backbone.conditioning.check(labels)
    return latents, labels.astype(np.int32)


def curves(options):
    """Name → (x, y) of each curve."""
    import numpy as np
    from tqdm import tqdm

    from fcdm_keras import analysis
    from fcdm_keras.runs.load import load_task

    timesteps = np.unique(np.linspace(0, 999, options.num_timesteps).round().astype(int))
    keywords = {"seed": options.seed, "batch_size": options.batch_size}
    for source in options.sources:
        task = load_task(source)
        samples = load_samples(source, task, options)
        if options.analysis == "spectrum":
            bar = tqdm(timesteps, desc=source, unit="timestep", mininterval=0.2 if os.isatty(2) else 15)
            yield source, (timesteps, analysis.spectral_energy(task.backbone, *samples, bar, **keywords))
        else:
            for with_grn in (True, False):
                name = f"{source}, {'with' if with_grn else 'without'} GRN"
                values = analysis.channel_diversity(task.backbone, *samples, timesteps, with_grn=with_grn, **keywords)
                yield name, (np.arange(1, len(values) + 1), values)


LABELS = {
    "spectrum": ("timestep", "spectral energy of the predicted noise"),
    "activations": ("block", "channel diversity (cosine distance)"),
}


def write(options, found):
    """Writes the CSV and the PNG, each in one step. Returns their paths."""
    from fcdm_keras.plots import plot_curves

    folder = Path(options.output)
    x_label, y_label = LABELS[options.analysis]
    paths = [folder / f"{options.analysis}.{kind}" for kind in ("csv", "png")]
    temporary = [path.with_name(f".unfinished-{path.name}") for path in paths]
    with open(temporary[0], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", x_label, y_label))
        writer.writerows((name, int(x), float(y)) for name, curve in found.items() for x, y in zip(*curve))
    plot_curves(found, temporary[1], x_label, y_label, marker="o" if options.analysis == "activations" else "")
    for path, unfinished in zip(paths, temporary):
        os.replace(unfinished, path)
    return paths


def main(arguments=None):
    options = parse(arguments)
    try:
        Path(options.output).mkdir(parents=True, exist_ok=True)
        found = dict(curves(options))
        paths = write(options, found)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
    for name, (_, values) in found.items():
        print(f"{name}: {values.mean():.4g} on average, {values.min():.4g} to {values.max():.4g}")
    print(f"{paths[1]} shows the curves, {paths[0]} holds the numbers.")


if __name__ == "__main__":
    main()
