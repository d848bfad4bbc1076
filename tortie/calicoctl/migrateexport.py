"""`datastore migrate export`: what a cluster in etcd is made of, as text for a Kubernetes datastore.

Three parts, between lines of `===`: resources as YAML, ClusterInformation and IPAM's data as JSON.
Kubernetes knows nodes by their Kubernetes names, so everything that names a node is renamed.
(Reference: CLI, 3.6.)
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import structs

from tortie.calicoctl import clusterlock, output, session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.listing import Listing
from tortie.calicoctl.session import Session
from tortie.core.errors import ResourceDoesNotExist
from tortie.core.tasks import together
from tortie.datastore import codec
from tortie.datastore.client import Client
from tortie.datastore.keys import AffinityKey, BlockList, HandleKey, HandleList, IPAMConfigKey, Key
from tortie.datastore.kinds import KINDS
from tortie.datastore.rules import KUBERNETES_POLICY_PREFIX
from tortie.datastore.types.cluster import ClusterInformation, FelixConfiguration
from tortie.datastore.types.ipam import Block
from tortie.datastore.types.meta import Resource
from tortie.datastore.types.node import Node
from tortie.ipam.block import Owner
from tortie.ipam.names import NODE, TUNNEL_HANDLES
from tortie.ipam.store import Store

# In Calico's order: a tier before its policies, nodes before what names them.
KINDS_IN_ORDER = (
    "IPPool", "BGPPeer", "Tier", "GlobalNetworkPolicy", "StagedGlobalNetworkPolicy", "GlobalNetworkSet",
    "HostEndpoint", "KubeControllersConfiguration", "NetworkPolicy", "StagedNetworkPolicy",
    "StagedKubernetesNetworkPolicy", "NetworkSet", "Node", "BGPConfiguration", "FelixConfiguration",
    "IPReservation", "BGPFilter",
)  # fmt: skip
_ACTIONS = (  # fields of FelixConfiguration whose values v1 let people write in any case
    "defaultEndpointToHostAction", "iptablesFilterAllowAction", "iptablesMangleAllowAction",
    "iptablesFilterDenyAction",
)  # fmt: skip


def export(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        client = current.client()
        await clusterlock.require(client, "to begin migration")
        if current.datastore_type != "etcdv3":
            raise CommandError(
                f"invalid datastore type: {current.datastore_type} to export from for datastore migration. "
                "Datastore type must be etcdv3"
            )
        pages = {kind: await _page(client, kind) for kind in KINDS_IN_ORDER}
        names = kubernetes_names(pages["Node"].items)  # type: ignore[arg-type]
        cluster = await client.get(ClusterInformation, "default")
        ipam = await _ipam(client, names)
        # Everything is read before anything is printed: half an export must not look like one.
        for kind in KINDS_IN_ORDER:
            call.out(_rendered("yaml", exported(pages[kind], names)) + "---\n")
        call.out("===\n" + _rendered("json", cluster))
        call.out("===\n" + json.dumps(ipam, indent=2, ensure_ascii=False) + "\n")

    session.run(call, work)


async def _page(client: Client, kind: str) -> Listing:
    page = await client.list(KINDS[kind].type)
    for broken in page.broken:
        raise CommandError(f"{broken.where} cannot be read: {broken.error}")
    return Listing(kind, tuple(page.items), page.revision)


def _rendered(style: str, result: output.Result) -> str:
    return output.render(output.Format(style), [result], with_namespace=False, cluster_as="")


# --- resources, all pure --------------------------------------------------------------------------


def kubernetes_names(nodes: Iterable[Node]) -> dict[str, str]:
    """Node name -> the name Kubernetes knows it by. Raises CommandError for a node that has none."""
    found = {}
    for node in nodes:
        theirs = [ref.nodeName for ref in node.spec.orchRefs if ref.orchestrator == "k8s" and ref.nodeName]
        if not theirs:
            raise CommandError(
                f"unable to process metadata for export for Node resource: node {node.name} missing a 'k8s' "
                "orchestrator reference. Unable to export data unless every node has a 'k8s' orchestrator "
                "reference"
            )
        found[node.name] = theirs[-1]
    return found


def exported(listing: Listing, names: Mapping[str, str]) -> Listing:
    """A kind's resources as they are to be created elsewhere, without what is made from Kubernetes."""
    change = _CHANGES.get(listing.kind, _unchanged)
    items = [
        change(_without_identity(item), names)
        for item in listing.items
        if not (item.KIND == "NetworkPolicy" and item.name.startswith(KUBERNETES_POLICY_PREFIX))
    ]
    return Listing(listing.kind, tuple(items), listing.revision)


