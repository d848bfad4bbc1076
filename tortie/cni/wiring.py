"""Makes and removes the pair of interfaces between a container and its host: the kernel edge of CNI.

What is made is interface.Pair, in Calico's order (reference: host networking, 1.2): what was left over
goes, the pair is born, parameters, both ends up, routes and addresses inside, host routes last. A
failure leaves nothing behind. All functions block for a millisecond or two, removal for tens of them
(the kernel waits for packets in flight); the server calls them on threads. They must run in the
host's network namespace; a container's is an open descriptor.
"""

import errno
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from socket import AF_INET6

from msgspec import structs

from tortie.cni import advice, interface
from tortie.cni.endpoint import single
from tortie.cni.interface import HOST_MAC, IPV6_GATEWAY, Pair, Setting
from tortie.core.errors import KernelError
from tortie.linux import addresses, links, netns, routes, sourcerules, sysctl
from tortie.linux.addresses import SCOPE_LINK
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.routes import Route

_log = logging.getLogger(__name__)

_MAC_TRIES, _MAC_PAUSE = 50, 0.1  # 5 s in all, as in Calico: some kernels take the address late


@dataclass(frozen=True, slots=True)
class Seen:
    """What is there of one attachment; None where there is no such interface."""

    container: links.Link | None
    host: links.Link | None
    addresses: tuple[str, ...] = ()  # CIDRs of the container's end
    routes: tuple[Route, ...] = ()  # of the table of the container's end
    host_routes: tuple[Route, ...] = ()  # over the host's end
    sources: tuple[str, ...] = ()  # addresses from which that table is used, where it is not the main one


@dataclass(frozen=True, slots=True)
class Doomed:
    """An interface that is down already and is still to be deleted."""

    ifindex: int
    inside: bool  # in the container's namespace, else in the host's
    table: int = 0  # of the container's, which rules lead to that do not go with the interface; 0: none


# --- making -------------------------------------------------------------------------------------


def build(
    pair: Pair, container: int, wanted: Callable[[], bool] = lambda: True, *, fresh: bool = False
) -> str:
    """Make the pair; returns the MAC of the container's end.

    Whatever is on the host under the pair's name is replaced, unless the pair must be `fresh`: nobody has
    looked whose it is then. Raises KernelError with nothing left of the pair: EEXIST if the container has
    an interface of that name already, or the host and it must not, or if one of its addresses is routed to
    somebody else; ECANCELED once it is not `wanted` any more. Its addresses may be
    another's then, and its name on the host a newer pair's, so this is asked after each step that may
    have taken long.
    """
    with NetlinkSocket() as host:
        if not fresh and links.get(host, pair.host_name) is not None:
            _log.info("deleting %s, which was left over", pair.host_name)
            _delete(host, pair.host_name)
        with netns.call_in(container, _enter, interface.container_settings(pair)) as inside:
            _check(wanted, pair)
            if links.get(inside, pair.container_name) is not None:
                taken = f"File exists: {advice.ifname_taken(pair.container_name)}"
                raise KernelError("create", _described(pair), errno.EEXIST, taken)
            _create(host, pair, container)
            end = _expect(inside, pair.container_name)
            try:
                _set_up(host, inside, pair, container, end, wanted)
                _check(wanted, pair)
            except KernelError:
                _delete(inside, end.ifindex)
                raise
            return end.mac


def _described(pair: Pair) -> str:
    return f"veth {pair.host_name} with {pair.container_name}"


def _enter(settings: Sequence[Setting]) -> NetlinkSocket:
    _apply(settings)
    return NetlinkSocket()


def _create(host: NetlinkSocket, pair: Pair, container: int) -> None:
    if pair.netkit:
        (error,) = host.request([interface.create_pair(pair, container, netkit=True)])
        if error is None:
            return
        if error.errno != errno.EOPNOTSUPP:
            raise error
        _log.info("this kernel has no netkit; %s is a veth", pair.host_name)
    host.execute(interface.create_pair(pair, container, netkit=False))


