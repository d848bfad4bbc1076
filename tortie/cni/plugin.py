"""ADD and DEL of the `calico` plugin: a container gets an interface, addresses, an endpoint, or loses them.

ADD goes address, interface, endpoint; what fails is undone newest first. DEL goes the other way round:
endpoint, interface, address, so that an address is free only when nobody can use it any more. Every
step of DEL takes "gone already" for success, which makes it the repair of an ADD that was killed at
any point. (Reference: CNI plugin, 4.4 and 4.8.)
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tortie.cni import delegate, endpoint, interface, node, waiting, wiring
from tortie.cni.addressing import AddressManager, Ask
from tortie.cni.endpoint import Attached
from tortie.cni.identity import K8S
from tortie.cni.interface import Pair
from tortie.cni.operation import Operation, in_thread_on
from tortie.cni.pods import NO_POD, NO_WISHES, Pod, Wishes, wishes
from tortie.cni.protocol import Code
from tortie.cni.result import IP, Interface, Result, Route
from tortie.core.errors import (
    CniError,
    ConfigError,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    UpdateConflict,
)
from tortie.datastore.keys import ResourceKey
from tortie.datastore.names import endpoint_name_prefix
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.policy import Profile
from tortie.ipam.store import together

_log = logging.getLogger(__name__)

_BUILD_LIMIT = 20.0  # seconds; Calico bounds the removal so, and some kernels have been seen to hang
_TRIES = 6  # writes of an endpoint that somebody else changes at the same time, as in Calico


@dataclass(slots=True)
class _Added:
    """What an ADD has made so far."""

    pod: Pod = NO_POD
    existing: WorkloadEndpoint | None = None  # the endpoint as it was before
    wishes: Wishes = NO_WISHES
    addresses: tuple[str, ...] = ()
    routes: tuple[str, ...] = interface.DEFAULT_ROUTES
    pair: Pair | None = None
    mac: str = ""
    endpoint: str = ""  # the interface's name in the endpoint, which may be an earlier one's


# --- ADD ----------------------------------------------------------------------------------------


async def add(op: Operation, manager: AddressManager, finish: Callable[[Result], Awaitable[None]]) -> None:
    """Attach the container and `finish` with the result; whatever fails, also in finish, undoes it all."""
    await op.store.ensure_ready()
    if op.conf.readiness_gates:
        await op.while_wanted(waiting.for_gates(op.conf.readiness_gates))
    if op.identity.orchestrator != K8S and op.conf.feature_control.ip_addrs_no_ipam:
        raise ConfigError(
            "feature_control.ip_addrs_no_ipam", True, "requested feature is not supported for this runtime"
        )
    if op.identity.orchestrator != K8S and (existing := await _find_endpoint(op)) is not None:
        await finish(await _join(op, existing))
        return
    op.ensure_container()
    async with contextlib.AsyncExitStack() as made:
        done = await _attach(op, manager, made)
        op.checkpoint()
        await finish(_result(op, done))
        made.pop_all()


async def _attach(op: Operation, manager: AddressManager, made: contextlib.AsyncExitStack) -> _Added:
    done = _Added(routes=delegate.container_routes(op))
    if op.identity.orchestrator == K8S and op.conf.pod_policy:
        done.pod = await op.pods.pod(op.conf, op.identity)
        done.wishes = wishes(done.pod, op.conf)
    await _assign(op, manager, done, made)
    op.checkpoint()
    await together(_build(op, done, made), manager.settle(op, done.addresses))
    op.checkpoint()
    await _write_endpoint(op, done, made)
    if not op.conf.policy.type:
        await _ensure_profile(op)
    await _await_policy(op, done.endpoint)
    return done


async def _assign(
    op: Operation, manager: AddressManager, done: _Added, made: contextlib.AsyncExitStack
) -> None:
    """Addresses, and meanwhile a look whether the workload has an endpoint already."""

    async def assign() -> None:
        if done.wishes.addresses_without_ipam:
            done.addresses = done.wishes.addresses_without_ipam
            return
        namespace = done.pod.namespace_labels if op.conf.pod_policy else None
        found = await manager.assign(op, Ask(done.wishes, namespace))
        done.addresses = tuple(ip.bare for ip in found.ips)
        made.push_async_callback(op.undo, "addresses", lambda: manager.give_back(op, done.addresses))

    if op.identity.orchestrator != K8S:  # it has none, else this ADD would only have joined it
        await assign()
        return
    if not done.wishes.addresses:
        done.existing, _ = await together(_find_endpoint(op), assign())
        return
    done.existing = await _find_endpoint(op)
    if done.existing is not None and done.existing.spec.containerID:
        # The pod's earlier sandbox may still hold the very addresses that it asks for.
        await manager.give_back(op.of_container(done.existing.spec.containerID), _bare(done.existing))
    await assign()


async def _build(op: Operation, done: _Added, made: contextlib.AsyncExitStack) -> None:
    identity, conf = op.identity, op.conf
    pair = done.pair = Pair(
        host_name=identity.host_interface,
        container_name=identity.ifname,
        addresses=done.addresses,
        routes=done.routes,
        alias=identity.alias,
        mtu=node.mtu(conf, op.paths),
        queues=max(conf.num_queues, 1),
        netkit=conf.device_type == "netkit",
        mac=done.wishes.mac,
        forwarding=conf.container_settings.allow_ip_forwarding,
    )
    over = threading.Event()  # nobody waits for the thread any more: what it still makes, it takes back
    try:
        done.mac = await in_thread_on(
            _BUILD_LIMIT,
            "build",
            lambda container: wiring.build(pair, container, lambda: not over.is_set()),
            op.ensure_container(),
        )
    finally:
        over.set()
    made.push_async_callback(op.undo, "interface", lambda: _remove_interface(op))


async def _write_endpoint(op: Operation, done: _Added, made: contextlib.AsyncExitStack) -> None:
    existing = done.existing
    attached = Attached(done.addresses, op.identity.host_interface, done.mac)
    client = op.store.client
    for attempt in range(_TRIES):
        wanted = endpoint.build(op.identity, op.conf, attached, done.pod, done.wishes, existing)
        try:
            written = await (client.update(wanted) if existing else client.create(wanted))
            break
        except (UpdateConflict, ResourceDoesNotExist, ResourceAlreadyExists) as err:
            if attempt + 1 == _TRIES:
                raise
            _log.info("writing endpoint %s again: %s", wanted.name, err)
            existing = await _find_endpoint(op)
    done.endpoint = written.spec.endpoint
    made.push_async_callback(op.undo, "endpoint", lambda: _delete_endpoint(op, written))


async def _ensure_profile(op: Operation) -> None:
    """Without a policy type the network itself is a profile; this plugin creates it, and never changes it."""
    try:
        await op.store.client.get(Profile, op.conf.name)
    except ResourceDoesNotExist:
        profile = endpoint.network_profile(op.conf.name, op.identity.orchestrator)
        with contextlib.suppress(ResourceAlreadyExists):
            await op.store.client.create(profile)


async def _await_policy(op: Operation, endpoint_name: str) -> None:
    if not (seconds := op.conf.policy_setup_timeout_seconds):
        return
    identity = op.identity
    workload = f"{identity.namespace}/{identity.pod or identity.container_id}"
    name = waiting.status_file(identity.orchestrator, workload, endpoint_name)
    path = node.endpoint_status_path(op.conf, op.paths, name)
    if not await op.while_wanted(waiting.for_file(path, seconds)):
        _log.warning("Error waiting for endpoint to become ready. Unblocking pod creation... (%s)", path)


def _bare(existing: WorkloadEndpoint) -> list[str]:
    return [network.partition("/")[0] for network in existing.spec.ipNetworks]


async def _join(op: Operation, existing: WorkloadEndpoint) -> Result:
    """A container that has its interface already: only the network's profile is added to its endpoint."""
    client = op.store.client
    for attempt in range(_TRIES):
        joined = endpoint.joined(existing, op.conf.name)
        if joined is existing:
            break
        try:
            existing = await client.update(joined)
            break
        except UpdateConflict:
            if attempt + 1 == _TRIES:
                raise
            existing = await client.get(WorkloadEndpoint, existing.name, existing.namespace)
    if not op.conf.policy.type:
        await _ensure_profile(op)
    done = _Added(addresses=tuple(_bare(existing)), mac=existing.spec.mac)
    return _result(op, done, existing.spec.interfaceName)


