"""Signals: what they end, when, and with which words; and worker processes, which leave them to their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_distribution import FLAGS, finished, places, start, weights

pytestmark = pytest.mark.no_backend
ROOT = Path(__file__).parents[1]

LISTENING = """
import time
from fcdm_keras.signals import Listening, interruptible
with Listening() as listening:
    print("here", flush=True)
    while not listening.number: time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(60)
"""
ENDING = """
import time
from fcdm_keras.options import reported
with reported("Stopped. It goes on."):
    print("here", flush=True)
    time.sleep(60)
"""
WORKING = """
import numpy as np
from fcdm_keras.data.batches import ArraySource, training_batches
if __name__ == "__main__":
    source = ArraySource({"latents": np.zeros((8, 2, 2, 1)), "labels": np.arange(8)})
    for batch in training_batches(source, 4, 10**9, 0, workers=1):
        print("batch", flush=True)
"""


def program(tmp_path, text):
    """A fresh interpreter that runs a program which imports neither Keras nor an engine."""
    file = tmp_path / "program.py"
    # Where these tests run in a shell's background, Ctrl-C is ignored, which a child inherits.
    file.write_text(f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{text}")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, str(file)], env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


def test_signals_within_a_second_are_one_and_a_later_one_ends_at_once(tmp_path):
    with program(tmp_path, LISTENING) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "noted\n"
        process.send_signal(signal.SIGTERM)  # as `timeout` sends it to the process and to its group
        time.sleep(1.1)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGUSR1)
        assert process.wait(10) == 128 + signal.SIGUSR1 and time.monotonic() - began < 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_outside_training_ends_with_one_line(number, tmp_path):
    with program(tmp_path, ENDING) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        assert process.communicate(timeout=10)[1] == "\nStopped. It goes on.\n"
        assert process.returncode == 128 + number


def children(pid):
    """Process ids of its worker processes: not of the tracker of resources, which Python has beside them."""
    listed = [child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [int(child) for child in listed if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked up as Linux shows them")
def test_a_reading_process_leaves_signals_to_its_run_and_ends_with_it(tmp_path):
    with program(tmp_path, WORKING) as process:
        assert process.stdout.readline() == "batch\n"
        (worker,) = children(process.pid)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker, number)
        for _ in range(100):  # more than lie ready
            assert process.stdout.readline() == "batch\n"
        process.kill()
        killed = time.monotonic()
        while Path(f"/proc/{worker}").exists() and time.monotonic() - killed < 5:
            time.sleep(0.05)
        assert not Path(f"/proc/{worker}").exists()


def test_a_signal_to_one_process_of_a_job_stops_all_after_the_same_step(tmp_path):
    flags = ("train_imagenet.py", f"--results-dir={tmp_path}", *FLAGS, "--steps=100000", "--sample-every=0")
    together = [start(*flags, **place) for place in places()]
    log = tmp_path / "digits" / "log.csv"
    while not (log.exists() and len(log.read_text().splitlines()) > 5):
        assert together[0].poll() is None, together[0].stdout.read()
        time.sleep(0.05)
    together[1].send_signal(signal.SIGTERM)
    outputs = [finished(process, 60) for process in together]
    assert [status for _, status in outputs] == [128 + signal.SIGTERM] * 2, outputs
    step = int(outputs[0][0].partition("Stopped by SIGTERM after step ")[2].split(",")[0])
    assert weights(tmp_path, step)["vars/0"] == step  # named by `is saved`
    assert "Traceback" not in outputs[0][0] + outputs[1][0] and "Stopped" not in outputs[1][0]
