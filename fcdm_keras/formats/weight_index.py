"""The index of weights that are published in several files, `….index.json`: tensor → file beside it."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from fcdm_keras.formats.documents import Name, read_json


class _Index(msgspec.Struct):
    weight_map: Annotated[dict[str, Name], Meta(min_length=1)]


def read_parts(index):
    """Paths of the files that an index (a `Path`) lists, in order.

    Raises:
        ValueError: it is no such index.
        FileNotFoundError: one of the files is not there.
    """
    names = {Path(name).name for name in read_json(index, _Index, "copy the file again").weight_map.values()}
    parts = [index.parent / name for name in sorted(names)]
    for part in parts:
        if not part.is_file():
            raise FileNotFoundError(f"{index} lists {part.name}, which is not there; copy all parts.")
    return parts
