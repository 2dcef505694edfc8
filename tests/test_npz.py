"""Arrays in `.npz` files, written and read in pieces."""

import contextlib
import io
import os

import numpy as np
import pytest

from fcdm_keras.formats import npz
from fcdm_keras.formats.npz import NpzArray, NpzWriter, load_small

pytestmark = pytest.mark.no_backend


def test_arrays_are_written_and_read_in_pieces(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (37, 3, 5, 3)).astype("uint8")
    for size in (1, 10, 37):
        with NpzWriter(tmp_path / f"{size}.npz", rows.shape) as writer:
            for start in range(0, 37, size):
                writer.append(rows[start : start + size])
            writer.finish(arr_1=np.arange(37), name=np.array("text"))
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "37.npz").read_bytes()
    with np.load(tmp_path / "10.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], rows)
        np.testing.assert_array_equal(arrays["arr_1"], np.arange(37))
    array = NpzArray(tmp_path / "10.npz")
    np.testing.assert_array_equal(np.concatenate(list(array.batches(8))), rows)
    assert [len(batch) for batch in array.batches(8, stop=20)] == [8, 8, 4]
    assert str(load_small(tmp_path / "10.npz", "name")) == "text"
    few = NpzWriter(tmp_path / "x.npz", (4, 2))
    with pytest.raises(ValueError, match="needs 4 rows before it is finished. Received: 0"), few as writer:
        writer.finish()
    with pytest.raises(ValueError, match=r"Rows must be uint8 \(2,\). Received: float64 \(2,\)"), few as writer:
        writer.append(np.zeros((1, 2)))
    assert not (tmp_path / "x.npz").exists()


class Sparse(io.FileIO):
    """A file in which long runs of zeros are holes."""

    def write(self, data):
        size = memoryview(data).nbytes
        if size < 1 << 16 or np.frombuffer(data, "uint8").any():
            return super().write(data)
        self.seek(size, os.SEEK_CUR)
        return size


def test_files_beyond_4_gib_are_whole(tmp_path, monkeypatch):
    """The rows are a hole in the file, so this writes almost nothing."""
    monkeypatch.setattr(npz, "replacing", lambda path: contextlib.closing(Sparse(path, "w")))
    with NpzWriter(tmp_path / "large.npz", (4200, 1 << 20)) as writer:
        for _ in range(100):
            writer.append(np.zeros((42, 1 << 20), "uint8"))
        writer.finish(arr_1=np.arange(3))
    with np.load(tmp_path / "large.npz") as arrays:
        assert arrays["arr_1"].tolist() == [0, 1, 2]
    array = NpzArray(tmp_path / "large.npz")
    assert array.shape == (4200, 1 << 20) and not next(array.batches(2)).any()
    (tmp_path / "large.npz").unlink()
