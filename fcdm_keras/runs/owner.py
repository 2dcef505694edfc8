"""Who owns a run folder: one command at a time, on one host or on many. Standard library only.

    with owned("runs/digits"):      # refused, in one sentence, while another command lives that holds the folder
        …                           # here `check("runs/digits")` raises if the folder was lost all the same

A claim is a file `<folder>/.owner/<number>`: in its first bytes a sign of life that a thread of the owner renews, then
the owner in JSON. The highest number holds. Who finds none, or a dead owner's, makes the next number, which one of
many can (O_EXCL), and then looks again: a number above its own, or the claim that it found no longer there, and it
takes its own back. No file is ever replaced by another's, so that no claim is removed by who meant an older one, and no
locks are needed.

Whether an owner lives: on the same kernel, among the same process numbers, if its process is there and began when the
claim says (a number lives on as something else). From elsewhere, if a sign of life changes while it is watched; no
clock is compared with another.
"""

import contextlib
import dataclasses
import json
import os
import random
import re
import secrets
import socket
import sys
import threading
import time
from pathlib import Path

HOME = ".owner"  # in the run folder, while it is owned
INTERVAL = 2.0  # seconds between signs of life
QUIET = 15.0  # seconds without one, after which an owner elsewhere is taken for dead
POLL = 0.25  # seconds between looks at a claim
LOOKS = 4  # at which a process must be there: one that was just killed is not gone at once
PATIENCE = 3.0  # seconds of waiting before it is told of

_SIGN = 20  # bytes of a sign of life
_CLAIMING = b"claiming".ljust(_SIGN)  # in its place, before the second look
_LONGEST = 2**14  # bytes of a claim that are read
_OWNER = {"host": str, "pid": int, "since": str, "machine": str, "began": (str, type(None)), "home": int, "token": str}
_EXITING = 4  # PF_EXITING among Linux's flags of a process
_NUMBER = re.compile(r"\d{6,}")
_held = {}  # real path of a folder → the claim of this process


@contextlib.contextmanager
def owned(folder, place="--results-dir"):
    """A context in which this process owns a run folder, which is made where there is none.

    Args:
        folder: the run folder.
        place: the flag that names another one.

    Raises:
        OSError: another command owns it, or it cannot be written to.
    """
    claim = _acquire(Path(folder), place)
    key = Path(os.path.realpath(folder))
    _held[key] = claim
    try:
        yield
    finally:
        del _held[key]
        claim.release()


def check(folder, surely=True):
    """Raises OSError if this process has owned the folder and has lost it; to be called before it is written to.

    Args:
        folder: a run folder, or a folder in one; where this process never owned any, all is well.
        surely: look at the files now; else what was last seen of them counts, up to `INTERVAL` ago.
    """
    path = Path(os.path.realpath(folder))
    for owned_folder, claim in _held.items():
        if owned_folder in (path, *path.parents):
            claim.check(surely)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A claim as it was read: its number, its sign of life, and its owner, `None` where that cannot be read."""

    number: int
    sign: bytes
    owner: dict | None

    def __str__(self):
        if self.owner is None:
            return f"a process that its damaged claim {HOME}/{_name(self.number)} does not name"
        return f"process {self.owner['pid']} on {self.owner['host']}, since {self.owner['since']}"


class _Claim:
    """This process's own claim, with a thread that renews its sign of life."""

    def __init__(self, folder, number, owner):
        self.folder, self.number, self.owner = folder, number, owner
        self.file = folder / HOME / _name(number)
        self.lost = ""  # to whom
        self._beats = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._beat()
        threading.Thread(target=self._live, daemon=True).start()

    def _live(self):
        while not self._end.wait(INTERVAL) and not self.lost:
            self._beat()

    def _beat(self):
        """Renews the sign of life, or finds that the claim is lost; what fails for now is tried again."""
        with self._lock, contextlib.suppress(OSError):
            own = _read(self.file)
            newest = _newest(self.file.parent) if self.file.parent.exists() else None
            above = newest is not None and newest.number > self.number and newest.sign != _CLAIMING
            if own is None or above or own.owner not in (None, self.owner):
                self.lost = f"by {newest}" if newest else "by a command that has ended"
                return
            self._beats += 1
            sign = str(self._beats).rjust(_SIGN).encode()
            whole = own.owner is not None
            _write(self.file, sign if whole else sign + b"\n" + json.dumps(self.owner).encode(), os.O_WRONLY)

    def check(self, surely):
        if surely:
            self._beat()
        if self.lost:
            raise OSError(
                f"{self.folder} was taken over {self.lost}, while this process was stopped or its claim {self.file} "
                "removed: it ends, and writes nothing more there."
            )

    def release(self):
        self._end.set()
        if os.getpid() != self.owner["pid"]:  # a forked child
            return
        self._beat()
        if not self.lost:
            with contextlib.suppress(OSError):
                self.file.unlink()
                self.file.parent.rmdir()


