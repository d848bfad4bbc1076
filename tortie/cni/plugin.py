"""ADD and DEL of the `calico` plugin: a container gets an interface, addresses, an endpoint, or loses them.

ADD goes address, interface, endpoint; what fails is undone newest first. With an address that the node
had ready it answers before the endpoint is written (later.py). DEL goes the other way round:
endpoint, interface, address, so that an address is free only when nobody can use it any more. Every
step of DEL takes "gone already" for success, which makes it the repair of an ADD that was killed at
any point. (Reference: CNI plugin, 4.4 and 4.8.)
"""

import asyncio
import contextlib
import errno
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tortie.cni import advice, attachments, delegate, endpoint, endpoints, interface, node, waiting, wiring
from tortie.cni.addressing import AddressManager, Ask
from tortie.cni.endpoint import Attached
from tortie.cni.identity import K8S
from tortie.cni.interface import Pair
from tortie.cni.later import Debt
from tortie.cni.operation import Operation, in_thread_on
from tortie.cni.pods import NO_POD, NO_WISHES, Pod, Wishes, wishes
from tortie.cni.protocol import Code
from tortie.cni.result import IP, Interface, Result, Route
from tortie.core.errors import (
    CniError,
    ConfigError,
    KernelError,
    UpdateConflict,
)
from tortie.core.tasks import together
from tortie.datastore.types.endpoint import WorkloadEndpoint

_log = logging.getLogger(__name__)

_BUILD_LIMIT = 20.0  # seconds; Calico bounds the removal so, and some kernels have been seen to hang


@dataclass(slots=True)
class _Added:
    """What an ADD has made so far."""

    pod: Pod = NO_POD
    existing: WorkloadEndpoint | None = None  # the endpoint as it was before
    others: Sequence[str] = ()  # addresses of the container's other interfaces on the same network
    wishes: Wishes = NO_WISHES
    addresses: tuple[str, ...] = ()
    routes: tuple[str, ...] = interface.DEFAULT_ROUTES
    pair: Pair | None = None
    mac: str = ""
    endpoint: str = ""  # the interface's name in the endpoint, which may be an earlier one's
    debt: Debt | None = None  # what is still to be written once ADD has answered


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
    # Who waits for policy waits for the endpoint, too.
    patient = op.conf.policy_setup_timeout_seconds > 0
    # A profile of the network's own can only be written where endpoints are kept.
    writable = op.store.keeps_endpoints or bool(op.conf.policy.type)
    early = op.home and writable and not patient and op.later.may_answer_early(op.identity)
    if not early and (existing := await _earlier_endpoint(op)) is not None:
        await finish(await _join(op, existing))
        return
    op.ensure_container()
    op.later.meet(op.identity)
    async with contextlib.AsyncExitStack() as made:
        done = await _attach(op, manager, made, early=early)
        op.checkpoint()
        await finish(_result(op, done))
        made.pop_all()
        if done.debt is not None:
            op.later.owe(done.debt)


async def _earlier_endpoint(op: Operation) -> WorkloadEndpoint | None:
    """Of a container that has one, once what earlier ADDs of its workload owe is paid."""
    await op.later.await_paid(op.identity)
    if op.identity.orchestrator == K8S:
        return None
    return await endpoints.find(op.store.client, op.identity)


async def _attach(
    op: Operation, manager: AddressManager, made: contextlib.AsyncExitStack, *, early: bool
) -> _Added:
    """`early`: without a question to the datastore, if there are addresses ready."""
    done = _Added(routes=delegate.container_routes(op))
    if op.identity.orchestrator == K8S and op.conf.pod_policy:
        done.pod = await op.pods.pod(op.conf, op.identity)
        done.wishes = wishes(done.pod, op.conf)
        for reason in done.wishes.unfit:
            _log.warning("pod %s: %s", op.identity, reason)
    if early and not done.wishes.addresses and not done.wishes.addresses_without_ipam:
        await _get_addresses(op, manager, done, made)
        op.checkpoint()
        if op.ready and await _build_fresh(op, done, made):
            _note(op, done, made)
            return done
        await _place(op, done)
    else:
        await _assign(op, manager, done, made)
    op.checkpoint()
    used = (*done.addresses, *done.others)
    _, left = await together(_build(op, done, made), manager.left_over(op, used))
    if left:  # only now that the interface which an earlier ADD gave them to is gone
        _log.info("releasing %s, which an earlier ADD left to %s", ", ".join(left), op.identity)
        await manager.give_back(op, left)
    op.checkpoint()
    await _write_endpoint(op, done, made)
    await op.later.forgive_own(op.identity)  # what could never be paid, or read: it is paid now
    if not op.conf.policy.type:
        await _ensure_profile(op)
    await _await_policy(op, done.endpoint)
    return done


