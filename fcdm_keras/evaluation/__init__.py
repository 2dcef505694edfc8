"""Scores of samples against real images."""

from pathlib import Path

TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
}


def is_model(source):
    """Whether `source` looks like a run folder, a preset folder or an address of one."""
    return "://" in str(source) or (Path(source) / "config.json").exists()