def _check(wanted: Callable[[], bool], pair: Pair) -> None:
    if not wanted():
        raise KernelError("make", f"link {pair.host_name}", errno.ECANCELED, "nobody waits for it any more")


def _set_up(
    host: NetlinkSocket,
    inside: NetlinkSocket,
    pair: Pair,
    container: int,
    end: links.Link,
    wanted: Callable[[], bool],
) -> None:
    host_end = _ensure_mac(host, pair.host_name)
    _check(wanted, pair)
    _apply(interface.host_settings(pair))
    if settings := interface.container_end_settings(pair):
        netns.call_in(container, _apply, settings)
    host_messages = [links.change(host_end.ifindex, up=True, alias=pair.alias or None)]
    if pair.ipv6:
        # The kernel would make this address itself, but only once the carrier is there, and not at all
        # under some settings of addr_gen_mode.
        gateway = f"{IPV6_GATEWAY}/64"
        host_messages.append(addresses.add(host_end.ifindex, gateway, scope=SCOPE_LINK, nodad=True))
    host.execute(*host_messages)
    _check(wanted, pair)
    inside.execute(
        links.change(end.ifindex, up=True),
        *map(interface.add_route, interface.container_routes(pair, end.ifindex)),
        # Without NODAD an IPv6 address is tentative, and not used, until a kernel worker has looked at
        # accept_dad; that can take until after the container's first packet.
        *(addresses.add(end.ifindex, single(one), nodad=":" in one) for one in pair.addresses),
        *map(sourcerules.add, interface.source_rules(pair, end.ifindex)),
    )
    _check(wanted, pair)
    _add_host_routes(host, pair, host_end.ifindex)


def _expect(netlink: NetlinkSocket, name: str) -> links.Link:
    if (link := links.get(netlink, name)) is None:
        raise KernelError("find", f"link {name}", errno.ENODEV, "it vanished while it was set up")
    return link


def _ensure_mac(host: NetlinkSocket, name: str, sleep: Callable[[float], None] = time.sleep) -> links.Link:
    """The host's end with the MAC that every host's end has; set again if the kernel did not take it."""
    for _ in range(_MAC_TRIES):
        link = _expect(host, name)
        if link.mac == HOST_MAC:
            return link
        (error,) = host.request([links.change(link.ifindex, mac=HOST_MAC)])
        if error is not None:
            _log.warning("%s keeps the kernel's MAC %s: %s", name, link.mac, error)
            return link
        if (link := _expect(host, name)).mac == HOST_MAC:
            return link
        sleep(_MAC_PAUSE)
    raise KernelError(
        "change", f"link {name}", errno.ETIMEDOUT, f"timed out waiting for it to accept MAC {HOST_MAC}"
    )


def _apply(settings: Iterable[Setting]) -> None:
    for setting in settings:
        try:
            sysctl.write(setting.key, setting.value)
        except KernelError as err:
            if setting.required:
                raise
            _log.warning("%s", err)


# --- host routes --------------------------------------------------------------------------------


def _add_host_routes(host: NetlinkSocket, pair: Pair, ifindex: int) -> None:
    wanted = interface.host_routes(pair, ifindex)
    for route, error in zip(wanted, host.request([interface.add_route(r) for r in wanted]), strict=True):
        if error is None:
            continue
        if error.errno != errno.EEXIST:
            raise error
        holders = [one for one in routes.dump(host, route.family) if one.dst == route.dst]
        if not any(one.ifindex == ifindex and one.scope == route.scope for one in map(_as_asked, holders)):
            raise _taken(host, pair, route, holders)


def _as_asked(found: Route) -> Route:
    """IPv6 reports every route with scope global (checked on Linux 6.18)."""
    return found if found.family != AF_INET6 else structs.replace(found, scope=SCOPE_LINK)


def _taken(host: NetlinkSocket, pair: Pair, route: Route, holders: Sequence[Route]) -> KernelError:
    conflict = ""
    for holder in holders[:1]:
        link = links.get(host, holder.ifindex) if holder.ifindex else None
        conflict = f": {_describe(holder)[:-1]}, Iface: {link.name if link else 'unknown'})"
    return KernelError(
        "error adding host side routes for interface:",
        pair.host_name,
        errno.EEXIST,
        f"error: {_describe(route)} already exists for an interface other than '{pair.host_name}'{conflict}",
    )


