"""Nodes for the BGP tests: a network namespace each, real ExaBGP and agent, files made by confd's own code.

No datastore: a node's snapshot is made here, and rendered as the daemon would.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.netns_lab import Namespace, eventually
from tortie.bgp.status import PeerStatus, Status
from tortie.bgp.status import read as read_status
from tortie.confd import context, files, render
from tortie.confd.snapshot import Snapshot
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


class BgpNode:
    """One node of ours; `cluster` is what is stored in the datastore, shared by all nodes."""

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
        snapshot = Snapshot(
            self.cluster.nodes,
            self.cluster.pools,
            self.cluster.bgp,
            self.cluster.peers,
            self.cluster.felix,
            self.blocks,
        )
        made = context.build(snapshot, self.name, secrets=self.secrets)
        conf, digest = render.exabgp_conf(made)
        with _environment(self.environment):
            asyncio.run(files.install(conf, render.bgp_json(made, digest)))
        return made

    # --- processes ------------------------------------------------------------------------------

    def start(self) -> None:
        log = (self.dir / "log").open("ab")
        command = [sys.executable, "-m", "tortie.bgp.exabgp", str(self.dir / "config" / "exabgp.conf")]
        self.process = self.ns.call(
            subprocess.Popen, command, env=self.environment, stdout=log, stderr=log, cwd="/"
        )
        log.close()

    def agent_pid(self) -> int:
        """Of ExaBGP's helper, as it is alive now."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def kill_agent(self) -> None:
        """SIGKILL, and wait for ExaBGP to start another."""
        old = self.agent_pid()
        os.kill(old, signal.SIGKILL)
        eventually(lambda: self.agent_pid() not in (0, old))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End ExaBGP, and the agent with it."""
        if self.process is None:
            return
        agent = self.agent_pid()
        self.process.send_signal(number)
        self.process.wait(10)
        self.process = None
        if agent:
            eventually(lambda: not Path(f"/proc/{agent}").exists() or _zombie(agent))

    def close(self) -> None:
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.dir)

    def log(self) -> str:
        return (self.dir / "log").read_text()

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
        """`ip route show proto bgp`, as people see it."""
        text = self.ns.run("ip", f"-{version}", "route", "show", "proto", "bgp")
        return sorted(line.strip() for line in text.splitlines())

    def prefixes(self, version: int = 4) -> set[str]:
        return {line.removeprefix("blackhole ").split()[0] for line in self.routes(version)}


class _environment:
    """os.environ with some variables for a moment: confd's code reads its paths there."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def __enter__(self) -> None:
        self._before = dict(os.environ)
        os.environ.update(self._variables)

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self._before)


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


__all__ = ["BgpNode", "Underlay", "eventually"]
