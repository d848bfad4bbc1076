"""BGPConfiguration, BGPPeer and BGPFilter."""

from typing import Any

import pytest

from tests.support.resources import problems, resource
from tortie.datastore import codec, validate

pytestmark = pytest.mark.unit

# --- BGPConfiguration ---------------------------------------------------------------------------


def test_configuration_defaults() -> None:
    filled: Any = validate.with_defaults(resource("BGPConfiguration", {"nodeMeshMaxRestartTime": "90s"}))
    assert filled.spec.logSeverityScreen == "Info"
    assert filled.spec.serviceLoadBalancerAggregation == "Enabled"
    assert filled.spec.nodeMeshMaxRestartTime == "1m30s"


def test_bare_addresses_that_older_calicos_took_become_cidrs() -> None:
    blocks = {"serviceClusterIPs": [{"cidr": "10.0.0.1"}], "serviceExternalIPs": [{"cidr": "fd00::1"}]}
    advertised = {"prefixAdvertisements": [{"cidr": "10.0.0.1", "communities": ["1:2"]}]}
    spec: Any = codec.to_plain(validate.with_defaults(resource("BGPConfiguration", blocks | advertised)))[
        "spec"
    ]
    assert spec["serviceClusterIPs"] == [{"cidr": "10.0.0.1/32"}]
    assert spec["serviceExternalIPs"] == [{"cidr": "fd00::1/128"}]
    assert spec["prefixAdvertisements"][0]["cidr"] == "10.0.0.1/32"
    rules: Any = validate.with_defaults(resource("BGPFilter", {"importV4": [V4 | {"cidr": "10.0.0.1"}]}))
    assert rules.spec.importV4[0].cidr == "10.0.0.1/32"
    reserved: Any = validate.with_defaults(resource("IPReservation", {"reservedCIDRs": ["10.0.0.1"]}))
    assert reserved.spec.reservedCIDRs == ("10.0.0.1/32",)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"logSeverityScreen": "debug"}, None),
        ({"logSeverityScreen": "Verbose"}, "spec.logSeverityScreen"),
        ({"asNumber": "64512.1", "nodeToNodeMeshEnabled": False}, None),
        ({"listenPort": 65_535}, None),
        ({"listenPort": 0}, None),
        ({"listenPort": 65_536}, "spec.listenPort"),
        ({"listenPort": -1}, "spec.listenPort"),
        ({"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}]}, None),
        ({"serviceClusterIPs": [{"cidr": "10.96.0.1/12"}]}, "spec.serviceClusterIPs[0].cidr"),
        ({"serviceExternalIPs": [{"cidr": "10.96.0.1"}]}, None),
        ({"serviceExternalIPs": [{"cidr": "10.96.0.1/"}]}, "spec.serviceExternalIPs[0].cidr"),
        ({"serviceLoadBalancerIPs": [{"cidr": "x; y"}]}, "spec.serviceLoadBalancerIPs[0].cidr"),
        ({"serviceLoadBalancerAggregation": "On"}, "spec.serviceLoadBalancerAggregation"),
        ({"nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "pass_word.1"}}}, None),
        ({"nodeMeshPassword": {"secretKeyRef": {"name": "bgp"}}}, "spec.nodeMeshPassword.secretKeyRef.key"),
        ({"nodeMeshPassword": {"secretKeyRef": {"name": "a/b", "key": "k"}}},
         "spec.nodeMeshPassword.secretKeyRef.name"),
        ({"nodeMeshPassword": {"secretKeyRef": {"name": "a", "key": "../k"}}},
         "spec.nodeMeshPassword.secretKeyRef.key"),
        ({"nodeMeshPassword": {"secretKeyRef": {"name": "a", "key": "k"}}, "nodeToNodeMeshEnabled": False},
         "spec.nodeMeshPassword"),
        ({"nodeMeshMaxRestartTime": "10s", "nodeToNodeMeshEnabled": False}, "spec.nodeMeshMaxRestartTime"),
        ({"nodeMeshMaxRestartTime": "ten"}, "spec.nodeMeshMaxRestartTime"),
        ({"nodeMeshMaxRestartTime": "-10s"}, "spec.nodeMeshMaxRestartTime"),
        ({"bindMode": "NodeIP", "ignoredInterfaces": ["eth*", "docker0"]}, None),
        ({"bindMode": "nodeip"}, "spec.bindMode"),
        ({"ignoredInterfaces": ["*"]}, "spec.ignoredInterfaces[0]"),
        ({"ignoredInterfaces": ['eth"0']}, "spec.ignoredInterfaces[0]"),
        ({"localWorkloadPeeringIPV4": "fd00::1"}, "spec.localWorkloadPeeringIPV4"),
        ({"localWorkloadPeeringIPV6": "10.0.0.1"}, "spec.localWorkloadPeeringIPV6"),
        ({"programClusterRoutes": "EnabledNoEncapOnly"}, None),
        ({"programClusterRoutes": "Yes"}, "spec.programClusterRoutes"),
        ({"ipv4NormalRoutePriority": 0}, "spec.ipv4NormalRoutePriority"),
        ({"ipv6NormalRoutePriority": 2_147_483_647}, "spec.ipv6NormalRoutePriority"),
    ],
)  # fmt: skip
def test_configurations(spec: dict[str, Any], field: str | None) -> None:
    assert list(problems("BGPConfiguration", spec)) == ([field] if field else [])


ADVERTISED = [{"cidr": "10.0.0.0/8", "communities": ["65000:1"]}]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"prefixAdvertisements": ADVERTISED}, None),
        ({"communities": [{"name": "mine", "value": "1:2:3"}],
         "prefixAdvertisements": [ADVERTISED[0] | {"communities": ["mine"]}]}, None),
        ({"communities": [{"name": "mine", "value": "1:2"}]}, "spec.communities"),
        ({"communities": [{"name": "Mine", "value": "1:2"}], "prefixAdvertisements": ADVERTISED},
         "spec.communities[0].name"),
        ({"communities": [{"name": "mine", "value": "65536:2"}], "prefixAdvertisements": ADVERTISED},
         "spec.communities[0].value"),
        ({"communities": [{"name": "mine", "value": "1:2:4294967296"}], "prefixAdvertisements": ADVERTISED},
         "spec.communities[0].value"),
        ({"communities": [{"name": "mine", "value": "1:2\n"}], "prefixAdvertisements": ADVERTISED},
         "spec.communities[0].value"),
        ({"communities": [{"name": "mine"}], "prefixAdvertisements": ADVERTISED},
         "spec.communities[0].value"),
        ({"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["theirs"]}]},
         "spec.prefixAdvertisements[0].communities[0]"),
        ({"prefixAdvertisements": [{"cidr": "10.0.0.0/8"}]}, "spec.prefixAdvertisements[0].communities"),
        ({"prefixAdvertisements": [{"communities": ["1:2"]}]}, "spec.prefixAdvertisements[0].cidr"),
        ({"prefixAdvertisements": [{"cidr": "10.0.0.1", "communities": ["1:2"]}]}, None),
        ({"prefixAdvertisements": ADVERTISED * 501}, "spec.prefixAdvertisements"),
    ],
)  # fmt: skip
def test_communities(spec: dict[str, Any], field: str | None) -> None:
    assert list(problems("BGPConfiguration", spec)) == ([field] if field else [])


