"""Scores of drawn digits, by judges that never saw a drawn one."""

import numpy as np
from sklearn.svm import SVC

from fcdm_keras.data.embedded import load_digits
from fcdm_keras.evaluation.metrics import frechet_distance, mean_and_covariance, precision_recall

SCORES = (
    "agreement",
    "classifier_accuracy",
    "frechet",
    "frechet_real",
    "precision",
    "recall",
    "nearest_train",
    "nearest_train_real",
    "copies",
)


def score_digits(images, labels):
    """How well uint8 samples `(N, 8, 8, 1)` are the digits `labels` `(N,)` that were asked for.

    A support vector classifier trained on the real training digits reads the samples. Pixels are in [0, 1].

    Returns:
        Dict of floats with the keys `SCORES`:
        `agreement`: share of samples read as the digit asked for;
        `classifier_accuracy`: the classifier's on held-out real digits;
        `frechet`: squared Fréchet distance, in pixel space, of the samples to the held-out digits;
        `frechet_real`: the same of as many real training digits;
        `precision`, `recall`: of the samples against the held-out digits, in pixel space, 3 neighbours;
        `nearest_train`: median Euclidean distance of a sample to the nearest training digit;
        `nearest_train_real`: the same of held-out digits;
        `copies`: share of samples nearer to a training digit than any held-out digit is.
    """
    train_images, train_labels = load_digits("train")
    real_images, real_labels = load_digits("held_out")
    train, real = _pixels(train_images), _pixels(real_images)
    drawn = np.asarray(images, np.float64).reshape(len(images), -1) / 255.0
    classifier = SVC(gamma=0.2, C=10.0).fit(train, train_labels)
    held_out = mean_and_covariance(real)
    choice = np.random.default_rng(0).choice(len(train), size=min(len(drawn), len(train)), replace=False)
    precision, recall = precision_recall(real, drawn)
    nearest, nearest_real = _nearest(drawn, train), _nearest(real, train)
    return {
        "agreement": float((classifier.predict(drawn) == labels).mean()),
        "classifier_accuracy": float(classifier.score(real, real_labels)),
        "frechet": frechet_distance(*mean_and_covariance(drawn), *held_out),
        "frechet_real": frechet_distance(*mean_and_covariance(train[choice]), *held_out),
        "precision": precision,
        "recall": recall,
        "nearest_train": float(np.median(nearest)),
        "nearest_train_real": float(np.median(nearest_real)),
        "copies": float((nearest < nearest_real.min()).mean()),
    }


def _pixels(images):
    return (images.reshape(len(images), -1).astype(np.float64) + 1.0) / 2.0


def _nearest(queries, points):
    squared = (queries**2).sum(1)[:, None] - 2.0 * queries @ points.T + (points**2).sum(1)[None]
    return np.sqrt(np.maximum(squared.min(axis=1), 0.0))
