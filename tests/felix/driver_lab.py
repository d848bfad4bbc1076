"""Felix's driver on a node, without process and datastore, and what it leaves in the kernel."""

import re
import time
from typing import Any

import pytest

from tests.felix.node_lab import Loop, Node, Pod, comparable
from tests.netns_lab import eventually
from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import Profile, Rule, Workload, WorkloadId
from tortie.felix.dataplane.driver import Driver
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.kernel import Kernel, open_kernel
from tortie.felix.dataplane.options import Options
from tortie.felix.dataplane.routes import Ownership
from tortie.felix.watch import InterfaceWatch
from tortie.linux import conntrack

only_iptables = pytest.mark.parametrize("dataplane", ["iptables"])  # where its own text is looked at

HOSTILE = [  # names
    'x" -j ACCEPT',
    "x\n-A INPUT -j ACCEPT\n",
    "{{ 7*7 }}",
    "a b c; rm -rf /",
    "x" * 10_000,
    "é\u202e\x00",
]
OPEN = Profile("open", (Rule("allow"),), (Rule("allow"),))
BOTH = frozenset((4, 6))


class Felix:
    """Felix without a datastore: a driver, its picture of interfaces, and a state that tests write."""

    def __init__(self, node: Node, **options: Any) -> None:
        self.node, self.state = node, State(profiles={"open": OPEN})
        self.backend = options.pop("backend", "nft")
        self.nftables = options.pop("nftables", False)
        self.options = Options("node1", **{"forwarding": True, **options})
        self.loop = Loop(node.ns)
        self.skew = 0.0
        self.stopped: float | None = None  # what the clock shows, where it must not go on by itself
        self.started = False
        self.loop.run(self._open())

    def clock(self) -> float:
        return (time.monotonic() if self.stopped is None else self.stopped) + self.skew

    async def _open(self) -> None:
        self.interfaces = Interfaces()
        ownership = Ownership(self.interfaces.name_of, self.options.settings.workload_prefixes)
        self.kernel: Kernel = await open_kernel(
            BOTH,
            ownership,
            clock=self.clock,
            backend=self.backend,
            nftables=self.nftables,
            forget=conntrack.flush,
        )
        self.driver = Driver(self.options, self.kernel, self.interfaces, clock=self.clock, rand=lambda: 0.5)
        self.watch = InterfaceWatch(
            self.interfaces, self.kernel.netlink, interval=0, noticed=lambda: None,
            link_gone=self.driver.interface_gone, route_seen=self.driver.route_seen, lost=self.driver.forget,
        )  # fmt: skip

    def add(self, pod: Pod, *profiles: str, **fields: Any) -> WorkloadId:
        ident = WorkloadId("k8s", f"default/{pod.name}", "eth0")
        nets = (f"{pod.v4}/32", f"{pod.v6}/128")
        self.state.workloads[ident] = Workload(ident, pod.interface, nets, profiles=profiles, **fields)
        return ident

    def guard(self) -> None:
        self.loop.run(self.driver.guard())

    def open_pair(self) -> tuple[Pod, Pod]:
        """Two new pods that may do everything; not applied."""
        a, b = self.node.pod("a"), self.node.pod("b")
        self.add(a, "open")
        self.add(b, "open")
        return a, b

    def remove(self, pod: Pod) -> None:
        del self.state.workloads[WorkloadId("k8s", f"default/{pod.name}", "eth0")]

    def apply(self, touched: Touched | None = None) -> bool:
        return self.loop.run(self._apply(touched))

    def settle(self) -> bool:
        """Apply until all is done: an address may wait for as long as conntrack takes."""
        return eventually(self.apply)

    async def _apply(self, touched: Touched | None) -> bool:
        self.watch.reread()
        names = self.interfaces.settle(self.clock())
        if not self.started:
            self.started = True
            self.driver.start(self.state)
        else:
            known = set(self.state.workloads) | set(self.driver.endpoint_troubles())
            profiles = set(self.state.profiles) | {"open"}
            everything = Touched(known, set(), profiles, set(), set(self.state.sets), True, True)
            self.driver.update(touched or everything)
            self.driver.interfaces_changed(names)
        return await self.driver.apply()

    def resync(self) -> bool:
        """As when every refresh interval has passed."""
        self.skew += 1000
        return self.apply()

    def close(self) -> None:
        self.loop.run(self.kernel.close())
        self.loop.close()


# --- what stands ---------------------------------------------------------------------------------


def standing(node: Node) -> tuple[list[str], list[str]]:
    """All rules of either dataplane."""
    return picture(node), comparable(node.rules())


def ip_sets(node: Node) -> list[str]:
    """Without the hash's random seed, which is new for each set."""
    return sorted(re.sub(r" initval \S+", "", line) for line in node.ns.sh("ipset save").splitlines())


def picture(node: Node) -> list[str]:
    """All of nftables without counters, objects in any order."""
    return sorted(node.ns.sh("nft -s list ruleset").splitlines())
