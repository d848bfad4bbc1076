"""Together with upstream's plugins as Debian ships them: portmap, bandwidth, host-local, bridge, tuning."""

import json
import socket
import threading
from typing import Any

import pytest

from tests.netns_lab import Namespace
from tests.support.cni import NODE, Machine, calico, path_of, pool
from tortie.core.errors import CniError
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeSpec, NodeStatus

pytestmark = pytest.mark.kernel

PORTMAP = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}


def local(machine: Machine, **more: Any) -> dict[str, Any]:
    """host-local in the test's own folder."""
    return {"type": "host-local", "dataDir": str(machine.folder / "networks"), **more}


def allocated(machine: Machine) -> list[str]:
    """The addresses that host-local has given out."""
    return sorted(path.name for path in (machine.folder / "networks").glob("*/*") if path.name[0].isdigit())


# --- chains -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_portmap_and_bandwidth_follow(machine: Machine, version: str) -> None:
    """A connection to a port of the host reaches the pod, and the pod's interface is shaped."""
    chain = machine.chain(calico(), PORTMAP, BANDWIDTH, version=version)
    rates = {f"{way}{what}": 10_000_000 for way in ("ingress", "egress") for what in ("Rate", "Burst")}
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    pod = machine.pod(portMappings=ports, bandwidth=rates)
    try:
        result = chain.add(pod)
        assert len(result["interfaces"]) == 3  # bandwidth tells of its ifb
        assert _greeted(machine.host, machine.inside(pod)) == b"hello"
        host_end = result["interfaces"][0]["name"]
        assert "tbf" in machine.host.run("tc", "qdisc", "show", "dev", host_end)
    finally:
        chain.delete(pod)
    assert not machine.remains()
    assert "8080" not in machine.host.run("iptables", "-t", "nat", "-S")


def test_check_passes_after_a_later_plugin_changed_things(machine: Machine) -> None:
    """Not with portmap: Debian's looks for its IPv6 chains even where there is no IPv6."""
    chain = machine.chain(calico(), {"type": "tuning", "mtu": 1300, "mac": "02:00:00:00:00:09"})
    pod = machine.pod()
    chain.add(pod)
    chain.check(pod)
    chain.delete(pod)
    assert not machine.remains()


def _greeted(host: Namespace, pod: Namespace) -> bytes:
    """What a connection from the host to its own port 8080 reads, where the pod serves port 80."""
    listener = pod.call(socket.create_server, ("0.0.0.0", 80))
    listener.settimeout(120)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"hello")

    serving = threading.Thread(target=serve)
    serving.start()
    with host.call(socket.create_connection, ("192.0.2.1", 8080), 120) as connection:
        answer = connection.recv(100)
    serving.join()
    listener.close()
    return answer


def test_what_fails_later_in_the_chain_is_undone(machine: Machine) -> None:
    _script(machine, "late", '[ "$CNI_COMMAND" = DEL ] || { echo \'{"code": 7, "msg": "no"}\'; exit 1; }')
    with pytest.raises(CniError, match="no"):
        machine.chain(calico(), {"type": "late"}).add(machine.pod())
    assert not machine.remains()


# --- host-local ---------------------------------------------------------------------------------


def test_host_local_hands_out_the_addresses(machine: Machine) -> None:
    conf = calico(ipam=local(machine, subnet="10.9.0.0/24"))
    chain, pod = machine.chain(conf), machine.pod()
    result = chain.add(pod)
    assert result["ips"] == [{"interface": 1, "address": "10.9.0.2/32"}]
    assert allocated(machine) == ["10.9.0.2"] and not machine.held()
    machine.inside(pod).run("ping", "-c", "1", "-W", "30", "192.0.2.1")
    chain.check(pod)
    chain.delete(pod)
    assert not allocated(machine) and not machine.remains()


@pytest.mark.parametrize("command", ["usePodCidr", "usepodcidr", "USEPODCIDR"])
def test_use_pod_cidr(machine: Machine, command: str) -> None:
    status = NodeStatus(podCIDRs=("10.77.3.0/24", "fd00:77:3::/64"))
    machine.write(Node(metadata=ObjectMeta(name=NODE), spec=NodeSpec(), status=status))
    ranges = [[{"subnet": command}], [{"subnet": "usePodCidrIPv6"}]]
    chain = machine.chain(calico(ipam=local(machine, ranges=ranges)))
    pod = machine.pod()
    result = chain.add(pod)
    assert [ip["address"] for ip in result["ips"]] == ["10.77.3.2/32", "fd00:77:3::2/128"]
    chain.check(pod)
    chain.delete(pod)
    assert not allocated(machine) and not machine.remains()


def test_use_pod_cidr_without_one(machine: Machine) -> None:
    with pytest.raises(CniError, match="no podCidr for node node-1"):
        machine.chain(calico(ipam=local(machine, subnet="usePodCidr"))).add(machine.pod())
    assert not machine.remains()


@pytest.mark.parametrize("with_defaults", [False, True])
def test_host_locals_routes_become_the_containers(machine: Machine, with_defaults: bool) -> None:
    ipam = local(machine, subnet="10.9.0.0/24", routes=[{"dst": "10.0.0.0/8"}, {"gw": "10.9.0.1"}])
    conf = calico(ipam=ipam, include_default_routes=with_defaults)
    pod = machine.pod()
    result = machine.chain(conf).add(pod)
    expected = [{"dst": "10.0.0.0/8", "gw": "169.254.1.1"}]
    if with_defaults:
        expected.insert(0, {"dst": "0.0.0.0/0", "gw": "169.254.1.1"})
    assert result["routes"] == expected
    inside = [one["dst"] for one in machine.inside(pod).ip("route")]
    assert sorted(inside) == sorted(["10.0.0.0/8", "169.254.1.1"] + (["default"] if with_defaults else []))


