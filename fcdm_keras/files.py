"""Small files that are whole or absent at any moment. Standard library only."""

import os
import socket


def write_atomically(path, text):
    """Writes `text` to `path` (a `Path`) under another name first, and renames it when it is on disk."""
    unfinished = path.with_name(f".unfinished-{path.name}-{socket.gethostname()}-{os.getpid()}")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
