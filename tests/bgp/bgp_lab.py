"""Nodes for the BGP tests: a network namespace each, real ExaBGP and agent, files made by confd's own code.

No datastore: a node's snapshot is made here, and rendered as the daemon would.
"""

import asyncio
import json
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

from tests.netns_lab import Namespace, eventually
from tortie.bgp.config import prefix_limit
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


class Mesh:
    """Nodes n1, n2, … on one underlay with one cluster; n<i> is 10.9.0.<i> and owns 192.168.<i>.0/26."""

    def __init__(self, make_netns: Callable[[], Namespace], count: int, **settings: Any) -> None:
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
        node = BgpNode(self.underlay.attach(number), f"n{number}", self.cluster)
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
        eventually(self.converged, 30)

    def converged(self) -> bool:
        blocks = {cidr for node in self.nodes for cidr in node.blocks}
        return all(node.prefixes(4) | node.prefixes(6) >= blocks and node.loaded() for node in self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


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
            self.cluster.filters,
            self.cluster.felix,
            self.blocks,
        )
        limit = prefix_limit(self.environment)
        made = context.build(snapshot, self.name, secrets=self.secrets, prefix_limit=limit)
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
        self.process.wait(10)
        self.process = None
        if agent:
            eventually(lambda: _gone(agent))

    def kill_gently(self) -> None:
        """SIGTERM, as a stopping node does."""
        self.kill(signal.SIGTERM)

    def close(self) -> None:
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.dir)

    def log(self) -> str:
        return (self.dir / "log").read_text()

    def settled(self) -> bool:
        """Start-up is over: nothing of an earlier run is kept any more."""
        found = self.status()
        return found is not None and found.alive and not found.starting and found.configuration == "loaded"

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


class Bird:
    """A BIRD 2 in a namespace; its configuration can be changed while it runs.

    `recovering`: started as after a crash, when the kernel forwards on (RFC 4724), as Calico starts it.
    """

    def __init__(self, ns: Namespace, config: str, recovering: bool = False) -> None:
        self.ns = ns
        self.dir = Path(tempfile.mkdtemp(prefix="bird-"))
        self.configure(config)
        command = ["bird", "-f", "-c", str(self.dir / "conf"), "-s", str(self.dir / "ctl")]
        command += ["-R"] if recovering else []
        self._log = (self.dir / "log").open("wb")
        self.process = ns.call(subprocess.Popen, command, stderr=self._log)
        eventually((self.dir / "ctl").exists)

    def configure(self, config: str) -> None:
        (self.dir / "conf").write_text(config)
        if (self.dir / "ctl").exists():
            self.ask("configure")

    def ask(self, *words: str) -> str:
        command = ["birdc", "-s", str(self.dir / "ctl"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def established(self) -> int:
        return self.ask("show", "protocols").count("Established")

    def prefixes(self, protocol: str) -> set[str]:
        """What it has from one of its protocols."""
        lines = self.ask("show", "route", "protocol", protocol).splitlines()
        return {line.split()[0] for line in lines if "/" in line.split(" ")[0]}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()
        shutil.rmtree(self.dir)


def bird_config(number: int, protocols: str) -> str:
    """A BIRD at 10.9.0.<number> that announces what its protocol static4 or static6 has."""
    return f"""
router id 10.9.0.{number};
graceful restart wait 1;
protocol device {{}}
{protocols}
"""


class Frr:
    """FRR's zebra and bgpd in a namespace: a router that programs its kernel."""

    def __init__(self, ns: Namespace, config: str) -> None:
        self.ns = ns
        self.dir = Path(tempfile.mkdtemp(prefix="frr-"))
        (self.dir / "zebra.conf").write_text("hostname tor\n")
        (self.dir / "bgpd.conf").write_text(config)
        for path in (self.dir, *self.dir.iterdir()):
            shutil.chown(path, "frr", "frr")  # which FRR's daemons become
        self._log = (self.dir / "log").open("wb")
        self._processes = [self._start("zebra"), self._start("bgpd")]
        eventually((self.dir / "bgpd.vty").exists, 30)

    def _start(self, daemon: str) -> subprocess.Popen[bytes]:
        files = ["-f", f"{self.dir}/{daemon}.conf", "-i", f"{self.dir}/{daemon}.pid"]
        sockets = ["-z", f"{self.dir}/zserv", "--vty_socket", str(self.dir)]
        command = [f"/usr/lib/frr/{daemon}", *files, *sockets]
        process = self.ns.call(subprocess.Popen, command, stdout=self._log, stderr=self._log)
        eventually((self.dir / f"{daemon}.vty").exists, 30)
        return process

    def ask(self, words: str) -> Any:
        """What `show` prints with `json`."""
        command = ["vtysh", "--vty_socket", str(self.dir), "-d", "bgpd", "-c", f"{words} json"]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def path(self, prefix: str) -> dict[str, Any]:
        """Its one path to a prefix; {} if there is none."""
        paths: list[dict[str, Any]] = self.ask(f"show bgp ipv4 unicast {prefix}").get("paths", [])
        return paths[0] if paths else {}

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._log.close()
        shutil.rmtree(self.dir)


class GoBGP:
    """A GoBGP in a namespace; its own command line adds and shows routes."""

    def __init__(self, ns: Namespace, config: str) -> None:
        self.ns = ns
        self.dir = Path(tempfile.mkdtemp(prefix="gobgp-"))
        (self.dir / "conf").write_text(config)
        self._log = (self.dir / "log").open("wb")
        self.process = ns.call(
            subprocess.Popen,
            ["gobgpd", "-t", "toml", "-f", str(self.dir / "conf"), "--pprof-disable"],
            stdout=self._log,
            stderr=self._log,
        )
        eventually(lambda: "Peer" in self.ask("neighbor", check=False), 20)

    def ask(self, *words: str, check: bool = True) -> str:
        return self.ns.run("gobgp", *words, check=check)

    def established(self) -> int:
        return self.ask("neighbor").count("Establ")

    def prefixes(self, family: str = "ipv4") -> set[str]:
        lines = self.ask("global", "rib", "-a", family).splitlines()
        return {line.split()[1] for line in lines if line.startswith("*")}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()
        shutil.rmtree(self.dir)


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

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


__all__ = ["BgpNode", "Bird", "GoBGP", "Underlay", "eventually"]
