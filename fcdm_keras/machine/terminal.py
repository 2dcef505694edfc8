"""Standard output and error that end no command: full, closed, or unable to write what is printed.

Standard library only.
"""

import contextlib
import errno
import os
import sys


@contextlib.contextmanager
def lasting():
    """A context in which printing never fails: what a stream cannot take is dropped, or spelt in ASCII.

    Raises:
        OSError: at its end, if standard output could not be written to; not where its reader has left, as `head` does.
    """
    _open_closed()
    streams, output = (sys.stdout, sys.stderr), _Lasting(sys.stdout)
    sys.stdout, sys.stderr = output, _Lasting(sys.stderr)
    try:
        yield
    finally:
        output.flush()
        sys.stdout, sys.stderr = streams
    if output.failure not in (None, errno.EPIPE):
        reason = os.strerror(output.failure)
        raise OSError(f"Standard output could not be written to ({reason}): what was printed is lost, nothing else.")


class _Lasting:
    """A text stream whose first failure silences it."""

    def __init__(self, stream):
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115 - it lasts as long as the program
        self.failure = None
        with contextlib.suppress(AttributeError, OSError, ValueError):  # OSError: a pipe put in the place of a file
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text):
        if self.failure is None:
            self._try(self._stream.write, text)
        return len(text)

    def flush(self):
        if self.failure is None:
            self._try(self._stream.flush)

    def _try(self, action, *arguments):
        try:
            action(*arguments)
        except OSError as error:
            self.failure = error.errno or errno.EIO
            with contextlib.suppress(OSError, ValueError):  # what is left in its buffer must not fail again
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name):
        return getattr(self._stream, name)


def _open_closed():
    """Opens standard streams that are closed on nothing, lest a file of ours gets their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
