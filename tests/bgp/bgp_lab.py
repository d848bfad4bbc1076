"""Nodes for the BGP tests: a network namespace each, real ExaBGP and agent, files made by confd's own code.

No datastore: a node's snapshot is made here, and rendered as the daemon would.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.bgp.bgp_routers import Bird
from tests.netns_lab import Namespace, eventually
from tests.support.environ import environment
from tortie.bgp import ask, bird, birdctl, birdstatus
from tortie.bgp.config import prefix_limit
from tortie.bgp.prefix import Version
from tortie.bgp.status import PeerStatus, Status, runs
from tortie.bgp.status import read as read_status
from tortie.bgp.table import TableRoute
from tortie.confd import bird as confd_bird
from tortie.confd import context, files, render
from tortie.confd.snapshot import Snapshot
from tortie.core.errors import PeerError
from tortie.core.paths import Paths
from tortie.core.speaker import Speaker
from tortie.datastore.types.bgp import BGPConfiguration, BGPConfigurationSpec, BGPPeer, BGPPeerSpec
from tortie.datastore.types.ipam import Affinity
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ASNumber, ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec

POOL, POOL6 = "192.168.0.0/16", "fd00:168::/48"
ROOT = str(Path(__file__).resolve().parents[2])


def node_resource(name: str, v4: str = "", v6: str = "", asn: int | None = None, **bgp: Any) -> Node:
    spec = NodeBGPSpec(ipv4Address=v4, ipv6Address=v6, asNumber=None if asn is None else ASNumber(asn), **bgp)
    return Node(metadata=ObjectMeta(name=name, labels={"name": name}), spec=NodeSpec(bgp=spec))


def pool_resource(name: str, cidr: str, **spec: Any) -> IPPool:
    return IPPool(metadata=ObjectMeta(name=name), spec=IPPoolSpec(cidr=cidr, **spec))


def peer_resource(name: str, **spec: Any) -> BGPPeer:
    if "asNumber" in spec:
        spec["asNumber"] = ASNumber(spec["asNumber"])
    return BGPPeer(metadata=ObjectMeta(name=name), spec=BGPPeerSpec(**spec))


def configuration(name: str = "default", **spec: Any) -> BGPConfiguration:
    return BGPConfiguration(metadata=ObjectMeta(name=name), spec=BGPConfigurationSpec(**spec))


class Underlay:
    """A bridge in a namespace of its own; 10.9.0.0/24 and fd09::/64."""

    def __init__(self, make_netns: Callable[[], Namespace]) -> None:
        self._make = make_netns
        self.switch = make_netns()
        self.switch.run("ip", "link", "add", "br0", "type", "bridge")
        self.switch.run("ip", "link", "set", "br0", "up")
        self._ports = 0

    def attach(self, number: int) -> Namespace:
        """A namespace with eth0 at 10.9.0.<number> and fd09::<number in hex>."""
        ns = self._make()
        self._ports += 1
        port = f"port{self._ports}"
        ns.veth("eth0", port, self.switch)
        self.switch.run("ip", "link", "set", port, "master", "br0")
        ns.run("ip", "addr", "add", f"10.9.0.{number}/24", "dev", "eth0")
        ns.run("ip", "addr", "add", f"fd09::{number:x}/64", "dev", "eth0", "nodad")
        return ns


class Mesh:
    """Nodes n1, n2, … on one underlay with one cluster; n<i> is 10.9.0.<i> and owns 192.168.<i>.0/26."""

    def __init__(
        self, make_netns: Callable[[], Namespace], count: int, speaker: Speaker = "exabgp", **settings: Any
    ) -> None:
        self.speaker = speaker
        self.underlay = Underlay(make_netns)
        self.cluster = Snapshot()
        self.cluster.pools = {"v4": pool_resource("v4", POOL), "v6": pool_resource("v6", POOL6)}
        self.cluster.bgp["default"] = configuration(**settings)
        self.nodes: list[BgpNode] = []
        self.bird: Bird | None = None  # where a test has one
        for number in range(1, count + 1):
            self.declare(number)
        for number in range(1, count + 1):
            self.add(number)

    def declare(self, number: int, **bgp: Any) -> None:
        """Store the Node resource."""
        name = f"n{number}"
        self.cluster.nodes[name] = node_resource(name, f"10.9.0.{number}/24", f"fd09::{number:x}/64", **bgp)

    def add(self, number: int) -> "BgpNode":
        """The node itself, with a block in each family; not started."""
        kind = BgpNode if self.speaker == "exabgp" else BirdNode
        node = kind(self.underlay.attach(number), f"n{number}", self.cluster)
        node.own(f"192.168.{number}.0/26", f"fd00:168::{number:x}00/122")
        self.nodes.append(node)
        return node

    def render(self) -> None:
        for node in self.nodes:
            node.render()

    def start(self) -> None:
        """All nodes, until every block is in every kernel."""
        self.render()
        for node in self.nodes:
            node.start()
        eventually(self.converged, 300)  # sixteen processes of the largest mesh begin at once

    def converged(self) -> bool:
        blocks = {cidr for node in self.nodes for cidr in node.blocks}
        return all(node.prefixes(4) | node.prefixes(6) >= blocks and node.loaded() for node in self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


class BgpNode:
    """One node of ours; `cluster` is what is stored in the datastore, shared by all nodes."""

    protocol = "bgp"  # of its routes in the kernel
    endings: tuple[str, str] = ("onlink", "onlink")  # of those to nodes' blocks, and to others' prefixes
    rendered: tuple[str, ...] = ("exabgp.conf", "bgp.json")

    def __init__(self, ns: Namespace, name: str, cluster: Snapshot) -> None:
        self.ns = ns
        self.name = name
        self.cluster = cluster
        self.blocks: dict[str, Affinity] = {}
        self.dir = Path(tempfile.mkdtemp(prefix=f"bgp-{name}-"))
        for one in ("config", "run"):
            (self.dir / one).mkdir()
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": ROOT,
            "CALICO_CONFD_CONFIG_DIR": str(self.dir / "config"),
            "CALICO_RUN_DIR": str(self.dir / "run"),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.secrets: Mapping[tuple[str, str], bytes] = {}

    # --- files ----------------------------------------------------------------------------------

    def own(self, *cidrs: str) -> None:
        """Have exactly these blocks."""
        self.blocks = {cidr: Affinity(state="confirmed") for cidr in cidrs}

    def render(self) -> context.Context:
        """What confd would do with the datastore as it is now."""
        made = self.build()
        conf, digest = render.exabgp_conf(made)
        with environment(self.environment):
            asyncio.run(files.install(conf, render.bgp_json(made, digest)))
        return made

    def build(self, speaker: Speaker = "exabgp") -> context.Context:
        snapshot = Snapshot(
            self.cluster.nodes,
            self.cluster.pools,
            self.cluster.bgp,
            self.cluster.peers,
            self.cluster.filters,
            self.cluster.felix,
            self.blocks,
        )
        limit = prefix_limit(self.environment)
        return context.build(snapshot, self.name, secrets=self.secrets, prefix_limit=limit, speaker=speaker)

    def contents(self) -> list[str]:
        """What is rendered."""
        return [(self.dir / "config" / name).read_text("latin-1") for name in self.rendered]

    # --- processes ------------------------------------------------------------------------------

    def start(self) -> None:
        log = (self.dir / "log").open("ab")
        command = [sys.executable, "-m", "tortie.bgp.exabgp", str(self.dir / "config" / "exabgp.conf")]
        self.process = self.ns.call(
            subprocess.Popen, command, env=self.environment, stdout=log, stderr=log, cwd="/"
        )
        log.close()

    def pids(self) -> list[int]:
        """Those who speak BGP, and for BIRD's sake those of IPv4 first."""
        assert self.process is not None
        return [self.process.pid, self.agent_pid()]

    def agent_pid(self) -> int:
        """Of ExaBGP's helper, as it is alive now."""
        assert self.process is not None
        try:
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        alive = [int(child) for child in text.split() if not _gone(int(child))]
        return alive[0] if alive else 0

    def kill_agent(self) -> None:
        """SIGKILL, and wait for ExaBGP to start another."""
        old = self.agent_pid()
        os.kill(old, signal.SIGKILL)
        eventually(lambda: self.agent_pid() not in (0, old))

    def kill_agent_if_there(self) -> None:
        """SIGKILL whatever helper there is at this moment."""
        if self.process is not None and self.process.poll() is None and (agent := self.agent_pid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent, signal.SIGKILL)

    def freeze_agent(self) -> None:
        """SIGSTOP: from here on it takes nothing in; only kill_agent() ends this."""
        os.kill(self.agent_pid(), signal.SIGSTOP)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End ExaBGP, and the agent with it."""
        if self.process is None:
            return
        agent = self.agent_pid()
        self.process.send_signal(number)
        self.process.wait(60)
        self.process = None
        if agent:
            eventually(lambda: _gone(agent))

    def stop(self) -> None:
        """As a stopping node does."""
        self.kill(signal.SIGTERM)

    def close(self) -> None:
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.dir)

    def log(self) -> str:
        return (self.dir / "log").read_text()

    def forgive(self, address: str) -> None:
        """Let an IPv4 peer dial again at once, whatever it has done. ExaBGP does so anyway."""

    def settled(self) -> bool:
        """Start-up is over: nothing of an earlier run is kept any more."""
        found = self.status()
        ready = found is not None and not found.starting and found.configuration == "loaded"
        return ready and runs(Paths(run=str(self.dir / "run")))

    # --- what it does ---------------------------------------------------------------------------

    def status(self) -> Status | None:
        return read_status(str(self.dir / "run" / "bgp-status.json"))

    def peer(self, address: str) -> PeerStatus | None:
        found = self.status()
        return next((peer for peer in found.peers if peer.address == address), None) if found else None

    def established(self) -> int:
        found = self.status()
        return sum(peer.state == "up" for peer in found.peers) if found else 0

    def loaded(self) -> bool:
        found = self.status()
        return found is not None and found.configuration == "loaded"

    def routes(self, version: int = 4) -> list[str]:
        """`ip route show proto bgp`, or `bird`, as people see it."""
        text = self.ns.run("ip", f"-{version}", "route", "show", "proto", self.protocol)
        return sorted(line.strip() for line in text.splitlines())

    def way(self, prefix: str, gateway: str, foreign: bool = False) -> str:
        """As `routes()` has it, to a node's block or to a prefix of a peer that is none of ours."""
        ending = self.endings[foreign]
        if ":" in prefix:
            ending = f"{'' if 'metric' in ending else 'metric 1024 '}{ending} pref medium"
        return f"{prefix} via {gateway} dev eth0 {ending}"

    def prefixes(self, version: int = 4) -> set[str]:
        return {line.removeprefix("blackhole ").split()[0] for line in self.routes(version)}

    def paths(self, prefix: str) -> list[TableRoute]:
        """What `calicoctl bgp routes` has of it; asked again where it was too busy to answer in time."""
        table: list[TableRoute] = []

        def told() -> bool:
            with contextlib.suppress(PeerError):
                table[:] = asyncio.run(ask.routes(Paths(run=str(self.dir / "run"))))
                return True
            return False

        eventually(told)
        return [route for route in table if route.prefix == prefix]


