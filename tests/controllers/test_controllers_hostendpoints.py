"""Which host endpoints a node is to have, and when one that is there is good enough."""

from typing import Any

import pytest
from msgspec import structs

from tortie.controllers.hostendpoints import endpoint_name, is_ours, known_addresses, merged, same, wanted
from tortie.controllers.settings import HostEndpointSettings
from tortie.core.errors import ValidationError
from tortie.datastore import validate
from tortie.datastore.types.cluster import HostEndpointTemplate
from tortie.datastore.types.endpoint import EndpointPort
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import (
    Node,
    NodeAddress,
    NodeBGPSpec,
    NodeInterface,
    NodeSpec,
    NodeWireguardSpec,
)

pytestmark = pytest.mark.unit

NODE = Node(
    metadata=ObjectMeta(name="n1", labels={"rack": "a"}, annotations={"x": "y"}),
    spec=NodeSpec(
        bgp=NodeBGPSpec(
            ipv4Address="192.0.2.1/24", ipv6Address="2001:db8::1/64", ipv4IPIPTunnelAddr="10.0.0.1"
        ),
        ipv4VXLANTunnelAddr="10.0.0.2",
        wireguard=NodeWireguardSpec(interfaceIPv4Address="10.0.0.3"),
        addresses=(
            NodeAddress(address="192.0.2.1", type="InternalIP"),
            NodeAddress(address="198.51.100.7", type="ExternalIP"),
            NodeAddress(address="192.0.2.9", type="InternalIP"),
            NodeAddress(address="not one", type="InternalIP"),
        ),
        interfaces=(
            NodeInterface(name="eth0", addresses=("192.0.2.1", "203.0.113.5")),
            NodeInterface(name="eth1", addresses=("10.1.0.1",)),
        ),
    ),
)
ALL = ("192.0.2.1", "2001:db8::1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.9", "203.0.113.5", "10.1.0.1")


def template(**fields: Any) -> HostEndpointTemplate:
    return HostEndpointTemplate(**({"generateName": "t", "nodeSelector": "all()"} | fields))


def made(*templates: HostEndpointTemplate, default: bool = False) -> dict[str, Any]:
    return wanted([NODE], HostEndpointSettings(create=True, default=default, templates=templates))


def test_addresses_each_once_and_only_the_nodes_own() -> None:
    assert tuple(known_addresses(NODE)) == ALL


def test_the_default_one() -> None:
    (found,) = made(default=True).values()
    assert (found.name, found.spec.interfaceName, found.spec.expectedIPs) == ("n1-auto-hep", "*", ALL)
    assert found.labels == {"rack": "a", "projectcalico.org/created-by": "calico-kube-controllers"}
    assert found.spec.profiles == ("projectcalico-default-allow",)
    assert found.metadata.annotations == {}
    assert is_ours(found)
    validate.check(validate.with_defaults(found))


def test_switched_off_there_is_none() -> None:
    assert wanted([NODE], HostEndpointSettings(create=False)) == {}


def test_a_template_by_addresses() -> None:
    (found,) = made(
        template(interfaceCIDRs=("10.0.0.0/30",), labels={"rack": "b"}, annotations={"p": "q"})
    ).values()
    assert found.name == "n1-t-auto-hep"
    assert (found.spec.interfaceName, found.spec.expectedIPs) == ("", ("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    assert found.labels["rack"] == "b" and found.metadata.annotations == {"p": "q"}
    assert made(template(interfaceCIDRs=("10.255.0.0/16",))) == {}
    validate.check(validate.with_defaults(found))


def test_a_template_by_interfaces() -> None:
    found = made(template(interfacePattern="^eth", interfaceCIDRs=("10.0.0.1/32",)))
    assert {name: (one.spec.interfaceName, one.spec.expectedIPs) for name, one in found.items()} == {
        "n1-t-eth0-auto-hep": ("eth0", ("10.0.0.1", "192.0.2.1", "203.0.113.5")),
        "n1-t-eth1-auto-hep": ("eth1", ("10.0.0.1", "10.1.0.1")),
    }


def test_a_template_for_other_nodes() -> None:
    assert made(template(interfacePattern=".*", nodeSelector="rack == 'b'")) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"interfacePattern": "("},
        {"interfaceCIDRs": ("x",)},
        {"interfacePattern": "x", "nodeSelector": "&&"},
    ],
)
def test_a_wrong_template_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"hostEndpoint\.templates"):
        made(template(**wrong))


def test_long_names_become_digests() -> None:
    name = endpoint_name("n" * 250, "t", "eth0")
    assert len(name) <= 253 and name.endswith("-auto-hep") and name == name.lower()
    assert name != endpoint_name("n" * 250, "t", "eth1")
    assert len(endpoint_name("n" * 244)) == 253


def test_what_somebody_adds_stays() -> None:
    (want,) = made(default=True).values()
    spec = structs.replace(want.spec, ports=(EndpointPort(name="x", protocol="TCP", port=1),))
    stored = structs.replace(want, spec=spec).with_metadata(resourceVersion="7", uid="u")
    assert same(want, stored)
    moved = structs.replace(stored, spec=structs.replace(spec, expectedIPs=("10.9.9.9",)))
    assert not same(want, moved)
    assert merged(want, moved) == stored
    assert not same(want, stored.with_metadata(labels={"a": "b"}))