def test_what_only_the_global_configuration_may_say() -> None:
    spec = {
        "nodeToNodeMeshEnabled": True, "asNumber": 1, "serviceLoadBalancerIPs": [{"cidr": "10.0.0.0/8"}],
        "serviceExternalIPs": [{"cidr": "10.0.0.0/8"}], "serviceClusterIPs": [{"cidr": "10.0.0.0/8"}],
        "nodeMeshPassword": {"secretKeyRef": {"name": "a", "key": "b"}}, "nodeMeshMaxRestartTime": "1s",
    }  # fmt: skip
    assert problems("BGPConfiguration", spec) == {}
    found = problems("BGPConfiguration", spec, name="node.n1")
    assert set(found) == {
        f"BGPConfiguration.Spec.{name}"
        for name in (
            "NodeToNodeMeshEnabled", "ASNumber", "ServiceLoadBalancerIPs", "ServiceExternalIPs",
            "ServiceClusterIPs", "NodeMeshPassword", "NodeMeshMaxRestartTime",
        )
    }  # fmt: skip
    assert (
        found["BGPConfiguration.Spec.ASNumber"] == "Cannot set ASNumber on a non default BGP Configuration."
    )


# --- BGPPeer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, None),
        ({"peerIP": "192.0.2.1", "asNumber": 64512}, None),
        ({"peerIP": "[fd00::1]:1790", "reachableBy": "fd00::2", "node": "n1"}, None),
        ({"peerSelector": "has(rr)", "nodeSelector": "all()"}, None),
        ({"localWorkloadSelector": "a == 'b'", "asNumber": 1}, None),
        ({"sourceAddress": "None", "nextHopMode": "Self", "reversePeering": "Manual"}, None),
        ({"maxRestartTime": "2m", "keepaliveTime": "20s", "ttlSecurity": 255,
         "numAllowedLocalASNumbers": 3}, None),
        ({"password": {"secretKeyRef": {"name": "a", "key": "b"}}, "filters": ["f1", "f2"]}, None),
        ({"node": "N1"}, "spec.node"),
        ({"node": "n1", "nodeSelector": "all()"}, "spec.nodeSelector"),
        ({"nodeSelector": "all("}, "spec.nodeSelector"),
        ({"peerIP": "192.0.2.1:0"}, "spec.peerIP"),
        ({"peerIP": "192.0.2.1:99999"}, "spec.peerIP"),
        ({"peerIP": "192.0.2.1\n"}, "spec.peerIP"),
        ({"peerIP": '192.0.2.1"; exec'}, "spec.peerIP"),
        ({"peerIP": "tor.example.org"}, "spec.peerIP"),
        ({"peerIP": "192.0.2.1", "peerSelector": "all()"}, "spec.peerSelector"),
        ({"peerSelector": "all()", "asNumber": 1}, "spec.asNumber"),
        ({"localWorkloadSelector": "all()", "asNumber": 1, "peerIP": "192.0.2.1"}, "spec.peerIP"),
        ({"localWorkloadSelector": "all()"}, "spec.asNumber"),
        ({"reachableBy": "192.0.2.9"}, "spec.reachableBy"),
        ({"peerIP": "fd00::1", "reachableBy": "192.0.2.9"}, "spec.reachableBy"),
        ({"peerIP": "192.0.2.1", "reachableBy": "x"}, "spec.reachableBy"),
        ({"nextHopMode": "Other"}, "spec.nextHopMode"),
        ({"nextHopMode": "Self", "keepOriginalNextHop": True}, "spec.nextHopMode"),
        ({"sourceAddress": "eth0"}, "spec.sourceAddress"),
        ({"reversePeering": "x"}, "spec.reversePeering"),
        ({"ttlSecurity": 256}, "spec.ttlSecurity"),
        ({"ttlSecurity": -1}, "spec.ttlSecurity"),
        ({"numAllowedLocalASNumbers": 2**31}, "spec.numAllowedLocalASNumbers"),
        ({"maxRestartTime": "soon"}, "spec.maxRestartTime"),
        ({"keepaliveTime": "1"}, "spec.keepaliveTime"),
        ({"filters": ["f 1"]}, "spec.filters[0]"),
        ({"password": {"secretKeyRef": {"name": "a"}}}, "spec.password.secretKeyRef.key"),
    ],
)  # fmt: skip
def test_peers(spec: dict[str, Any], field: str | None) -> None:
    assert list(problems("BGPPeer", spec)) == ([field] if field else [])


