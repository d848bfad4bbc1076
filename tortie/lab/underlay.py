"""The networks between the lab's machines: one bridge each, joined by a router that knows no pod.

The lab's own namespace has the first address in each and is everybody's default gateway; with more than
one network it routes between them, and drops what is for addresses that only the cluster knows.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tortie.lab.box import Box, LabError

UNDERLAY = "172.18.0"  # /24 of the nodes; .1 is the lab itself, where etcd listens
UNDERLAY6 = "fd00:18"  # /64 of the nodes, likewise


@dataclass(frozen=True, slots=True)
class Subnet:
    """`v4` and `v6` are what addresses begin with."""

    bridge: str
    v4: str
    v6: str

    def address(self, number: int) -> str:
        return f"{self.v4}.{number}"

    def address6(self, number: int) -> str:
        return f"{self.v6}::{number:x}"


SUBNETS = (Subnet("underlay", UNDERLAY, UNDERLAY6), Subnet("underlay-b", "172.19.0", "fd00:19"))


def lay(count: int, tell: Callable[[str], None] = lambda _text: None) -> None:
    """Make the first `count` networks."""
    for subnet in SUBNETS[:count]:
        tell(f"underlay bridge {subnet.v4}.0/24")
        ip("link", "add", subnet.bridge, "type", "bridge")
        ip("addr", "add", f"{subnet.address(1)}/24", "dev", subnet.bridge)
        ip("-6", "addr", "add", f"{subnet.address6(1)}/64", "dev", subnet.bridge, "nodad")
        ip("link", "set", subnet.bridge, "up")
    if count > 1:
        for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", switch).write_text("1")


def plug_in(box: Box, subnet: Subnet, number: int, *, ipv6: bool) -> None:
    """Connect a machine by its eth0, with the address of this number, and IPv6's if wanted."""
    port = _port(box.name)
    ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(box.pid))
    ip("link", "set", port, "master", subnet.bridge, "up")
    box.run("ip", "addr", "add", f"{subnet.address(number)}/24", "dev", "eth0")
    if ipv6:
        box.run("ip", "-6", "addr", "add", f"{subnet.address6(number)}/64", "dev", "eth0", "nodad")
    box.run("ip", "link", "set", "eth0", "up")
    box.run("ip", "route", "add", "default", "via", subnet.address(1))
    if ipv6:
        for other in SUBNETS:
            if other is not subnet:
                box.run("ip", "-6", "route", "add", f"{other.v6}::/64", "via", subnet.address6(1))


def unplug(name: str) -> None:
    """A dead namespace's interfaces go in the kernel's own time; whoever is next has the same names."""
    subprocess.run(["ip", "link", "del", _port(name)], check=False, capture_output=True)


def remove() -> None:
    for subnet in SUBNETS:
        subprocess.run(["ip", "link", "del", subnet.bridge], check=False, capture_output=True)


def _port(machine: str) -> str:
    """The bridge's interface towards a machine."""
    return f"to-{machine}"[:15]


def ip(*args: str) -> None:
    """The ip command in the lab's own namespace."""
    result = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LabError(f"ip {' '.join(args)}: {result.stderr.strip()}")