def test_host_local_full(machine: Machine) -> None:
    """Its own words reach the runtime, and nothing of the loser stays."""
    chain = machine.chain(calico(ipam=local(machine, subnet="10.9.0.0/30")))
    chain.add(machine.pod("one"))
    with pytest.raises(CniError, match="no IP addresses available in range set"):
        chain.add(machine.pod("two"))
    assert allocated(machine) == ["10.9.0.2"] and len(machine.endpoints()) == 1


@pytest.mark.parametrize(
    ("ipam", "said"),
    [
        ({"type": "no-such-plugin"}, 'failed to find plugin "no-such-plugin" in path'),
        ({"type": "host-local"}, "no IP ranges specified"),
        ({"type": "host-local", "subnet": "x"}, "invalid CIDR"),
        ({"type": "host-local", "ranges": 7}, "was expecting a list"),
        ({"type": "host-local", "subnet": "10.9.0.0/24", "routes": [{"dst": "x"}]}, "not a CIDR"),
    ],
)
def test_what_goes_wrong_in_another_ipam_plugin(machine: Machine, ipam: dict[str, Any], said: str) -> None:
    with pytest.raises(CniError, match=said):
        machine.chain(calico(ipam=ipam | {"dataDir": str(machine.folder / "networks")})).add(machine.pod())
    assert not machine.remains() and not allocated(machine)


def _script(machine: Machine, name: str, text: str) -> None:
    path = machine.bin / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", "failed with exit status 3 and no error message"),
        ("kill -9 $$", "failed with exit status 137"),
        ('echo \'{"code": 42, "msg": "full", "details": "really"}\'; exit 1', "full: really"),
        ("echo nonsense", "cannot read the result of the IPAM plugin odd"),
        ("echo '{}'", "IPAM plugin returned missing IP config"),
        ('echo \'{"ips": [{"address": "x"}]}\'', "names no address"),
        ("head -c 1000000 /dev/zero", "cannot read the result"),
    ],
)
def test_an_ipam_plugin_that_misbehaves(machine: Machine, script: str, said: str) -> None:
    calls = machine.folder / "calls"
    _script(machine, "odd", f'echo $CNI_COMMAND >> {calls}; [ "$CNI_COMMAND" = DEL ] && exit 0; {script}')
    with pytest.raises(CniError, match=said):
        machine.chain(calico(ipam={"type": "odd"})).add(machine.pod())
    assert calls.read_text().split()[:2] == ["ADD", "DEL"]  # the specification's wish after a failed ADD
    assert not machine.remains()


def test_an_ipam_plugin_gets_everything(machine: Machine) -> None:
    """The whole configuration, byte for byte, and the environment."""
    _script(
        machine,
        "spy",
        f"cat > {machine.folder}/stdin; env > {machine.folder}/env\n"
        'echo \'{"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.9.0.9/16", '
        '"gateway": "10.9.0.1"}]}\'',
    )
    conf = json.dumps(calico(name="net", cniVersion="1.0.0", policy={}, ipam={"type": "spy"}, x=["ü", 1]))
    settings = {
        "CONTAINERID": "c1",
        "NETNS": path_of(machine.namespace()),
        "IFNAME": "eth0",
        "ARGS": "COLOUR=red",
    }
    done = machine.run("ADD", conf.encode(), **settings)
    assert json.loads(done.stdout)["ips"] == [{"interface": 1, "address": "10.9.0.9/32"}]
    assert (machine.folder / "stdin").read_text() == conf
    seen = dict(line.split("=", 1) for line in (machine.folder / "env").read_text().splitlines())
    assert seen["CNI_COMMAND"] == "ADD" and seen["CNI_CONTAINERID"] == "c1"
    assert seen["CNI_ARGS"] == "IgnoreUnknown=1;COLOUR=red" and seen["CNI_NETNS"] == settings["NETNS"]


# --- calico-ipam for other plugins --------------------------------------------------------------


def test_bridge_with_calico_ipam(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed(pool("v4", "10.65.0.0/24"), pool("v6", "fd00:65::/112"))
    machine.start_server()
    ipam = {"type": "calico-ipam", "assign_ipv6": "true"}
    chain = machine.chain({"type": "bridge", "bridge": "cni-test", "ipam": ipam})
    pod = machine.pod()
    try:
        result = chain.add(pod)
        assert [ip["address"].partition("/")[2] for ip in result["ips"]] == ["26", "122"]
        assert sorted(machine.held().values()) == [f"k8s-pod-network.{pod.container_id}"] * 2
        chain.delete(pod)
    finally:
        machine.host.run("ip", "link", "del", "cni-test", check=False)
    assert not machine.remains()


def test_calico_ipam_answers_in_the_requested_format(machine: Machine) -> None:
    settings = {"CONTAINERID": "c1", "NETNS": "/x", "IFNAME": "eth0"}
    conf = {"name": "net", "ipam": {"type": "calico-ipam"}}
    for version in ("", "0.1.0", "0.4.0", "1.1.0"):
        given = conf | ({"cniVersion": version} if version else {})
        done = machine.run("ADD", given, "calico-ipam", **settings)
        result = json.loads(done.stdout)
        assert result["cniVersion"] == (version or "0.1.0")
        address = result["ip4"]["ip"] if "ip4" in result else result["ips"][0]["address"]
        assert address.endswith("/26")
        assert machine.run("DEL", given, "calico-ipam", **settings).returncode == 0
        assert not machine.remains()
