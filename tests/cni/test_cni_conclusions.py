"""Decisions as plain functions: the plan of an interface, what CHECK and GC conclude, host-local."""

import asyncio
import gc
import weakref
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.support.aio import run
from tortie.cni import check, collect, delegate, interface, store
from tortie.cni.addressing import Holder, holders
from tortie.cni.collect import Scope
from tortie.cni.interface import Pair
from tortie.cni.netconf import NetConf
from tortie.cni.result import IP, Interface, Result
from tortie.cni.result import Route as ResultRoute
from tortie.cni.wiring import Seen
from tortie.core.errors import ConfigError
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.keys import ResourceKey
from tortie.datastore.syncer import Batch, SyncStatus, Update
from tortie.datastore.types.cluster import ClusterInformation, ClusterInformationSpec
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.datastore.types.meta import ObjectMeta
from tortie.linux.links import IFF_UP, Link
from tortie.linux.routes import Route

pytestmark = pytest.mark.unit


def conf(**fields: Any) -> NetConf:
    return msgspec.convert({"name": "net", "ipam": {"type": "calico-ipam"}} | fields, NetConf)


# --- the plan of an interface ----------------------------------------------------------------------


def settings_of(found: list[interface.Setting]) -> dict[str, int]:
    return {setting.key: setting.value for setting in found}


def test_parameters_by_family() -> None:
    four, six = Pair("cali1", "eth0", ("10.0.0.1",)), Pair("cali1", "eth0", ("fd00::1",), forwarding=True)
    assert settings_of(interface.host_settings(four)) == {
        "net/ipv4/conf/cali1/route_localnet": 1,
        "net/ipv4/neigh/cali1/proxy_delay": 0,
        "net/ipv4/conf/cali1/proxy_arp": 1,
        "net/ipv4/conf/cali1/forwarding": 1,
        "net/ipv6/conf/cali1/accept_ra": 0,
    }
    assert settings_of(interface.host_settings(six)) == {
        "net/ipv6/conf/cali1/accept_dad": 0,
        "net/ipv6/conf/cali1/disable_ipv6": 0,
        "net/ipv6/conf/cali1/proxy_ndp": 1,
        "net/ipv6/conf/cali1/forwarding": 1,
        "net/ipv6/conf/cali1/accept_ra": 0,
    }
    optional = [one.key for one in interface.host_settings(four) if not one.required]
    assert optional == ["net/ipv4/neigh/cali1/proxy_delay", "net/ipv6/conf/cali1/accept_ra"]
    assert settings_of(interface.container_settings(four)) == {"net/ipv4/ip_forward": 0}
    assert settings_of(interface.container_settings(six)) == {
        "net/ipv6/conf/all/disable_ipv6": 0,
        "net/ipv6/conf/default/disable_ipv6": 0,
        "net/ipv6/conf/lo/disable_ipv6": 0,
        "net/ipv6/conf/all/forwarding": 1,
    }
    assert settings_of(interface.container_end_settings(six)) == {"net/ipv6/conf/eth0/accept_dad": 0}
    assert not interface.container_end_settings(four)


def test_routes_in_the_order_they_depend_on_each_other() -> None:
    pair = Pair("cali1", "eth0", ("10.0.0.1", "fd00::1"), routes=("10.0.0.0/8", "::/0", "0.0.0.0/0"))
    assert [(one.dst, one.gateway) for one in interface.container_routes(pair, 3)] == [
        ("169.254.1.1/32", None),
        ("10.0.0.0/8", "169.254.1.1"),
        ("0.0.0.0/0", "169.254.1.1"),
        ("::/0", "fe80::ecee:eeff:feee:eeee"),
    ]
    assert [one.dst for one in interface.host_routes(pair, 3)] == ["10.0.0.1/32", "fd00::1/128"]


# --- CHECK -----------------------------------------------------------------------------------------

