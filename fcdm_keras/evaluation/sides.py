"""The two sides of a comparison: images, statistics that a file gives instead, or both."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from fcdm_keras.evaluation.image_sets import ImageFile, Part, open_images
from fcdm_keras.formats.npz import array_names, load_small

# Metric → what an extractor must give for it. `pool` is kept per image for those in PER_IMAGE.
METRICS = {
    "fid": "pool",
    "sfid": "spatial",
    "inception_score": "probabilities",
    "precision": "pool",
    "recall": "pool",
    "kid": "pool",
}
PER_IMAGE = {"precision", "recall", "kid"}
STATISTICS = {"fid": ("mu", "sigma"), "sfid": ("mu_s", "sigma_s")}  # names in reference files
FEATURES_KEY = "features"  # names the extractor in reference files of ours
ROUGH = 1e-3  # of its largest entry: what rounding may do to a covariance


@dataclasses.dataclass
class ImageSet:
    """Images, statistics that replace those of the images, or both: one side of a comparison.

    Attributes:
        name: for messages.
        images: one of `fcdm_keras.evaluation.image_sets`, or `None`.
        given: metric → (mu, sigma) from the file.
        extractor: name of the extractor that made `given`, or `None` if the file does not say.
    """

    name: str
    images: object = None
    given: dict = dataclasses.field(default_factory=dict)
    extractor: str | None = None

    def part(self, count):
        """The side with `count` of its images, evenly spaced; statistics are of all images, so they do not count then.

        Raises:
            ValueError: it holds fewer.
        """
        if self.images is None:
            raise ValueError(f"{self.name} holds statistics and no images, so {count} cannot be chosen of them.")
        return self if count == self.images.count else ImageSet(self.name, Part(self.images, count))


def open_set(path):
    """An `ImageSet` from a folder, an `.npy` file of images, or an `.npz` file with `arr_0`, `mu` and `sigma`, `mu_s`
    and `sigma_s`, or all. What a file is, its content says, not its name.

    Of a folder that holds a `samples.npz`, as `python -m fcdm_keras.sample` writes it, that file is read.

    Raises:
        ValueError: the file holds neither images nor statistics, or damaged ones.
        OSError: it cannot be read.
    """
    if (Path(path) / "samples.npz").exists():
        path = Path(path) / "samples.npz"
    if not Path(path).is_file():
        return ImageSet(str(path), open_images(path))  # which says what was expected
    names = array_names(path)
    given = {
        metric: tuple(load_small(path, name, "f") for name in pair)
        for metric, pair in STATISTICS.items()
        if set(pair) <= set(names)
    }
    for metric, pair in given.items():
        check_statistics(*pair, f"{' and '.join(STATISTICS[metric])} of {path}")
    if "arr_0" not in names and not given:
        raise ValueError(
            f"{path} must hold images (arr_0, uint8, (N, H, W, 3)) or statistics (mu and sigma). "
            f"Received: {', '.join(names) or _others(path)}"
        )
    extractor = str(load_small(path, FEATURES_KEY, "U")) if FEATURES_KEY in names else None
    return ImageSet(str(path), ImageFile(path) if "arr_0" in names else None, given, extractor)


def _others(path):
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    return f"no arrays, but {names[0]} and {len(names)} files in all; unpack pictures first" if names else "no arrays"


def check_statistics(mu, sigma, name="mu and sigma"):
    """Raises ValueError, in one sentence, unless finite mu `(D,)` and sigma `(D, D)` can be mean and covariance."""
    if mu.ndim != 1 or not mu.size or sigma.shape != 2 * mu.shape:
        raise ValueError(f"{name} must be (D,) and (D, D). Received: shapes {mu.shape} and {sigma.shape}")
    sigma = sigma.astype(np.float64)
    if np.abs(sigma - sigma.T).max() > ROUGH * np.abs(sigma).max():
        raise ValueError(
            f"The covariance in {name} must be symmetric. Received: one that is not; compute the file again"
        )
    try:  # the quickest way to know it
        np.linalg.cholesky(sigma + (ROUGH * np.abs(sigma).max() + np.finfo(np.float64).tiny) * np.eye(len(sigma)))
    except np.linalg.LinAlgError:
        raise ValueError(
            f"The covariance in {name} must have no negative eigenvalues. Received: {np.linalg.eigvalsh(sigma)[0]:.3g}"
            "; compute the file again"
        ) from None
