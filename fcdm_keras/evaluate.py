"""Score images against a reference, as ADM's evaluation suite does.

    python -m fcdm_keras.evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --inception GRAPH.pb
    python -m fcdm_keras.evaluate RUN --num-samples 50000 --labels random --reference REF.npz --json scores.json
    python -m fcdm_keras.evaluate images/ --write-reference REF.npz
    python -m fcdm_keras.evaluate latents/ --write-reference REF.npz

SAMPLES is an .npz file with arr_0 (uint8, N×H×W×3), a folder of images, a latent store, whose images are decoded, or a
run folder or preset, whose model then draws the images without writing them. The reference is a file of ADM's, one of
ours, or images likewise.

Scores: FID, sFID, Inception score, precision and recall (3 neighbours), KID. --features takes other networks than
Inception: dinov2 for FD-DINOv2, or a Keras model of your own.
"""

import argparse
import json
import math
import sys
import warnings
from pathlib import Path

from fcdm_keras.drawing import add_drawing_flags, check_drawing_flags
from fcdm_keras.files import write_atomically
from fcdm_keras.launch import add_device_flags, device_options

METRICS = ("fid", "sfid", "inception_score", "precision", "recall", "kid")
TITLES = ("FID", "sFID", "Inception score", "precision", "recall", "KID")
DRAWN = 50_000  # images that a model draws if the number is not given, as in the papers


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fcdm_keras.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "samples", help=".npz file, folder of images, latent store, run folder, preset folder, hf://… or kaggle://…"
    )
    parser.add_argument("--reference", metavar="REF", help=".npz file with arr_0, mu, sigma, mu_s, sigma_s, or images")
    parser.add_argument("--json", metavar="FILE", help="write the scores to this file")
    parser.add_argument("--metrics", help=f"some of {','.join(METRICS)}; default all that the features allow")
    parser.add_argument(
        "--features",
        default="inception",
        help="inception, dinov2, dinov2:PRESET, pixels or a .keras model that takes 0 to 255 (default inception)",
    )
    parser.add_argument("--inception", metavar="GRAPH", help="classify_image_graph_def.pb; default downloads it")
    parser.add_argument("--features-batch-size", type=int, default=64, help="images per network call (default 64)")
    parser.add_argument("--write-reference", metavar="REF", help="write a reference file of SAMPLES instead of scoring")
    parser.add_argument(
        "--reference-images", type=int, default=10_000, help="images kept in it, evenly spaced (default 10000)"
    )
    drawing = parser.add_argument_group("when a model draws the images")
    add_drawing_flags(drawing, num_samples=None)
    add_device_flags(parser, processes=False)
    options = parser.parse_args(arguments)
    check_drawing_flags(parser, options)
    for name in ("features_batch_size", "reference_images"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1. Received: {getattr(options, name)}")
    if bool(options.reference) == bool(options.write_reference):
        parser.error("give either --reference, to score SAMPLES, or --write-reference, to make a reference of them.")
    options.metrics = _metrics(parser, options.metrics)
    for name in ("json", "write_reference"):
        path = getattr(options, name)
        if path and not Path(path).absolute().parent.is_dir():
            parser.error(f"--{name.replace('_', '-')} {path}: there is no folder {Path(path).absolute().parent}.")
    return options


def _metrics(parser, text):
    chosen = text.split(",") if text else None
    if chosen and not set(chosen) <= set(METRICS):
        parser.error(f"--metrics must be some of {','.join(METRICS)}. Received: {text!r}")
    return chosen


def open_samples(options):
    """The samples as an `ImageSet`, and the settings they are drawn with."""
    from fcdm_keras.evaluation import image_sets, suite

    if not image_sets.is_model(options.samples):
        return suite.open_set(options.samples), {}
    from fcdm_keras.drawing import Drawing
    from fcdm_keras.runs import load_task

    options.source, options.num_samples = options.samples, options.num_samples or DRAWN
    drawing = Drawing(load_task(options.samples), options)
    settings = {**drawing.settings(), "label_order": options.label_order, "classes": options.classes}
    return suite.ImageSet(options.samples, image_sets.DrawnImages(drawing, options.samples)), settings


def evaluate(options):
    """Computes the scores. Returns them with the settings, a dict for JSON."""
    import keras

    from fcdm_keras import __version__
    from fcdm_keras.evaluation import suite
    from fcdm_keras.evaluation.features import load_extractor

    reference = suite.open_set(options.reference)
    samples, settings = open_samples(options)
    counts = [side.images.count if side.images else None for side in (samples, reference)]
    size = min(options.features_batch_size, max(count or 1 for count in counts))
    extractor = load_extractor(options.features, options.inception, size)
    chosen = options.metrics or suite.available_metrics(extractor)
    suite.check(samples, reference, extractor, chosen, options.num_samples)
    theirs = suite.collect(reference, extractor, chosen, batch_size=size, role="reference")
    ours = suite.collect(samples, extractor, chosen, options.num_samples, size)
    result = suite.scores(ours, theirs, chosen)
    return {
        **result,
        "num_samples": options.num_samples or counts[0],
        "num_reference_images": counts[1],
        "sample_statistics": sorted(set(samples.given) & set(chosen)),
        "reference_statistics": sorted(set(reference.given) & set(chosen)),
        "features": extractor.name,
        "samples": str(options.samples),
        "reference": str(options.reference),
        "drawn_with": settings,
        "backend": f"Keras {keras.__version__} on {keras.backend.backend()}",
        "version": __version__,
    }


def write_reference(options):
    from fcdm_keras.evaluation import suite
    from fcdm_keras.evaluation.features import load_extractor

    samples, _ = open_samples(options)
    if samples.images is None:
        raise ValueError(f"{options.samples} holds no arr_0 to make a reference of.")
    extractor = load_extractor(options.features, options.inception, options.features_batch_size)
    suite.write_reference(
        options.write_reference, samples.images, extractor, options.reference_images, options.features_batch_size
    )
    print(f"{options.write_reference}: statistics of {samples.images.count:,} images, {extractor.name} features.")


def report(result):
    samples, reference = result["num_samples"], result["num_reference_images"]
    print(f"\n{result['samples']}: {samples:,} images" if samples else f"\n{result['samples']}: statistics")
    print(f"{result['reference']}: " + (f"{reference:,} images" if reference else "statistics"))
    for side in ("sample", "reference"):
        if result[f"{side}_statistics"]:
            print(f"statistics in the {side} file replace its images' for {', '.join(result[f'{side}_statistics'])}")
    for metric, title in zip(METRICS, TITLES):
        if metric in result:
            print(f"  {title:16} {result[metric]}")


def write_json(result, path):
    """Writes the result in one step; NaN, which is no JSON, as null."""
    values = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in result.items()}
    write_atomically(Path(path), json.dumps(values, indent=2) + "\n")


def main(arguments=None):
    options = parse(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            from fcdm_keras import distribution

            distribution.alone("evaluate")
            with distribution.setup(**device_options(options)):
                if options.write_reference:
                    return write_reference(options)
                result = evaluate(options)
        report(result)
        if options.json:
            write_json(result, options.json)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


if __name__ == "__main__":
    main()
