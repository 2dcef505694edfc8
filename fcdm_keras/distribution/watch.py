"""Bounds on waiting: for the other processes at the start, and for a step that does not end."""

import contextlib
import os
import sys
import threading
import time


@contextlib.contextmanager
def deadline(seconds, message):
    """Ends the process with `message` on stderr if the body takes longer than `seconds`.

    An engine that waits for others in native code raises nothing, so this is the only way out.
    """
    finished = threading.Event()

    def watch():
        if not finished.wait(seconds):
            abandon(f"error: {message}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


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
