"""Everything that `ipam check` compares, read from the datastore and, for Services, from Kubernetes.

What cannot be read is never taken for absent: an address whose user we could not see would look leaked,
and would be given to somebody else.
"""

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tortie.calicoctl.errors import CommandError
from tortie.core import children
from tortie.core.errors import ResourceDoesNotExist, ValidationError
from tortie.core.tasks import together
from tortie.datastore.access import Page
from tortie.datastore.backend import Listed
from tortie.datastore.client import Client
from tortie.datastore.keys import BlockList, HandleKey, HandleList
from tortie.datastore.types.cluster import KubeControllersConfiguration
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.node import Node
from tortie.ipam import addresses, soundness
from tortie.ipam.audit import Books, StoredBlock, Use
from tortie.ipam.handles import handle_of
from tortie.ipam.names import SERVICE, clean_handle
from tortie.ipam.store import Store, cidr_of, is_confirmed, owner_of

_CLASS = "calico"  # the loadBalancerClass that asks for us
_ANNOTATIONS = ("ipv4pools", "ipv6pools", "loadBalancerIPs")  # of projectcalico.org/, asking for us too
_ASK_SERVICES = 60.0  # seconds kubectl may take; an API server with 10,000 Services answers in a few


@dataclass(frozen=True, slots=True)
class Loaded:
    """The books, and their users by sort. `services` counts ours; None: not asked, `no_services` says why."""

    books: Books
    nodes: tuple[Use, ...]
    workloads: tuple[Use, ...]
    service_uses: tuple[Use, ...]
    services: int | None
    no_services: str = ""


async def load(client: Client, kubeconfig: str) -> Loaded:
    """Raises CommandError if a node, an endpoint or a pool is there but cannot be read; DatastoreError."""
    blocks, handles, affinities = await together(
        client.backend.list(BlockList()),
        client.backend.list(HandleList()),
        Store(client.backend).all_affinities(),
    )
    # Users after allocations: an address allocated meanwhile is not in the books at all, so not leaked.
    pools, (nodes, endpoints) = await together(
        client.list(IPPool), together(client.list(Node), client.list(WorkloadEndpoint))
    )
    for what, page in (("IP pools", pools), ("nodes", nodes), ("workload endpoints", endpoints)):
        _require_all(what, page)
    stored = list(_blocks(blocks))
    node_uses = tuple(use for node in nodes.items for use in node_addresses(node))
    workload_uses = tuple(use for one in endpoints.items for use in workload_addresses(one))
    services, service_uses, reason = await _services(client, kubeconfig, stored)
    books = Books(
        blocks=stored,
        uses=(*node_uses, *service_uses, *workload_uses),
        pools=[_network(pool) for pool in pools.items if not pool.spec.disabled],
        handles=dict(_handles(handles)),
        affinities={(owner_of(kv), cidr_of(kv)) for kv in affinities if is_confirmed(kv)},
        nodes={node.name for node in nodes.items},
        unsettled={(owner_of(kv), cidr_of(kv)) for kv in affinities if not is_confirmed(kv)},
    )
    return Loaded(books, node_uses, workload_uses, service_uses, services, reason)


def _require_all(what: str, page: Page[Any]) -> None:
    for broken in page.broken:
        raise CommandError(f"failed to list {what}: {broken.where} cannot be read: {broken.error}")


def _network(pool: IPPool) -> addresses.Network:
    try:
        return addresses.network(pool.spec.cidr)
    except ValueError as err:
        raise CommandError(f"failed to parse IP pool CIDR: {err}") from err


def _handles(listed: Listed) -> Iterator[tuple[str, str]]:
    """Handle ID and revision; one that cannot be read exists all the same, with a revision nobody has."""
    for kv in listed.items:
        yield clean_handle(handle_of(kv)), kv.revision
    for broken in listed.broken:
        if isinstance(broken.key, HandleKey):
            yield clean_handle(broken.key.handle), ""


def _blocks(listed: Listed) -> Iterator[StoredBlock]:
    for broken in listed.broken:
        yield StoredBlock(broken.where, None, str(broken.error))
    for kv in listed.items:
        try:
            soundness.ensure_usable(kv.value, cidr_of(kv))
        except ValidationError as err:
            yield StoredBlock(kv.key.path(), None, str(err))
        else:
            yield StoredBlock(kv.key.path(), kv.value)


# --- who uses what, all pure ----------------------------------------------------------------------