PREVIOUS = Result(
    interfaces=(Interface("cali1"), Interface("eth0", "02:00:00:00:00:01", sandbox="/x")),
    ips=(IP("10.0.0.1/32", 1),),
    routes=(ResultRoute("0.0.0.0/0", "169.254.1.1"),),
)
GOOD = Seen(
    container=Link("eth0", 2, IFF_UP, 1500, mac="02:00:00:00:00:01", peer=7),
    host=Link("cali1", 7, IFF_UP, 1500),
    addresses=("10.0.0.1/32", "fe80::1/64"),
    routes=(Route("169.254.1.1/32", ifindex=2), Route("0.0.0.0/0", ifindex=2, gateway="169.254.1.1")),
    host_routes=(Route("10.0.0.1/32", ifindex=7),),
)


def test_check_is_content_with_what_add_made_and_more() -> None:
    assert not list(check.interface_problems(PREVIOUS, GOOD, "eth0", "cali1"))


def test_check_wants_addresses_to_compare() -> None:
    (said,) = check.interface_problems(Result(interfaces=PREVIOUS.interfaces), GOOD, "eth0", "cali1")
    assert said == "prevResult names no address of eth0"


def test_check_notices_a_pair_that_is_none() -> None:
    apart = replace(GOOD, host=Link("cali1", 9, IFF_UP, 1500))
    found = list(check.interface_problems(PREVIOUS, apart, "eth0", "cali1"))
    assert found == ["interface eth0 is not connected to cali1"]


# --- GC --------------------------------------------------------------------------------------------


def wep(name: str, container: str, *, orchestrator: str = "k8s", profile: str = "kns.x") -> WorkloadEndpoint:
    spec = WorkloadEndpointSpec(
        orchestrator=orchestrator, containerID=container, profiles=(profile,), interfaceName=f"cali-{name}"
    )
    return WorkloadEndpoint(metadata=ObjectMeta(name=name), spec=spec)


def link(name: str, mark: str = "") -> Link:
    return Link(name, 1, IFF_UP, 1500, alias=mark)


def scope(*valid: str, busy: str = "", network: str = "net") -> Scope:
    marks = frozenset(f"{network}/{one}/eth0" for one in valid)
    return Scope(network, frozenset(valid), marks, lambda container: container == busy)


def stale(one: Scope, endpoints: list[WorkloadEndpoint], held: list[Holder], links: list[Link]) -> list[str]:
    return [found.name for found in collect.stale_endpoints(one, endpoints, held, links)]


def test_an_endpoint_is_stale_when_its_container_is_not_valid() -> None:
    endpoints = [wep("a", "c1"), wep("b", "c2"), wep("c", ""), wep("d", "c4", orchestrator="openstack")]
    assert stale(scope("c1"), endpoints, [], []) == ["b"]
    assert stale(scope("c1", busy="c2"), endpoints, [], []) == []


def test_an_endpoint_of_another_network_is_left_alone() -> None:
    endpoints = [wep("a", "c1"), wep("b", "c2"), wep("c", "c3", profile="net")]
    held = [Holder("other", "c1", "x"), Holder("other", "c3", "x")]
    assert stale(scope(), endpoints, held, [link("cali-b", "other/c2/eth0")]) == ["c"]
    other = scope(network="other")
    assert stale(other, endpoints, held, [link("cali-b", "other/c2/eth0")]) == ["a", "b", "c"]


def test_interfaces_by_mark_and_unmarked_ones_by_address() -> None:
    links = [
        link("eth0"),
        link("cali-a", "net/c1/eth0"),
        link("cali-b", "net/c2/eth0"),
        link("cali-c", "other/c3/eth0"),
        link("cali-d"),
        link("cali-e"),
        link("cali-f", "written by a person"),
        link("cali-g", "net/c1/net1"),
    ]
    held = [Holder("net", "c4", "cali-d"), Holder("net", "c5", "cali-e"), Holder("other", "c6", "eth0")]
    living = [wep("e", "c1")]  # a pod whose new sandbox is c1; the old one was c5
    assert collect.stale_interfaces(scope("c1"), living, held, links) == ["cali-b", "cali-d", "cali-g"]
    assert collect.stale_interfaces(scope("c1", busy="c2"), living, held, links) == ["cali-d", "cali-g"]