class BirdNode(BgpNode):
    """One node of ours whose speaker is BIRD."""

    protocol = "bird"
    endings = ("metric 1024", "metric 2147483547")  # 2^31 - 1 - 100, the preference that foreign paths have
    rendered = ("bird.cfg", "bird6.cfg")

    def __init__(self, ns: Namespace, name: str, cluster: Snapshot) -> None:
        super().__init__(ns, name, cluster)
        self._confd = confd_bird.Bird(self.environment)
        self._paths = Paths.from_env(self.environment)
        self._birds: list[subprocess.Popen[bytes]] = []

    def render(self) -> context.Context:
        made = self.build("bird")
        _, unsaid = asyncio.run(self._confd.install(made))
        assert not unsaid, unsaid
        return made

    def start(self) -> None:
        families: tuple[Version, ...] = (4, 6)
        with (self.dir / "log").open("ab") as log:
            self._birds = [
                self.ns.call(
                    subprocess.Popen, bird.argv(family), env=self.environment, stdout=log, stderr=log, cwd="/"
                )
                for family in families
            ]
        eventually(lambda: all(map(birdctl.there, birdstatus.sockets(self._paths).values())))

    def pids(self) -> list[int]:
        return [bird.pid for bird in self._birds]

    def kill(self, number: int = signal.SIGKILL) -> None:
        for process in self._birds:
            process.send_signal(number)
            process.wait(60)
        self._birds = []

    def stop(self) -> None:
        """On SIGTERM it would take leave of its peers."""
        self.kill()

    def close(self) -> None:
        self.kill()
        super().close()

    def forgive(self, address: str) -> None:
        birdctl.ask(self._paths.bird_ctl, f'restart "*_{address.replace(".", "_")}"')

    def settled(self) -> bool:
        found = self.status()
        return found is not None and not found.starting

    def status(self) -> Status | None:
        return birdstatus.read(self._paths)


