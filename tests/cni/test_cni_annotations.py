"""What annotations of pods and namespaces ask for, on a real host."""

import json
from typing import Any

import pytest

from tests.support.cni import Machine, calico, pool
from tortie.core.errors import CniError

pytestmark = pytest.mark.kernel

PREFIX = "cni.projectcalico.org/"
POOLS = (
    pool("one", "10.65.0.0/24"),
    pool("two", "10.66.0.0/24", nodeSelector="!all()"),
    pool("six", "fd00:65::/112"),
    pool("picky", "10.67.0.0/24", namespaceSelector="team == 'blue'", nodeSelector="!all()"),
)


@pytest.fixture
def machine(bare_machine: Machine) -> Machine:
    bare_machine.seed(*POOLS)
    bare_machine.start_server()
    return bare_machine


def annotated(**annotations: Any) -> dict[str, str]:
    """Values that are no text are written as JSON."""
    return {
        PREFIX + name: value if isinstance(value, str) else json.dumps(value)
        for name, value in annotations.items()
    }


def addresses(result: dict[str, Any]) -> list[str]:
    return [ip["address"].partition("/")[0] for ip in result["ips"]]


def test_pools_by_name_or_cidr_of_the_pod_before_its_namespace(machine: Machine) -> None:
    chain = machine.chain()
    blue = {"annotations": annotated(ipv4pools=["two"])}
    by_namespace = chain.add(machine.pod("a", namespace=blue))
    by_pod = chain.add(machine.pod("b", namespace=blue, annotations=annotated(ipv4pools=["10.65.0.0/24"])))
    assert addresses(by_namespace)[0].startswith("10.66.0.")
    assert addresses(by_pod)[0].startswith("10.65.0.")


def test_families(machine: Machine) -> None:
    chain = machine.chain()
    both = chain.add(machine.pod("a", annotations=annotated(ipFamilies=["IPv4", "IPv6"])))
    six = chain.add(machine.pod("b", annotations=annotated(ipFamilies=["IPv6"])))
    assert [":" in one for one in addresses(both)] == [False, True]
    assert [":" in one for one in addresses(six)] == [True]