def _result(op: Operation, done: _Added, host_name: str = "") -> Result:
    """Calico's shape: the host's end first, then the container's, to which all addresses belong.

    Routes are those that stand in the container (Calico lists its IPAM's blocks there).
    """
    versions = {IP(address).version for address in done.addresses}
    mtu = done.pair.mtu if done.pair else node.mtu(op.conf, op.paths)
    return Result(
        interfaces=(
            Interface(host_name or op.identity.host_interface),
            Interface(op.identity.ifname, done.mac, mtu, op.call.netns),
        ),
        ips=tuple(IP(endpoint.single(address), 1) for address in done.addresses),
        routes=tuple(
            Route(dst, interface.GATEWAYS[IP(dst).version])
            for dst in done.routes
            if IP(dst).version in versions
        ),
    )


# --- DEL ----------------------------------------------------------------------------------------


async def delete(op: Operation, manager: AddressManager) -> None:
    """Detach the container. If the datastore does not answer, nothing has been touched."""
    await op.store.ensure_ready()
    for found in await _list_endpoints(op):
        if op.identity.names(found.name):
            await _delete_own(op, found)
    doomed = await _cut(op)
    if doomed is None:
        await manager.release(op)
        return
    # The interface is down, so its address can have a new owner while the kernel, which takes some
    # twenty milliseconds, deletes it.
    removal = asyncio.ensure_future(_delete_interface(op, doomed))
    try:
        await manager.release(op)
    finally:
        await removal


