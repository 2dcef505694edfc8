"""Small files: written, whole or absent at any moment; and text that people wrote, read. Standard library only."""

import codecs
import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
from pathlib import Path

LIMIT = 64 * 2**20  # bytes of a text
_MARKS = {  # those of UTF-32 begin with those of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_HIDDEN, _REPLACED = ".unfinished-", "-replaced"  # the names of what is being written, and of what it replaces


class DifferentContentsError(ValueError):
    """A folder holds what another command made, with which this one cannot go on."""


@contextlib.contextmanager
def replacing(path, mode="wb", **options):
    """A file, opened as by `open`, that takes the place of `path` (a `Path`) once it is written and on disk.

    Where `path` is a link, what it leads to is replaced. If the context ends with an error, all is as it was.
    """
    path = Path(os.path.realpath(path))
    with _opened(path, mode, options) as file, _removed_on_error(Path(file.name)):
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)
    sync(path.parent)


def write_atomically(path, text):
    """Writes `text` to `path` (a `Path`) under another name first, and renames it when it is on disk."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(text)


@contextlib.contextmanager
def replacing_folder(path):
    """A new folder that takes the place of `path` (a `Path`) once it is filled and on disk; absent if that fails."""
    path = Path(os.path.realpath(path))
    make_folder(path.parent)
    remove_leftovers(path.parent, path.name)
    unfinished = _beside(path)
    unfinished.mkdir()
    with locked(unfinished), _removed_on_error(unfinished):
        yield unfinished
        replace_folder(unfinished, path)


def replace_folder(new, path):
    """Puts the folder `new` in the place of `path` (`Path`s), whatever is there, once all of it is on disk."""
    for folder, _, names in os.walk(new):
        for name in (*sorted(names), "."):
            sync(os.path.join(folder, name))
    if not path.exists():
        new.rename(path)
        sync(path.parent)
        return
    old = new
    if not _exchange(new, path):
        old = path.with_name(f"{_HIDDEN}{path.name}{_REPLACED}")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        new.rename(path)
    sync(path.parent)  # before the old one goes: a power cut leaves either
    shutil.rmtree(old)


def make_folder(path):
    """Makes a folder (a `Path`), and those above it, where there is none; their names are on disk then."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def reserve(folder, size):
    """Raises OSError unless a file of `size` bytes fits into a folder: some formats crash where it does not."""
    room = folder / f"{_HIDDEN}room"
    try:
        with open(room, "wb") as file:
            if size and hasattr(os, "posix_fallocate"):  # Linux
                os.posix_fallocate(file.fileno(), 0, size)
    finally:
        room.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder):
    """A context in which a folder is no leftover: `remove_leftovers` of no process takes it away."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder, name=""):
    """Removes what killed processes left half-written in a folder, of the file or folder `name` or of all.

    What a living process writes is locked, and stays; so does all on a file system without locks.
    """
    for leftover in Path(folder).glob(f"{_HIDDEN}{glob.escape(name)}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                target = leftover.with_name(leftover.name.removeprefix(_HIDDEN).removesuffix(_REPLACED))
                if leftover.name.endswith(_REPLACED) and not target.exists():  # killed in between: all there is
                    leftover.rename(target)
                else:
                    _remove(leftover)
            finally:
                os.close(descriptor)


def _beside(path):
    """A hidden name beside `path` that nobody else uses."""
    return path.with_name(f"{_HIDDEN}{path.name}-{secrets.token_hex(4)}")


def _opened(path, mode, options):
    """A new file beside `path`, locked before `remove_leftovers` of another process sees it, or another new one."""
    while True:
        file = open(_beside(path), mode, **options)  # noqa: SIM115
        _lock(file.fileno())
        if os.path.exists(file.name):
            return file
        file.close()


def _lock(descriptor):
    """Locks an open file or folder until it is closed, where the file system can; a kill ends the lock, too."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)


@contextlib.contextmanager
def _removed_on_error(path):
    try:
        yield
    except BaseException:
        _remove(path)
        raise


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(first, second):
    """Swaps two paths in one step, where the system (Linux) and the file system can. Returns whether they could."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(at, os.fsencode(first), at, os.fsencode(second), exchange) == 0


def sync(path):
    """Waits until a file, or the list of a folder's files, is on disk; the latter where the file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not os.path.isdir(path) or error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


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
