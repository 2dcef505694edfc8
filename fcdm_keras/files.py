"""Small files: written, whole or absent at any moment; and text that people wrote, read. Standard library only."""

import codecs
import contextlib
import ctypes
import os
import re
import shutil
import socket

LIMIT = 64 * 2**20  # bytes of a text
_MARKS = {  # those of UTF-32 begin with those of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


@contextlib.contextmanager
def replacing(path, mode="wb", **options):
    """A file, opened as by `open`, that takes the place of `path` (a `Path`) once it is written and on disk."""
    unfinished = _beside(path)
    with open(unfinished, mode, **options) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_atomically(path, text):
    """Writes `text` to `path` (a `Path`) under another name first, and renames it when it is on disk."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(text)


@contextlib.contextmanager
def replacing_folder(path):
    """A new folder that takes the place of `path` (a `Path`) once it is filled and on disk; absent if that fails."""
    path = path.resolve()
    unfinished = _beside(path)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        replace_folder(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def replace_folder(new, path):
    """Puts the folder `new` in the place of `path` (`Path`s), whatever is there, once all of it is on disk."""
    for folder, _, names in os.walk(new):
        for name in (*names, "."):
            sync(os.path.join(folder, name))
    if not path.exists():
        new.rename(path)
    elif _exchange(new, path):
        shutil.rmtree(new)
    else:
        old = path.with_name(f"{_beside(path).name}-replaced")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        new.rename(path)
        shutil.rmtree(old)
    sync(path.parent)


def _beside(path):
    """A hidden name beside `path` that no other process uses."""
    return path.with_name(f".unfinished-{path.name}-{socket.gethostname()}-{os.getpid()}")


def _exchange(first, second):
    """Swaps two paths in one step, where the system (Linux) and the file system can. Returns whether they could."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(at, os.fsencode(first), at, os.fsencode(second), exchange) == 0


def sync(path):
    """Waits until a file, or the list of a folder's files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(file, limit=LIMIT):
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark; the mark is left out.

    Args:
        file: its path.
        limit: bytes that it may have; no more of it are read.

    Raises:
        ValueError: it is longer, or other text, or none; names the byte.
        OSError: the file cannot be read.
    """
    try:
        with open(file, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            data = opened.read(limit + 1) if size <= limit else b""
    except OSError as error:
        raise type(error)(f"{file} cannot be read: {error.strerror or error}.") from None
    if max(size, len(data)) > limit:
        raise ValueError(f"{file} has {max(size, len(data)):,} bytes or more; such a file has at most {limit:,}.")
    if data.startswith(b"version https://git-lfs.github.com/"):
        raise ValueError(f"{file} is a pointer of git-lfs and not the file itself: get it with `git lfs pull`.")
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text, wrong = data.decode(encoding), None
        if "\0" in text:  # as in UTF-16 without a mark
            wrong = len(text[: text.index("\0")].encode(encoding))
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong is not None:
        known = encoding.removesuffix("-sig").upper()
        raise ValueError(f"{file} is no text in {known}: byte {wrong:,} is 0x{data[wrong]:02x}; save it as UTF-8.")
    return text


def is_utf8(path):
    """Whether a path, or another text, is one in UTF-8, as files of JSON hold them."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def check_utf8(what, path):
    """Raises ValueError for a path that another library, or a file of ours, cannot hold; `what` names it."""
    if not is_utf8(path):
        raise ValueError(f"{what} must have a path in UTF-8. Received: {str(path)!r}; rename it.")


def read_lines(file):
    """The lines of such a text. They end where an editor ends them, and at no other separator of Unicode."""
    lines = re.split(r"\r\n|\r|\n", read_text(file))
    return lines if lines[-1] else lines[:-1]
