"""The host's own addresses, read from the kernel; the edge under autodetect."""

import contextlib
import ipaddress
import socket

from tortie.linux import addresses, links
from tortie.linux.netlink import NetlinkSocket
from tortie.node.autodetect import HostAddress

_PORT = 80  # any port does: connecting a UDP socket sends nothing


def read() -> list[HostAddress]:
    """Every address of every interface of this namespace. Raises KernelError."""
    with NetlinkSocket() as netlink:
        names = {link.ifindex: link.name for link in links.dump(netlink)}  # ifindex -> name
        return [
            HostAddress(names[address.ifindex], address.ifindex, str(ipaddress.ip_interface(address.cidr)))
            for address in addresses.dump(netlink)
            if address.ifindex in names
        ]


def source_towards(destination: str, version: int) -> str:
    """The local address the kernel would use towards a host name or address, '' if there is none."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError, UnicodeError):
        target = socket.getaddrinfo(destination, _PORT, family, socket.SOCK_DGRAM)[0][4]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(ipaddress.ip_address(probe.getsockname()[0]))
    return ""
