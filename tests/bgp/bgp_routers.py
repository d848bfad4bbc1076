"""Routers of others for the BGP tests, in namespaces of their own: BIRD, FRR and GoBGP."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.netns_lab import Namespace, eventually
from tests.support import gobgp
from tortie.bgp import birdctl


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
        eventually(lambda: birdctl.there(str(self.dir / "ctl")))

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
        eventually((self.dir / "bgpd.vty").exists)

    def _start(self, daemon: str) -> subprocess.Popen[bytes]:
        files = ["-f", f"{self.dir}/{daemon}.conf", "-i", f"{self.dir}/{daemon}.pid"]
        sockets = ["-z", f"{self.dir}/zserv", "--vty_socket", str(self.dir)]
        command = [f"/usr/lib/frr/{daemon}", *files, *sockets]
        process = self.ns.call(subprocess.Popen, command, stdout=self._log, stderr=self._log)
        eventually((self.dir / f"{daemon}.vty").exists)
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
        eventually(lambda: "Peer" in self.ask("neighbor"))

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str]
        done = self.ns.call(subprocess.run, command, capture_output=True, text=True)
        return done

    def ask(self, *words: str) -> str:
        return gobgp.ask(self._run, *words)

    def established(self) -> int:
        return self.ask("neighbor").count("Establ")

    def prefixes(self, family: str = "ipv4") -> set[str]:
        return gobgp.prefixes(self._run, family)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()
        shutil.rmtree(self.dir)
