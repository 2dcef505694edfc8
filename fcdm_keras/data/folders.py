"""Which files of a folder are pictures: the one lister of all commands. Standard library only.

Links are followed, and cut where they lead in a circle. Hidden files and folders are left out, and so is what other
programs leave behind, at every depth. A picture is what its ending says, or, of a file of no known ending, its first
bytes. Names may be any bytes.
"""

import dataclasses
import os
import re
from pathlib import Path

ENDINGS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi", ".mpo",
}  # fmt: skip
# Of macOS, Windows and network drives, in lower case; what begins with a dot is hidden anyway.
LEFTOVERS = {
    "__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "$recycle.bin", "system volume information",
    "lost+found", "thumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
_FIRST_BYTES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftypavi[fs]"
    rb"|qoif",
    re.DOTALL,
)


@dataclasses.dataclass
class Listing:
    """What is below a folder; its length is the number of pictures.

    Attributes:
        files: the pictures, in the order of their paths.
        hidden: hidden files and folders and leftovers of other programs, by number.
        others: files that are no pictures, by number; links to nothing are among them.
        loose: pictures beside the class folders, by number, where classes are asked for.
    """

    files: list[Path] = dataclasses.field(default_factory=list)
    hidden: int = 0
    others: int = 0
    loose: int = 0

    def __len__(self):
        return len(self.files)

    def add(self, other):
        """Takes another folder's up."""
        self.files += other.files
        self.hidden += other.hidden
        self.others += other.others

    def left_out(self):
        """What was left out, as one sentence for the user, or an empty text."""
        parts = [(self.others, "no pictures"), (self.loose, "in no class folder")]
        parts.append((self.hidden, "hidden, or leftovers of other programs"))
        total = sum(count for count, _ in parts)
        told = ", ".join(f"{count:,} {what}" for count, what in parts if count)
        return f"{total:,} {'entry is' if total == 1 else 'entries are'} left out: {told}." if total else ""


def list_pictures(folder, root=None):
    """The `Listing` of all pictures in a folder and below it; a link back to `root` is cut, too. Raises OSError."""
    listing = Listing()
    for path, kind in _walk(Path(folder), () if root is None else (_identity(root),)):
        if kind == "picture":
            listing.files.append(path)
        elif kind == "hidden":
            listing.hidden += 1
        else:
            listing.others += 1
    listing.files.sort()
    return listing


def holds_pictures(folder):
    """Whether there is a picture in a folder or below it."""
    return any(kind == "picture" for _, kind in _walk(Path(folder)))


def subfolders(folder):
    """Folders in a folder that are neither hidden nor leftovers, in the order of their names."""
    with os.scandir(folder) as entries:
        return sorted(Path(folder) / entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())


def is_hidden(name):
    """Whether an entry of that name is hidden or a leftover of another program."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def _walk(folder, above=()):
    """Yields (path, "picture", "hidden" or "other") of all that is below a folder, links followed, circles cut."""
    inner = {*above, _identity(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if is_hidden(entry.name):
                yield path, "hidden"
            elif not entry.is_dir():
                yield path, "picture" if is_picture(entry) else "other"
            elif _identity(path) not in inner:
                yield from _walk(path, inner)


def _identity(folder):
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def is_picture(entry):
    """Whether an `os.DirEntry` or `Path` is a picture: by its ending, or, with no known one, by its first bytes."""
    if not entry.is_file():  # no call of the system for an entry that is no link
        return False
    if os.path.splitext(entry.name)[1].lower() in ENDINGS:
        return True
    try:
        with open(entry, "rb") as file:
            return _FIRST_BYTES.match(file.read(16)) is not None
    except OSError:
        return False


def by_number(path):
    """Sorts paths whose names are numbers by these, and all others by their names, after them."""
    number = path.stem
    return (path.parent, 0, int(number), "") if number.isdecimal() else (path.parent, 1, 0, path.name)
