"""Bounds on waiting: for the other processes at the start, and for a step that does not end."""

import contextlib
import os
import subprocess
import sys
import threading
import time

_GUARD = """import os, select, signal, sys
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    print(sys.argv[2], file=sys.stderr, flush=True)
    os.kill(int(sys.argv[3]), signal.SIGKILL)
"""


@contextlib.contextmanager
def deadline(seconds, message):
    """Kills this process, with `message` on stderr, if the body takes longer than `seconds`.

    An engine that waits for others does so in native code, where no Python thread or signal handler may run: a process
    beside this one keeps the time, until its standard input closes.
    """
    command = [sys.executable, "-S", "-E", "-c", _GUARD, str(seconds), f"error: {message}", str(os.getpid())]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        guard.stdin.close()
        guard.wait()


def abandon(message, status=1):
    """Ends the process at once. Peers and launcher notice; Python's exit could wait for them forever."""
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class StallReport:
    """Says so, on stderr, when nothing has happened for a while. `beat()` tells that something has.

    Args:
        seconds: silence after which to report; each further report waits twice as long.
        message: called with the seconds of silence, gives the text.
    """

    def __init__(self, seconds, message):
        self.seconds = seconds
        self.message = message
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def beat(self):
        self._last = time.monotonic()

    def stop(self):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        limit = self.seconds
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            silence = time.monotonic() - self._last
            if silence < self.seconds:
                limit = self.seconds
            elif silence >= limit:
                print(self.message(silence), file=sys.stderr, flush=True)
                limit = 2 * silence
