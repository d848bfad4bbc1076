"""One start of a node: its name, addresses and AS number into its Node resource, and first defaults.

Runs once, as a process of its own, before anything else of the node does, and again when the host's
addresses change. Every step is idempotent. (Reference: host networking facts, 8.1-8.4.)
"""

import asyncio
import logging
import os
import secrets
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

from msgspec import structs

from tortie import __version__
from tortie.core.errors import (
    ConfigError,
    DatastoreUnreachable,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    TortieError,
    UpdateConflict,
)
from tortie.core.paths import Paths
from tortie.datastore import config as datastore_config
from tortie.datastore import initialize, nodename
from tortie.datastore.client import Client
from tortie.datastore.connect import connect
from tortie.datastore.nativekeys import ServiceList
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.meta import ASNumber, ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, OrchRef
from tortie.datastore.validate.addresses import parse_ip
from tortie.felix import config as felix_config
from tortie.felix import daemon, mtu
from tortie.linux import links
from tortie.linux.netlink import NetlinkSocket
from tortie.node import addressing, autodetect, defaultpools, hostaddresses, tunneladdresses

if TYPE_CHECKING:
    from tortie.datastore.kubernetes.backend import KubernetesBackend

_log = logging.getLogger(__name__)

_TRIES = 5  # other writers of our own Node (calicoctl, a controller) are rare; five conflicts are not chance
_LOGS = "/var/log/calico"  # nothing of ours is written there, but manifests expect it


async def run(env: Mapping[str, str] = os.environ) -> str:
    """The whole start-up; returns the node's name. Raises ConfigError, DatastoreError or KernelError."""
    name, source = nodename.read(env)
    _log.info("Starting node %s (from %s) with version %s", name, source, __version__)
    client = connect(datastore_config.from_env(env))
    try:
        if env.get("WAIT_FOR_DATASTORE") == "true":
            await _wait_for_datastore(client)
        await initialize.ensure_initialized(client, __version__, env.get("CLUSTER_TYPE", ""))
        await _ensure_node(client, name, env)
        Paths.from_env(env).create()
        os.makedirs(_LOGS, exist_ok=True)
        await _ensure_pools(client, env)
        await initialize.ensure_default_configuration(client, name)
        await _allocate_tunnel_addresses(client, name, env)
        await _prepare_for_pods(client, env)
    finally:
        await client.close()
    nodename.write(name, env)
    _log.info("Using node name: %s", name)
    return name


async def _wait_for_datastore(client: Client) -> None:
    """Returns as soon as the datastore gives any answer but 'unreachable'."""
    told = False
    while True:
        try:
            await client.get(Node, "foo")
        except ResourceDoesNotExist:
            break
        except DatastoreUnreachable as err:
            if not told:
                _log.info("Hit error connecting to datastore - retry: %s", err)
                told = True
            await asyncio.sleep(1)
            continue
        break
    _log.info("Datastore connection verified")


# --- the Node resource ------------------------------------------------------------------------------


async def refresh_addresses(env: Mapping[str, str] = os.environ) -> None:
    """Follow a change of the host's addresses; the present address is kept while the host has it."""
    name, _ = nodename.read(env)
    client = connect(datastore_config.from_env(env))
    try:
        await _ensure_node(client, name, env, sticky=True)
    finally:
        await client.close()


async def _ensure_node(client: Client, name: str, env: Mapping[str, str], *, sticky: bool = False) -> None:
    for attempt in range(1, _TRIES + 1):
        try:
            stored = await client.get(Node, name)
        except ResourceDoesNotExist:
            stored = Node(metadata=ObjectMeta(name=name))
        try:
            wanted = await _wanted_node(client, stored, env, sticky)
            if not stored.metadata.resourceVersion:
                await client.create(wanted)
            elif wanted != stored:
                await client.update(wanted)
            return
        except (UpdateConflict, ResourceAlreadyExists):
            if attempt == _TRIES:
                raise


