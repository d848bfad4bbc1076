"""Our own paths: this node's blocks, addresses of services, and kernel routes that peers may hear of.

A pod may have an address outside the blocks of its node (borrowed from another node's, or of a single
address): felix's route to it is what makes this node announce it. Calico's BIRD learns all kernel routes
but the kernel's own, and so do we, except what a routing daemon wrote: BIRD's leftovers after a switch
from Calico lead to other nodes' blocks, and announced as ours they would draw their traffic here.

Routes outside pools, and networks that the node is connected to, go to a peer only where a BGPFilter
accepts them; without such a filter they are left out, and no table grows with the host's routes.

Pure.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from tortie.bgp.config import Config
from tortie.bgp.fib import Interfaces
from tortie.bgp.prefix import network, version
from tortie.bgp.route import Path, Source
from tortie.linux.routes import PROTOCOL_BGP, PROTOCOL_BIRD, PROTOCOL_KERNEL, Route, RouteType

_NOT_LEARNED = (PROTOCOL_KERNEL, PROTOCOL_BIRD, PROTOCOL_BGP)
_NEVER_TOLD = ("cali*", "kube-ipvs*")  # interfaces whose networks are pods and services


def local_paths(
    config: Config, routes: Iterable[Route], interfaces: Interfaces, heard_all: bool
) -> Mapping[str, Path]:
    """Prefix -> our path. `heard_all`: all peers have told what they know.

    Before that, a route through a gateway may be a leftover for a block of a node we have not heard of.
    """
    pools = [network(pool.cidr) for pool in config.pools]
    everything = any(one.export4 or one.export6 for one in config.filters)
    names = {index: name for name, index in interfaces.by_name.items()}
    paths: dict[str, Path] = {}
    for route in routes:
        path = _kernel_path(config, route, names)
        if path is None or (path.source is Source.KERNEL and not heard_all):
            continue
        known = paths.get(route.dst)
        if known is None or (-path.source, path.metric) < (-known.source, known.metric):
            net = network(route.dst)
            inside = any(pool.contains(net) for pool in pools)
            if (path.source is not Source.DIRECT) if inside else everything:
                paths[route.dst] = path
    for block in config.blocks:
        net = network(block.cidr)
        if net.length < net.bits:  # a single address is announced when its pod is there, as in Calico
            paths[block.cidr] = Path(source=Source.STATIC, metric=config.normal(net.version))
    for cidr in config.services:
        paths[cidr] = Path(source=Source.STATIC, metric=config.normal(version(cidr)))
    return paths


def _kernel_path(config: Config, route: Route, names: Mapping[int, str]) -> Path | None:
    if route.type is not RouteType.UNICAST:
        return None
    hop = route.hops[0]
    interface = names.get(hop.ifindex or 0, "")
    without_gateway = hop.gateway is None and not route.nexthops
    metric, normal = route.metric, config.normal(version(route.dst))
    here = Source.LEAVING if metric > normal else Source.WORKLOAD
    source = here if without_gateway else Source.KERNEL
    if route.protocol == PROTOCOL_KERNEL and without_gateway and _is_told(interface, config):
        source = Source.DIRECT
    elif route.protocol in _NOT_LEARNED:
        return None
    return Path(
        source=source,
        metric=metric or normal,
        interface=interface,
    )


def _is_told(interface: str, config: Config) -> bool:
    """Whether networks on the interface may be announced, where a filter says so."""
    left_out = (*config.ignored_interfaces, *_NEVER_TOLD)
    return not any(fnmatchcase(interface, pattern) for pattern in left_out)
