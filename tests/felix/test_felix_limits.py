"""What a workload's annotations ask for besides policy, as packets meet it: limits, floating addresses,
foreign sources, and a pod that comes back to itself. In both dataplanes, changed while felix runs."""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest

from tests.felix.driver_lab import Felix
from tests.felix.node_lab import Node, Pod
from tests.netns_lab import Namespace, eventually
from tortie.felix.calc.model import FloatingIP, QoS

pytestmark = pytest.mark.kernel

PORT = 5000
PATIENCE, MOMENT = 60.0, 0.2  # seconds for what should arrive, and for what need not
_RESET = struct.pack("ii", 1, 0)  # linger for no time


@pytest.fixture(params=["iptables", "legacy", "nftables"])
def felix(node: Node, request: pytest.FixtureRequest) -> Iterator[Felix]:
    backend = "legacy" if request.param == "legacy" else "nft"
    daemon = Felix(node, nftables=request.param == "nftables", backend=backend)
    yield daemon
    daemon.close()


def place(felix: Felix, pod: Pod, **fields: Any) -> None:
    """The pod as it is to be from now on."""
    felix.add(pod, "open", **fields)

    def is_placed() -> bool:
        """The kernel may still be about to say that the link is up; an address may wait for conntrack."""
        return felix.apply() and not any(felix.driver.endpoint_troubles().values())

    eventually(is_placed)


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# --- packets ------------------------------------------------------------------------------------


class Flow:
    """Datagrams of one connection, known to both ends' connection tracking as established."""

    def __init__(self, stack: ExitStack, sender: Pod, receiver: Pod, address: str) -> None:
        kind = family(address), socket.SOCK_DGRAM
        self.inside = stack.enter_context(receiver.ns.call(socket.socket, *kind))
        self.out = stack.enter_context(sender.ns.call(socket.socket, *kind))
        self.inside.bind(("", 0))
        self.out.connect((address, self.inside.getsockname()[1]))
        for one in (self.inside, self.out):
            one.settimeout(PATIENCE)
        self.out.send(b"?")
        _, peer = self.inside.recvfrom(10)
        self.inside.sendto(b"!", peer)
        self.out.recv(10)

    def burst(self, count: int, least: int) -> tuple[int, float]:
        """How many of so many arrive, and within how many seconds; `least` are waited for.

        Forwarding takes none, unless the machine is busy: then a thread of the kernel's goes on with it.
        """
        began = time.monotonic()
        for _ in range(count):
            self.out.send(b"x")
        arrived, took = 0, time.monotonic() - began
        with suppress(TimeoutError):
            while arrived < count:
                self.inside.settimeout(PATIENCE if arrived < least else MOMENT)
                self.inside.recv(10)
                arrived, took = arrived + 1, time.monotonic() - began
        return arrived, took


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_no_more_packets_than_the_rate_in_one_direction(node: Node, felix: Felix, way: str) -> None:
    limited, other = node.pod("limited"), node.pod("other")
    place(felix, other)
    place(felix, limited)
    sender, receiver = (other, limited) if way == "ingress" else (limited, other)
    with ExitStack() as stack:
        flows = [Flow(stack, sender, receiver, address) for address in (receiver.v4, receiver.v6)]
        back = Flow(stack, receiver, sender, sender.v4)
        assert [flow.burst(100, 100)[0] for flow in flows] == [100, 100]
        place(felix, limited, qos=QoS(**{f"{way}_packets": 2, f"{way}_burst": 7}))
        for flow in flows:
            arrived, took = flow.burst(100, 7)
            assert 7 <= arrived <= 7 + 2 * took + 1
        assert back.burst(100, 100)[0] == 100
        place(felix, limited)
        assert [flow.burst(100, 100)[0] for flow in flows] == [100, 100]


# --- connections --------------------------------------------------------------------------------