def test_who_holds_addresses() -> None:
    def owned(handle: str | None, node: str = "n", **more: str) -> AllocationAttribute:
        return AllocationAttribute(handle_id=handle, secondary={"node": node} | more)

    block = Block(
        cidr="10.0.0.0/26",
        attributes=(
            owned("net.c1", pod="nginx", namespace="default"),
            owned("net.a.c2"),
            owned("net.c3", node="other"),
            owned("ipip-tunnel-addr-n"),
            owned(None),
        ),
    )
    assert holders([block], "n", "cali") == {
        Holder("net", "c1", "calic440f455693"),
        Holder("net.a", "c2", "calic2"),
    }


# --- host-local and other IPAM plugins -------------------------------------------------------------


def test_pod_cidrs_are_put_everywhere() -> None:
    ranges = [[{"subnet": "usePodCidrIPv6"}, {"subnet": "10.9.0.0/24"}]]
    plain = {"ipam": {"subnet": "UsePodCidr", "ranges": ranges}}
    assert delegate.uses_pod_cidr(plain)
    done = delegate.with_pod_cidrs(plain, ("10.1.0.0/24", "fd00::/64"))
    assert done["ipam"]["subnet"] == "10.1.0.0/24"
    assert [one["subnet"] for one in done["ipam"]["ranges"][0]] == ["fd00::/64", "10.9.0.0/24"]
    assert not delegate.uses_pod_cidr(done)


@pytest.mark.parametrize("ipam", [None, [], "x", {"ranges": 1}, {"ranges": [1]}, {"ranges": [["x"]]}])
def test_a_misshapen_ipam_section(ipam: Any) -> None:
    with pytest.raises(ConfigError, match="ipam"):
        delegate.uses_pod_cidr({"ipam": ipam})


def test_pod_cidrs_of_a_node() -> None:
    assert delegate.by_family(["fd00::/64", "10.0.0.0/24"], "n") == ("10.0.0.0/24", "fd00::/64")
    assert delegate.by_family(["10.0.0.0/24"], "n") == ("10.0.0.0/24", "")
    for wrong in ([], ["x"], ["10.0.0.0/24", "10.1.0.0/24"]):
        with pytest.raises(ConfigError):
            delegate.by_family(wrong, "n")
    with pytest.raises(ConfigError, match="there is no IPv6 CIDR configured"):
        delegate.with_pod_cidrs({"ipam": {"subnet": "usePodCidrIPv6"}}, ("10.0.0.0/24", ""))


def test_another_plugins_error_is_passed_on() -> None:
    said = delegate.failure("x", 1, b'{"code": 11, "msg": "later", "details": "d"}')
    assert (said.code, said.msg, said.details) == (11, "later", "d")
    for output in (b"", b"{}", b"[]", b"\xff", b'{"code": "x"}'):
        assert "IPAM plugin x failed with exit status 2" in delegate.failure("x", 2, output).msg


# --- the datastore a configuration names -----------------------------------------------------------


def test_a_configuration_overrides_the_environment() -> None:
    base = DatastoreConfig(etcdEndpoints=("http://a",), etcdUsername="u")
    assert store.effective_config(base, conf()) is base
    found = store.effective_config(base, conf(etcd_endpoints="http://b, http://c", etcd_ca_cert_file="/ca"))
    assert found.etcdEndpoints == ("http://b", "http://c") and found.etcdCACertFile == "/ca"
    assert found.etcdUsername == "u"
    old = store.effective_config(base, conf(etcd_authority="h:2379", etcd_scheme="https"))
    assert old.etcdEndpoints == ("https://h:2379",)
    with_api = conf(kubernetes={"kubeconfig": "/k"}, calico_api_group="crd.projectcalico.org/v1")
    assert store.effective_config(base, with_api) is base
    assert store.effective_config(DatastoreConfig(), with_api).kubeconfig == "/k"


