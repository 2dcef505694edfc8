"""Whether scores can be computed, and will mean something: all that can be known before the first image is read."""

import warnings
from pathlib import Path

from fcdm_keras.evaluation.sides import METRICS, PER_IMAGE, STATISTICS
from fcdm_keras.machine import memory

NEIGHBORS = 3
COPIES = 8  # of a covariance, that are in memory while the distance is computed


def available_metrics(extractor):
    """Names of the metrics that an extractor's features allow."""
    return [metric for metric, needed in METRICS.items() if needed in extractor.gives]


def check(samples, reference, extractor, chosen):
    """Raises ValueError, in one sentence, if the chosen metrics cannot be computed."""
    for metric in chosen:
        if METRICS[metric] not in extractor.gives:
            raise ValueError(
                f"{metric} needs {METRICS[metric]} features, which {extractor.name} does not give; choose --metrics "
                f"{','.join(available_metrics(extractor))}."
            )
    sides = {"samples": samples, "reference": reference}
    for role, side in sides.items():
        _check_side(side, role, extractor, chosen)
    widths = _widths(sides, extractor, chosen)
    for metric, width in widths["samples"].items():
        other = widths["reference"].get(metric, width)
        if width != other:
            kind = "statistics" if metric in reference.given else "images"
            raise ValueError(
                f"The reference's {kind} for {metric} must have {width} features. Received: {other}; it was made with "
                "another network or at another size"
            )
    check_memory(widths["samples"], chosen, [side.images.count for side in sides.values() if side.images])


def _needing(side, chosen, role):
    """The metrics that need this side's images."""
    return [m for m in chosen if m not in side.given and not (m == "inception_score" and role == "reference")]


def _check_side(side, role, extractor, chosen):
    if side.extractor not in (None, extractor.name) and side.given:
        raise ValueError(
            f"The statistics of {side.name} are of {side.extractor} features. Received: {extractor.name}; choose the "
            "same --features for both."
        )
    needing = _needing(side, chosen, role)
    if side.images is None:
        if needing:
            others = [metric for metric in chosen if metric not in needing]
            advice = f"; choose --metrics {','.join(others)}" if others else ""
            raise ValueError(f"{', '.join(needing)} need images, but {side.name} holds no arr_0{advice}.")
        return
    least = {"inception_score": 1, "precision": NEIGHBORS + 1, "recall": NEIGHBORS + 1}
    for metric in needing:
        if side.images.count < least.get(metric, 2):
            raise ValueError(
                f"{metric} needs at least {least.get(metric, 2)} images of each. Received: {side.images.count} {role}"
                f" ({side.name})"
            )


def _widths(sides, extractor, chosen):
    """Role → metric → features per image, of all that are compared."""
    widths = {}
    for role, side in sides.items():
        needing = _needing(side, chosen, role)
        of_images = extractor.widths(side.images.shape) if needing else {}
        widths[role] = {metric: len(mu) for metric, (mu, _) in side.given.items() if metric in chosen}
        widths[role].update({metric: of_images[METRICS[metric]] for metric in needing if metric != "inception_score"})
    return widths


def check_memory(widths, chosen, counts=()):
    """Raises ValueError, with the numbers, if the covariances or the features per image cannot be held in memory.

    Args:
        widths: metric → features per image, D.
        chosen: metrics.
        counts: images of each side.
    """
    available = memory.available()
    statistics = {metric: width for metric, width in widths.items() if metric in chosen and metric in STATISTICS}
    kept = {metric: width for metric, width in widths.items() if metric in chosen and metric in PER_IMAGE}
    for needing, needed, what in (
        (statistics, sum(COPIES * 8 * width**2 for width in statistics.values()), "covariances of {0:,} × {0:,}"),
        (
            kept,
            sum(counts) * max(kept.values(), default=0) * 2 * 4,
            f"features of {sum(counts):,} images, {{0:,}} each",
        ),
    ):
        if needing and needed > available:
            raise ValueError(
                f"{', '.join(needing)} would take {memory.size(needed)} of memory for "
                f"{what.format(max(needing.values()))} and what is computed of them. Received: "
                f"{memory.size(available)} that are free; choose other --metrics, --features of fewer numbers, or "
                "smaller images."
            )


def warn(samples, reference, extractor, chosen):
    """Warns of a comparison that will mean little, of sides that `check` has let through."""
    sides = {"samples": samples, "reference": reference}
    images = {role: side.images for role, side in sides.items() if side.images}
    if Path(samples.name).resolve() == Path(reference.name).resolve():
        warnings.warn(f"{samples.name} is scored against itself.", stacklevel=2)
    sizes = [images.shape[:2] for images in images.values()]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        warnings.warn(
            f"The samples are {sizes[0][0]}×{sizes[0][1]} pixels and the reference images {sizes[1][0]}×{sizes[1][1]}: "
            "scores at different resolutions do not compare.",
            stacklevel=2,
        )
    few = {
        f"{images[role].count:,} of the {role} and {width:,} for {metric}": None
        for role in images
        for metric, width in _widths(sides, extractor, chosen)[role].items()
        if metric in STATISTICS and metric not in sides[role].given and images[role].count < width
    }
    if few:
        warnings.warn(
            f"There are fewer images than features ({', '.join(few)}), so the covariances are singular and the "
            "distances too high: compare them only with those of as many images.",
            stacklevel=2,
        )
    for side in sides.values():
        if extractor.name == "inception" and set(side.given) == {"fid"} and not side.extractor and not side.images:
            warnings.warn(
                f"{side.name} does not say of which network its statistics are: if another program than ADM's suite "
                "or this one made them, such as pytorch-fid or clean-fid, its Inception reads images differently and "
                "the FID is off.",
                stacklevel=2,
            )
