"""Scores of samples against real images."""

TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
}