def node_addresses(node: Node) -> Iterator[Use]:
    """A node's tunnel addresses. Raises CommandError if one is none."""
    spec = node.spec
    found = {
        "IPv4VXLANTunnelAddr": spec.ipv4VXLANTunnelAddr,
        "IPv6VXLANTunnelAddr": spec.ipv6VXLANTunnelAddr,  # Calico takes the IPv6 ones for leaked
        "Wireguard.InterfaceIPv4Address": spec.wireguard.interfaceIPv4Address if spec.wireguard else "",
        "Wireguard.InterfaceIPv6Address": spec.wireguard.interfaceIPv6Address if spec.wireguard else "",
        "IPv4IPIPTunnelAddr": spec.bgp.ipv4IPIPTunnelAddr if spec.bgp else "",
    }
    for field, text in found.items():
        if text:
            yield Use(_address(text, f"{field} ({text}) of node {node.name}"), f"Node({node.name})")


def workload_addresses(endpoint: WorkloadEndpoint) -> Iterator[Use]:
    """Raises CommandError if an address is none."""
    where = f"{endpoint.namespace}/{endpoint.name}"
    for text in endpoint.spec.ipNetworks:
        yield Use(_address(text, f"IP ({text}) of workload {where}"), f"Workload({where})")


def _address(text: str, what: str) -> str:
    try:
        return str(addresses.address(text.partition("/")[0]))
    except ValueError as err:
        raise CommandError(f"failed to parse {what}: {err}") from err


def service_addresses(services: Iterable[dict[str, Any]], assign: str) -> tuple[int, list[Use]]:
    """How many Services are ours, and their addresses; `assign` is the controller's assignIPs."""
    ours = [service for service in services if is_ours(service, assign)]
    uses = []
    for service in ours:
        name = str(service["metadata"]["name"])
        ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or ()
        uses += [Use(_address(one["ip"], f"IP of service {name}"), name) for one in ingress if one.get("ip")]
    return len(ours), uses


def is_ours(service: dict[str, Any], assign: str) -> bool:
    """Whether we give this Service its address. (Reference: IPAM, 5.2.)"""
    spec = service.get("spec", {})
    if spec.get("type") != "LoadBalancer":
        return False
    chosen = spec.get("loadBalancerClass")
    if chosen is not None or assign != "RequestedServicesOnly":
        return chosen in (None, _CLASS)
    given = service.get("metadata", {}).get("annotations") or {}
    return bool(spec.get("loadBalancerIP")) or any(f"projectcalico.org/{a}" in given for a in _ANNOTATIONS)


def unchecked_services(stored: Iterable[StoredBlock]) -> list[Use]:
    """Addresses of Services that cannot be asked about: they count as used."""
    uses = []
    for one in stored:
        if one.block is None or not (one.block.affinity or "").startswith("virtual:"):
            continue
        net = addresses.network(one.block.cidr)
        for ordinal, index in enumerate(one.block.allocations):
            attribute = one.block.attributes[index] if index is not None else None
            if attribute is not None and attribute.releasedAt is None:
                name = attribute.secondary.get(SERVICE, "unknown")
                uses.append(Use(str(net[ordinal]), f"Service({name}), not checked"))
    return uses


# --- Kubernetes -----------------------------------------------------------------------------------


async def _services(
    client: Client, kubeconfig: str, stored: list[StoredBlock]
) -> tuple[int | None, tuple[Use, ...], str]:
    if not kubeconfig:
        reason = "No kubeconfig given, skipping service check"
        return None, tuple(unchecked_services(stored)), reason
    try:
        configuration = await client.get(KubeControllersConfiguration, "default")
    except ResourceDoesNotExist:
        configuration = KubeControllersConfiguration()
    controllers = configuration.spec.controllers
    if controllers.loadBalancer is None:
        reason = "No configuration for LoadBalancer kubecontroller found, skipping service check"
        return None, (), reason
    count, uses = service_addresses(await _ask(kubeconfig), controllers.loadBalancer.assignIPs)
    return count, tuple(uses), ""


async def _ask(kubeconfig: str) -> list[dict[str, Any]]:
    """All Services, by kubectl: it knows every way to log in that a kubeconfig can ask for."""
    command = ("kubectl", "--kubeconfig", kubeconfig, "get", "services", "--all-namespaces", "-o", "json")
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError:
        raise CommandError("missing dependency: unable to locate kubectl in PATH") from None
    try:
        async with asyncio.timeout(_ASK_SERVICES):
            out, err = await process.communicate()
    except TimeoutError:
        await children.end(process)
        raise CommandError(f"failed to list services: kubectl took more than {_ASK_SERVICES:g} s") from None
    if process.returncode:
        raise CommandError(f"failed to list services: {err.decode(errors='replace').strip()}")
    try:
        items: list[dict[str, Any]] = json.loads(out)["items"]
    except (ValueError, KeyError, TypeError) as problem:
        raise CommandError(f"failed to list services: kubectl answered no list: {problem}") from problem
    return items
