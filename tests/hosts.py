"""Hosts for tests: network namespaces with addresses, host names and `hosts` files of their own, on one bridge."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import processes

ROOT = Path(__file__).parents[1]


class Hosts:
    """`count` hosts named hosta, hostb, … at 10.77.0.1, 10.77.0.2, …; a context.

    Args:
        count: how many.
        debian: whether each one's own name stands for 127.0.1.1, as Debian's installer writes it.
    """

    def __init__(self, count=2, debian=False):
        self.names = [f"host{letter}" for letter in "abcdefgh"[:count]]
        self.addresses = [f"10.77.0.{i + 1}" for i in range(count)]
        self.debian = debian
        self._tag = f"t{os.getpid() % 100000}"
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self):
        try:
            _ip(f"link add {self._tag}br type bridge")
            _ip(f"link set {self._tag}br up")
            for i, address in enumerate(self.addresses):
                space, outer, inner = self._space(i), f"{self._tag}v{i}", f"{self._tag}w{i}"
                _ip(f"netns add {space}")
                _ip(f"link add {outer} type veth peer name {inner}")
                _ip(f"link set {outer} master {self._tag}br up")
                _ip(f"link set {inner} netns {space} name eth0")
                _ip(f"-n {space} addr add {address}/24 dev eth0")
                _ip(f"-n {space} link set eth0 up")
                _ip(f"-n {space} link set lo up")
                self._write_hosts_file(i)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        for i in range(len(self.names)):
            subprocess.run(["ip", "link", "del", f"{self._tag}v{i}"], capture_output=True)
            subprocess.run(["ip", "netns", "del", self._space(i)], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self._tag}br"], capture_output=True)
        self._folder.cleanup()

    def command(self, index, command):
        """A command line that runs `command` on a host."""
        setup = (
            f"mount --bind {self._folder.name}/{index} /etc/hosts && hostname {self.names[index]} && "
            'exec ip netns exec "$0" "$@"'
        )
        return ["unshare", "--mount", "--uts", "sh", "-c", setup, self._space(index), *command]

    def start(self, index, command, **options):
        """A process on a host; see `processes.start`."""
        return processes.start(self.command(index, command), **options)

    def cut(self, index):
        """Takes the cable out of a host."""
        _ip(f"link set {self._tag}v{index} down")

    def heal(self, index):
        _ip(f"link set {self._tag}v{index} up")

    def _space(self, index):
        return f"{self._tag}n{index}"

    def _write_hosts_file(self, index):
        lines = ["127.0.0.1 localhost"]
        for i, (name, address) in enumerate(zip(self.names, self.addresses)):
            lines.append(f"{'127.0.1.1' if self.debian and i == index else address} {name}")
        (Path(self._folder.name) / str(index)).write_text("\n".join(lines) + "\n")


def missing():
    """Why hosts cannot be had here, or `""`."""
    if sys.platform != "linux" or os.geteuid():
        return "network namespaces need Linux and root"
    try:
        with Hosts(1) as hosts:
            subprocess.run(hosts.command(0, ["true"]), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this kernel gives no network namespaces: {error}"
    return ""


def _ip(arguments):
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)
