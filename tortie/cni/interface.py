"""What is to exist between a container and its host, as plain data. Pure; wiring.py makes it so.

One pair of interfaces. The container's end has single addresses and routes everything to a next hop
that exists nowhere: 169.254.1.1, for which the host's end answers ARP (proxy_arp), or the IPv6
link-local address that the host's end derives from its MAC. The host's end has no address of its own,
only a route to each of the container's. (Reference: host networking, 1.1-1.3; CNI plugin, 4.5.)
"""

from dataclasses import dataclass

from msgspec.structs import replace

from tortie.cni.endpoint import single
from tortie.linux import links, sysctl
from tortie.linux.codec import NLM_F_CREATE, NLM_F_EXCL, Message
from tortie.linux.routes import (
    PROTOCOL_BOOT,
    SCOPE_GLOBAL,
    SCOPE_LINK,
    TABLE_MAIN,
    Route,
    replace_message,
)
from tortie.linux.sourcerules import SourceRule

HOST_MAC = "ee:ee:ee:ee:ee:ee"  # the same on every host-side end: a pod's ARP entry survives everything
IPV4_GATEWAY = "169.254.1.1"
IPV6_GATEWAY = "fe80::ecee:eeff:feee:eeee"  # HOST_MAC as a modified EUI-64 (RFC 4291, appendix A)
GATEWAYS = {4: IPV4_GATEWAY, 6: IPV6_GATEWAY}  # IP version -> next hop
DEFAULT_ROUTES = ("0.0.0.0/0", "::/0")
_TABLES = 0x10000  # the kernel's own tables, sbr's and most people's are below 256, some below 65536
_RULE_PRIORITY = 30000  # before the main table's rule (32766), behind what a person puts first


@dataclass(frozen=True, slots=True)
class Pair:
    """The wish. `addresses` are bare; `routes` are CIDRs via the next hop of their family."""

    host_name: str
    container_name: str
    addresses: tuple[str, ...]
    routes: tuple[str, ...] = DEFAULT_ROUTES
    alias: str = ""  # of the host's end: whose it is
    mtu: int = 0  # 0: the kernel's default
    queues: int = 1
    netkit: bool = False  # a netkit pair, where the kernel has them
    mac: str = ""  # of the container's end; '': the kernel picks one
    forwarding: bool = False  # whether the container may route
    routed: bool = True  # whether the host leads the addresses here
    second: bool = False  # whether the container has a first one, which its routes in general are over

    @property
    def ipv4(self) -> bool:
        return any(":" not in address for address in self.addresses)

    @property
    def ipv6(self) -> bool:
        return any(":" in address for address in self.addresses)


@dataclass(frozen=True, slots=True)
class Setting:
    """One kernel parameter; without `required` a failure is only worth a warning."""

    key: str
    value: int
    required: bool = True


def host_settings(pair: Pair) -> list[Setting]:
    """Parameters of the host's end, to be set before it comes up."""

    def ipv4(name: str) -> str:
        return sysctl.interface_key("ipv4", "conf", pair.host_name, name)

    def ipv6(name: str) -> str:
        return sysctl.interface_key("ipv6", "conf", pair.host_name, name)

    found = []
    if pair.ipv4:
        delay = sysctl.interface_key("ipv4", "neigh", pair.host_name, "proxy_delay")
        found += [
            Setting(ipv4("route_localnet"), 1),  # NAT to an address of the host
            Setting(delay, 0, required=False),  # else the kernel waits up to 0.8 s before it answers ARP
            Setting(ipv4("proxy_arp"), 1),
            Setting(ipv4("forwarding"), 1),
        ]
    if pair.ipv6:
        found += [
            Setting(ipv6("accept_dad"), 0),  # nobody else is on the wire
            Setting(ipv6("disable_ipv6"), 0),
            Setting(ipv6("proxy_ndp"), 1),
            Setting(ipv6("forwarding"), 1),
        ]
    return [*found, Setting(ipv6("accept_ra"), 0, required=False)]


def container_settings(pair: Pair) -> list[Setting]:
    """Parameters of the container's namespace, set before the pair exists: new interfaces inherit them."""
    found = []
    if pair.ipv4:
        found.append(Setting("net/ipv4/ip_forward", int(pair.forwarding)))
    if pair.ipv6:
        # Some runtimes start a container with IPv6 off; without it there is no route to the next hop.
        found += [Setting(f"net/ipv6/conf/{which}/disable_ipv6", 0) for which in ("all", "default", "lo")]
        found.append(Setting("net/ipv6/conf/all/forwarding", int(pair.forwarding)))
    return found


def container_end_settings(pair: Pair) -> list[Setting]:
    """Parameters of the container's end, set before it comes up."""
    key = sysctl.interface_key("ipv6", "conf", pair.container_name, "accept_dad")
    return [Setting(key, 0)] if pair.ipv6 else []


def table(second: bool, ifindex: int) -> int:
    """The routing table of a container's interface; a second one's is used by what leaves from its addresses.

    Else answers to those who came by it would leave by the first one, where the host drops what has another's
    source. Far above the tables that people and other plugins number by hand.
    """
    return _TABLES + ifindex if second else TABLE_MAIN


def source_rules(pair: Pair, ifindex: int) -> list[SourceRule]:
    if not pair.second:
        return []
    return [SourceRule(one, table(True, ifindex), _RULE_PRIORITY) for one in pair.addresses]


def container_routes(pair: Pair, ifindex: int) -> list[Route]:
    """In the order they must be added: the next hop must be reachable before it is used.

    Over a second interface the next hop counts as reachable: in the main table it is behind the first.
    """
    if pair.second:
        routes = [
            Route(dst, ifindex=ifindex, gateway=GATEWAYS[6 if ":" in dst else 4], onlink=True)
            for dst in pair.routes
            if (pair.ipv6 if ":" in dst else pair.ipv4)
        ]
        return [replace(route, table=table(True, ifindex)) for route in routes]
    found = []
    for present, gateway in ((pair.ipv4, IPV4_GATEWAY), (pair.ipv6, IPV6_GATEWAY)):
        if not present:
            continue
        if gateway == IPV4_GATEWAY:
            found.append(Route(single(gateway), ifindex=ifindex, scope=SCOPE_LINK))
        family = [dst for dst in pair.routes if (":" in dst) == (":" in gateway)]
        found += [Route(dst, ifindex=ifindex, gateway=gateway, scope=SCOPE_GLOBAL) for dst in family]
    return found


def host_routes(pair: Pair, ifindex: int) -> list[Route]:
    """Metric 0 and protocol boot, as Calico's plugin leaves them; felix replaces them by its own."""
    return [
        Route(single(address), ifindex=ifindex, scope=SCOPE_LINK, protocol=PROTOCOL_BOOT)
        for address in (pair.addresses if pair.routed else ())
    ]


def add_route(route: Route) -> Message:
    """Add, never replace: EEXIST tells that the address already has a place."""
    message = replace_message(route)
    return message._replace(flags=NLM_F_CREATE | NLM_F_EXCL, operation="add")


def create_pair(pair: Pair, container: int, *, netkit: bool) -> Message:
    """The request, to be made in the host's namespace; `container` is the other one's descriptor.

    Both ends are born where they live, and the host's end with its MAC: name services like udev leave
    an address alone that was given at birth.
    """
    here = links.VethEnd(pair.host_name, mac=HOST_MAC)
    there = links.VethEnd(pair.container_name, namespace=container, mac=pair.mac or None)
    if netkit:
        return links.create_netkit(here, there, mtu=pair.mtu)
    return links.create_veth(here, there, mtu=pair.mtu, queues=pair.queues)
