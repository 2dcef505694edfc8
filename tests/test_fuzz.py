"""Hostile and damaged files of every kind: a value or one of our errors, soon. See `tests/fuzz/fuzz_frame.py`."""

import importlib
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_backend
sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
frame = importlib.import_module("fuzz_frame")
KINDS = frame.kinds()


@pytest.mark.parametrize("name", KINDS)
def test_doors_give_a_value_or_one_of_our_errors(name):
    with frame.Door(KINDS[name]) as door:
        for file in sorted((frame.CORPUS / name).glob("*")):
            door.read(file.read_bytes())
        assert door.read(door.data)
        door.truncated(round(40 * KINDS[name].share) + 1)
        door.mutated("ci")


def test_the_corpus_is_of_kinds_that_there_are():
    assert {folder.name for folder in frame.CORPUS.iterdir() if folder.is_dir()} <= KINDS.keys()
