"""That a job of several processes is one, and that nobody waits in silence.

Checks that the processes run the same thing (versions, code, settings, one shared folder); bounds on waiting: for the
other processes at the start, for those that are gone, and for a step that does not end.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras

import fcdm_keras
from fcdm_keras.backend.job import is_main, job
from fcdm_keras.distribution import exchange, heartbeat, hosts

PATIENCE = 20  # seconds that a shared file system may take to show a file
INTERVAL = 3.0  # seconds between signs of life
SILENT = 25.0  # without one for so long, a process is lost; engines' own bounds are longer
CONTACT = re.compile("gloo|nccl|connect|socket|peer|collective|heartbeat|unavailable|aborted|cancelled|deadline", re.I)

_GUARD = """import os, select, signal, sys
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    print(sys.argv[2], file=sys.stderr, flush=True)
    os.kill(int(sys.argv[3]), signal.SIGKILL)
"""


def check_agreement(settings):
    """Raises ValueError unless every process has the same versions, code and settings.

    Args:
        settings: dict of what decides the run, for JSON.
    """
    own = {"fcdm_keras": fcdm_keras.__version__, "keras": keras.__version__, "code": code_hash(), **settings}
    every = [json.loads(text) for text in exchange.gather_texts(json.dumps(own))]
    for index, other in enumerate(every):
        different = [
            f"{name}={_shown(every[0].get(name))} in process 0, {_shown(other.get(name))} in process {index}"
            for name in {**every[0], **other}
            if every[0].get(name) != other.get(name)
        ]
        if different:
            raise ValueError(
                f"The processes of this job do not run the same: {'; '.join(different[:5])}. Start the same command, "
                "with the same code, on every host."
            )


def code_hash():
    """A short checksum of the package's source files."""
    folder, digest = Path(fcdm_keras.__file__).parent, hashlib.blake2b(digest_size=6)
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def check_shared(folder):
    """Raises OSError unless every process sees the same `folder`, which the first one can write to."""
    if job().process_count == 1:
        return
    token = exchange.gather_texts(secrets.token_hex(8))[0]
    file = Path(folder) / f".shared-{token}"
    if is_main():
        file.touch()
    exchange.barrier()
    limit = time.monotonic() + PATIENCE
    while not file.exists() and time.monotonic() < limit:
        time.sleep(0.2)
    seen = exchange.gather_texts("seen" if file.exists() else "")
    if is_main():
        file.unlink()
    blind = [str(index) for index, text in enumerate(seen) if not text]
    if blind:
        raise OSError(
            f"The folder {folder} is not shared: process {', '.join(blind)} does not see what process 0 writes there. "
            "Give a folder on storage that all hosts mount."
        )


def _shown(value):
    return repr(value)[:80]


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


_watch = None
_leaving = threading.Lock()


def abandon(message, status=1):
    """Ends the process at once. Peers are told, and launchers notice; Python's exit could wait for them forever."""
    _leaving.acquire()  # of two threads that have a reason, the first says it
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if _watch:
        _watch.farewell({"ended": message.removeprefix("error: ")} if status else {"end": True})
    os._exit(status)


class Watch:
    """Signs of life from and to the other processes of a job, by a `heartbeat` program beside this process.

    When one is lost, all that are left end with a sentence that names it. All processes make theirs together.

    Args:
        head: a name or address of process 0's host, if the environment gives one.
        interval: seconds between signs of life.
        silent: seconds without one, after which a process is lost.
    """

    def __init__(self, head="", interval=INTERVAL, silent=SILENT):
        self.known = {}  # of each process: (step, seconds since it was heard of)
        self._told = threading.Event()
        index, host = job().process_index, socket.gethostname()
        token = exchange.gather_texts(secrets.token_hex(8))[0]
        settings = {"index": index, "host": host, "token": token, "interval": interval, "silent": silent}
        command = [sys.executable, "-I", "-S", heartbeat.__file__, json.dumps(settings)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._program = subprocess.Popen(command, start_new_session=True, **pipes)
        own = {"host": host, "pid": os.getpid()}
        if index == 0:
            own |= {"names": hosts.names(head), **self._answer()}
        self.processes = [json.loads(text) for text in exchange.gather_texts(json.dumps(own))]
        first = self.processes[0]
        if index:
            self._tell(
                {"connect": [*filter(None, [head]), *first["names"]], "port": first["port"], "name": first["host"]}
            )
            if not self._answer()["connected"]:
                print(
                    f"warning: process {index} on {host} cannot reach port {first['port']} of {first['host']}, so that "
                    "signs of life do not pass between them: if a host is lost, the job may wait for it.",
                    file=sys.stderr,
                )
        os.set_blocking(self._program.stdin.fileno(), False)
        threading.Thread(target=self._listen, daemon=True).start()

    def step(self, number):
        """Tells the others that a step has ended."""
        self._tell({"step": number})

    def farewell(self, message):
        """Tells the others that this process ends, and waits until they may have heard."""
        self._tell(message)
        if self._told.wait(1.0) and job().process_index == 0:
            time.sleep(0.3)  # other processes' engines may depend on this one

    def _tell(self, message):
        with contextlib.suppress(OSError):  # it is gone, or busy
            os.write(self._program.stdin.fileno(), json.dumps(message).encode() + b"\n")

    def _answer(self):
        return json.loads(self._program.stdout.readline())

    def _listen(self):
        for line in self._program.stdout:
            message = json.loads(line)
            if "known" in message:
                self.known = {index: (step, silence) for index, step, silence in message["known"]}
            if "told" in message:
                self._told.set()
            if "lost" in message:
                abandon(f"error: {message['lost']}")


def watch():
    """The present `Watch`; `None` outside of `watched`, and in a process that is alone."""
    return _watch


@contextlib.contextmanager
def watched(head):
    """A context in which the processes of a job end when one of them is lost; see `Watch`."""
    global _watch
    _watch = Watch(head) if job().process_count > 1 else None
    try:
        yield
    finally:
        if _watch:
            _watch.farewell({"end": True})
        _watch = None


def await_verdict(error):
    """Where an engine's error may mean that a process is lost, waits for the sentence that says so, which ends this."""
    if _watch and CONTACT.search(f"{type(error).__name__} {error}"):
        time.sleep(SILENT + 3 * INTERVAL)


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
