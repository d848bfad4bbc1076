"""Objects that no schema would let in, or that a schema cannot refuse: each is reported by its name and
left out alone, in a list and in a watch, and is back when it is repaired."""

import asyncio
from typing import Any

import pytest

from tests.support.aio import eventually, run
from tests.support.kubernetes import ApiServer
from tests.support.replay import Replay
from tortie.datastore import validate
from tortie.datastore.keys import AffinityList, BlockKey, BlockList, Key, Listing, ResourceKey, ResourceList
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.syncer import Syncer

pytestmark = pytest.mark.kernel

_DEADLINE = 120.0  # seconds; all is over in a few, unless the machine is busy
_MERGE = "application/merge-patch+json"
HUGE = [{"action": "Allow"}] * 20_000

# (plural, kind, what stands in the place of a spec): each wrong in another way
BROKEN: list[tuple[str, str, Any]] = [
    ("ippools", "IPPool", {"cidr": ["10.0.0.0/8"]}),
    ("ippools", "IPPool", {"cidr": "10.0.0.0/99"}),
    ("ippools", "IPPool", "10.0.0.0/8"),
    ("globalnetworkpolicies", "GlobalNetworkPolicy", {"ingress": HUGE, "order": "first"}),
    ("globalnetworkpolicies", "GlobalNetworkPolicy", {"ingress": [{"action": ["Allow"]}]}),
    ("globalnetworksets", "GlobalNetworkSet", {"nets": "10.0.0.1; flush ruleset"}),
    ("hostendpoints", "HostEndpoint", {"node": "n1", "interfaceName": {"eth0": "\n-A INPUT"}}),
    ("bgppeers", "BGPPeer", {"peerIP": "10.0.0.1", "asNumber": "many"}),
    ("bgpconfigurations", "BGPConfiguration", {"listenPort": 2**70}),
    ("felixconfigurations", "FelixConfiguration", "logSeverityScreen: Info"),
    ("tiers", "Tier", {"order": []}),
]
GOOD = {  # plural -> spec of one that is in order
    "ippools": {"cidr": "10.0.0.0/16"},
    "globalnetworkpolicies": {"selector": "all()", "ingress": HUGE[:1000]},
    "globalnetworksets": {"nets": [f"10.{one >> 8}.{one & 255}.0/24" for one in range(20_000)]},
    "hostendpoints": {"node": "n1", "interfaceName": "eth0"},
    "bgppeers": {"peerIP": "10.0.0.1", "asNumber": 64512},
    "bgpconfigurations": {"listenPort": 179},
    "felixconfigurations": {"logSeverityScreen": "Info"},
    "tiers": {"order": 10},
}
KINDS = {kind: plural for plural, kind, _ in BROKEN}


def put(server: ApiServer, plural: str, kind: str, name: str, spec: Any) -> None:
    server.put_custom(plural, kind, name, {}, {"spec": spec})


def pod(name: str, **annotations: str) -> dict[str, Any]:
    given = {f"cni.projectcalico.org/{key}": value for key, value in annotations.items()}
    spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}
    return {"metadata": {"name": name, "annotations": given}, "spec": spec}


def endpoint(name: str) -> ResourceKey:
    return ResourceKey("WorkloadEndpoint", f"n1-k8s-{name}-eth0", "default")


def names(broken: list[tuple[str, str, Any]], when: str) -> list[tuple[str, str, str, Any]]:
    return [
        (plural, kind, f"node.bad-{number}-{when}", spec)
        for number, (plural, kind, spec) in enumerate(broken)
    ]


def test_each_bad_object_is_left_out_alone(apiserver: ApiServer) -> None:
    listed, watched = names(BROKEN, "listed"), names(BROKEN, "watched")
    for kind, plural in KINDS.items():
        put(apiserver, plural, kind, "default", GOOD[plural])
    for plural, kind, name, spec in listed:
        put(apiserver, plural, kind, name, spec)
    apiserver.put_custom("ipamblocks", "IPAMBlock", "10-0-0-0-26", {}, {"spec": {"cidr": "10.0.0.0/26",
        "allocations": "none", "unallocated": [], "attributes": [], "strictAffinity": False}})  # fmt: skip
    apiserver.put_custom("blockaffinities", "BlockAffinity", "odd", {}, {"spec": {"cidr": 7}})
    pods = "/api/v1/namespaces/default/pods"
    apiserver.ask("POST", pods, pod("good", podIP="10.0.0.1/32"))
    apiserver.ask("POST", pods, pod("bad", podIP="10.0.0.1/32; flush"))
    listings: list[Listing] = [ResourceList(kind) for kind in (*KINDS, "WorkloadEndpoint")]
    listings += [BlockList(), AffinityList()]

    async def scenario() -> None:
        backend = KubernetesBackend(apiserver.config())
        syncer, replay = Syncer(backend, listings, check=validate.check_stored), Replay()
        following = asyncio.create_task(replay.consume(syncer))
        try:
            good: set[Key] = {*(ResourceKey(kind, "default") for kind in KINDS), endpoint("good")}
            await eventually(lambda: replay.in_sync, _DEADLINE)
            assert set(replay.state) == good
            where = set(syncer.problems())
            assert {ResourceKey(kind, name).path() for _, kind, name, _ in listed} <= where
            assert BlockKey("10.0.0.0/26").path() in where
            assert {"/api/v1/namespaces/default/pods/bad"} <= where
            assert any(one.endswith("/blockaffinities/odd") for one in where)

            for plural, kind, name, spec in watched:
                put(apiserver, plural, kind, name, spec)
            await asyncio.to_thread(apiserver.ask, "POST", pods, pod("late", floatingIPs='["x"'))
            bad = {ResourceKey(kind, name).path() for _, kind, name, _ in watched}
            await eventually(lambda: bad <= set(syncer.problems()), _DEADLINE)
            # Without an address nobody looks at what else a pod asks for.
            await eventually(lambda: endpoint("late") in replay.state, _DEADLINE)
            assert set(replay.state) == good | {endpoint("late")}

            for plural, kind, name, _ in listed + watched:
                put(apiserver, plural, kind, name, GOOD[plural])
            repaired = {"metadata": {"annotations": {"cni.projectcalico.org/podIP": "10.0.0.2/32"}}}
            await asyncio.to_thread(apiserver.ask, "PATCH", f"{pods}/bad", repaired, _MERGE)
            mended = {ResourceKey(kind, name) for _, kind, name, _ in listed + watched} | {endpoint("bad")}
            await eventually(lambda: mended <= set(replay.state), _DEADLINE)
            assert not bad & set(syncer.problems())
        finally:
            following.cancel()
            await asyncio.wait([following])
            await backend.close()

    run(scenario())


def test_a_node_with_odd_annotations_is_a_node_without_them(apiserver: ApiServer) -> None:
    prefix = "projectcalico.org/"
    odd = {"IPv4Address": "10.0.0.1/99", "ASNumber": "-1", "Interfaces": "[[", "labels": "no",
           "IPv4VXLANTunnelAddr": "\n", "RouteReflectorClusterID": "1.2.3.4; drop"}  # fmt: skip
    annotations = {prefix + name: value for name, value in odd.items()}
    apiserver.ask("POST", "/api/v1/nodes", {"metadata": {"name": "n1", "annotations": annotations}})

    async def scenario() -> None:
        backend = KubernetesBackend(apiserver.config())
        found = (await backend.get(ResourceKey("Node", "n1"))).value
        await backend.close()
        assert found.name == "n1"
        assert found.spec.bgp is None or found.spec.bgp.ipv4Address == ""
        assert found.spec.interfaces == ()

    run(scenario())