async def _wanted_node(client: Client, stored: Node, env: Mapping[str, str], sticky: bool) -> Node:
    """The Node as it is to be. Raises ConfigError; a stale detected address is taken back first."""
    spec = stored.spec
    if env.get("CALICO_NETWORKING_BACKEND") != "none":
        bgp = spec.bgp or NodeBGPSpec()
        try:
            found = _addresses(bgp, env, sticky, _internal_ips(client, stored))
            if env.get("DISABLE_NODE_IP_CHECK") != "true":
                await _refuse_conflicts(client, stored, found)
        except _Conflict as err:
            await _take_back(client, stored, env, err.versions)
            raise
        except ConfigError:
            await _take_back(client, stored, env, {4, 6})
            raise
        bgp = structs.replace(bgp, ipv4Address=found.ipv4, ipv6Address=found.ipv6)
        if text := env.get("AS", ""):
            bgp = structs.replace(bgp, asNumber=_as_number(text))
        spec = structs.replace(spec, bgp=bgp, interfaces=found.interfaces)
    if reference := env.get("CALICO_K8S_NODE_REF", ""):
        spec = structs.replace(spec, orchRefs=(OrchRef(nodeName=reference, orchestrator="k8s"),))
    return structs.replace(stored, spec=spec)


def _internal_ips(client: Client, stored: Node) -> list[str] | None:
    """What Kubernetes knows as the node's own addresses; None where there is no Kubernetes."""
    if not client.backend.serves(ServiceList()):
        return None
    return [
        one.address for one in stored.spec.addresses if one.type == "InternalIP" and parse_ip(one.address)
    ]


def _addresses(
    bgp: NodeBGPSpec, env: Mapping[str, str], sticky: bool, internal: list[str] | None
) -> addressing.NodeAddresses:
    host = hostaddresses.read()
    stored = {4: bgp.ipv4Address, 6: bgp.ipv6Address}  # IP version -> address in the Node

    def detect(method: autodetect.Method, version: int) -> autodetect.Detection:
        reached = ""
        if method.kind == "can-reach":
            reached = hostaddresses.source_towards(method.args[0], version)
        keep = stored[version] if sticky else ""
        return autodetect.detect(method, version, host, reached=reached, keep=keep, internal_ips=internal)

    return addressing.decide(env, stored, host, detect)


class _Conflict(ConfigError):
    """Another node has our address; `versions` are the IP versions concerned."""

    def __init__(self, conflicts: Mapping[str, str]) -> None:
        address, owner = next(iter(conflicts.items()))
        version = 6 if ":" in address else 4
        text = f"Calico node '{owner}' is already using the IPv{version} address {address.partition('/')[0]}"
        super().__init__(addressing.VARIABLES[version], address, text)
        self.versions = {6 if ":" in address else 4 for address in conflicts}


async def _refuse_conflicts(client: Client, stored: Node, found: addressing.NodeAddresses) -> None:
    """Two nodes with one address would answer for each other: never start such a second one."""
    before = stored.spec.bgp or NodeBGPSpec()
    if (before.ipv4Address, before.ipv6Address) == (found.ipv4, found.ipv6):
        return
    _warn_if_changed(4, before.ipv4Address, found.ipv4)
    _warn_if_changed(6, before.ipv6Address, found.ipv6)
    others = {  # node name -> its addresses
        node.name: [node.spec.bgp.ipv4Address, node.spec.bgp.ipv6Address]
        for node in (await client.list(Node)).items
        if node.spec.bgp
    }
    if conflicts := autodetect.owners(others, stored.name, [found.ipv4, found.ipv6]):
        raise _Conflict(conflicts)


def _warn_if_changed(version: int, before: str, now: str) -> None:
    if before and now and before.partition("/")[0] != now.partition("/")[0]:
        _log.warning(
            "IPv%d address has changed from %s to %s. "
            "This could happen if there are multiple nodes with the same name.", version, before, now,
        )  # fmt: skip


