"""How much memory of the host is free, and whether something fits into it. Standard library only."""

import os
import re
import resource
from pathlib import Path

_RESERVE = 2**26  # bytes for all else; what needs fewer is not asked about
_CGROUPS = (  # where control groups are mounted; limit and use, of version 2 and of version 1
    (Path("/sys/fs/cgroup"), "", "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def available():
    """Bytes of memory that this process can still take: what the system, its control groups and `ulimit -v` leave."""
    return max(0, min(_of_system(), *_of_groups(), *_of_process()))


def check(needed, what, remedy):
    """Raises ValueError, with both numbers, if `needed` bytes are more than there are.

    Args:
        needed: bytes, an integer of any size.
        what: what needs them, the beginning of the sentence, such as "A batch of 512 images of 256×256".
        remedy: what to do, the end of the sentence, such as "use a smaller --batch-size".
    """
    if needed < _RESERVE:
        return
    free = available()
    if needed + _RESERVE > free:
        raise ValueError(f"{what} needs {size(needed)} of memory, and {size(free)} are free: {remedy}.")


def size(count):
    """Bytes as text: `3.0 GiB`, `512.0 MiB`."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _of_system():
    known = re.search(r"^MemAvailable:\s*(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    if known:
        return int(known[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups():
    """What each control group that this process is in leaves, where it has a limit."""
    paths = {controllers: path for _, controllers, path in re.findall(r"(\d+):(.*):(.*)", _text("/proc/self/cgroup"))}
    for root, controller, limit, used in _CGROUPS:
        own = root / paths.get(controller, "").lstrip("/")
        for folder in (own, *own.parents):
            numbers = [_text(folder / name).strip() for name in (limit, used)]
            if all(number.isdecimal() for number in numbers):  # "max" is none
                cache = re.search(r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                yield int(numbers[0]) - int(numbers[1]) + (int(cache[1]) if cache else 0)  # files read are let go of
            if folder == root:
                break


def _of_process():
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _text("/proc/self/statm").split()
    if limit >= 0:  # −1 is none
        yield limit - (int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0)


def _text(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""
