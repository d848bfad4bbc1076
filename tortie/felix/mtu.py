"""The MTU of tunnels and pods: the host's, less what the encapsulations in use put around a packet.

Published in a file that CNI reads when it makes a pod's interface; pods keep what they were given.
(Reference: dataplane sheet 4; felix/dataplane/linux/int_dataplane.go.)
"""

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tortie.core.errors import KernelError
from tortie.core.files import read_or_none, write_atomic

_log = logging.getLogger(__name__)

FALLBACK = 1460  # where no interface matches, Calico's: what the smallest of the big clouds carries
IPIP, VXLAN_V4, VXLAN_V6, WIREGUARD_V4, WIREGUARD_V6 = 20, 50, 70, 60, 80  # bytes that each adds
AKS = 100  # more for WireGuard on Azure, whose network fragments at 1400 what its interfaces take at 1500


@dataclass(frozen=True, slots=True)
class Uplinks:
    """Names of the interfaces that carry the host's traffic: those `pattern` is found in (None: in none).

    Never `tunnels`, our own devices: an MTU that follows from one of theirs would shrink with every look.
    """

    pattern: re.Pattern[str] | None
    tunnels: frozenset[str] = frozenset()

    def __contains__(self, name: str) -> bool:
        return self.pattern is not None and name not in self.tunnels and bool(self.pattern.search(name))


UPLINKS = Uplinks(re.compile("^eth"))  # where nobody says anything else


@dataclass(frozen=True, slots=True)
class Wanted:
    """`tunnels`: of each encapsulation in use, the MTU somebody set (0: none) and the bytes it adds."""

    path: str
    uplinks: Uplinks
    tunnels: tuple[tuple[int, int], ...] = ()
    required: bool = False  # not being able to write the file is fatal


class Sized(Protocol):
    """What counts of an interface here."""

    @property
    def name(self) -> str: ...
    @property
    def running(self) -> bool: ...
    @property
    def mtu(self) -> int: ...


def of_host(links: Iterable[Sized], uplinks: Uplinks, otherwise: int = FALLBACK) -> int:
    """The smallest of the running uplinks', `otherwise` if none runs."""
    return min((link.mtu for link in links if link.running and link.name in uplinks), default=otherwise)


def of_tunnel(host: int, given: int, overhead: int) -> int:
    return given or host - overhead


def of_pods(host: int, tunnels: Iterable[tuple[int, int]]) -> int:
    return min((of_tunnel(host, *one) for one in tunnels), default=host)


def publish(wanted: Wanted, links: Iterable[Sized]) -> None:
    """Make the file say what holds now. Raises KernelError if it must be written and cannot."""
    host = of_host(links, wanted.uplinks)
    pods = of_pods(host, wanted.tunnels)
    content = str(pods).encode()
    try:
        if read_or_none(wanted.path) == content:
            return
        os.makedirs(os.path.dirname(wanted.path), exist_ok=True)
        write_atomic(wanted.path, content)
    except OSError as err:
        if wanted.required:
            raise KernelError("write", wanted.path, err.errno or 0, err.strerror or str(err)) from err
        _log.error("cannot write %s, new pods may get a wrong MTU: %s", wanted.path, err.strerror or err)
        return
    _log.info("new pods get the MTU %d, the host has %d", pods, host)
    if pods > host:
        _log.warning("Configured MTU is larger than detected host interface MTU: %d > %d", pods, host)