def test_both_selectors_of_the_far_side() -> None:
    found = problems("BGPPeer", {"localWorkloadSelector": "all()", "asNumber": 1, "peerSelector": "all()"})
    assert found == {
        "spec.peerSelector": "peerSelector must be empty when localWorkloadSelector is set",
        "spec.asNumber": "asNumber must be empty when peerSelector is set",
    }


# --- BGPFilter ----------------------------------------------------------------------------------

ACCEPT = {"action": "Accept"}
V4 = ACCEPT | {"cidr": "10.0.0.0/8", "matchOperator": "In"}


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (ACCEPT, None),
        ({"action": "Reject", "source": "RemotePeers", "interface": "eth*", "peerType": "eBGP"}, None),
        (V4 | {"prefixLength": {"min": 0, "max": 32}, "priority": 1}, None),
        (ACCEPT | {"communities": {"values": ["65535:0"]}, "asPathPrefix": [1, "1.1"]}, None),
        (ACCEPT | {"operations": [{"addCommunity": {"value": "1:2:4294967295"}},
         {"prependASPath": {"prefix": [1] * 10}}, {"setPriority": {"value": 5}}]}, None),
        ({}, "action"),
        ({"action": "accept"}, "action"),
        (ACCEPT | {"cidr": "10.0.0.0/8"}, "matchOperator"),
        (ACCEPT | {"matchOperator": "In"}, "matchOperator"),
        (V4 | {"matchOperator": "Within"}, "matchOperator"),
        (V4 | {"cidr": "10.0.0.1/8"}, "cidr"),
        (V4 | {"cidr": "10.0.0.1"}, None),
        (V4 | {"cidr": "fd00::/8"}, "cidr"),
        (ACCEPT | {"prefixLength": {"min": 1}}, "cidr"),
        (V4 | {"prefixLength": {"min": -1}}, "prefixLength.min"),
        (V4 | {"prefixLength": {"max": 33}}, "prefixLength.max"),
        (V4 | {"prefixLength": {"min": 24, "max": 16}}, "prefixLength.min"),
        (ACCEPT | {"source": "LocalPeers"}, "source"),
        (ACCEPT | {"interface": "eth 0"}, "interface"),
        (ACCEPT | {"peerType": "ebgp"}, "peerType"),
        (ACCEPT | {"communities": {"values": []}}, "communities.values"),
        (ACCEPT | {"communities": {"values": ["1:1", "2:2"]}}, "communities.values"),
        (ACCEPT | {"communities": {"values": ["65536:0"]}}, "communities.values[0]"),
        (ACCEPT | {"communities": {"values": ["01:0"]}}, "communities.values[0]"),
        (ACCEPT | {"priority": 0}, "priority"),
        (ACCEPT | {"operations": [{}]}, "operations[0]"),
        (ACCEPT | {"operations": [{"addCommunity": {"value": "1:2"}, "setPriority": {"value": 5}}]},
         "operations[0]"),
        (ACCEPT | {"operations": [{"addCommunity": {"value": "x"}}]}, "operations[0].addCommunity.value"),
        (ACCEPT | {"operations": [{"prependASPath": {"prefix": []}}]}, "operations[0].prependASPath.prefix"),
        (ACCEPT | {"operations": [{"prependASPath": {"prefix": [1] * 11}}]},
         "operations[0].prependASPath.prefix"),
        (ACCEPT | {"operations": [{"setPriority": {"value": 0}}]}, "operations[0].setPriority.value"),
        (ACCEPT | {"operations": [{"setPriority": {"value": 1}}] * 11}, "operations"),
        ({"action": "Reject", "operations": [{"setPriority": {"value": 1}}]}, "operations"),
    ],
)  # fmt: skip
def test_filter_rules(rule: dict[str, Any], field: str | None) -> None:
    for direction in ("exportV4", "importV4"):
        expected = [f"spec.{direction}[0].{field}"] if field else []
        assert list(problems("BGPFilter", {direction: [rule]})) == expected


def test_filters_of_ipv6() -> None:
    rule = ACCEPT | {"cidr": "fd00::/8", "matchOperator": "In", "prefixLength": {"max": 128}}
    assert problems("BGPFilter", {"exportV6": [rule], "importV6": [rule]}) == {}
    assert list(problems("BGPFilter", {"importV6": [V4]})) == ["spec.importV6[0].cidr"]
    longer = rule | {"prefixLength": {"max": 129}}
    assert list(problems("BGPFilter", {"exportV6": [longer]})) == ["spec.exportV6[0].prefixLength.max"]