def test_a_configuration_that_names_the_environments_datastore_opens_no_second_one() -> None:
    """Of the environment's or a configuration's type and endpoints either may be left to be understood."""

    async def story() -> None:
        for base in (
            DatastoreConfig(etcdEndpoints=("http://127.0.0.1:9",)),
            DatastoreConfig(datastoreType="etcdv3", etcdEndpoints=("http://127.0.0.1:9",)),
        ):
            stores = store.Stores(base, "node")
            own = stores.start()
            for given in ({}, {"datastore_type": "etcdv3"}, {"etcd_endpoints": "http://127.0.0.1:9"}):
                assert stores.of(conf(**given)) is own
            await stores.close()

    asyncio.run(story())


def test_a_datastore_that_is_named_no_more_is_let_go() -> None:
    """One wrong name must not leave a loop that dials it for ever; the environment's own one stays."""

    async def story() -> None:
        stores = store.Stores(DatastoreConfig(etcdEndpoints=("http://127.0.0.1:9",)), "node", idle=0.01)
        own = stores.start()
        wrong = weakref.ref(stores.of(conf(etcd_endpoints="http://127.0.0.1:8")))
        assert wrong() is not None
        while wrong() is not None:
            gc.collect()
            await asyncio.sleep(0.01)
        assert stores.of(conf()) is own
        assert stores.of(conf(etcd_endpoints="http://127.0.0.1:8")) is not own
        await stores.close()

    run(story())  # which wants no tasks to be left


def cluster_of(one: store.Store, *, ready: bool = True) -> None:
    """As if it had been read."""
    spec = ClusterInformationSpec(clusterGUID="g", datastoreReady=ready)
    value = ClusterInformation(metadata=ObjectMeta(name="default"), spec=spec)
    key = ResourceKey("ClusterInformation", "default")
    one._apply(Batch([Update("new", key, value)], SyncStatus.IN_SYNC))


def test_another_way_to_the_datastore_is_home_while_it_is_of_its_kind_and_open() -> None:
    """A migration takes the GUID along to another kind, and locks what it leaves."""

    async def story() -> None:
        stores = store.Stores(DatastoreConfig(etcdEndpoints=("http://127.0.0.1:9",)), "node")
        own, way = stores.start(), stores.of(conf(etcd_endpoints="http://localhost:9"))
        moved = store.Store(way.client, "node", keeps_endpoints=False)
        for one in (own, way, moved):
            cluster_of(one)
        assert [stores.is_home(one) for one in (own, way, moved)] == [True, True, False]
        cluster_of(own, ready=False)
        assert not stores.is_home(way)
        await stores.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (DatastoreConfig(datastoreType="kubernetes"), "KUBERNETES_SERVICE_HOST"),
        (DatastoreConfig(datastoreType="etcdv3"), "etcd_endpoints"),
        (DatastoreConfig(datastoreType="zookeeper"), "datastore_type"),
        (DatastoreConfig(etcdDiscoverySrv="x"), "KUBERNETES_SERVICE_HOST"),
        (DatastoreConfig(etcdEndpoints=("x",)), "etcd_endpoints"),
        (DatastoreConfig(etcdEndpoints=("http://10.0.0.1",)), "etcd_endpoints"),
        (DatastoreConfig(etcdEndpoints=("https://a:2379",), etcdKeyFile="k"), "etcdKeyFile"),
    ],
)
def test_a_datastore_that_cannot_be_used(config: DatastoreConfig, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        store.open_client(config)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (DatastoreConfig(etcdEndpoints=("http://a:1", "http://b:1")), "http://a:1,http://b:1"),
        (DatastoreConfig(k8sAPIEndpoint="https://a", kubeconfig="/k"), "https://a"),
        (DatastoreConfig(kubeconfig="/k"), "/k"),
        (DatastoreConfig(), "the Kubernetes API of this pod"),
    ],
)
def test_how_the_log_names_a_datastore(config: DatastoreConfig, where: str) -> None:
    assert store._where(config) == where