class Echo:
    """A server in a pod that answers with the address it is asked from."""

    def __init__(self, stack: ExitStack, pod: Pod) -> None:
        server = pod.ns.call(socket.create_server, ("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
        self._server, self._stack = stack.enter_context(server), ExitStack()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        stack.callback(self._end)

    def _serve(self) -> None:
        while True:
            try:
                connection, peer = self._server.accept()
            except OSError:
                return
            self._stack.enter_context(connection)
            try:
                connection.sendall(str(peer[0]).removeprefix("::ffff:").encode())
            except OSError:
                continue

    def _end(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._stack.close()


def connect(ns: Namespace, address: str, port: int = PORT) -> socket.socket:
    """To be closed by a reset, which ends it at once. Raises ConnectionRefusedError when it is refused."""
    one = ns.call(socket.socket, family(address))
    one.settimeout(PATIENCE)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    try:
        one.connect((address, port))
    except OSError:
        one.close()
        raise
    return one


def admitted(ns: Namespace, address: str) -> socket.socket | None:
    """The kernel counts what has ended for a moment more."""
    try:
        return connect(ns, address)
    except ConnectionRefusedError:
        return None


def seen(ns: Namespace, address: str, port: int = PORT) -> str:
    """The source address with which a connection arrives."""
    with connect(ns, address, port) as one:
        return one.recv(100).decode()


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_no_more_connections_than_the_limit_in_one_direction(node: Node, felix: Felix, way: str) -> None:
    limited, other = node.pod("limited"), node.pod("other")
    place(felix, other)
    place(felix, limited, qos=QoS(**{f"{way}_connections": 2}))
    client, server = (other, limited) if way == "ingress" else (limited, other)
    with ExitStack() as stack:
        for pod in (client, server):
            Echo(stack, pod)
        for address, mine in ((server.v4, client.v4), (server.v6, client.v6)):
            kept = [connect(client.ns, address) for _ in range(2)]
            with pytest.raises(ConnectionRefusedError):
                connect(client.ns, address)
            assert [one.recv(100).decode() for one in kept] == [mine, mine], "those that stand go on"
            assert seen(server.ns, client.v4) == server.v4, "the other direction has no limit"
            kept.pop().close()
            again = eventually(partial(admitted, client.ns, address), PATIENCE)
            assert again is not None
            with pytest.raises(ConnectionRefusedError):
                connect(client.ns, address)
            for one in (*kept, again):
                stack.enter_context(one)
        place(felix, limited)
        assert seen(client.ns, server.v4) == client.v4 and seen(client.ns, server.v6) == client.v6


# --- floating addresses -------------------------------------------------------------------------

EXTERNAL = {4: "203.0.113.7", 6: "2001:db8::7"}


def floating(pod: Pod) -> tuple[FloatingIP, ...]:
    return FloatingIP(EXTERNAL[4], pod.v4), FloatingIP(EXTERNAL[6], pod.v6)


def test_a_floating_address_leads_to_its_pod_from_everywhere(node: Node, felix: Felix) -> None:
    """From a pod, the host, the outside, and the pod itself, which sees itself under that address."""
    one, other = node.pod("one"), node.pod("other")
    for line in (f"{EXTERNAL[4]} via 172.16.0.1", f"-6 {EXTERNAL[6]} via fd16::1"):
        flag, _, rest = line.rpartition("-6 ")
        node.outside.sh(f"ip {flag}{'-6 ' if '-6' in line else ''}route add {rest}")
    place(felix, other)
    place(felix, one, floating_ips=floating(one))
    with ExitStack() as stack:
        Echo(stack, one)
        Echo(stack, other)
        for version, external in EXTERNAL.items():
            address, host = ("v4", "172.16.0.1") if version == 4 else ("v6", "fd16::1")
            outside = "172.16.0.254" if version == 4 else "fd16::fe"
            assert seen(other.ns, external) == getattr(other, address)
            assert seen(node.ns, external) == host
            assert seen(node.outside, external) == outside
            assert seen(one.ns, external) == external
            assert seen(one.ns, getattr(other, address)) == getattr(one, address), "out under its own"
        assert f"{EXTERNAL[4]} dev calione scope link" in node.routes()
        assert any(line.startswith(f"{EXTERNAL[6]} dev calione ") for line in node.routes())

        place(felix, one)
        place(felix, other, floating_ips=floating(other))
        assert seen(one.ns, EXTERNAL[4]) == one.v4 and seen(other.ns, EXTERNAL[6]) == EXTERNAL[6]

        place(felix, other)
        left = node.ns.sh("nft list ruleset") + node.ns.run("iptables-legacy-save", check=False)
        assert not any(external in line for external in EXTERNAL.values() for line in (left, *node.routes()))


def test_a_pod_reaches_itself_through_a_service(node: Node, felix: Felix) -> None:
    """As kube-proxy translates: to the pod, and masqueraded where it would come from itself."""
    one, other = node.pod("one"), node.pod("other")
    place(felix, one)
    place(felix, other)
    for name, address, service in (("ip", one.v4, "10.96.0.10"), ("ip6", one.v6, "fd96::10")):
        target = f"[{address}]" if ":" in address else address
        node.ns.run("nft", "-f", "-", stdin=f"""
            table {name} proxy {{
                chain in {{ type nat hook prerouting priority dstnat + 5;
                    {name} daddr {service} tcp dport 80 dnat to {target}:{PORT}; }}
                chain out {{ type nat hook postrouting priority srcnat;
                    {name} saddr {address} {name} daddr {address} masquerade; }}
            }}""")  # fmt: skip
    with ExitStack() as stack:
        Echo(stack, one)
        assert seen(other.ns, "10.96.0.10", 80) == other.v4 and seen(other.ns, "fd96::10", 80) == other.v6
        assert seen(one.ns, "10.96.0.10", 80) == "172.16.0.1" and seen(one.ns, "fd96::10", 80) == "fd16::1"


# --- foreign sources ----------------------------------------------------------------------------


def test_a_pod_may_send_from_the_prefixes_it_was_allowed_only(node: Node, felix: Felix) -> None:
    """Nor does the kernel's own check of sources keep what is allowed."""
    node.ns.sh("sysctl -qw net.ipv4.conf.default.rp_filter=1")
    one, other = node.pod("one"), node.pod("other")
    for address in ("10.9.0.1/32", "10.8.0.1/32", "fd09::1/128 nodad", "fd08::1/128 nodad"):
        one.ns.sh(f"ip address add {address} dev eth0")

    def arrive() -> list[str]:
        return arriving(("10.9.0.1", "10.8.0.1", one.v4), one, other, other.v4) + arriving(
            ("fd09::1", "fd08::1", one.v6), one, other, other.v6
        )

    def strictness() -> str:
        return node.ns.sh("sysctl -n net.ipv4.conf.calione.rp_filter").strip()

    place(felix, other)
    place(felix, one)
    assert arrive() == [] and strictness() == "1"
    place(felix, one, spoofed_sources=("10.9.0.0/16", "fd09::/64"))
    assert arrive() == ["10.9.0.1", "fd09::1"] and strictness() == "0"
    place(felix, one)
    assert arrive() == [] and strictness() == "1"


def arriving(sources: Sequence[str], sender: Pod, receiver: Pod, address: str) -> list[str]:
    """From which of the sources a datagram arrives before the one from the last.

    On one processor, else these could overtake each other where the kernel is busy.
    """
    assert sender.reaches(address, within=60), "they know their neighbours"
    with ExitStack() as stack:
        inside = stack.enter_context(receiver.ns.call(socket.socket, family(address), socket.SOCK_DGRAM))
        inside.bind(("", PORT))
        inside.settimeout(PATIENCE)
        processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(processors)})
        stack.callback(os.sched_setaffinity, 0, processors)
        for source in sources:
            out = stack.enter_context(sender.ns.call(socket.socket, family(address), socket.SOCK_DGRAM))
            out.bind((source, 0))
            out.sendto(b"x", (address, PORT))
        return list(iter(lambda: str(inside.recvfrom(10)[1][0]), sources[-1]))
