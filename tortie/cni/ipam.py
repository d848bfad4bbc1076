"""The `calico-ipam` binary on its own: addresses for another main plugin, such as bridge or ipvlan.

(Reference: CNI plugin, 4.3.) DEL and STATUS are the address manager's own.
"""

import contextlib
import ipaddress
from collections.abc import Awaitable, Callable

from tortie.cni.addressing import AddressManager, Ask
from tortie.cni.check import previous_result
from tortie.cni.identity import K8S
from tortie.cni.operation import Operation
from tortie.cni.protocol import Code
from tortie.cni.result import Result, Route
from tortie.core.errors import CniError


async def add(op: Operation, manager: AddressManager, finish: Callable[[Result], Awaitable[None]]) -> None:
    """Addresses with their block's prefix length, and a route to each block."""
    namespace = None
    if op.conf.pod_policy and op.identity.orchestrator == K8S:
        namespace = (await op.pods.pod(op.conf, op.identity)).namespace_labels
    async with contextlib.AsyncExitStack() as made:
        found = await manager.assign(op, Ask(namespace_labels=namespace))
        bare = [ip.bare for ip in found.ips]
        made.push_async_callback(op.undo, "addresses", lambda: manager.give_back(op, bare))
        op.checkpoint()
        await finish(with_routes(found) if op.routed else found)
        made.pop_all()


def with_routes(found: Result) -> Result:
    """A route per address: whoever adds addresses of a /26 expects the /26 to be on the link. Pure."""
    networks = dict.fromkeys(str(ipaddress.ip_interface(ip.address).network) for ip in found.ips)
    return Result(ips=found.ips, routes=tuple(Route(network) for network in networks))


async def check(op: Operation, manager: AddressManager) -> None:
    await manager.check(op, [ip.bare for ip in previous_result(op).ips])


async def collect(op: Operation, manager: AddressManager, busy: Callable[[str], bool]) -> None:
    if op.conf.valid_attachments is None:
        raise CniError(Code.INVALID_NETWORK_CONFIG, "GC needs cni.dev/valid-attachments")
    valid = {one.containerID for one in op.conf.valid_attachments}
    await manager.collect(op, lambda container: container in valid or busy(container))
