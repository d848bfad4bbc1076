"""Machines of a lab without a running agent, on which a node's start-up is run by hand."""

import base64
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tortie.lab.cluster import Lab, LabNode, command

NODES = "/calico/resources/v3/projectcalico.org/nodes/"
POOLS = "/calico/resources/v3/projectcalico.org/ippools/"


class Machine:
    """One machine with eth0, and the cluster's datastore, empty at first."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node: LabNode = lab.add_machine()

    @property
    def ip(self) -> str:
        return self.node.ip

    def readdress(self, cidr: str) -> None:
        """Give eth0 another address instead of the one it has."""
        steps = f"addr flush dev eth0\naddr add {cidr} dev eth0\n"
        self.node.box.run("ip", "-4", "-batch", "-", stdin=steps)  # who watches sees it as one change

    def calico_node(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a role of calico-node to its end; `env` comes on top of what every node gets."""
        given = {"ETCD_ENDPOINTS": self.lab.etcd.endpoint, "NODENAME": self.node.name, "IP": "autodetect"}
        chosen = {name: value for name, value in {**given, **env}.items() if value != "(unset)"}
        return self.node.box.run(command("calico-node"), *words, env=chosen, check=False)

    def start(self, **env: str) -> None:
        """A start-up that must succeed."""
        done = self.calico_node("-startup", **env)
        assert done.returncode == 0, done.stderr

    def refuse(self, *words: str, **env: str) -> str:
        """A start-up that must fail, with a message and no traceback; returns the message."""
        done = self.calico_node("-startup", **env)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr and "[FATAL]" in done.stderr
        for word in words:
            assert word in done.stderr, done.stderr
        return done.stderr

    def entries(self, prefix: str = "") -> dict[str, Any]:
        """What the datastore holds: key without `prefix` -> value."""
        scope = ["--prefix", prefix] if prefix else ["--from-key", ""]
        found = json.loads(self._etcdctl("get", *scope, "-w", "json")).get("kvs", [])
        decode = base64.b64decode
        return {
            decode(kv["key"]).decode().removeprefix(prefix): json.loads(decode(kv["value"])) for kv in found
        }

    def stored(self, name: str = "") -> dict[str, Any]:
        """The spec of a Node, by default our own."""
        return dict(self.entries(NODES)[name or self.node.name]["spec"])

    def store(self, key: str, value: object) -> None:
        self._etcdctl("put", key, json.dumps(value))

    def _etcdctl(self, *words: str) -> str:
        return etcdctl(self.lab, *words)


def etcdctl(lab: Lab, *words: str) -> str:
    patience = ["--dial-timeout=60s", "--command-timeout=60s"]
    argv = ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={lab.etcd.endpoint}", *patience, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A network and a datastore, no machines."""
    lab = Lab(tmp_path_factory.mktemp("lab"), 0)
    try:
        lab.lay_ground()
        yield lab
    finally:
        lab.down()


@pytest.fixture
def machine(ground: Lab) -> Iterator[Machine]:
    """A new machine; nothing is stored."""
    etcdctl(ground, "del", "--from-key", "")
    made = Machine(ground)
    made.node.log.unlink(missing_ok=True)
    yield made
    ground.unplug_machine(made.node.name)
