"""Addresses of this host, as its peers need them. Standard library only."""

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct

ANYWHERE = ("192.0.2.1", "2001:db8::1")  # addresses for documentation, which only a default route leads to
SIOCGIFADDR = 0x8915  # Linux's request for an interface's address


def towards(host):
    """This host's own address on the way to another one, `""` where no way leads there. Nothing is sent."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return probe.getsockname()[0]
    return ""


def names(head=""):
    """Names and addresses at which others may find this host, likely ones first; `head` is one that they were given."""
    addresses = map(towards, (head, *ANYWHERE) if head else ANYWHERE)
    return list(dict.fromkeys(filter(None, (head, *addresses, socket.gethostname(), socket.getfqdn()))))


def is_loopback(address):
    """Whether an address is one that only this host itself reaches."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def hidden():
    """What is wrong with this host's own name, which engines look up to learn where to listen; `""` if nothing is."""
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return f"the own name of this host, {name}, stands for no address: add it to /etc/hosts"
    if not is_loopback(address):
        return ""
    return f"the own name of this host, {name}, stands for {address}, which no other host reaches: mend /etc/hosts"


def choose_interface(addresses, index):
    """Lets Gloo listen where the peers reach this host, by `GLOO_SOCKET_IFNAME`, where its name would mislead it.

    Args:
        addresses: every process's own address on the way to the first one.
        index: which of them is this process's.

    Raises:
        OSError: the interface is not to be found.
    """
    outside = [address for address in addresses if address and not is_loopback(address)]
    wrong = hidden()
    if not outside or not wrong or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    own = addresses[index] if addresses[index] in outside else towards(outside[0])
    interface = interface_of(own)
    if not interface:
        raise OSError(f"{wrong}, or set GLOO_SOCKET_IFNAME to the network interface that leads to the other hosts.")
    os.environ["GLOO_SOCKET_IFNAME"] = interface


def interface_of(address):
    """The network interface that has an address, `""` where that cannot be found out. Known for Linux only."""
    with contextlib.suppress(OSError, ValueError):
        wanted = ipaddress.ip_address(address.partition("%")[0])
        if wanted.version == 6:
            with open("/proc/net/if_inet6") as file:
                found = [row.split() for row in file]
            return next((row[-1] for row in found if bytes.fromhex(row[0]) == wanted.packed), "")
        return next((name for _, name in socket.if_nameindex() if _ipv4(name) == wanted.packed), "")
    return ""


def _ipv4(interface):
    """An interface's IPv4 address, four bytes; empty if it has none."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))[20:24]
    return b""