async def _take_back(client: Client, stored: Node, env: Mapping[str, str], versions: Collection[int]) -> None:
    """A detected address that is no longer ours must not keep its rightful owner from starting."""
    bgp = stored.spec.bgp
    if bgp is None or not stored.metadata.resourceVersion:
        return
    cleared = structs.replace(
        bgp,
        ipv4Address="" if 4 in versions and env.get("IP") == "autodetect" else bgp.ipv4Address,
        ipv6Address="" if 6 in versions and env.get("IP6") == "autodetect" else bgp.ipv6Address,
    )
    if cleared == bgp:
        return
    _log.info("Clearing out-of-date addresses %s %s of this node", bgp.ipv4Address, bgp.ipv6Address)
    spec = structs.replace(stored.spec, bgp=None if cleared == NodeBGPSpec() else cleared)
    try:
        await client.update(structs.replace(stored, spec=spec))
    except UpdateConflict as err:
        _log.warning("Failed to clear node addresses: %s", err)


def _as_number(text: str) -> ASNumber:
    try:
        return ASNumber(text)
    except ValueError as err:
        raise ConfigError("AS", text, "The AS number specified in the environment is not valid") from err


# --- pools ------------------------------------------------------------------------------------------


async def _ensure_pools(client: Client, env: Mapping[str, str]) -> None:
    existing = [pool.spec.cidr for pool in (await client.list(IPPool)).items]
    usable = env.get("FELIX_IPV6SUPPORT", "").lower() != "false" and os.path.isdir("/proc/sys/net/ipv6")
    host = [address.cidr for address in hostaddresses.read() if address.ip.version == 4]
    subnets: list[str] = []
    if not existing and datastore_config.from_env(env).type == "kubernetes":
        from tortie.node import kubeadm  # only with Kubernetes

        subnets = await kubeadm.pod_subnets(cast("KubernetesBackend", client.backend))
    wanted = defaultpools.default_pools(
        env, existing, host, ipv6_usable=usable, random_bytes=secrets.token_bytes(5), kubeadm=subnets
    )
    for pool in wanted:
        try:
            await client.create(pool)
            _log.info("Created default IP pool %s with CIDR %s", pool.name, pool.spec.cidr)
        except ResourceAlreadyExists:  # another node was faster
            _log.info("IP pool %s exists already", pool.name)


async def _allocate_tunnel_addresses(client: Client, name: str, env: Mapping[str, str]) -> None:
    """So that felix starts with them, and need not start again. A node without them is still of use."""
    try:
        await tunneladdresses.allocate(client, name, env)
    except TortieError as err:
        _log.error("no tunnel addresses yet: %s", err)


# --- what must be there before pods ------------------------------------------------------------------


async def _prepare_for_pods(client: Client, env: Mapping[str, str]) -> None:
    """Before the nodename file, which lets CNI begin: a pod keeps the MTU it was given, and is open until
    something denies it. Where felix could not do that, no pod is to come."""
    sources = daemon.local_sources(env)
    await daemon.list_configuration(client.backend, sources)
    config, _ = felix_config.resolve(sources)
    if config.pod_mtu is not None:
        with NetlinkSocket() as netlink:
            mtu.publish(config.pod_mtu, links.dump(netlink))
    if not env.get("CALICO_DISABLE_FELIX"):
        await daemon.guard(config)


def _own_name() -> str:
    """The node's name; what stands in the way of having one is the very reason we are asked."""
    try:
        return nodename.read()[0]
    except (ConfigError, OSError):
        return "the node"


def main(*, refresh: bool = False) -> int:
    """Entry point of the start-up process: exit code 0, or 1 after saying why."""
    try:
        asyncio.run(refresh_addresses() if refresh else run())
    except TortieError as err:
        _log.critical("%s cannot start: %s", _own_name(), err)
        return 1
    return 0