def test_namespace_selectors_of_pools(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed(
        pool("blue", "10.67.0.0/24", namespaceSelector="team == 'blue'", allowedUses=("Workload",)),
        pool("other", "10.68.0.0/24", namespaceSelector="team != 'blue'", allowedUses=("Workload",)),
    )
    machine.start_server()
    chain = machine.chain()
    inside = chain.add(machine.pod("a", namespace={"labels": {"team": "blue"}}))
    outside = chain.add(machine.pod("b"))
    assert addresses(inside)[0].startswith("10.67.0.") and addresses(outside)[0].startswith("10.68.0.")


def test_fixed_addresses(machine: Machine) -> None:
    chain = machine.chain()
    pod = machine.pod(annotations=annotated(ipAddrs=["10.65.0.9", "fd00:65::9"]))
    assert addresses(chain.add(pod)) == ["10.65.0.9", "fd00:65::9"]
    with pytest.raises(CniError, match="already assigned"):
        chain.add(machine.pod("other", annotations=annotated(ipAddrs=["10.65.0.9"])))
    assert sorted(machine.held()) == ["10.65.0.9", "fd00:65::9"]
    chain.delete(pod)
    assert not machine.remains()


def test_fixed_addresses_move_to_the_new_sandbox(machine: Machine) -> None:
    chain = machine.chain()
    old = machine.pod(container="old", annotations=annotated(ipAddrs=["10.65.0.9"]))
    new = machine.pod(container="new", annotations=annotated(ipAddrs=["10.65.0.9"]))
    chain.add(old)
    assert addresses(chain.add(new)) == ["10.65.0.9"]
    chain.delete(old)
    assert machine.held() == {"10.65.0.9": "k8s-pod-network.new"}
    chain.delete(new)
    assert not machine.remains()


def test_the_second_fixed_address_fails_and_the_first_is_given_back(machine: Machine) -> None:
    with pytest.raises(CniError, match="not in a configured pool"):
        machine.chain().add(machine.pod(annotations=annotated(ipAddrs=["10.65.0.9", "2001:db8::9"])))
    assert not machine.remains()


def test_addresses_without_ipam(machine: Machine) -> None:
    wanted = annotated(ipAddrsNoIpam=["172.30.0.5"])
    with pytest.raises(CniError, match="requested feature is not enabled: ip_addrs_no_ipam"):
        machine.chain().add(machine.pod(annotations=wanted))
    chain = machine.chain(calico(feature_control={"ip_addrs_no_ipam": True}))
    pod = machine.pod(annotations=wanted)
    assert addresses(chain.add(pod)) == ["172.30.0.5"] and not machine.held()
    chain.delete(pod)
    assert not machine.remains()


def test_floating_addresses(machine: Machine) -> None:
    wanted = annotated(floatingIPs=["203.0.113.7", "2001:db8::7"])
    with pytest.raises(CniError, match="requested feature is not enabled: floating_ips"):
        machine.chain().add(machine.pod(annotations=wanted))
    assert not machine.remains()
    chain = machine.chain(calico(feature_control={"floating_ips": True}))
    own = addresses(chain.add(machine.pod(annotations=wanted)))[0]
    (endpoint,) = machine.endpoints().values()
    assert endpoint["spec"]["ipNATs"] == [{"internalIP": own, "externalIP": "203.0.113.7"}]


def test_a_given_mac(machine: Machine) -> None:
    pod = machine.pod(annotations=annotated(hwAddr="02-AB-00-00-00-07"))
    result = machine.chain().add(pod)
    (link,) = machine.inside(pod).ip("link", "show", "dev", "eth0")
    assert link["address"] == result["interfaces"][1]["mac"] == "02:ab:00:00:00:07"
    (endpoint,) = machine.endpoints().values()
    assert endpoint["spec"]["mac"] == "02:ab:00:00:00:07"


def test_prefixes_it_may_send_from(machine: Machine) -> None:
    pod = machine.pod(annotations=annotated(allowedSourcePrefixes=["8.8.8.8/32", "1.2.3.4/16"]))
    machine.chain().add(pod)
    (endpoint,) = machine.endpoints().values()
    assert endpoint["spec"]["allowSpoofedSourcePrefixes"] == ["8.8.8.8/32", "1.2.0.0/16"]


def test_limits(machine: Machine) -> None:
    """What cannot be is brought near; Kubernetes' own bandwidth is left to the plugin of that name."""
    wanted = {
        "qos.projectcalico.org/ingressBandwidth": "8M",
        "qos.projectcalico.org/egressPacketRate": "100k",
        "qos.projectcalico.org/ingressMaxConnections": "3",
        "kubernetes.io/egress-bandwidth": "1M",
    }
    machine.chain().add(machine.pod(annotations=wanted))
    (endpoint,) = machine.endpoints().values()
    assert endpoint["spec"]["qosControls"] == {
        "ingressBandwidth": 8_000_000, "ingressBurst": 4 << 30, "ingressMaxConnections": 3,
        "egressPacketRate": 10_000, "egressPacketBurst": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"hwAddr": "nonsense"}, "failed to parse MAC address"),
        ({"hwAddr": "01:00:5e:00:00:01"}, "not the address of one interface"),
        ({"ipv4pools": "[1"}, "as JSON"),
        ({"ipFamilies": ["IPv5"]}, "error parsing ipFamilies"),
        ({"ipAddrs": []}, "specified but empty"),
        ({"ipAddrs": ["10.65.0.1", "10.65.0.2"]}, "cannot have more than one IPv4 address"),
        ({"ipAddrs": ["x"]}, "invalid IP format: x"),
        ({"ipAddrs": ["10.65.0.1"], "ipAddrsNoIpam": ["10.65.0.1"]}, "can't have both annotations"),
        ({"allowedSourcePrefixes": ["8.8.8.8"]}, "as a CIDR"),
    ],
)
def test_what_cannot_be_understood_is_refused(
    machine: Machine, annotations: dict[str, Any], said: str
) -> None:
    with pytest.raises(CniError, match=said):
        machine.chain().add(machine.pod(annotations=annotated(**annotations)))
    assert not machine.remains()
