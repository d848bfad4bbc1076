"""Which addresses of services this node announces.

Two sorts (reference: BGP facts, 4). *Ranges*, which BGPConfiguration names, are announced by every node
and stay out of the kernel: kube-proxy takes what arrives before it is routed. *Single addresses* of a
service are announced beside them where that says more than the range: by the nodes that have an
endpoint, if the service keeps traffic local; or where no range says anything.

Services come from Kubernetes; with etcd alone there are none, and the ranges remain (see beside.py). Pure.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from tortie.bgp.prefix import Network, canonical, network
from tortie.confd.snapshot import Snapshot
from tortie.datastore.types.bgp import BGPConfigurationSpec, CIDRBlock
from tortie.datastore.types.service import EndpointSlice, Service

_EXCLUDED = ("node.kubernetes.io/exclude-from-external-load-balancers", "true")  # a node's label
_EXPOSED = ("ClusterIP", "NodePort", "LoadBalancer")
_HEADLESS = ("", "None")


@dataclass(frozen=True, slots=True)
class Ranges:
    """Of BGPConfiguration `default`, in canonical form."""

    cluster: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    load_balancer: tuple[str, ...] = ()
    aggregated: bool = True  # load balancers' ranges are announced as such

    def announced(self) -> tuple[str, ...]:
        """Ranges that every node tells; a range of one address is told with its service only."""
        wide = [cidr for cidr in self.external if not _single(cidr)]
        if self.aggregated:
            wide += [cidr for cidr in self.load_balancer if not _single(cidr)]
        return tuple(sorted({*self.cluster, *wide}))


@dataclass(frozen=True, slots=True)
class Advertised:
    """What concerns this node."""

    routes: tuple[str, ...] = ()
    unprogrammed: tuple[str, ...] = ()  # ranges whose routes, our own or learned, stay out of the kernel
    reflected: tuple[str, ...] = ()  # ranges that a route reflector passes on, whoever announced them


def advertised(
    snapshot: Snapshot, node: str, cluster_ips: str, problems: list[str], kube_node: str = ""
) -> Advertised:
    """`cluster_ips`: CALICO_ADVERTISE_CLUSTER_IPS, which takes the place of the configured ranges;
    `kube_node`: the node's name in Kubernetes, '' if it is the same."""
    default = snapshot.bgp.get("default")
    ranges = _ranges(default.spec if default else BGPConfigurationSpec(), cluster_ips, problems)
    me = snapshot.nodes.get(node)
    excluded = me is not None and me.metadata.labels.get(_EXCLUDED[0]) == _EXCLUDED[1]
    routes = set() if excluded else set(ranges.announced())
    by_service = _slices(snapshot.slices.values())
    for service in snapshot.services.values():
        key = service.metadata.namespace, service.metadata.name
        if not excluded and _is_told(service, by_service.get(key, []), kube_node or node, ranges):
            routes.update(_addresses(service, ranges))
    return Advertised(
        tuple(sorted(routes)),
        ranges.announced(),
        tuple(sorted({*ranges.load_balancer, *ranges.external})),
    )


# --- ranges -------------------------------------------------------------------------------------


def _ranges(spec: BGPConfigurationSpec, cluster_ips: str, problems: list[str]) -> Ranges:
    cluster = (CIDRBlock(cidr=cluster_ips),) if cluster_ips else spec.serviceClusterIPs
    return Ranges(
        tuple(_canonical(cluster, "serviceClusterIPs", problems)),
        tuple(_canonical(spec.serviceExternalIPs, "serviceExternalIPs", problems)),
        tuple(_canonical(spec.serviceLoadBalancerIPs, "serviceLoadBalancerIPs", problems)),
        spec.serviceLoadBalancerAggregation != "Disabled",
    )


def _canonical(blocks: Iterable[CIDRBlock], field_name: str, problems: list[str]) -> Iterator[str]:
    for block in blocks:
        if not block.cidr:
            continue
        try:
            yield canonical(block.cidr)
        except ValueError as err:
            problems.append(f"BGPConfiguration default: {field_name}: {err}")


def _single(cidr: str) -> bool:
    net = network(cidr)
    return net.length == net.bits


# --- services -----------------------------------------------------------------------------------


def _slices(slices: Iterable[EndpointSlice]) -> Mapping[tuple[str, str], list[EndpointSlice]]:
    found: dict[tuple[str, str], list[EndpointSlice]] = {}  # (namespace, name) of the service -> its slices
    for one in slices:
        found.setdefault(one.service, []).append(one)
    return found


def _is_told(service: Service, slices: Iterable[EndpointSlice], node: str, ranges: Ranges) -> bool:
    """Whether this node announces single addresses of the service; the first hit counts."""
    spec = service.spec
    if spec.type not in _EXPOSED or spec.clusterIP in _HEADLESS:
        return False
    local = spec.externalTrafficPolicy == "Local"
    if not local and _stands_for_itself(service, ranges):
        return True  # without endpoints as well: the address is announced as a range is
    if not local and ranges.aggregated:
        return False  # its range says as much
    return any(
        endpoint.conditions.ready is not False and (not local or endpoint.node == node)
        for one in slices
        if one.addressType in spec.families
        for endpoint in one.endpoints
    )


def _stands_for_itself(service: Service, ranges: Ranges) -> bool:
    """Whether one of its addresses is configured as a range of one address."""
    spec = service.spec
    balanced = [spec.loadBalancerIP, *_balanced(service)] if spec.type == "LoadBalancer" else []
    return _is_one_of(balanced, ranges.load_balancer) or _is_one_of(spec.externalIPs, ranges.external)


def _is_one_of(addresses: Iterable[str], cidrs: Collection[str]) -> bool:
    singles = {cidr for cidr in cidrs if _single(cidr)}
    return any(str(net) in singles for net in _networks(addresses))


def _addresses(service: Service, ranges: Ranges) -> Iterator[str]:
    """Those that may be announced. Cluster IPs are not checked against the ranges, as in Calico."""
    spec = service.spec
    if ranges.cluster:
        yield from map(str, _networks(spec.addresses))
    yield from _inside(spec.externalIPs, ranges.external)
    yield from _inside(_balanced(service), ranges.load_balancer)


def _balanced(service: Service) -> list[str]:
    return [one.ip for one in service.status.loadBalancer.ingress]


def _inside(addresses: Iterable[str], cidrs: Iterable[str]) -> Iterator[str]:
    ranges = [network(cidr) for cidr in cidrs]
    return (str(net) for net in _networks(addresses) if any(one.contains(net) for one in ranges))


def _networks(addresses: Iterable[str]) -> Iterator[Network]:
    """Of those that are addresses: others are not ours to complain of."""
    for address in addresses:
        try:
            yield network(address)
        except ValueError:
            continue
