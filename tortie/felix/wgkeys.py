"""Tells the cluster this node's WireGuard keys, in the status of its Node.

Others encrypt for whoever has a key there, so a node that has none any more, or cannot have one, takes it
out. (Reference: dataplane sheet 3.6; felix/daemon, reconcileWireguardStatUpdate.)
"""

import logging
from collections.abc import Mapping

from msgspec import structs

from tortie.core.errors import ResourceDoesNotExist, UpdateConflict
from tortie.datastore.client import Client
from tortie.datastore.types.node import Node, NodeStatus

_log = logging.getLogger(__name__)

_TRIES = 3  # of a write that others come before, Calico's number
_FIELDS = {4: "wireguardPublicKey", 6: "wireguardPublicKeyV6"}  # IP version -> field of the status


def with_keys(status: NodeStatus, keys: Mapping[int, str]) -> NodeStatus:
    """`keys`: IP version -> public key or ''; what is not in it stays. Pure."""
    return structs.replace(status, **{_FIELDS[version]: key for version, key in keys.items()})


def published(status: NodeStatus, version: int) -> str:
    """As it stands there, '' for none."""
    return str(getattr(status, _FIELDS[version]))


async def publish(client: Client, node: str, keys: Mapping[int, str]) -> None:
    """Write what differs. Raises DatastoreError; a node that is not there has nobody to tell."""
    for attempt in range(_TRIES):
        try:
            found = await client.get(Node, node)
        except ResourceDoesNotExist:
            return
        status = with_keys(found.status, keys)
        if status == found.status:
            return
        try:
            await client.update(structs.replace(found, status=status))
        except UpdateConflict:
            if attempt == _TRIES - 1:
                raise
            continue
        told = {_FIELDS[version]: key or "none" for version, key in keys.items()}
        _log.info("the WireGuard keys of this node are now: %s", told)
        return
