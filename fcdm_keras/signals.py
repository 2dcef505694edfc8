"""The signals that end a run: SIGTERM and SIGUSR1 of schedulers, SIGINT of Ctrl-C. Standard library only."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
SAME = 1.0  # seconds in which signals are one: `timeout` and others send theirs to a process and to its group

_listening = None  # the `Listening` whose process may give up what it draws


class Stopped(SystemExit):
    """Ends a run because of a signal, by number; `code` is 128 more, as shells have it."""

    def __init__(self, number):
        super().__init__(128 + number)
        self.number = number


def name(number):
    """`"SIGTERM"` of 15."""
    return signal.Signals(number).name


class Listening:
    """A context in which a signal is noted in `number`, and a second one, a second later, ends the process at once.

    Signals reach Python's main thread only; in another thread this does nothing.

    Args:
        alone: whether the process may give up on its own what it does in `interruptible`.
    """

    def __init__(self, alone=True):
        self.alone = alone
        self.number = 0
        self._began = None
        self._open = False

    def __enter__(self):
        global _listening
        self._context = _relayed(SIGNALS, self._handle, self._count)
        self._context.__enter__()
        _listening = self if self.alone else None
        return self

    def __exit__(self, *raised):
        global _listening
        _listening = None
        self._context.__exit__(None, None, None)
        if self.number and raised[0] is None:  # it came too late to be looked at here
            os.kill(os.getpid(), self.number)

    def check(self):
        """Raises Stopped if a signal has come."""
        if self.number:
            raise Stopped(self.number)

    def _handle(self, number, frame):  # in the main thread
        self.number = self.number or number
        if self._open:
            self._open = False
            raise Stopped(self.number)

    def _count(self, number):  # in a thread of its own, whatever the main thread waits for
        now = time.monotonic()
        self._began = self._began or now
        if now - self._began > SAME:
            os._exit(128 + number)


@contextlib.contextmanager
def interruptible():
    """A context that a signal leaves at once by Stopped, where a process that is alone listens to signals."""
    listening = _listening
    if listening is None:
        yield
        return
    listening._open = True
    try:
        listening.check()
        yield
    finally:
        listening._open = False


@contextlib.contextmanager
def ending(text):
    """A context in which a scheduler's signal ends the process at once, as it does without, but with one line."""

    def end(number):
        with contextlib.suppress(OSError):
            os.write(sys.__stderr__.fileno(), f"\n{text}\n".encode())
        os._exit(128 + number)

    with _relayed(SIGNALS[1:], lambda number, frame: None, end):
        yield


def leave_to(parent):
    """In a worker process: leaves the signals to its parent, an object with `join()`, and ends when that has ended."""

    def follow():
        parent.join()
        os._exit(1)

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _relayed(numbers, handler, arrived):
    """Calls `handler(number, frame)` in the main thread, and `arrived(number)` in another, for each signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def relay():
        with reading:
            while received := reading.recv(1):
                if received[0] in numbers:
                    arrived(received[0])

    handlers = {number: signal.signal(number, handler) for number in numbers}
    descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=relay, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, before in handlers.items():
            signal.signal(number, before or signal.SIG_DFL)
        writing.close()
