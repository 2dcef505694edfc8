"""What the processes of a job tell each other: NumPy arrays and texts. Alone, a process hears itself."""

import numpy as np

from fcdm_keras import backend
from fcdm_keras.backend.job import job


def barrier():
    """Waits for all processes."""
    if job().process_count > 1:
        backend.barrier()


def gather(array):
    """Rows of all processes, `(ΣB, …)`, from each process's `(B, …)`, which may differ in B but not in the rest."""
    array = np.asarray(array)
    if job().process_count == 1:
        return array
    counts = backend.gather(np.array([len(array)], np.int32))[:, 0]
    if not max(counts):
        return array  # engines cannot be trusted with nothing: TensorFlow's collectives crash
    padded = np.zeros((max(counts), *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return np.concatenate([part[:count] for part, count in zip(backend.gather(padded), counts, strict=True)])


def gather_texts(text):
    """Every process's `text`, by process."""
    if job().process_count == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    ends = np.cumsum(gather(np.array([len(data)], np.int32)))
    return [part.tobytes().decode() for part in np.split(gather(data), ends[:-1])]


def agree(what, value):
    """Raises ValueError unless `value`, of which `what` is the name, is the same in every process."""
    values = gather_texts(str(value))
    if len(set(values)) > 1:
        listed = ", ".join(f"{other} in process {index}" for index, other in enumerate(values))
        raise ValueError(f"The processes of this job disagree on the {what}: {listed}. Do they share the run folder?")
