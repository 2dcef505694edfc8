"""Time and peak memory of the scores at the papers' sizes: 50,000 samples of 2048 features.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --only precision_recall --samples 50000 --references 10000

Features are random, float32, and in memory as `python -m fcdm_keras.evaluate` holds them; the memory printed beside
each score is the process's peak above that of the features alone. Each score runs in a process of its own.
"""

import argparse
import multiprocessing
import os
import resource
import time


def features(count, size, seed):
    """Correlated random features `(count, size)`, float32, made in pieces so that making them takes no memory."""
    import numpy as np

    generator = np.random.default_rng(seed)
    scale = (1.0 / (1.0 + np.arange(size))).astype("float32") ** 0.5
    rows = np.empty((count, size), np.float32)
    for start in range(0, count, 1000):
        part = generator.standard_normal((min(1000, count - start), size), dtype="float32")
        rows[start : start + 1000] = np.cumsum(part * scale, axis=1) * 0.1 + seed * 0.01
    return rows


def frechet(options):
    from fcdm_keras.evaluation.metrics import FeatureStatistics, frechet_distance

    results = []
    for seed in (1, 2):
        rows, statistics = features(options.samples, options.size, seed), FeatureStatistics()
        began = time.perf_counter()
        for start in range(0, len(rows), 64):
            statistics.update(rows[start : start + 64])
        results.append((statistics.result(), time.perf_counter() - began))
        del rows
    began = time.perf_counter()
    value = frechet_distance(*results[0][0], *results[1][0])
    seconds = [results[0][1], results[1][1], time.perf_counter() - began]
    note = f"statistics {seconds[0]:.1f} s + {seconds[1]:.1f} s, distance {seconds[2]:.1f} s"
    return f"FID, {options.samples:,} against {options.samples:,}", value, sum(seconds), note, 1


def precision_recall(options):
    from fcdm_keras.evaluation.metrics import precision_recall

    samples, references = features(options.samples, options.size, 1), features(options.references, options.size, 2)
    began = time.perf_counter()
    value = precision_recall(references, samples)
    name = f"precision and recall, {options.samples:,} against {options.references:,}"
    return name, value, time.perf_counter() - began, "", 1 + options.references / options.samples


def kernel(options):
    from fcdm_keras.evaluation.metrics import kernel_distance

    samples, references = features(options.samples, options.size, 1), features(options.references, options.size, 2)
    began = time.perf_counter()
    value = kernel_distance(references, samples)
    name = f"KID, {options.samples:,} against {options.references:,}"
    return name, value, time.perf_counter() - began, "", 1 + options.references / options.samples


def inception(options):
    import numpy as np

    from fcdm_keras.evaluation.metrics import inception_score

    probabilities = np.exp(features(options.samples, 1008, 1))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    began = time.perf_counter()
    value = inception_score(probabilities)
    name = f"Inception score, {options.samples:,}"
    return name, value, time.perf_counter() - began, "", 1008 / options.size


SCORES = {"fid": frechet, "precision_recall": precision_recall, "kid": kernel, "inception_score": inception}


def measure(name, options):
    """Runs one score and prints its line."""
    before = peak()
    title, value, seconds, note, sets = SCORES[name](options)
    held = sets * options.samples * options.size * 4 / 2**30
    value = " ".join(f"{part:.6g}" for part in (value if isinstance(value, tuple) else (value,)))
    print(
        f"{title}: {value}\n  {seconds:.1f} s{f' ({note})' if note else ''}; features {held:.2f} GiB, "
        f"peak above them {peak() - before - held:.2f} GiB",
        flush=True,
    )


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--references", type=int, default=10_000, help="of precision, recall and KID")
    parser.add_argument("--size", type=int, default=2048, help="features per image")
    parser.add_argument("--only", choices=SCORES, nargs="+", default=list(SCORES))
    options = parser.parse_args()
    print(f"{options.size} features, {len(os.sched_getaffinity(0))} CPU cores")
    for name in options.only:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(name, options))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