def _describe(route: Route) -> str:
    scope = {SCOPE_LINK: "link", routes.SCOPE_GLOBAL: "universe"}.get(route.scope, str(route.scope))
    return f"route (Ifindex: {route.ifindex or 0}, Dst: {route.dst}, Scope: {scope})"


# --- removing -----------------------------------------------------------------------------------


def cut(host_names: tuple[str, ...], alias: str, container: int | None, container_name: str) -> Doomed | None:
    """Stop all traffic of an attachment at once; None if nothing is left of it.

    On the host's side if an interface of these names is marked as this attachment's, which works without
    the container's namespace; a restarted pod has put its own in the same place under another mark. Else
    inside the container, where the pair was made by somebody who leaves no marks. Names behind the first
    are those of second interfaces.
    """
    with NetlinkSocket() as host:
        for number, name in enumerate(host_names):
            link = links.get(host, name)
            if link is not None and link.alias == alias:
                table = interface.table(True, link.peer) if number else 0
                return _set_down(host, link, inside=False, table=table)
    if container is None:
        return None
    with netns.socket_in(container) as inside:
        link = links.get(inside, container_name)
        return _set_down(inside, link, inside=True) if link is not None else None


def _set_down(netlink: NetlinkSocket, link: links.Link, *, inside: bool, table: int = 0) -> Doomed | None:
    (error,) = netlink.request([links.change(link.ifindex, up=False)])
    if error is None:
        return Doomed(link.ifindex, inside, table)
    if error.errno == errno.ENODEV:
        return None
    raise error


def delete(doomed: Doomed, container: int | None) -> None:
    """Delete what cut() left; the pair's other end goes with it. Gone already is success."""
    if doomed.inside and container is not None:
        with netns.socket_in(container) as inside:
            _delete(inside, doomed.ifindex)
    else:
        with NetlinkSocket() as host:
            _delete(host, doomed.ifindex)
    if doomed.table and container is not None:
        with netns.socket_in(container) as inside:
            ours = [rule for rule in sourcerules.dump(inside) if rule.table == doomed.table]
            inside.request([sourcerules.delete(rule) for rule in ours])


def delete_name(name: str) -> None:
    """Delete an interface of the host. Gone already is success."""
    with NetlinkSocket() as host:
        _delete(host, name)


def _delete(netlink: NetlinkSocket, link: int | str) -> None:
    (error,) = netlink.request([links.delete(link)])
    if error is not None and error.errno != errno.ENODEV:
        raise error


# --- looking ------------------------------------------------------------------------------------


def marks(names: Sequence[str]) -> dict[str, str]:
    """Interface of the host -> its mark, of those among the names that exist."""
    with NetlinkSocket() as host:
        found = [links.get(host, name) for name in names]
    return {link.name: link.alias for link in found if link is not None}


def host_links() -> list[links.Link]:
    with NetlinkSocket() as host:
        return links.dump(host)


def inspect(host_name: str, container: int, container_name: str, *, second: bool = False) -> Seen:
    """What CHECK compares."""
    with NetlinkSocket() as host, netns.socket_in(container) as inside:
        end, host_end = links.get(inside, container_name), links.get(host, host_name)
        seen = Seen(end, host_end)
        if host_end is not None:
            over = routes.dump(host, table=routes.TABLE_MAIN, ifindex=host_end.ifindex)
            seen = replace(seen, host_routes=tuple(over))
        if end is None:
            return seen
        table = interface.table(second, end.ifindex)
        return replace(
            seen,
            addresses=tuple(one.cidr for one in addresses.dump(inside, ifindex=end.ifindex)),
            routes=tuple(routes.dump(inside, table=table)),
            sources=tuple(rule.source for rule in sourcerules.dump(inside) if rule.table == table),
        )
