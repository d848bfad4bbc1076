"""How big packets may be: from the host's interfaces to tunnels and pods. Pure.

A tunnel's packets must fit into those of the host's smallest interface with its header around them, and a
pod's into those of every tunnel that is on, whichever way they will go.
(Reference: dataplane sheet 4; felix/dataplane/linux/int_dataplane.go.)
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

UNKNOWN = 1460  # of a host without an interface that counts: what fits nearly everywhere, Calico's number

_OVERHEAD = {  # device -> bytes that its tunnel adds
    "tunl0": 20,  # an IPv4 header
    "vxlan.calico": 50,  # Ethernet, VXLAN, UDP and IPv4 headers
    "vxlan-v6.calico": 70,  # the same with IPv6
}


@dataclass(frozen=True, slots=True)
class Settings:
    """`pattern`: of the names of interfaces that count. `fixed`: (device, MTU) where somebody set one."""

    pattern: re.Pattern[str] = re.compile(r"^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)")
    fixed: tuple[tuple[str, int], ...] = ()
    devices: tuple[str, ...] = ()  # those that are on


def of_host(mtus: Iterable[tuple[str, int]], settings: Settings) -> int:
    """The smallest of the running interfaces that count, 0 without any. `mtus`: (interface, MTU)."""
    return min((mtu for name, mtu in mtus if settings.pattern.search(name)), default=0)


def of_device(device: str, host: int, settings: Settings) -> int:
    return dict(settings.fixed).get(device) or host - _OVERHEAD[device]


def of_pods(host: int, settings: Settings) -> int:
    return min((of_device(device, host, settings) for device in settings.devices), default=host)
