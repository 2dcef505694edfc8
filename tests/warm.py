"""A process that has imported everything heavy and forks the processes that tests start, each in milliseconds.

    KERAS_BACKEND=torch python tests/warm.py ADDRESS      # `suite.py` starts it; `processes.py` asks it

It has initialised nothing: no JAX backend, no TensorFlow context, no thread. So a child reads XLA_FLAGS, TF_CONFIG,
RANK and the like as a fresh interpreter does, and ends as one: with its exit code, its message or by a signal.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading

# Keras first, as in our own modules: under PyTorch it crashes where TensorFlow comes before.
NAMES = (
    "torch", "jax", "tensorflow", "h5py", "PIL.Image", "matplotlib.pyplot", "grain", "pytest", "sklearn.linear_model",
    "sklearn.datasets", "scipy.linalg", "tensorboardX", "safetensors.numpy", "tqdm",
)  # fmt: skip
NAMES_ON_TORCH = ("open_clip", "tensorflow_datasets")  # of the text encoder's process


def import_all():
    for name in ("keras", "fcdm_keras.backend.hub", *NAMES):
        importlib.import_module(name)
    if os.environ["KERAS_BACKEND"] == "torch":
        for name in NAMES_ON_TORCH:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children leave these objects' pages alone, and so share them
    tasks = "/proc/self/task"
    if os.path.exists(tasks) and len(os.listdir(tasks)) > 1:
        raise RuntimeError("an import has started a thread, which forked processes would lack")


def serve(address):
    """Forks a child for each request until stdin ends. Returns in a child, with what it shall run."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    selector, connections = selectors.DefaultSelector(), {}  # process id → connection to who asked for it
    for source in (listener, woken, sys.stdin):
        selector.register(source, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                for pid in connections:
                    _kill(pid)
                sys.exit()
            elif key.fileobj is woken:
                woken.recv(4096)
                _report_ends(connections, selector)
            elif key.fileobj is listener:
                connection = listener.accept()[0]
                request, streams = _receive(connection)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for own in (listener, wake, woken, selector, connection, *connections.values()):
                        own.close()
                    return request, streams
                for stream in streams:
                    os.close(stream)
                connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
                connections[pid] = connection
                selector.register(connection, selectors.EVENT_READ, pid)
            else:  # who asked for it has ended
                selector.unregister(key.fileobj)
                key.fileobj.close()
                _kill(key.data)
                connections.pop(key.data)


def _receive(connection):
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    size, data = struct.unpack("!I", head)[0], b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return json.loads(data), streams


def _report_ends(connections, selector):
    """Sends exit code, CPU seconds (of its own children, too) and peak memory of the children that have ended."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        if pid not in connections:
            continue
        connection = connections.pop(pid)
        selector.unregister(connection)
        ended = {"returncode": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime}
        with contextlib.suppress(OSError):  # nobody waits any more
            connection.sendall(json.dumps({**ended, "peak": usage.ru_maxrss}).encode() + b"\n")
        connection.close()


def _kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def prepare(request, streams):
    """Makes this child look like an interpreter that has just been started."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.modules["numpy"].random.seed()


def run(arguments):
    """What follows `python` on a command line: `-c TEXT`, `-m MODULE` or a script, after `-P` or not."""
    safe = arguments[0] == "-P"
    kind, *rest = arguments[safe:]
    del sys.path[0]  # this script's folder
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[:0] = [] if safe else [""]
        module = type(sys)("__main__")
        module.__builtins__ = __builtins__
        sys.modules["__main__"] = module
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    elif kind == "-m":
        sys.argv = ["-m", *rest[1:]]
        sys.path[:0] = [] if safe else [os.getcwd()]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        sys.path[:0] = [] if safe else [os.path.dirname(os.path.abspath(kind))]
        runpy.run_path(kind, run_name="__main__")


def end(error):
    """Ends the process as the interpreter does after `error`, or None; but does not take its objects apart, for 1 s."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, (int, type(None))):
            print(error.code, file=sys.stderr)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    import_all()
    asked = serve(sys.argv[1])
    failure = None
    try:
        prepare(*asked)
        run(asked[0]["arguments"])
    except BaseException as error:
        failure = error
    end(failure)
