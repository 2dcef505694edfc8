"""Mean and covariance of a stream of features: any batch sizes, any number of processes, bounded memory."""

import numpy as np

from fcdm_keras.formats.numbers import on_host

BLOCK = 1024  # rows folded into the sums at once


class FeatureStatistics:
    """Float64 mean and unbiased covariance of features that arrive in batches.

    Rows are folded in blocks of `BLOCK`, centred on the block's own mean (Chan, Golub and LeVeque, "Updating formulae
    and a pairwise algorithm for computing sample variances", 1979), so that the result is the same bits whatever the
    batches were, and nothing cancels. Memory is two `(D, D)` and one `(BLOCK, D)` array, whatever N is.

    Objects can be pickled, sent to another process and merged there.

    Args:
        size: features per row, D; default the first batch's.

    Example:

    ```python
    statistics = FeatureStatistics()
    for batch in batches:
        statistics.update(batch)  # (B, D)
    mu, sigma = statistics.merge(another).result()
    ```
    """

    def __init__(self, size=None):
        self._count = 0  # rows folded
        self._pending, self._filled = None, 0
        self._mean = self._scatter = None
        if size is not None:
            self._start(size)

    @property
    def count(self):
        """Rows seen, N."""
        return self._count + self._filled

    def update(self, features):
        """Adds rows `(B, D)`. Returns self.

        Raises:
            ValueError: for another number of dimensions or features, or values that are not finite.
        """
        features = on_host(features, "The features")
        if self._pending is None and features.ndim == 2:
            self._start(features.shape[1])
        check_features(features, None if self._pending is None else self._pending.shape[1], first_row=self.count)
        while len(features):
            part = features[: BLOCK - self._filled]
            self._pending[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            features = features[len(part) :]
            if self._filled == BLOCK:
                self._fold()
        return self

    def merge(self, other):
        """Adds what another `FeatureStatistics` has seen. Returns self; `other` stays as it is."""
        if other._pending is None:
            return self
        if other._count:
            if self._pending is None:
                self._start(len(other._mean))
            if len(self._mean) != len(other._mean):
                raise ValueError(
                    f"Statistics of {len(self._mean)} and {len(other._mean)} features cannot be merged; "
                    "use one feature extractor for both."
                )
            self._add(other._count, other._mean, other._scatter)
        return self.update(other._pending[: other._filled])

    def result(self):
        """Mean `(D,)` and covariance `(D, D)`, float64.

        Raises:
            ValueError: fewer than 2 rows were seen.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 samples. Received: {self.count}")
        total = FeatureStatistics(self._pending.shape[1])
        total._add(self._count, self._mean, self._scatter)
        total._add(*_sums(self._pending[: self._filled]))
        return total._mean, total._scatter / (total._count - 1)

    def _start(self, size):
        self._pending = np.empty((BLOCK, size))
        self._mean, self._scatter = np.zeros(size), np.zeros((size, size))

    def _fold(self):
        self._add(*_sums(self._pending))
        self._filled = 0

    def _add(self, count, mean, scatter):
        """Adds `count` rows of this mean and scatter, Σ (x − mean)(x − mean)ᵀ."""
        if not count:
            return
        difference = mean - self._mean
        total = self._count + count
        self._scatter += scatter
        self._scatter += np.outer(difference, difference * (self._count * count / total))
        self._mean += difference * (count / total)
        self._count = total


def _sums(rows):
    """Count, mean and scatter of rows `(N, D)`."""
    if not len(rows):
        return 0, None, None
    mean = rows.mean(axis=0)
    centred = rows - mean
    return len(rows), mean, centred.T @ centred


def check_features(features, size=None, name="features", first_row=0):
    """Raises ValueError unless `features` is a finite `(N, D)` array, with D = `size` if given."""
    if features.ndim != 2 or features.dtype.kind not in "fiu" or size not in (None, features.shape[1]):
        expected = "(N, D)" if size is None else f"(N, {size})"
        raise ValueError(
            f"The {name} must be numbers of shape {expected}. "
            f"Received: shape {features.shape} of dtype {features.dtype}"
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        row = first_row + int(np.argmin(finite))
        raise ValueError(
            f"The {name} must be finite. Received: NaN or infinity in row {row}; look at that image and at the weights "
            "of the feature extractor."
        )
