"""Signs of life between the processes of a job, over the network: a program that runs beside each of them.

An interpreter of its own, so that an engine that waits, compiles or holds Python's lock for long does not look dead.
Process 0's listens; the others' connect to it and send their step every few seconds, and it answers with what it knows
of all. Who is silent for too long, or gone, is named to all that are left, and each ends the process beside it.

Messages are lines of JSON: to the peers over TCP, to the process beside over standard input and output. All times are
of the monotonic clock. Standard library only.
"""

import contextlib
import dataclasses
import json
import math
import os
import selectors
import signal
import socket
import sys
import time

CONNECT = 6.0  # seconds to reach process 0
GRACE = 3.0  # seconds that the process beside has to end by itself


@dataclasses.dataclass
class Peer:
    """Another process; `connection` is None once it has gone or said farewell."""

    index: int
    host: str
    connection: socket.socket | None
    address: str = ""
    heard: float = 0.0
    step: int | None = None
    rest: bytes = b""

    def __post_init__(self):
        self.address = self.connection.getpeername()[0].removeprefix("::ffff:")
        self.heard = time.monotonic()

    def received(self):
        """Messages that have come; raises EOFError where no more will, OSError and ValueError where they are broken."""
        data = self.connection.recv(65536)
        if not data:
            raise EOFError
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def send(self, message):
        with contextlib.suppress(OSError):  # of a connection that is cut or full: silence will tell
            self.connection.send(_line(message))


class Heartbeat:
    """Watches the peers, and the process beside, until one is gone or all is done.

    Args:
        index, host: of the process beside, which is this program's parent.
        token: a secret of the job.
        interval: seconds between signs of life.
        silent: seconds without one, after which a peer is lost.
    """

    def __init__(self, index, host, token, interval, silent):
        self.index, self.host, self.token, self.interval, self.silent = index, host, token, interval, silent
        self.parent = os.getppid()
        self.peers = {}
        self._step, self._verdict, self._rest = None, "", b""
        self._sent, self._end = 0.0, math.inf  # when the peers were told last, and when this program ends
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ, self._from_parent)

    def listen(self):
        """Opens a port for the peers; returns its number."""
        both = socket.has_dualstack_ipv6()
        options = {"family": socket.AF_INET6, "dualstack_ipv6": True} if both else {}
        listener = socket.create_server(("", 0), backlog=1024, **options)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))
        return listener.getsockname()[1]

    def connect(self, hosts, port, name):
        """Reaches process 0, on the host called `name`, at the first of `hosts` where it is; whether that worked."""
        limit = time.monotonic() + CONNECT
        while time.monotonic() < limit:
            for host in hosts:
                with contextlib.suppress(OSError, EOFError, ValueError):
                    peer = Peer(0, name, socket.create_connection((host, port), timeout=CONNECT / 4))
                    peer.send({"token": self.token, "index": self.index, "host": self.host})
                    if peer.received()[:1] == [{"welcome": self.token}]:  # more may have come with it
                        self._join(peer)
                        return True
            time.sleep(0.2)
        return False

    def run(self):
        """Until this process's part ends; then the process beside has ended too, or is ended here."""
        before = time.monotonic()
        while before < self._end:
            for key, _ in self._selector.select(min(self.interval / 4, 0.25)):
                key.data()
            now = time.monotonic()
            if now - before > self.silent / 4:  # this program itself stood still, and could hear nobody
                for peer in self.peers.values():
                    peer.heard += now - before
            before = now
            if os.getppid() != self.parent:
                self._farewell({"ended": ""})
                return
            if not self._verdict and self._end:
                self._tell_peers(now)
                self._judge(now)
        if self._verdict and os.getppid() == self.parent:
            print(f"error: {self._verdict}", file=sys.stderr, flush=True)
            os.kill(self.parent, signal.SIGKILL)

    def _accept(self, listener):
        connection, _ = listener.accept()
        connection.settimeout(self.interval)
        with contextlib.suppress(OSError, EOFError, ValueError, LookupError, TypeError):
            peer = Peer(-1, "", connection)
            (hello,) = peer.received()
            if hello["token"] == self.token:
                peer.index, peer.host = hello["index"], hello["host"]
                peer.send({"welcome": self.token})
                self._join(peer)
                return
        connection.close()  # a stranger

    def _join(self, peer):
        peer.connection.settimeout(0)
        self.peers[peer.index] = peer
        self._selector.register(peer.connection, selectors.EVENT_READ, lambda: self._from_peer(peer))

    def _leave(self, peer):
        self._selector.unregister(peer.connection)
        peer.connection.close()
        peer.connection = None

    def _from_parent(self):
        data = os.read(0, 65536)
        if not data:
            self._selector.unregister(0)  # it has gone: who is this program's parent will tell
        *lines, self._rest = (self._rest + data).split(b"\n")
        for message in map(json.loads, lines):
            self._step = message.get("step", self._step)
            if "connect" in message:
                _say({"connected": self.connect(message["connect"], message["port"], message["name"])})
            if "ended" in message or "end" in message:
                self._farewell(message)
                _say({"told": True})

    def _from_peer(self, peer):
        try:
            messages = peer.received()
        except BlockingIOError:
            return
        except (EOFError, ConnectionResetError, ValueError):
            messages = [{"ended": ""}]
        except OSError:  # unreachable
            self._selector.unregister(peer.connection)
            return
        peer.heard = time.monotonic()
        for message in messages:
            peer.step = message.get("step", peer.step)
            if "known" in message:
                _say(message)
            if "ended" in message or "end" in message:
                self._leave(peer)
            if "ended" in message:
                self._lose(message["ended"] or _crashed(peer))
            if "lost" in message:
                self._lose(message["lost"])

    def _tell_peers(self, now):
        if now - self._sent < self.interval or _stopped(self.parent):
            return
        self._sent = now
        if self.index:
            message = {"step": self._step}
        else:
            known = [[peer.index, peer.step, now - peer.heard] for peer in self._present()]
            message = {"step": self._step, "known": [[0, self._step, 0], *known]}
            _say(message)
        self._send(message)

    def _judge(self, now):
        if not any(now - peer.heard > self.silent for peer in self._present()):
            return
        margin = 2 * self.interval if self.silent > 4 * self.interval else 0  # of a host, all at once
        lost = [peer for peer in self._present() if now - peer.heard > self.silent - margin]
        self._lose(_silent(lost, now))

    def _lose(self, verdict):
        """Tells everybody, the lost ones too, and the process beside last: the others' engines may depend on it."""
        if self._verdict or self._end == 0:
            return
        self._verdict = verdict
        self._send({"lost": verdict})
        time.sleep(0 if self.index else 0.3)
        _say({"lost": verdict})
        self._end = time.monotonic() + GRACE

    def _farewell(self, message):
        """The last that the peers hear, unless they have been told of a lost one, which ends them by itself."""
        if not self._verdict:
            self._send(message)
            self._end = 0

    def _send(self, message):
        for peer in self._present():
            peer.send(message)

    def _present(self):
        return [peer for peer in self.peers.values() if peer.connection is not None]


