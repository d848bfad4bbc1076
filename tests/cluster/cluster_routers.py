"""Routers that are no nodes, each on a machine of its own in the lab: Debian's BIRD 2 and GoBGP."""

import ipaddress
import subprocess
from pathlib import Path

from tests.support import gobgp
from tortie.lab.box import Box
from tortie.lab.cluster import UNDERLAY, UNDERLAY6, Lab, LabNode, tail, wait_until

BIRD_AT, GOBGP_AT = 200, 201  # addresses on the underlay
_RESTART_TIME = 240  # seconds for which BIRD asks us to keep its routes: longer than a restart here takes


class Bird:
    """BIRD 2 on a machine of its own. Its static routes are announced, what it hears goes into its kernel."""

    def __init__(self, box: Box, lab: Lab) -> None:
        self.box = box
        self._lab = lab
        self._conf = box.path("/etc/bird.conf")
        self._restart_time = _RESTART_TIME
        self._announced: tuple[str, ...] = ()

    def start(self) -> None:
        self._announced = ()
        self._run()

    def recover(self, restart_time: int) -> None:
        """As after a crash, when its kernel forwards on (the F bit of RFC 4724)."""
        self._restart_time = restart_time
        self._run("-R")

    def _run(self, *flags: str) -> None:
        self._write()
        self.box.run("mkdir", "-p", "/run/bird")
        self.box.start(["bird", "-f", "-c", "/etc/bird.conf", *flags], self.log)
        wait_until(lambda: self.ask("show", "status") != "", "BIRD to start", 240, lambda: tail(self.log))

    @property
    def log(self) -> Path:
        return self._lab.folder / "bird.log"

    def announce(self, *prefixes: str) -> None:
        """Exactly these."""
        self._announced = prefixes
        self._write()
        assert "Reconfigured" in self.ask("configure")

    def ask(self, *words: str) -> str:
        return self.box.run("birdc", *words, check=False).stdout

    def heard(self, node: LabNode, version: int) -> set[str]:
        """What the node announces."""
        lines = self.ask("show", "route", "protocol", session(node, version)).splitlines()
        return {line.split()[0] for line in lines if "/" in line.split(" ")[0]}

    def kill(self) -> None:
        self.box.kill("bird", "-f")
        wait_until(lambda: not self.box.pids("bird", "-f"), "BIRD to die", 240)

    def clean(self) -> None:
        """Routes outlive BIRD, and would lead the next test astray."""
        for version in ("-4", "-6"):
            self.box.run("ip", version, "route", "flush", "proto", "bird", check=False)

    def _write(self) -> None:
        def statics(version: int) -> str:
            own = [prefix for prefix in self._announced if ipaddress.ip_network(prefix).version == version]
            return "".join(f" route {prefix} blackhole;" for prefix in own)

        tables = "".join(
            f"protocol static static{v} {{ ipv{v};{statics(v)} }}\n"
            f"protocol kernel kernel{v} {{ ipv{v} {{ export where source = RTS_BGP; }}; merge paths on; }}\n"
            for v in (4, 6)
        )
        sessions = "".join(
            _bird_session(node, v, self._restart_time) for node in self._lab.nodes.values() for v in (4, 6)
        )
        self._conf.write_text(
            f"router id {UNDERLAY}.{BIRD_AT};\ngraceful restart wait 1;\nprotocol device {{}}\n"
            f"protocol direct {{ ipv4; ipv6; }}\n{tables}{sessions}"
        )


def session(node: LabNode, version: int) -> str:
    return f"{node.name.replace('-', '')}v{version}"


def _bird_session(node: LabNode, version: int, restart_time: int) -> str:
    own = f"{UNDERLAY}.{BIRD_AT}" if version == 4 else f"{UNDERLAY6}::{BIRD_AT:x}"
    return f"""protocol bgp {session(node, version)} {{
  local {own} as 65020; neighbor {node.ip if version == 4 else node.ip6} as 64512; multihop;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  graceful restart on; graceful restart time {restart_time};
  ipv{version} {{ import all; export where source = RTS_STATIC; next hop self; }};
}}
"""


class GoBGP:
    """GoBGP on a machine of its own, with IPv4 and IPv6 sessions to some nodes; knows no graceful restart."""

    def __init__(self, box: Box, asn: int, nodes: list[LabNode]) -> None:
        self.box = box
        neighbors = "".join(_gobgp_neighbor(address) for node in nodes for address in (node.ip, node.ip6))
        config = f'[global.config]\n  as = {asn}\n  router-id = "{UNDERLAY}.{GOBGP_AT}"\n{neighbors}'
        box.path("/etc/gobgp.toml").write_text(config)

    def start(self, log: Path) -> None:
        self.box.start(["gobgpd", "-t", "toml", "-f", "/etc/gobgp.toml", "--pprof-disable"], log)
        wait_until(lambda: "Peer" in self.ask("neighbor"), "GoBGP to start", 240, lambda: tail(log))

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return self.box.run(*command, check=False)

    def ask(self, *words: str) -> str:
        """Once: nothing, if it does not answer."""
        return self._run(["gobgp", *words]).stdout

    def add(self, prefix: str) -> None:
        version = ipaddress.ip_network(prefix).version
        own = f"{UNDERLAY}.{GOBGP_AT}" if version == 4 else f"{UNDERLAY6}::{GOBGP_AT:x}"
        gobgp.ask(self._run, "global", "rib", "add", "-a", f"ipv{version}", prefix, "nexthop", own)

    def remove(self, prefix: str) -> None:
        version = ipaddress.ip_network(prefix).version
        gobgp.ask(self._run, "global", "rib", "del", "-a", f"ipv{version}", prefix)

    def heard(self, version: int) -> set[str]:
        return gobgp.prefixes(self._run, f"ipv{version}")

    def kill(self) -> None:
        self.box.kill("gobgpd")
        wait_until(lambda: not self.box.pids("gobgpd"), "GoBGP to die", 240)


def _gobgp_neighbor(address: str) -> str:
    return f"""[[neighbors]]
  [neighbors.config]
    neighbor-address = "{address}"
    peer-as = 64512
  [neighbors.timers.config]
    connect-retry = 1
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "{"ipv6" if ":" in address else "ipv4"}-unicast"
"""
