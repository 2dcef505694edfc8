"""Memory that a process keeps between the steps of a training. Standard library only.

The C library gives large blocks back to the system when they are freed, and asks for them again in the next step. Where
an engine allocates gigabytes a step this way, as JAX does on CPUs, clearing the pages takes a third of the time, and
more on virtual machines. Kept memory is reused as it is.
"""

import ctypes
import os

SWITCH = "FCDM_KERAS_KEEP_MEMORY"
# From glibc's malloc.h: no block comes from mmap, the heap is never trimmed, and there is one for all threads.
_OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_ARENA_MAX": (-8, 1)}


def keep(environ=os.environ):
    """Keeps freed memory in this process from now on. Returns whether it does.

    Not if `FCDM_KERAS_KEEP_MEMORY=0` is in the environment, or the C library is not glibc, or another allocator stands
    in its place.
    """
    if environ.get(SWITCH, "1") == "0" or "malloc" in environ.get("LD_PRELOAD", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) for option, value in _OPTIONS.values())