async def _get_addresses(
    op: Operation, manager: AddressManager, done: _Added, made: contextlib.AsyncExitStack
) -> None:
    if done.wishes.addresses_without_ipam:
        done.addresses = done.wishes.addresses_without_ipam
        return
    namespace = done.pod.namespace_labels if op.conf.pod_policy else None
    found = await manager.assign(op, Ask(done.wishes, namespace))
    done.addresses = tuple(ip.bare for ip in found.ips)
    made.push_async_callback(op.undo, "addresses", lambda: manager.give_back(op, done.addresses))


def _note(op: Operation, done: _Added, made: contextlib.AsyncExitStack) -> None:
    """What will be owed, so that a crash does not forget it. Raises CniError, ValidationError."""
    try:
        debt = op.later.note(op.identity, op.ready, _endpoint(op, done), profile=not op.conf.policy.type)
    except OSError as err:
        raise CniError(Code.TRY_AGAIN_LATER, "cannot note which endpoint is to be written", str(err)) from err
    made.callback(op.later.tear_up, debt)
    done.debt = debt


async def _assign(
    op: Operation, manager: AddressManager, done: _Added, made: contextlib.AsyncExitStack
) -> None:
    """Addresses, and meanwhile a look whether the workload has an endpoint already."""

    async def assign() -> None:
        await _get_addresses(op, manager, done, made)

    if op.identity.orchestrator != K8S:  # it has none, else this ADD would only have joined it
        await assign()
        return
    if done.wishes == NO_WISHES:
        await together(_place(op, done), assign())
        return
    await _place(op, done)
    if op.identity.second:
        done.wishes = attachments.without_first(done.wishes)
    if done.wishes.addresses and done.existing is not None and done.existing.spec.containerID:
        # The pod's earlier sandbox may still hold the very addresses that it asks for.
        held = attachments.addresses([done.existing])
        await manager.give_back(op.of_container(done.existing.spec.containerID), held)
    await assign()


async def _place(op: Operation, done: _Added) -> None:
    """Which endpoint is to be changed, if any, and whether the interface is a second one.

    Raises CniError if it is, and the datastore has room for one endpoint of a pod.
    """
    owned = attachments.own(op.identity, await endpoints.listed(op.store.client, op.identity))
    marks = await endpoints.marks(op.identity, owned)
    op.identity, done.existing = attachments.placed(op.identity, owned, marks)
    done.others = attachments.addresses(attachments.sharing(op.identity, owned, marks))
    if op.identity.second and not op.store.keeps_endpoints:
        reason = f"{op.identity} has an interface on another network already"
        raise CniError(Code.INVALID_NETWORK_CONFIG, reason, advice.ONE_ENDPOINT)


async def _build_fresh(op: Operation, done: _Added, made: contextlib.AsyncExitStack) -> bool:
    """Whether nothing was in the way; whose that is, must be asked."""
    try:
        await _build(op, done, made, fresh=True)
    except KernelError as err:
        if err.errno != errno.EEXIST:
            raise
        _log.info("%s is not answered at once: %s", op.identity, err)
        return False
    return True


async def _build(
    op: Operation, done: _Added, made: contextlib.AsyncExitStack, *, fresh: bool = False
) -> None:
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
        routed=op.routed,
        second=identity.second,
    )
    over = threading.Event()  # nobody waits for the thread any more: what it still makes, it takes back
    try:
        done.mac = await in_thread_on(
            _BUILD_LIMIT,
            "build",
            lambda container: wiring.build(pair, container, lambda: not over.is_set(), fresh=fresh),
            op.ensure_container(),
        )
    finally:
        over.set()
    made.push_async_callback(op.undo, "interface", lambda: _remove_interface(op))


