"""CHECK: whether everything an ADD made is still as it was made.

What later plugins of the chain added is fine; what is missing or somebody else's is an error that says
so. (CNI specification 1.1.0, section "CHECK".)
"""

from collections.abc import Iterator, Sequence

from tortie.cni import attachments, endpoint, endpoints, interface, result, wiring
from tortie.cni.addressing import AddressManager
from tortie.cni.operation import Operation, in_thread_on
from tortie.cni.protocol import Code
from tortie.cni.result import Result
from tortie.cni.wiring import Seen
from tortie.core.errors import CniError
from tortie.datastore.names import endpoint_name_prefix
from tortie.datastore.types.endpoint import WorkloadEndpoint

_LIMIT = 20.0  # seconds for looking at the kernel


async def check(op: Operation, manager: AddressManager) -> None:
    """Raises CniError with all that is wrong."""
    previous = previous_result(op)
    await op.store.ensure_ready()
    container = op.ensure_container()
    await op.later.await_paid(op.identity)
    prefix = endpoint_name_prefix(op.identity.ids())
    listed = await op.store.client.list(WorkloadEndpoint, op.identity.namespace, prefix)
    owned = attachments.own(op.identity, listed.items)
    identity, found = attachments.placed(op.identity, owned, await endpoints.marks(op.identity, owned))
    seen = await in_thread_on(
        _LIMIT,
        "inspect",
        lambda namespace: wiring.inspect(
            identity.host_interface, namespace, identity.ifname, second=identity.second
        ),
        container,
    )
    addresses = [ip.bare for ip in previous.ips]
    wrong = [
        *interface_problems(
            previous, seen, identity.ifname, identity.host_interface, second=identity.second, routed=op.routed
        ),
        *endpoint_problems(found, identity.container_id, identity.host_interface, addresses),
    ]
    if wrong:
        raise CniError(Code.INTERNAL, f"{identity}: {wrong[0]}", "; ".join(wrong[1:]))
    await manager.check(op, addresses)


def previous_result(op: Operation) -> Result:
    """What ADD answered about this interface. Raises CniError if the runtime does not say."""
    if not bytes(op.conf.prevResult):
        raise CniError(Code.INVALID_NETWORK_CONFIG, "CHECK needs the prevResult of the ADD")
    return result.decode(bytes(op.conf.prevResult), "prevResult").of_interface(op.call.ifname)


# --- what is wrong, as sentences; pure ----------------------------------------------------------


def interface_problems(
    previous: Result,
    seen: Seen,
    container_name: str,
    host_name: str,
    *,
    second: bool = False,
    routed: bool = True,
) -> Iterator[str]:
    if seen.container is None:
        yield f"interface {container_name} is missing in the container"
        return
    if seen.host is None:
        yield f"interface {host_name} is missing on the host"
        return
    mac = next((one.mac for one in previous.interfaces if one.name == container_name and one.sandbox), "")
    if mac and mac.lower() != seen.container.mac:
        yield f"interface {container_name} has MAC {seen.container.mac}, not {mac}"
    if seen.container.peer != seen.host.ifindex:
        yield f"interface {container_name} is not connected to {host_name}"
    for name, link in ((container_name, seen.container), (host_name, seen.host)):
        if not link.up:
            yield f"interface {name} is down"
    yield from _address_problems(previous, seen, container_name)
    if routed:
        yield from _host_route_problems(previous, seen, host_name)
    yield from _route_problems(previous, seen, container_name, second)


def _address_problems(previous: Result, seen: Seen, container_name: str) -> Iterator[str]:
    if not previous.ips:
        yield f"prevResult names no address of {container_name}"
    for single in (endpoint.single(ip.bare) for ip in previous.ips):
        if single not in seen.addresses:
            yield f"address {single} is missing on {container_name}"


def _host_route_problems(previous: Result, seen: Seen, host_name: str) -> Iterator[str]:
    routed = {route.dst for route in seen.host_routes}
    for single in (endpoint.single(ip.bare) for ip in previous.ips):
        if single not in routed:
            yield f"the host has no route to {single} over {host_name}"


def _route_problems(previous: Result, seen: Seen, container_name: str, second: bool) -> Iterator[str]:
    """The routes over us that prevResult names, and what leads to them, which it does not name.

    That is the route to the next hop; for a second interface, the rules by which they are used. Other
    plugins of the chain have routes in there too, over next hops of their own.
    """
    assert seen.container is not None
    index = seen.container.ifindex
    present = {(route.dst, route.gateway or "") for route in seen.routes if route.ifindex == index}
    ours = interface.GATEWAYS.values()
    wanted = [(route.dst, route.gw) for route in previous.routes if route.gw in ours]
    if not second and any(gateway == interface.IPV4_GATEWAY for _, gateway in wanted):
        wanted.append((endpoint.single(interface.IPV4_GATEWAY), ""))
    for dst, gateway in wanted:
        if (dst, gateway) not in present:
            via = f" via {gateway}" if gateway else ""
            yield f"route {dst}{via} is missing on {container_name}"
    for ip in previous.ips if second else ():
        if ip.bare not in seen.sources:
            yield f"the rule for what leaves from {ip.bare} over {container_name} is missing"


def endpoint_problems(
    found: WorkloadEndpoint | None, container_id: str, host_name: str, addresses: Sequence[str]
) -> Iterator[str]:
    if found is None:
        yield "its WorkloadEndpoint is missing"
        return
    if found.spec.containerID != container_id:
        yield f"WorkloadEndpoint {found.name} belongs to container {found.spec.containerID}"
    if found.spec.interfaceName != host_name:
        yield f"WorkloadEndpoint {found.name} has interface {found.spec.interfaceName}, not {host_name}"
    for address in addresses:
        if endpoint.single(address) not in found.spec.ipNetworks:
            yield f"WorkloadEndpoint {found.name} lacks address {address}"
