"""Ends of a process at any of its file operations, by kill -9 or by a power cut.

`watched` counts the operations under a folder and ends the process before the n-th. For a power cut it keeps a journal;
`cut` then takes from the folder what no fsync had brought to disk: the contents of files, names in folders, and
renames, which come undone. That is the least that a file system promises; real ones keep more.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from fcdm_keras import files

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ASIDE = (".owner", "tensorboard")  # signs of life, which come at any time; a library's log


class watched:
    """Counts the file operations of this process under a folder, and ends it before one of them.

    Args:
        root: the folder, a `Path`, absolute.
        end_at: number of the operation, from 1 on, or `None`.
        journal: file for what `cut` needs, outside of the folder.
        dropped: number of the fsync, from 1 on, that is left out.
    """

    def __init__(self, root, end_at=None, journal=None, dropped=None):
        self.root, self.end_at, self.dropped = str(root), end_at, dropped
        self.count = self.syncs = 0
        self._busy = False
        self._journal = journal and os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._shadow = journal and Path(f"{journal}.shadow")
        if journal:
            self._shadow.mkdir()
        sys.addaudithook(self._hear)
        self._fsync, self._exchange = os.fsync, files._exchange
        os.fsync, files._exchange = self._on_fsync, self._on_exchange
        for name in ("rename", "replace"):
            setattr(os, name, self._renaming(getattr(os, name)))

    def _is_here(self, path):
        with contextlib.suppress(TypeError):
            text = os.path.abspath(os.fspath(path))
            return text.startswith(self.root) and not any(f"/{name}" in text for name in ASIDE)
        return False

    def _hear(self, event, arguments):
        if self._busy:
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & WRITING or not self._is_here(path):
                return
        elif event in CHANGES:
            inside = isinstance(arguments[-1], int) and arguments[-1] != -1  # relative to an open folder, in `rmtree`
            if not (
                inside or any(self._is_here(path) for path in arguments[:2] if isinstance(path, (str, os.PathLike)))
            ):
                return
        else:
            return
        self.step()

    def step(self):
        """One operation is about to be done."""
        self.count += 1
        if self.count == self.end_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, **entry):
        if self._journal:
            os.write(self._journal, json.dumps(entry).encode() + b"\n")

    def _on_fsync(self, descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not self._is_here(path) and path != os.path.dirname(self.root):
            return self._fsync(descriptor)
        self.step()
        self.syncs += 1
        if self.syncs == self.dropped:
            return None
        found = os.fstat(descriptor)
        names = (
            {name: os.lstat(os.path.join(path, name)).st_ino for name in os.listdir(path)}
            if os.path.isdir(path)
            else None
        )
        self._note(sync=found.st_ino, size=found.st_size, time=found.st_mtime_ns, names=names)
        return None

    def _renaming(self, rename):
        def renamed(source, target, **options):
            if options or not self._is_here(target):
                return rename(source, target, **options)
            source, target = os.path.abspath(source), os.path.abspath(target)
            self.step()
            self._busy, kept = True, None
            if self._journal and os.path.isfile(target):
                kept = str(self._shadow / str(self.count))
                os.link(target, kept)
            self._note(source=source, target=target, kept=kept, parent=os.stat(os.path.dirname(target)).st_ino)
            try:
                return rename(source, target)
            finally:
                self._busy = False

        return renamed

    def _on_exchange(self, first, second):
        self.step()
        parent = os.stat(os.path.dirname(second)).st_ino
        self._note(source=str(first), target=str(second), kept="exchange", parent=parent)
        return self._exchange(first, second)


def state(root):
    """What is on disk before a process begins, for `cut`: names of each folder and facts of each file, by inode."""
    names, facts = {}, {}
    for folder, _, _ in os.walk(root):
        entries = {name: os.lstat(os.path.join(folder, name)) for name in os.listdir(folder)}
        names[os.stat(folder).st_ino] = {name: entry.st_ino for name, entry in entries.items()}
        facts |= {entry.st_ino: (entry.st_size, entry.st_mtime_ns) for entry in entries.values()}
    return names, facts


def cut(root, before, journal):
    """Leaves under a folder what a power cut leaves for sure, after a `watched` process has ended."""
    names, facts = before
    entries = [json.loads(line) for line in Path(journal).read_text().splitlines()]
    for place, entry in reversed(list(enumerate(entries))):
        if "source" in entry and not any(later.get("sync") == entry["parent"] for later in entries[place:]):
            _undo(**entry)
    for entry in entries:
        if "sync" in entry and entry["names"] is not None:
            names[entry["sync"]] = entry["names"]
        elif "sync" in entry:
            facts[entry["sync"]] = (entry["size"], entry["time"])
    for folder, folders, _ in os.walk(root):
        known = names.get(os.stat(folder).st_ino, {})
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            found = os.lstat(path)
            if any(aside in path for aside in ASIDE):
                continue
            if name not in known:
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
                folders[:] = [other for other in folders if other != name]
            elif not os.path.isdir(path) and facts.get(found.st_ino) != (found.st_size, found.st_mtime_ns):
                os.truncate(path, 0)
    shutil.rmtree(f"{journal}.shadow")


def _undo(source, target, kept, parent):
    if kept == "exchange":
        if os.path.exists(source):
            files._exchange(Path(source), Path(target))
        else:  # what was there has been removed
            os.rename(target, source)
        return
    if os.path.lexists(target):
        if os.path.isdir(os.path.dirname(source)):
            os.rename(target, source)
        elif os.path.isdir(target):
            shutil.rmtree(target)
        else:
            os.unlink(target)
    if kept:
        os.link(kept, target)
