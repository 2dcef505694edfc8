"""Whether the processes of a job run the same thing: backend, versions, code, settings, and one shared folder."""

import hashlib
import json
import secrets
import time
from pathlib import Path

import keras

import fcdm_keras
from fcdm_keras import distribution

PATIENCE = 20  # seconds that a shared file system may take to show a file


def check_agreement(settings):
    """Raises ValueError unless every process has the same versions, code and settings.

    Args:
        settings: dict of what decides the run, for JSON.
    """
    own = {"fcdm_keras": fcdm_keras.__version__, "keras": keras.__version__, "code": code_hash(), **settings}
    every = [json.loads(text) for text in distribution.gather_texts(json.dumps(own))]
    for index, other in enumerate(every):
        different = [
            f"{name}={_shown(every[0].get(name))} in process 0, {_shown(other.get(name))} in process {index}"
            for name in {**every[0], **other}
            if every[0].get(name) != other.get(name)
        ]
        if different:
            raise ValueError(
                f"The processes of this job do not run the same: {'; '.join(different[:5])}. Start the same command, "
                "with the same code, on every host."
            )


def code_hash():
    """A short checksum of the package's source files."""
    folder, digest = Path(fcdm_keras.__file__).parent, hashlib.blake2b(digest_size=6)
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def check_shared(folder):
    """Raises OSError unless every process sees the same `folder`, which the first one can write to."""
    if distribution.job().process_count == 1:
        return
    token = distribution.gather_texts(secrets.token_hex(8))[0]
    file = Path(folder) / f".shared-{token}"
    if distribution.is_main():
        file.touch()
    distribution.barrier()
    limit = time.monotonic() + PATIENCE
    while not file.exists() and time.monotonic() < limit:
        time.sleep(0.2)
    seen = distribution.gather_texts("seen" if file.exists() else "")
    if distribution.is_main():
        file.unlink()
    blind = [str(index) for index, text in enumerate(seen) if not text]
    if blind:
        raise OSError(
            f"The folder {folder} is not shared: process {', '.join(blind)} does not see what process 0 writes there. "
            "Give a folder on storage that all hosts mount."
        )


def _shown(value):
    return repr(value)[:80]