def _line(message):
    return json.dumps(message).encode() + b"\n"


def _say(message):
    """Tells the process beside."""
    with contextlib.suppress(OSError):
        os.write(1, _line(message))


def _stopped(process):
    """Whether a process is stopped by a signal or a debugger, as far as Linux says."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "tT"
    except (OSError, IndexError):
        return False


def _silent(peers, now):
    """The sentence on peers that are not heard of any more."""
    places = {}
    for peer in peers:
        places.setdefault(f"{peer.host} ({peer.address})", []).append(str(peer.index))
    names = " and ".join(f"process {', '.join(indices)} on {place}" for place, indices in places.items())
    seconds = max(now - peer.heard for peer in peers)
    has, it_is = ("have", "they are") if len(peers) > 1 else ("has", "it is")
    return (
        f"{names} {has} not been heard of for {seconds:.0f} s{_since(peers[0], 'since')}: {it_is} stopped, the host is "
        "gone, or the network between is cut. Start the same command again when it is back: "
        f"{_goes_on(peers[0])}."
    )


def _crashed(peer):
    return (
        f"process {peer.index} on {peer.host} ({peer.address}) has ended without a word{_since(peer, 'after')}: it was "
        f"killed or has crashed. Start the same command again: {_goes_on(peer)}."
    )


def _since(peer, word):
    return "" if peer.step is None else f", {word} step {peer.step}"


def _goes_on(peer):
    return "it goes on from " + ("what has been written" if peer.step is None else "the newest checkpoint")


def main():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # whoever is told to end says so itself
    heartbeat = Heartbeat(**json.loads(sys.argv[1]))
    if heartbeat.index == 0:
        _say({"port": heartbeat.listen()})
    heartbeat.run()


if __name__ == "__main__":
    main()
