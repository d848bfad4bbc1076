"""A node with pods for the kernel tier: namespaces wired as CNI wires them, and ways to send packets."""

import asyncio
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

from tests.felix.packets import raw_socket
from tests.netns_lab import Namespace, eventually
from tortie.linux import links

T = TypeVar("T")

HOST_MAC = "ee:ee:ee:ee:ee:ee"
_ICMP = {4: 1, 6: 58}  # IP version -> protocol
_numbers = count(1)  # of echo requests: each is a connection of its own
_PATIENCE = 60.0  # seconds, for what a busy machine may take its time with


class Pod:
    """A namespace behind `cali<name>` with the addresses 10.65.0.<n> and fd65::<n>."""

    def __init__(self, node: "Node", name: str, number: int) -> None:
        self.name, self.v4, self.v6 = name, f"10.65.0.{number}", f"fd65::{number:x}"
        self.node, self.interface = node, f"cali{name}"
        self.ns = node.make()
        pair = links.create_veth(
            links.VethEnd(self.interface, mac=HOST_MAC), links.VethEnd("eth0", self.ns.fd)
        )
        node.ns.netlink.execute(pair)
        node.ns.run("sysctl", "-qw", *_host_sysctls(self.interface))
        node.ns.netlink.execute(links.change(self.interface, up=True))
        self.ns.sh("sysctl -qw net.ipv6.conf.eth0.accept_dad=0")
        for line in (
            "link set eth0 up",
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1 dev eth0",
            f"address add {self.v4}/32 dev eth0",
            f"address add {self.v6}/128 dev eth0",
            "-6 route add default via fe80::ecee:eeff:feee:eeee dev eth0",
        ):
            self.ns.sh(f"ip {line}")
        eventually(lambda: node.ns.settled(self.interface) and self.ns.settled("eth0"))

    def cni_route(self) -> None:
        """What the CNI plugin adds to the host: no protocol, no metric."""
        self.node.ns.sh(f"ip route add {self.v4}/32 dev {self.interface} scope link")
        self.node.ns.sh(f"ip -6 route add {self.v6}/128 dev {self.interface}")

    def delete(self) -> None:
        self.node.ns.netlink.execute(links.delete(self.interface))

    def reaches(self, address: str, within: float = 0.5) -> bool:
        """`within` a minute where it must: one packet all the same, what is lost stays lost."""
        return pings(self.ns, address, within=within)


def pings(ns: Namespace, address: str, *, source: str = "", within: float = 0.5) -> bool:
    """One echo request and its answer; forwarding inside one machine takes none of these seconds.

    By ourselves: the ping program gives up what has long arrived, if it was not run in time itself.
    """
    version = 6 if ":" in address else 4
    request, reply = (128, 129) if version == 6 else (8, 0)
    number = next(_numbers) & 0xFFFF
    with raw_socket(ns, version, _ICMP[version]) as one:
        if source:
            one.bind((source, 0))
        total = (request << 8) + number + 1
        checksum = ~(total + (total >> 16)) & 0xFFFF  # the kernel writes that of IPv6
        try:
            one.sendto(struct.pack("!BBHHH", request, 0, checksum, number, 1), (address, 0))
        except OSError:  # no way there, or the namespace's own rules
            return False
        deadline = time.monotonic() + within
        while select.select([one], (), (), max(0.0, deadline - time.monotonic()))[0]:
            data = one.recv(2048)
            head = data[(data[0] & 15) * 4 :] if version == 4 else data
            if head[0] == reply and head[4:6] == number.to_bytes(2, "big"):
                return True
        return False


def comparable(saved: str) -> list[str]:
    """Lines of iptables-save without its times, and without the packets of a policy, which 1.8.11 counts."""
    lines = [line for line in saved.splitlines() if not line.startswith("#")]
    return [re.sub(r"^(:.*) \[\d+:\d+\]$", r"\1", line) for line in lines]


def _host_sysctls(interface: str) -> list[str]:
    """As the CNI plugin sets them; slashes because interface names may hold dots."""
    v4, v6 = f"net/ipv4/conf/{interface}", f"net/ipv6/conf/{interface}"
    return [
        f"{v4}/route_localnet=1", f"{v4}/proxy_arp=1", f"{v4}/forwarding=1",
        f"net/ipv4/neigh/{interface}/proxy_delay=0",
        f"{v6}/accept_dad=0", f"{v6}/disable_ipv6=0", f"{v6}/proxy_ndp=1", f"{v6}/forwarding=1",
        f"{v6}/accept_ra=0",
    ]  # fmt: skip


class Node:
    """A node with an underlay neighbour `outside` (172.16.0.254, fd16::fe), which is its default route."""

    def __init__(self, make: Callable[[], Namespace]) -> None:
        self.make = make
        self.ns, self.outside = make(), make()
        self.ns.veth("eth0", "eth0", self.outside)
        for ns, number in ((self.ns, 1), (self.outside, 254)):
            ns.sh("sysctl -qw net.ipv6.conf.eth0.accept_dad=0")
            ns.sh(f"ip address add 172.16.0.{number}/24 dev eth0")
            ns.sh(f"ip address add fd16::{number:x}/64 dev eth0 nodad")
        self.ns.sh("ip route add default via 172.16.0.254")
        self.ns.sh("ip -6 route add default via fd16::fe")
        self.pods: dict[str, Pod] = {}

    def pod(self, name: str) -> Pod:
        self.pods[name] = Pod(self, name, len(self.pods) + 1)
        return self.pods[name]

    def rules(self, version: int = 4, *options: str) -> str:
        name = "iptables" if version == 4 else "ip6tables"
        return self.ns.run(f"{name}-nft-save", *options)

    def routes(self) -> list[str]:
        text = self.ns.sh("ip route") + self.ns.sh("ip -6 route")
        return [line.strip() for line in text.splitlines()]


class Loop:
    """An event loop on a thread of its own inside a namespace; what it runs sees that namespace only."""

    def __init__(self, ns: Namespace) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=ns.call, args=(self._serve,), daemon=True)
        self._thread.start()
        assert self._ready.wait(_PATIENCE)

    def _serve(self) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._ready.set)
        self._loop.run_forever()
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T], seconds: float = 5 * _PATIENCE) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(seconds)

    def call(self, function: Callable[[], T]) -> T:
        async def wrapped() -> T:
            return function()

        return self.run(wrapped())

    def close(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)


def udp_sees(listener: Namespace, sender: Namespace, address: str, port: int = 5000) -> str:
    """The source address with which a datagram arrives, '' if none does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    receiving = listener.call(socket.socket, family, socket.SOCK_DGRAM)
    sending = sender.call(socket.socket, family, socket.SOCK_DGRAM)
    try:
        receiving.bind(("", port))
        receiving.settimeout(_PATIENCE)
        sending.sendto(b"x", (address, port))
        return str(receiving.recvfrom(10)[1][0])
    except OSError:
        return ""
    finally:
        receiving.close()
        sending.close()
