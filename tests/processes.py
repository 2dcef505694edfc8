"""Python processes for tests: as from `subprocess`, but forked from a warm one where `suite.py` has started it.

A plain `python -m pytest tests/test_x.py` gets fresh interpreters, which start in some ten seconds.
"""

import json
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

SOCKETS = "FCDM_WARM_PROCESSES"  # the variable that names the folder of the warm processes' sockets
# Variables that are read when they are needed. Any other one that differs may have been read at an import.
READ_LATE = {
    SOCKETS, "SUITE_RECORD", "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "KERAS_BACKEND", "XLA_FLAGS", "LOGICAL_DEVICES",
    "KILL_AT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TF_CONFIG", "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES", "JAX_PROCESS_ID",
}  # fmt: skip
_used, _peak = 0.0, 0


def start_warm(backends, folder):
    """Starts a warm process for each backend, and waits until all have imported everything."""
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    started = []
    for backend in backends:
        command = [sys.executable, str(Path(__file__).with_name("warm.py")), str(folder / backend)]
        environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(Path(__file__).parents[1])}
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "start_new_session": True}
        started.append(subprocess.Popen(command, env=environment, **options))
    while not all((folder / backend).exists() for backend in backends):
        for process in started:
            if process.poll() is not None:
                raise SystemExit(f"error: a warm process ended with exit code {process.returncode}; see above.")
        time.sleep(0.05)
    os.environ[SOCKETS] = str(folder)
    return started


def start(command, *, cwd=None, env=None, stdin=None, stdout=None, stderr=None, text=False, start_new_session=False):
    """`subprocess.Popen(command, …)`; `command` begins with `sys.executable`."""
    address = _warm(command, env or os.environ)
    if address is None:
        options = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "start_new_session": start_new_session}
        return subprocess.Popen(command, cwd=cwd, env=env, text=text, **options)
    return Forked(address, command, cwd, env or os.environ, (stdin, stdout, stderr), text)


def run(command, *, input=None, timeout=None, check=False, capture_output=False, **options):
    """`subprocess.run(command, …)`."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(command, **options)
    try:
        output, errors = process.communicate(input, timeout)
    finally:
        process.kill()
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output, errors)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def cpu_seconds():
    """Of this process and all that it has started and waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return _used + sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_kib():
    """The most memory that this process, or one that it has started and waited for, has had."""
    return max(_peak, *(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _warm(command, env):
    """The address of the warm process that can run a command as a fresh interpreter would; None if there is none."""
    if SOCKETS not in os.environ or command[0] != sys.executable:
        return None
    program = command[2:] if command[1] == "-P" else command[1:]
    if program[0].startswith("-") and program[0] not in ("-c", "-m"):
        return None
    folder = Path(os.environ[SOCKETS])
    warm = json.loads((folder / "environment.json").read_text())
    changed = {name for name in {*env, *warm} if env.get(name) != warm.get(name)}
    address = folder / env["KERAS_BACKEND"]
    return str(address) if changed <= READ_LATE and address.exists() else None


class Forked:
    """What tests need of `subprocess.Popen`, of a process that a warm one has forked, always in a new session."""

    def __init__(self, address, command, cwd, env, streams, text):
        self.args, self.returncode, self.cpu_seconds = command, None, 0.0
        given, (self.stdin, self.stdout, self.stderr) = _connect(streams, text)
        request = {
            "arguments": [os.fspath(a) for a in command[1:]],
            "cwd": os.fspath(cwd or os.getcwd()),
            "env": {**env},
        }
        data = json.dumps(request).encode()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        socket.send_fds(self._connection, [struct.pack("!I", len(data))], given)
        self._connection.sendall(data)
        for stream in {*given} - {0, 1, 2}:
            os.close(stream)
        self.pid = self._answer()["pid"]

    def _answer(self):
        line = b""
        while not line.endswith(b"\n"):  # byte by byte: what follows is left where `wait` looks for it
            byte = self._connection.recv(1)
            if not byte:
                raise RuntimeError("the warm process has ended")
            line += byte
        return json.loads(line)

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout=None):
        global _used, _peak
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self._connection.recv(1, socket.MSG_PEEK)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout) from None
            self._connection.settimeout(None)
            ended = self._answer()
            self.returncode, self.cpu_seconds = ended["returncode"], ended["cpu"]
            _used, _peak = _used + ended["cpu"], max(_peak, ended["peak"])
            self._connection.close()
        return self.returncode

    def communicate(self, input=None, timeout=None):
        end = None if timeout is None else time.monotonic() + timeout
        if self.stdin:
            if input:
                self.stdin.write(input)
            self.stdin.close()
        read = {}
        readers = [
            threading.Thread(target=lambda pipe=pipe: read.update({pipe: pipe.read()}), daemon=True)
            for pipe in (self.stdout, self.stderr)
            if pipe
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if end is None else max(0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(None if end is None else max(0, end - time.monotonic()))
        for pipe in read:
            pipe.close()
        return read.get(self.stdout), read.get(self.stderr)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(9)

    def terminate(self):
        self.send_signal(15)


def _connect(streams, text):
    """The descriptors that a process gets as its streams, and this side's files of those that are pipes."""
    given, ours = [], []
    for number, stream in enumerate(streams):
        own = None
        if stream == subprocess.PIPE:
            ends = os.pipe()
            theirs, mine = ends if number == 0 else ends[::-1]
            mode = "w" if number == 0 else "r"
            own = os.fdopen(mine, mode if text else mode + "b")
        elif stream == subprocess.STDOUT:
            theirs = given[1]
        elif stream == subprocess.DEVNULL:
            theirs = os.open(os.devnull, os.O_RDWR)
        else:
            theirs = number if stream is None else os.dup(stream.fileno())
        given.append(theirs)
        ours.append(own)
    return given, ours