async def _write_endpoint(op: Operation, done: _Added, made: contextlib.AsyncExitStack) -> None:
    client = op.store.client
    written = await endpoints.write(client, op.identity, _endpoint(op, done), done.existing)
    done.endpoint = written.spec.endpoint
    made.push_async_callback(op.undo, "endpoint", lambda: endpoints.delete(client, written))


def _endpoint(op: Operation, done: _Added) -> WorkloadEndpoint:
    attached = Attached(done.addresses, op.identity.host_interface, done.mac)
    return endpoint.build(op.identity, op.conf, attached, done.pod, done.wishes)


async def _ensure_profile(op: Operation) -> None:
    await endpoints.ensure_profile(op.store.client, op.conf.name, op.identity.orchestrator)


async def _await_policy(op: Operation, endpoint_name: str) -> None:
    if not (seconds := op.conf.policy_setup_timeout_seconds):
        return
    identity = op.identity
    workload = "/".join(identity.workload)
    name = waiting.status_file(identity.orchestrator, workload, endpoint_name)
    path = node.endpoint_status_path(op.conf, op.paths, name)
    if not await op.while_wanted(waiting.for_file(path, seconds)):
        _log.warning("Error waiting for endpoint to become ready. Unblocking pod creation... (%s)", path)


async def _join(op: Operation, existing: WorkloadEndpoint) -> Result:
    """A container that has its interface already: only the network's profile is added to its endpoint."""
    client = op.store.client
    for attempt in range(endpoints.TRIES):
        joined = endpoint.joined(existing, op.conf.name)
        if joined is existing:
            break
        try:
            existing = await client.update(joined)
            break
        except UpdateConflict:
            if attempt + 1 == endpoints.TRIES:
                raise
            existing = await client.get(WorkloadEndpoint, existing.name, existing.namespace)
    if not op.conf.policy.type:
        await _ensure_profile(op)
    done = _Added(addresses=tuple(attachments.addresses([existing])), mac=existing.spec.mac)
    return _result(op, done, existing.spec.interfaceName)


def _result(op: Operation, done: _Added, host_name: str = "") -> Result:
    """Calico's shape: the host's end first, then the container's, to which all addresses belong.

    Routes are those that stand in the container (Calico lists its IPAM's blocks there); none while a VM
    migrates here, by which Calico's plugin knows that the host is to have none.
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
            if IP(dst).version in versions and op.routed
        ),
    )


# --- DEL ----------------------------------------------------------------------------------------


async def delete(op: Operation, manager: AddressManager) -> None:
    """Detach the container.

    If the datastore does not answer, nothing has been touched but what an ADD still owed: that is wanted no
    more.
    """
    await op.store.ensure_ready()
    await op.later.forgive_own(op.identity)
    owned = attachments.own(op.identity, await endpoints.listed(op.store.client, op.identity))
    marks = await endpoints.marks(op.identity, owned)
    ended = attachments.ended(op.identity, owned, marks)
    for found in ended:
        await endpoints.delete_own(op.store.client, op.identity, found)

    async def release() -> None:
        if attachments.sharing(op.identity, owned, marks):
            own = [one for one in ended if one.spec.containerID == op.identity.container_id]
            await manager.give_back(op, attachments.addresses(own))
        else:
            await manager.release(op)

    doomed = await _cut(op)
    if doomed is None:
        await release()
        return
    # The interface is down, so its address can have a new owner while the kernel, which takes some
    # twenty milliseconds, deletes it.
    removal = asyncio.ensure_future(_delete_interface(op, doomed))
    try:
        await release()
    finally:
        await removal


async def _remove_interface(op: Operation) -> None:
    if (doomed := await _cut(op)) is not None:
        await _delete_interface(op, doomed)


async def _cut(op: Operation) -> wiring.Doomed | None:
    one = op.identity
    return await in_thread_on(
        _BUILD_LIMIT,
        "cut",
        lambda container: wiring.cut(one.host_interfaces, one.alias, container, one.ifname),
        op.namespace,
    )


async def _delete_interface(op: Operation, doomed: wiring.Doomed) -> None:
    await in_thread_on(
        _BUILD_LIMIT, "delete", lambda container: wiring.delete(doomed, container), op.namespace
    )