class RouteEvents:
    """`ip monitor route` in a namespace: what changes in its tables, from construction on."""

    def __init__(self, ns: Namespace) -> None:
        self._ns = ns
        self._process = ns.call(
            subprocess.Popen, ["ip", "-t", "monitor", "route"], stdout=subprocess.PIPE, text=True
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._marks = 0
        self._standing = {
            line.strip() for v in ("-4", "-6") for line in ns.run("ip", v, "route").splitlines()
        }
        eventually(self._live)

    def _live(self) -> bool:
        self._ns.run("ip", "route", "replace", "blackhole", "203.0.113.1/32")
        self._ns.run("ip", "route", "del", "blackhole", "203.0.113.1/32")
        return any("203.0.113.1" in line for line in self._lines)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.strip())

    def about(self, *words: str) -> list[str]:
        """Events so far in which one of the words occurs; complete up to this call."""
        self._marks += 1
        mark = f"203.0.113.{self._marks % 200 + 2}"
        self._ns.run("ip", "route", "replace", "blackhole", f"{mark}/32", "metric", str(self._marks))
        eventually(lambda: any(mark in line and f"metric {self._marks}" in line for line in self._lines))
        return [line for line in self._lines if any(word in line for word in words)]

    def moved(self, *words: str) -> list[str]:
        """Those by which anything changed: BIRD writes IPv6 routes that stand once more as they are."""
        return [line for line in self.about(*words) if line not in self._standing]

    def forget(self) -> None:
        """What has happened so far is no news any more, nor what of it is still to be read."""
        self.about()
        self._lines.clear()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
