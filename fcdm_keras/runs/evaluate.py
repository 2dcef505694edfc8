"""The work of `python -m fcdm_keras.evaluate`: opens samples and reference, scores, and writes."""

import sys
import warnings
from pathlib import Path

import keras

from fcdm_keras import __version__, distribution
from fcdm_keras.evaluation import TITLES, image_sets, suite
from fcdm_keras.evaluation.features import load_extractor
from fcdm_keras.files import write_atomically
from fcdm_keras.options import device_options, to_json
from fcdm_keras.runs.load import load_task
from fcdm_keras.sampling.request import Request

DRAWN = 50_000  # images that a model draws if the number is not given, as in the papers


def run(options):
    """Scores samples, or writes a reference file of them, as the flags say."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        distribution.alone("evaluate")
        with distribution.setup(**device_options(options)):
            if options.write_reference:
                write_reference(options)
                return
            result = evaluate(options)
    show(result)
    if options.json:
        write_json(result, options.json)


def open_samples(options):
    """The samples as an `ImageSet`, of as many as `--num-samples` says, and the settings they are drawn with."""
    if not image_sets.is_model(options.samples):
        samples = suite.open_set(options.samples)
        return samples.part(options.num_samples) if options.num_samples else samples, {}
    options.source, options.num_samples = options.samples, options.num_samples or DRAWN
    request = Request(load_task(options.samples), options)
    settings = {**request.settings(), "label_order": options.label_order, "classes": options.classes}
    return suite.ImageSet(options.samples, image_sets.DrawnImages(request, options.samples)), settings


def evaluate(options):
    """Computes the scores. Returns them with the settings, a dict for JSON."""
    reference = suite.open_set(options.reference)
    samples, settings = open_samples(options)
    counts = [side.images.count if side.images else None for side in (samples, reference)]
    size = min(options.features_batch_size, max(count or 1 for count in counts))
    extractor = load_extractor(options.features, options.inception, size)
    chosen = options.metrics or suite.available_metrics(extractor)
    suite.check(samples, reference, extractor, chosen)
    suite.warn(samples, reference, extractor, chosen)
    theirs = suite.collect(reference, extractor, chosen, batch_size=size, role="reference")
    ours = suite.collect(samples, extractor, chosen, size)
    result = suite.scores(ours, theirs, chosen)
    return {
        **result,
        "num_samples": counts[0],
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
    samples, _ = open_samples(options)
    if samples.images is None:
        raise ValueError(f"{options.samples} holds no arr_0 to make a reference of.")
    extractor = load_extractor(options.features, options.inception, options.features_batch_size)
    suite.write_reference(
        options.write_reference, samples.images, extractor, options.reference_images, options.features_batch_size
    )
    print(f"{options.write_reference}: statistics of {samples.images.count:,} images, {extractor.name} features.")


def show(result):
    """Prints the scores. KID's estimator may lie below 0, which no distance does: it is printed as 0."""
    samples, reference = result["num_samples"], result["num_reference_images"]
    print(f"\n{result['samples']}: {samples:,} images" if samples else f"\n{result['samples']}: statistics")
    print(f"{result['reference']}: " + (f"{reference:,} images" if reference else "statistics"))
    for side in ("sample", "reference"):
        if result[f"{side}_statistics"]:
            print(f"statistics in the {side} file replace its images' for {', '.join(result[f'{side}_statistics'])}")
    for metric, title in TITLES.items():
        if metric in result:
            print(f"  {title:16} {max(result[metric], 0.0)}{_deviation(metric, result)}")


def _deviation(metric, result):
    return f" ± {result[f'{metric}_std']:.2g} over subsets" if f"{metric}_std" in result else ""


def write_json(result, path):
    """Writes the result in one step; NaN, which is no JSON, as null."""
    write_atomically(Path(path), to_json(result))
