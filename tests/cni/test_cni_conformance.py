"""What the CNI specification demands of a plugin and no other test is about; the table is in docs/."""

import ast
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.cni import NETWORK, NODE, Machine, calico, path_of
from tortie.cni import result
from tortie.cni.check import interface_problems
from tortie.cni.protocol import parse_call
from tortie.cni.result import IP, Interface, Result, Route
from tortie.cni.wiring import Seen
from tortie.core.errors import CniError
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeSpec, NodeStatus
from tortie.linux import routes
from tortie.linux.links import IFF_UP, Link

_ROOT = Path(__file__).resolve().parents[2]
_TABLE = _ROOT / "docs" / "cni-conformance.md"
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


# --- the table ----------------------------------------------------------------------------------


@cache
def functions(path: str) -> set[str]:
    tree = ast.parse((_ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.unit
def test_every_test_that_the_table_names_exists() -> None:
    rows = [line for line in _TABLE.read_text().splitlines() if re.match(r"\| [PR]\d+ \|", line)]
    numbers = [line.split("|")[1].strip() for line in rows]
    assert len(set(numbers)) == len(numbers) > 40
    for row in rows:
        assert _NAMED.search(row) or row.startswith("| R"), f"no test is named: {row}"
    for path, function in _NAMED.findall(_TABLE.read_text()):
        assert function in functions(path), f"{path} has no {function}"


# --- what is said -------------------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("stdin", "version"), [(b'{"cniVersion": "0.4.0"}', "0.4.0"), (b"", "1.1.0"), (b"nonsense", "1.1.0")]
)
def test_version_is_answered_in_the_version_of_the_input(shim: Path, stdin: bytes, version: str) -> None:
    done = subprocess.run(
        [shim], env={"CNI_COMMAND": "VERSION"}, input=stdin, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["cniVersion"] == version


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "x" * 16),
        ("CNI_ARGS", "IP=no"),
        ("CNI_ARGS", "A"),
        ("CNI_ARGS", "IgnoreUnknown=perhaps"),
        ("CNI_ARGS", "IgnoreUnknown=0;A=1"),
        ("CNI_COMMAND", "add"),
    ],
)
def test_an_invalid_variable_is_named(name: str, value: str) -> None:
    given = {"CNI_COMMAND": "ADD", "CNI_PATH": "/x"}
    given |= {"CNI_CONTAINERID": "c", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0"}
    with pytest.raises(CniError) as caught:
        parse_call("calico", given | {name: value})
    assert caught.value.code == 4 and name in str(caught.value)


# --- prevResult ---------------------------------------------------------------------------------

BEFORE: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "net9", "sandbox": "/run/netns/x", "pciID": "0000:00:1f.6"}],
    "ips": [{"address": "10.9.0.9/24", "gateway": "10.9.0.1", "interface": 0}],
    "routes": [{"dst": "10.10.0.0/16", "gw": "10.9.0.1", "priority": 50, "mtu": 1400}],
    "dns": {"nameservers": ["10.9.0.1"]},
    "odd": {"x": [1]},
}
OURS = Result(
    (Interface("cali1"), Interface("eth0", "02:00:00:00:00:01", 1440, "/run/netns/x")),
    (IP("10.0.0.1/32", 1),),
    (Route("0.0.0.0/0", "169.254.1.1"),),
)


@pytest.mark.unit
def test_a_previous_result_comes_first_and_unchanged() -> None:
    """Whatever is in it; our own addresses name our interfaces, which now stand further on."""
    found = json.loads(result.encode(OURS, "1.1.0", BEFORE))
    alone = json.loads(result.encode(OURS, "1.1.0"))
    shifted = [ip | {"interface": ip["interface"] + 1} for ip in alone["ips"]]
    assert found["interfaces"] == BEFORE["interfaces"] + alone["interfaces"]
    assert found["ips"] == BEFORE["ips"] + shifted
    assert found["routes"] == BEFORE["routes"] + alone["routes"]
    assert (found["dns"], found["odd"]) == (BEFORE["dns"], BEFORE["odd"])
    assert json.loads(result.encode(OURS, "0.2.0", BEFORE)) == json.loads(result.encode(OURS, "0.2.0"))


@pytest.mark.kernel
def test_a_previous_result_is_passed_on(machine: Machine) -> None:
    """CHECK then finds our part in it, and does not look for that of the plugin before us."""
    where = machine.namespace()
    settings = {"CONTAINERID": "c", "NETNS": path_of(where), "IFNAME": "eth0"}
    conf = calico(policy={}, name="net", cniVersion="1.1.0")
    wrong = machine.run("ADD", conf | {"prevResult": {"ips": 7}}, **settings)
    assert json.loads(wrong.stdout)["code"] == 6 and not machine.remains()
    done = machine.run("ADD", conf | {"prevResult": BEFORE}, **settings)
    answer = json.loads(done.stdout)
    assert [one["name"] for one in answer["interfaces"]][0::2] == ["net9", "eth0"]
    assert answer["ips"][0] == {"address": "10.9.0.9/24", "gateway": "10.9.0.1", "interface": 0}
    assert answer["ips"][1]["interface"] == 2
    assert machine.run("CHECK", conf | {"prevResult": answer}, **settings).returncode == 0
    where.run("ip", "route", "del", "default")
    failed = machine.run("CHECK", conf | {"prevResult": answer}, **settings)
    assert "route 0.0.0.0/0 via 169.254.1.1 is missing" in json.loads(failed.stdout)["msg"]
    assert machine.run("DEL", conf | {"prevResult": answer}, **settings).returncode == 0
    assert not machine.remains()