async def _delete_own(op: Operation, found: WorkloadEndpoint) -> None:
    """Delete an endpoint of this container; a pod's newer sandbox keeps its own."""
    for attempt in range(_TRIES):
        owner = found.spec.containerID
        if owner and owner != op.identity.container_id:
            _log.warning("CNI_CONTAINERID does not match WorkloadEndpoint ContainerID, don't delete WEP.")
            return
        try:
            await _delete_endpoint(op, found)
            return
        except UpdateConflict as err:
            if attempt + 1 == _TRIES:
                raise CniError(
                    Code.TRY_AGAIN_LATER,
                    f"error deleting endpoint: endpoint was modified before it could be deleted: {err}",
                ) from err
        try:
            found = await op.store.client.get(WorkloadEndpoint, found.name, found.namespace)
        except ResourceDoesNotExist:
            return


async def _delete_endpoint(op: Operation, found: WorkloadEndpoint) -> None:
    with contextlib.suppress(ResourceDoesNotExist):
        await op.store.client.delete(WorkloadEndpoint, found.name, found.namespace, found.revision)


async def _remove_interface(op: Operation) -> None:
    if (doomed := await _cut(op)) is not None:
        await _delete_interface(op, doomed)


async def _cut(op: Operation) -> wiring.Doomed | None:
    one = op.identity
    return await in_thread_on(
        _BUILD_LIMIT,
        "cut",
        lambda container: wiring.cut(one.host_interface, one.alias, container, one.ifname),
        op.namespace,
    )


async def _delete_interface(op: Operation, doomed: wiring.Doomed) -> None:
    await in_thread_on(
        _BUILD_LIMIT, "delete", lambda container: wiring.delete(doomed, container), op.namespace
    )


# --- what both need -----------------------------------------------------------------------------


async def _list_endpoints(op: Operation) -> list[WorkloadEndpoint]:
    """Those whose names start like this workload's. One of its own that nobody can read is deleted."""
    prefix = endpoint_name_prefix(op.identity.ids())
    listed = await op.store.client.list(WorkloadEndpoint, op.identity.namespace, prefix)
    for broken in listed.broken:
        if isinstance(broken.key, ResourceKey) and op.identity.names(broken.key.name):
            _log.warning("deleting endpoint %s, which cannot be read: %s", broken.where, broken.error)
            with contextlib.suppress(ResourceDoesNotExist):
                await op.store.client.delete(WorkloadEndpoint, broken.key.name, broken.key.namespace)
    return listed.items


async def _find_endpoint(op: Operation) -> WorkloadEndpoint | None:
    return endpoint.own_endpoint(op.identity, await _list_endpoints(op))