def _acquire(folder, place):
    """A claim on the folder, as soon as no other holds. Raises OSError."""
    home, watch, vanished = folder / HOME, _Watch(folder), 0
    while True:
        try:
            home.mkdir(parents=True, exist_ok=True)
            found = _newest(home)
            alive = found is not None and watch.alive(found)
            claim = _try(folder, found) if alive is False else None
        except OSError as error:
            if error.errno is None:  # one of our sentences
                raise
            vanished += isinstance(error, (FileNotFoundError, FileExistsError))  # an owner left in this moment?
            if 0 < vanished < 20:
                time.sleep(random.uniform(0, POLL))
                continue
            raise OSError(f"The run folder {folder} cannot be written to: {error.strerror or error}.") from None
        if claim is not None:
            return claim
        if alive:
            raise OSError(f"{folder} is in use by {found}: wait for its end, stop it there, or give another {place}.")
        time.sleep(POLL if alive is None else random.uniform(0, POLL))


class _Watch:
    """Watches a claim until it is known whether its owner lives."""

    def __init__(self, folder):
        self.folder = folder
        self.seen, self.quiet, self.last, self.told, self.looks = None, 0.0, 0.0, False, 0

    def alive(self, found):
        """True, False, or `None` as long as that is not known."""
        now, before = time.monotonic(), self.seen
        answer = _answers(found.owner, self.folder / HOME)
        sure = found.sign != _CLAIMING
        if answer is False:
            return False
        if answer and sure:
            self.looks += 1
            return True if self.looks >= LOOKS else None
        same = before is not None and (before.number, before.owner) == (found.number, found.owner)
        if same and sure and before.sign != found.sign:
            return True
        # What hangs, such as a file system's server, hangs for its owner, too: a look counts for little.
        self.quiet = self.quiet + min(now - self.last, 2 * POLL) if same else 0.0
        self.seen, self.last = found, now
        if self.quiet > PATIENCE and not self.told:
            self.told = True
            print(f"{self.folder} is held by {found}, and is taken over unless that gives a sign of life.", flush=True)
        return None if self.quiet < QUIET else bool(answer)


def _try(folder, found):
    """The claim after the one that was found (`None`: the first); `None` where another was quicker."""
    home, number = folder / HOME, found.number + 1 if found else 1
    file = home / _name(number)
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "machine": _machine(),
        "began": _began(os.getpid()),
        "home": home.stat().st_ino,
        "token": secrets.token_hex(8),
    }
    try:
        _write(file, _CLAIMING + b"\n" + json.dumps(owner).encode(), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except (FileExistsError, FileNotFoundError):  # the latter: the folder was given back in this moment
        return None
    newest, still = _newest(home), _read(home / _name(found.number)) if found else None
    if newest is None or newest.number != number or (found and (still is None or still.owner != found.owner)):
        with contextlib.suppress(OSError):
            file.unlink()
        return None
    claim = _Claim(folder, number, owner)
    for lower in (n for n in _numbers(home) if n < number):
        (home / _name(lower)).unlink(missing_ok=True)
    return claim


def _newest(home):
    """The claim that holds, or `None`. Raises OSError."""
    every = (_read(home / _name(number)) for number in reversed(_numbers(home)))
    return next((seen for seen in every if seen is not None), None)


def _numbers(home):
    return sorted(int(name) for name in os.listdir(home) if _NUMBER.fullmatch(name))


def _read(file):
    """A claim, or `None` where there is none. Raises OSError if it cannot be read."""
    try:
        with open(file, "rb") as opened:
            content = opened.read(_LONGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OSError(
            f"The claim {file} on a run folder cannot be read ({error.strerror or error}): remove it if no command is "
            "at work there."
        ) from None
    try:
        owner = json.loads(content[_SIGN:])
        owner = owner if all(isinstance(owner[name], kind) for name, kind in _OWNER.items()) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        owner = None
    return _Seen(int(file.name), content[:_SIGN], owner)


def _write(file, content, flags):
    descriptor = os.open(file, flags, 0o666)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _name(number):
    return f"{number:06d}"


def _answers(owner, home):
    """Whether an owner's process is there; `None` where that cannot be asked from here, or of a folder's copy."""
    if owner is None or not owner["machine"] or (owner["machine"], owner["home"]) != (_machine(), home.stat().st_ino):
        return None
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    except OverflowError:
        return None
    began = _began(owner["pid"])
    return None if began is None else began == owner["began"]


def _machine():
    """What tells these process numbers from those of other machines and containers; empty if nothing does."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # of other process numbers than ours
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname() if sys.platform == "darwin" else ""


def _began(pid):
    """When a process began, in the kernel's ticks; `"ended"` for one that has, and `None` where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ended = fields[0] in "ZX" or int(fields[6]) & _EXITING
        return "ended" if ended else fields[19]
    except (OSError, IndexError, ValueError):
        return None
