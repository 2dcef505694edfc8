"""Hosts that vanish: signs of life, and a real cut between two hosts that are network namespaces."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import hosts as spaces
import numpy as np
import pytest
from small_run import SMALL

import train_imagenet
from fcdm_keras import distribution, recipes
from fcdm_keras.backend import job as present
from fcdm_keras.distribution import heartbeat, hosts, supervision
from fcdm_keras.training.pulse import Pulse

pytestmark = pytest.mark.no_backend
ROOT = Path(__file__).parents[1]
INTERVAL, SILENT = 0.2, 1.5

# A process that has a heartbeat beside it: it hands on what either says, and ends when told.
BESIDE = """
import subprocess, sys, threading
program = subprocess.Popen([sys.executable, "-I", "-S", *sys.argv[1:]], stdin=subprocess.PIPE)
threading.Thread(target=program.wait, daemon=True).start()
for line in sys.stdin:
    if line == "exit\\n":
        break
    program.stdin.write(line.encode())
    program.stdin.flush()
"""


class Beside:
    """Process `index` of a job on this host, and its heartbeat."""

    def __init__(self, index, first=None, interval=INTERVAL, silent=SILENT, token="secret"):
        settings = {"index": index, "host": f"node{index}", "token": token, "interval": interval, "silent": silent}
        command = [sys.executable, "-I", "-S", "-c", BESIDE, heartbeat.__file__, json.dumps(settings)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes)
        if index == 0:
            self.port = self.hear("port")
        elif first:
            self.say(connect=["203.0.113.1.invalid", "127.0.0.1"], port=first.port, name="node0")

    def say(self, **message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def hear(self, word):
        """The next message that has this word; the program ends if none comes."""
        for line in self.process.stdout:
            if word in (message := json.loads(line)):
                return message[word]
        raise AssertionError(f"never heard {word}: {self.process.stderr.read()}")

    def exit(self):
        self.process.stdin.write("exit\n")
        self.process.stdin.flush()
        assert self.process.wait(10) == 0


@pytest.fixture
def beside():
    """Makes a job of so many processes, which end with the test."""
    made = []

    def make(count, **options):
        made.append(Beside(0, **options))
        for index in range(1, count):
            made.append(Beside(index, made[0], **options))
            assert made[-1].hear("connected")
        return made

    yield make
    for one in made:
        one.process.kill()
        one.process.communicate()


def test_each_learns_the_others_steps(beside):
    job = beside(3)
    for index, one in enumerate(job):
        one.say(step=10 + index)
    expected = [[0, 10], [1, 11], [2, 12]]
    for one in job:
        heard = (one.hear("known") for _ in range(20))
        known = next(known for known in heard if [[index, step] for index, step, _ in known] == expected)
        assert all(0 <= silence < SILENT / 2 for *_, silence in known)


def test_a_killed_process_is_named_to_all_others(beside):
    job = beside(3)
    job[2].say(step=7)
    time.sleep(3 * INTERVAL)
    job[2].process.kill()
    for one in job[:2]:
        text = one.hear("lost")
        assert text.startswith("process 2 on node2 (127.0.0.1) has ended without a word, after step 7: it was killed")
        assert text.endswith("it goes on from the newest checkpoint.")


def test_a_welcome_may_come_together_with_the_first_sign_of_life():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = Beside(1)
        one.say(connect=["127.0.0.1"], port=listener.getsockname()[1], name="node0")
        connection, _ = listener.accept()
        with connection:
            assert json.loads(connection.recv(1000)) == {"token": "secret", "index": 1, "host": "node1"}
            connection.sendall(b'{"welcome": "secret"}\n{"step": 1, "known": []}\n')
            assert one.hear("connected")
    one.process.kill()
    one.process.communicate()


def test_last_words_are_passed_on_and_a_farewell_is_no_loss(beside):
    job = beside(3)
    job[1].say(end=True)
    job[1].exit()
    job[0].say(ended="process 0 on node0: The loss is nan at step 3")
    assert job[2].hear("lost") == "process 0 on node0: The loss is nan at step 3"


@pytest.mark.parametrize("index", [0, 2])
def test_a_stopped_process_is_silent_and_whoever_ignores_the_verdict_is_killed(beside, index):
    job = beside(3)
    job[index].process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    left = [one for one in job if one is not job[index]]
    for one in left:
        assert f"process {index} on node{index} (127.0.0.1) has not been heard of for " in one.hear("lost")
    assert SILENT - INTERVAL < time.monotonic() - began < SILENT + 2
    for one in job:  # the stopped one too
        assert one.process.wait(heartbeat.GRACE + 5) == -signal.SIGKILL
    assert left[0].process.stderr.read().startswith(f"error: process {index} on node{index}")


def test_a_busy_process_is_not_silent(beside):
    """Nobody reads, and the process beside does nothing, for longer than silence is borne."""
    job = beside(2)
    time.sleep(SILENT + 3 * INTERVAL)
    job[0].say(ended="done")
    assert job[1].hear("lost") == "done"


def test_a_stranger_is_not_let_in_and_no_answer_is_said(beside):
    first = beside(1)[0]
    other = Beside(1, first, token="another")
    try:
        assert other.hear("connected") is False
    finally:
        other.process.kill()
        other.process.communicate()
    first.say(step=1)
    assert [index for index, *_ in first.hear("known")] == [0]


class Known:
    """What a `Watch` holds, of four processes."""

    processes = [{"host": f"node{index}", "pid": 7} for index in range(4)]

    def __init__(self):
        self.known = {0: (12, 0), 1: (12, 1.0), 2: (11, 0.5), 3: (12, 20.0)}


def test_silent_and_slow_processes_are_named(monkeypatch):
    monkeypatch.setattr(present, "_job", distribution.Job(0, 4, ("a", "b", "c", "d")))
    watch = Known()
    monkeypatch.setattr(supervision, "_watch", watch)
    pulse = Pulse()
    pulse.step = 12
    text = pulse.describe(60)
    assert "no step has ended for 60 s, after step 12; process 2 (node2, 7) is behind, at step 11; process 3" in text
    assert "has not been heard of for 20 s, since step 12." in text and "node1" not in text
    del watch.known[3]
    assert "process 3 (node3, 7) gives no sign of life" in pulse.describe(60)
    watch.known = dict.fromkeys(range(4), (12, 0.0))
    assert "all processes are alive and at this step" in pulse.describe(60)


def test_the_interface_is_chosen_where_the_own_name_misleads(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(hosts.socket, "gethostname", lambda: "localhost")
    assert "localhost, stands for 127.0.0.1, which no other host reaches: mend /etc/hosts" in hosts.hidden()
    hosts.choose_interface(["127.0.0.1", "127.0.0.1"], 1)  # one host
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    with pytest.raises(OSError, match="mend /etc/hosts, or set GLOO_SOCKET_IFNAME to the network interface"):
        hosts.choose_interface(["198.51.100.1", "198.51.100.2"], 1)  # an address that this host does not have
    assert hosts.interface_of("127.0.0.1") == "lo"


REASON = spaces.missing()


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_a_cut_between_two_hosts_ends_the_job_and_what_it_saved_goes_on(tmp_path, monkeypatch, capsys):
    """By `hosts` files as Debian writes them."""
    monkeypatch.setitem(recipes.MODEL_SIZES, "XS", SMALL)
    flags = ["--steps=60", "--ckpt-every=10", "--global-batch-size=8", "--log-every=1", "--sample-every=0"]
    flags += ["--num-sampling-steps=1", "--connect-timeout=150"]
    with spaces.Hosts(2, debian=True) as pair:
        command = [sys.executable, str(ROOT / "tests" / "small_run.py"), "train_imagenet.py"]
        command += [f"--results-dir={tmp_path / 'two'}", *flags]

        def start():
            for i in range(2):
                place = {"MASTER_ADDR": pair.addresses[0], "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": str(i)}
                environment = {**os.environ, **place, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)}
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
                yield pair.start(i, command, cwd=ROOT, env=environment, **pipes)

        both = list(start())
        log = tmp_path / "two" / "digits" / "log.csv"
        while not log.exists() or len(log.read_text().splitlines()) < 15:
            assert all(process.poll() is None for process in both), [process.communicate()[0] for process in both]
            time.sleep(0.02)
        pair.cut(1)
        began = time.monotonic()
        outputs = [process.communicate(timeout=60)[0] for process in both]
        assert time.monotonic() - began < 60 and [process.returncode for process in both] == [1, 1], outputs
        for i, output in enumerate(outputs):
            other = (
                f"error: process {1 - i} on {pair.names[1 - i]} ({pair.addresses[1 - i]}) has not been heard of for "
            )
            assert other in output and output.count("error: ") == 1 and "Traceback" not in output, output
    for name in ("one", "two"):  # on this host alone
        train_imagenet.main([f"--results-dir={tmp_path / name}", *flags])
    assert "resumed at step " in capsys.readouterr().out
    logs = [np.loadtxt(tmp_path / name / "digits" / "log.csv", delimiter=",", skiprows=1) for name in ("one", "two")]
    assert len(logs[0]) == 60
    np.testing.assert_allclose(logs[1][:, :4], logs[0][:, :4], rtol=1e-4)
