"""Which controllers run for which settings, and what each of them follows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tortie.controllers import copies, garbage, loadbalancer
from tortie.controllers.feed import Feed
from tortie.controllers.garbage import Collector
from tortie.controllers.handles import HandleCollector
from tortie.controllers.loadbalancer import LoadBalancers
from tortie.controllers.mirror import EndpointLabels, Mirror
from tortie.controllers.nodes import HostEndpoints, NodeDeleter, NodeLabels
from tortie.controllers.rounds import Controller
from tortie.controllers.settings import NodeSettings, Settings
from tortie.datastore.client import Client
from tortie.datastore.keys import BlockList, Listing, ResourceList
from tortie.datastore.nativekeys import NativePolicyList, PodList, ServiceList
from tortie.ipam.allocator import Allocator

if TYPE_CHECKING:
    from tortie.datastore.kubernetes.backend import KubernetesBackend

_NODE_TOPICS = ("Node", "PodKey")
_RESYNC = 300.0  # seconds between rounds without a change, Calico's timer


@dataclass(frozen=True, slots=True)
class Assembly:
    feeds: Sequence[Feed]
    controllers: Sequence[Controller]
    metrics: Callable[[], str]  # in Prometheus' text format


def ours_of(settings: Settings) -> list[Listing]:
    """What is followed of the datastore."""
    wanted: dict[Listing, None] = {}
    if settings.node is not None:
        kinds = ("Node", "IPPool", "IPReservation", "ClusterInformation", "HostEndpoint")
        wanted |= dict.fromkeys([BlockList(), *map(ResourceList, kinds)])
    if settings.load_balancer is not None:
        wanted |= dict.fromkeys([BlockList(), ResourceList("IPPool")])
    for name, _ in settings.periods:
        kind = copies.SETS[name][0] if name in copies.SETS else "WorkloadEndpoint"
        wanted[ResourceList(kind)] = None
    return list(wanted)


def native_of(settings: Settings) -> list[Listing]:
    """What is followed of Kubernetes' own."""
    wanted: dict[Listing, None] = {}
    if settings.node is not None:
        wanted |= dict.fromkeys([ResourceList("Node"), PodList()])
    if settings.load_balancer is not None:
        wanted[ServiceList()] = None
    for name, _ in settings.periods:
        kind = copies.SETS[name][0] if name in copies.SETS else "WorkloadEndpoint"
        wanted[NativePolicyList() if name == "policy" else ResourceList(kind)] = None
    return list(wanted)


def assemble(settings: Settings, client: Client, api: "KubernetesBackend", datastore: str) -> Assembly:
    """With Kubernetes as the datastore nothing needs copying, and its nodes and profiles are ours."""
    allocator = Allocator(client)
    etcd = datastore != "kubernetes"
    if not etcd:
        settings = replace(settings, periods=())
        both = dict.fromkeys([*ours_of(settings), *native_of(settings)])
        ours = native = Feed(client.backend, list(both))
        feeds = [ours]
    else:
        ours, native = Feed(client.backend, ours_of(settings)), Feed(api, native_of(settings))
        feeds = [ours, native]
    found: list[Controller] = []
    metrics: Callable[[], str] = str
    if settings.node is not None:
        collector = Collector(allocator, client.backend, api, ours, native, settings.node.grace)
        metrics = collector.metrics
        follows = [(ours, garbage.TOPICS), (native, _NODE_TOPICS)]
        period = settings.node.grace / 2 or _RESYNC
        found.append(Controller("IPAM garbage collection", collector.round, follows, period))
        if settings.node.grace:
            handles = HandleCollector(client.backend, settings.node.grace)
            found.append(Controller("IPAM handles", handles.round, [(ours, ())], settings.node.grace / 2))
        found += _of_nodes(settings.node, client, allocator, api, ours, native, etcd)
    if settings.load_balancer is not None:
        balancers = LoadBalancers(allocator, api, ours, native, settings.load_balancer)
        follows = [(ours, loadbalancer.TOPICS), (native, ("ServiceKey",))]
        found.append(Controller("load balancers", balancers.round, follows, _RESYNC))
    for name, period in settings.periods:
        found.append(_copier(name, period, client, ours, native))
    return Assembly(feeds, found, metrics)


def _of_nodes(
    settings: NodeSettings,
    client: Client,
    allocator: Allocator,
    api: "KubernetesBackend",
    ours: Feed,
    native: Feed,
    etcd: bool,
) -> list[Controller]:
    endpoints = HostEndpoints(client, ours, settings.host_endpoints)
    found = [Controller("host endpoints", endpoints.round, [(ours, ("Node", "HostEndpoint"))], _RESYNC)]
    follows = [(ours, ("Node",)), (native, ("Node",))]
    if etcd:
        deleter = NodeDeleter(client, allocator, api, ours, native)
        found.append(Controller("deletion of nodes", deleter.round, follows, _RESYNC))
    if settings.sync_labels:
        labels = NodeLabels(client, ours, native)
        found.append(Controller("labels of nodes", labels.round, follows, _RESYNC))
    return found


def _copier(name: str, period: float, client: Client, ours: Feed, native: Feed) -> Controller:
    if name not in copies.SETS:
        endpoints = EndpointLabels(client, ours, native)
        topics = ("WorkloadEndpoint",)
        return Controller("labels of endpoints", endpoints.round, [(ours, topics), (native, topics)], period)
    mirror = Mirror(name, client, ours, native)
    topics = (copies.SETS[name][0],)
    return Controller(f"copies of {name}", mirror.round, [(ours, topics), (native, topics)], period)