@pytest.mark.unit
def test_check_does_not_judge_routes_of_other_plugins() -> None:
    """One that a later plugin made over a next hop of its own, and one of ours that it took away."""
    host = Link("cali1", 3, IFF_UP, 1500)
    container = Link("eth0", 2, IFF_UP, 1500, mac="02:00:00:00:00:01", peer=3)
    via = [
        routes.Route("169.254.1.1/32", ifindex=2, scope=routes.SCOPE_LINK),
        routes.Route("0.0.0.0/0", ifindex=2, gateway="169.254.1.1"),
    ]
    to_it = routes.Route("10.0.0.1/32", ifindex=3, scope=routes.SCOPE_LINK)
    seen = Seen(container, host, ("10.0.0.1/32",), tuple(via), (to_it,))
    final = Result(OURS.interfaces, OURS.ips, (*OURS.routes, Route("10.20.0.0/16", "10.9.0.1")))
    assert not list(interface_problems(final, seen, "eth0", "cali1"))
    assert not list(interface_problems(Result(OURS.interfaces, OURS.ips), seen, "eth0", "cali1"))


# --- delegation ---------------------------------------------------------------------------------


def spy(machine: Machine, fails: str = "") -> dict[str, Any]:
    """A network whose IPAM plugin notes what it is given, and fails at one command."""
    given = '{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.9/24"}]}'
    script = machine.bin / "spy"
    script.write_text(
        "#!/bin/sh\n"
        f"cat > {machine.folder}/stdin-$CNI_COMMAND; env | sort > {machine.folder}/env-$CNI_COMMAND\n"
        f'[ "$CNI_COMMAND" = "{fails}" ] && {{ echo \'{{"code": 123, "msg": "refused"}}\'; exit 1; }}\n'
        f"echo '{given}'\n"
    )
    script.chmod(0o755)
    return calico(ipam={"type": "spy", "range": "red"}, cniVersion="1.1.0", name=NETWORK)


COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS")


@pytest.mark.kernel
def test_every_command_reaches_the_ipam_plugin_as_it_came(machine: Machine) -> None:
    """The whole configuration and the whole environment, of which only the command is one of its own."""
    chain, pod = machine.chain(spy(machine), version="1.1.0"), machine.pod()
    chain.status()
    chain.add(pod)
    chain.check(pod)
    chain.gc([pod])
    chain.delete(pod)
    for command in COMMANDS:
        conf = json.loads((machine.folder / f"stdin-{command}").read_text())
        assert (conf["name"], conf["type"], conf["ipam"]) == (
            NETWORK,
            "calico",
            {"type": "spy", "range": "red"},
        )
        assert ("prevResult" in conf) == (command in ("CHECK", "DEL"))
        assert ("cni.dev/valid-attachments" in conf) == (command == "GC")
        lines = (machine.folder / f"env-{command}").read_text().splitlines()
        seen = dict(line.split("=", 1) for line in lines)
        assert seen["CNI_COMMAND"] == command and str(machine.bin) in seen["CNI_PATH"]
        if command not in ("GC", "STATUS"):
            expected = (pod.container_id, pod.netns, "eth0")
            assert (seen["CNI_CONTAINERID"], seen["CNI_NETNS"], seen["CNI_IFNAME"]) == expected
            assert "K8S_POD_NAME=nginx" in seen["CNI_ARGS"]


@pytest.mark.kernel
@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_of_the_ipam_plugin_is_ours(machine: Machine, command: str) -> None:
    chain, pod = machine.chain(spy(machine, fails=command), version="1.1.0"), machine.pod()
    calls: dict[str, Any] = {
        "ADD": lambda: chain.add(pod),
        "CHECK": lambda: chain.check(pod),
        "DEL": lambda: chain.delete(pod),
        "GC": lambda: chain.gc([pod]),
        "STATUS": chain.status,
    }
    if command in ("CHECK", "DEL", "GC"):
        chain.add(pod)
    with pytest.raises(CniError, match="refused"):
        calls[command]()


@pytest.mark.kernel
def test_pod_cidrs_are_put_in_for_status_and_gc_too(machine: Machine) -> None:
    """An IPAM plugin that looks at its subnet must not make the node unready for the word in its place."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "usePodCidr"}]]}
    chain = machine.chain(spy(machine) | {"ipam": ipam}, version="1.1.0")
    (machine.bin / "host-local").symlink_to(machine.bin / "spy")
    with pytest.raises(CniError, match="no podCidr for node node-1"):
        chain.status()
    status = NodeStatus(podCIDRs=("10.77.3.0/24",))
    machine.write(Node(metadata=ObjectMeta(name=NODE), spec=NodeSpec(), status=status))
    chain.status()
    chain.gc([])
    subnets = [
        json.loads((machine.folder / f"stdin-{command}").read_text())["ipam"]["ranges"][0][0]["subnet"]
        for command in ("STATUS", "GC")
    ]
    assert subnets == ["10.77.3.0/24", "0.0.0.0/0"]


@pytest.mark.kernel
def test_calico_ipam_gives_an_abbreviated_result(machine: Machine) -> None:
    """No interfaces, no indices of some, and nothing of its caller's previous result."""
    settings = {"CONTAINERID": "c1", "NETNS": "/x", "IFNAME": "eth0"}
    conf = {"name": "n", "cniVersion": "1.1.0", "ipam": {"type": "calico-ipam"}, "prevResult": BEFORE}
    answer = json.loads(machine.run("ADD", conf, "calico-ipam", **settings).stdout)
    assert sorted(answer) == ["cniVersion", "ips", "routes"]
    assert [sorted(ip) for ip in answer["ips"]] == [["address"]]
    assert machine.run("DEL", conf, "calico-ipam", **settings).returncode == 0
    assert not machine.remains()