def _without_identity(resource: Resource) -> Resource:
    return resource.with_metadata(
        uid="",
        resourceVersion="",
        creationTimestamp=None,
        deletionTimestamp=None,
        deletionGracePeriodSeconds=None,
    )


def _of_node(resource: Any, names: Mapping[str, str]) -> Any:
    """`node.<name>`, a node's own configuration, under the node's Kubernetes name."""
    prefix, _, node = resource.name.partition(".")
    if prefix != "node" or node not in names:
        return resource
    return resource.with_metadata(name=f"node.{names[node]}")


def _felix(resource: FelixConfiguration, names: Mapping[str, str]) -> Resource:
    actions = {f: resource.spec[f] for f in _ACTIONS if isinstance(resource.spec.get(f), str)}
    spec = resource.spec | {field: value.lower().title() for field, value in actions.items()}
    return _of_node(structs.replace(resource, spec=spec), names)  # type: ignore[no-any-return]


def _unchanged(resource: Any, _names: Mapping[str, str]) -> Any:
    return resource


_CHANGES: dict[str, Callable[[Any, Mapping[str, str]], Any]] = {  # kind -> how its resources change
    "Node": lambda node, names: node.with_metadata(name=names[node.name]),
    "FelixConfiguration": _felix,
    "BGPConfiguration": _of_node,
}


# --- IPAM -----------------------------------------------------------------------------------------


async def _ipam(client: Client, names: Mapping[str, str]) -> dict[str, Any]:
    blocks, handles, affinities = await together(
        client.backend.list(BlockList()),
        client.backend.list(HandleList()),
        Store(client.backend).all_affinities(),
    )
    for broken in (*blocks.broken, *handles.broken):
        raise CommandError(f"{broken.where} cannot be read: {broken.error}")
    parts: dict[str, Sequence[dict[str, Any]]] = {
        "block_affinities": [
            _entry(renamed_affinity(kv.key, names), kv.value)
            for kv in affinities
            if isinstance(kv.key, AffinityKey)
        ],
        "blocks": [_entry(kv.key, renamed_block(kv.value, names)) for kv in blocks.items],
        "handles": [
            _entry(HandleKey(renamed_handle(kv.key.handle, names)), kv.value)
            for kv in handles.items
            if isinstance(kv.key, HandleKey)
        ],
    }
    found: dict[str, Any] = {name: entries for name, entries in parts.items() if entries}
    try:
        found["config"] = _entry(IPAMConfigKey(), (await client.backend.get(IPAMConfigKey())).value)
    except ResourceDoesNotExist:
        return found  # nobody has configured anything
    return found


def _entry(key: Key, value: msgspec.Struct) -> dict[str, Any]:
    return {"Key": key.path(), "Value": json.loads(codec.encode(value)), "TTL": 0}


def renamed_affinity(key: AffinityKey, names: Mapping[str, str]) -> AffinityKey:
    return AffinityKey(key.cidr, names.get(key.host, key.host), key.owner_type)


def renamed_handle(handle: str, names: Mapping[str, str]) -> str:
    """A tunnel's handle ends in its node's name."""
    for prefix in TUNNEL_HANDLES.values():
        if handle.startswith(prefix) and (node := handle.removeprefix(prefix)) in names:
            return prefix + names[node]
    return handle


def renamed_block(block: Block, names: Mapping[str, str]) -> Block:
    def renamed(attributes: Mapping[str, str]) -> dict[str, str]:
        node = attributes.get(NODE, "")
        return {**attributes, NODE: names[node]} if node in names else dict(attributes)

    owner = Owner.parse(block.affinity)
    if owner is not None and owner.type == "host" and owner.host in names:
        block = structs.replace(block, affinity=str(Owner(names[owner.host])))
    attributes = tuple(
        structs.replace(
            attribute,
            handle_id=renamed_handle(attribute.handle_id, names) if attribute.handle_id else None,
            secondary=renamed(attribute.secondary),
            alternateOwnerAttrs=renamed(attribute.alternateOwnerAttrs),
        )
        for attribute in block.attributes
    )
    return structs.replace(block, attributes=attributes)
