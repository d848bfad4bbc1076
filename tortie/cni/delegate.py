"""Addresses from another IPAM plugin, which the shim runs on the host: host-local, static, dhcp, any.

The plugin gets the whole configuration and environment, as the specification wants. For host-local,
`usePodCidr` stands for this node's share of the cluster's pod CIDR, and its `routes` become the
container's. (Reference: CNI plugin, 4.4 and 4.8; cni-plugin/internal/pkg/utils/utils.go.)
"""

import ipaddress
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tortie.cni import netconf, result
from tortie.cni.addressing import Ask
from tortie.cni.interface import DEFAULT_ROUTES
from tortie.cni.operation import Operation
from tortie.cni.protocol import Code
from tortie.cni.result import Result
from tortie.core.errors import CniError, ConfigError, ResourceDoesNotExist
from tortie.datastore.types.node import Node

_log = logging.getLogger(__name__)

PodCIDRs = tuple[str, str]  # IPv4, IPv6; '' for none
# host-local releases by container ID; it only wants to see something that parses.
_ANY: PodCIDRs = ("0.0.0.0/0", "::/0")


class Delegated:
    """AddressManager over an IPAM plugin in CNI_PATH."""

    async def assign(self, op: Operation, ask: Ask) -> Result:
        stdin = await self._resolved(op)
        try:
            output = await self._run(op, "ADD", stdin)
            found = result.decode(output, f"the IPAM plugin {op.conf.ipam.type}")
            if not found.ips:
                raise CniError(Code.INTERNAL, "IPAM plugin returned missing IP config")
        except CniError:
            # The specification wants a DEL after a failed ADD; the plugin may have got half way.
            await op.undo("assigned addresses", lambda: self.release(op))
            raise
        return found

    async def give_back(self, op: Operation, addresses: Sequence[str]) -> None:
        await self.release(op)

    async def left_over(self, op: Operation, addresses: Sequence[str]) -> list[str]:
        """The other plugin knows no such question."""
        return []

    async def release(self, op: Operation) -> None:
        await self._run(op, "DEL", _with(op, _ANY))

    async def check(self, op: Operation, addresses: Sequence[str]) -> None:
        await self._run(op, "CHECK", await self._resolved(op))

    async def collect(self, op: Operation, spared: Callable[[str], bool]) -> None:
        await self._run(op, "GC", _with(op, _ANY))

    async def status(self, op: Operation) -> None:
        await self._run(op, "STATUS", await self._resolved(op))

    async def _resolved(self, op: Operation) -> bytes:
        """The configuration, with the node's pod CIDRs where it asks for them."""
        return _with(op, await self._pod_cidrs(op)) if _asks_for_pod_cidrs(op) else op.stdin

    async def _run(self, op: Operation, command: str, stdin: bytes) -> bytes:
        """The plugin's output. Raises CniError with its own words if it fails."""
        if not (name := op.conf.ipam.type):
            raise ConfigError("ipam.type", "", "an IPAM plugin must be named, such as calico-ipam")
        environment = {"CNI_COMMAND": command, "CNI_ARGS": _args(op)}
        status, output = await op.shim.execute(name, environment, stdin)
        if status == -1:
            raise CniError(
                Code.INTERNAL, f'failed to find plugin "{name}" in path [{" ".join(op.call.path)}]'
            )
        if status != 0:
            raise failure(name, status, output)
        return output

    async def _pod_cidrs(self, op: Operation) -> PodCIDRs:
        """From the Kubernetes API, which gives them out, else from the Node in the datastore."""
        name = op.conf.kubernetes.node_name or op.identity.node
        try:
            cidrs = await op.pods.pod_cidrs(op.conf, name)
            cidrs = cidrs or (await op.store.client.get(Node, name)).status.podCIDRs
        except ResourceDoesNotExist as err:
            raise ConfigError("ipam.subnet", "usePodCidr", f"node {name} is not known: {err}") from err
        return by_family(cidrs, name)


def _asks_for_pod_cidrs(op: Operation) -> bool:
    return op.conf.ipam.type == netconf.HOST_LOCAL and uses_pod_cidr(netconf.plain(op.stdin))


def _with(op: Operation, cidrs: PodCIDRs) -> bytes:
    """The configuration with these pod CIDRs where it asks for some; else as it is, byte for byte."""
    if not _asks_for_pod_cidrs(op):
        return op.stdin
    return msgspec.json.encode(with_pod_cidrs(netconf.plain(op.stdin), cidrs))


def _args(op: Operation) -> str:
    """CNI_ARGS as Calico passes them on: Kubernetes' own keys must not bother the other plugin."""
    given = op.call.environment.get("CNI_ARGS", "")
    return f"IgnoreUnknown=1;{given}" if given else "IgnoreUnknown=1"


class _ErrorObject(msgspec.Struct):
    code: int = Code.INTERNAL
    msg: str = ""
    details: str = ""


def failure(name: str, status: int, output: bytes) -> CniError:
    """The other plugin's error, as it said it; made up from its exit status if it said nothing. Pure."""
    try:
        found = msgspec.json.decode(output, type=_ErrorObject)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = _ErrorObject()
    if found.msg:
        return CniError(found.code, found.msg, found.details)
    return CniError(
        Code.INTERNAL, f"IPAM plugin {name} failed with exit status {status} and no error message"
    )


# --- host-local ---------------------------------------------------------------------------------

_V4, _V6 = "usepodcidr", "usepodcidripv6"  # compared without regard to case


def _subnets(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """Every object of the IPAM section that may have a `subnet`. Raises ConfigError if it is misshapen."""
    ipam = plain.get("ipam")
    if not isinstance(ipam, dict):
        raise ConfigError("ipam", ipam, "failed to parse host-local IPAM data; was expecting a dict")
    found = [ipam]
    for index, group in enumerate(_list(ipam.get("ranges"), "ipam.ranges")):
        for item in _list(group, f"ipam.ranges[{index}]"):
            if not isinstance(item, dict):
                raise ConfigError(f"ipam.ranges[{index}]", item, "was expecting a dict")
            found.append(item)
    return found


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(where, value, "was expecting a list")
    return value


def _subnet(item: dict[str, Any]) -> str:
    value = item.get("subnet")
    return value.lower() if isinstance(value, str) else ""


def uses_pod_cidr(plain: dict[str, Any]) -> bool:
    return any(_subnet(item) in (_V4, _V6) for item in _subnets(plain))


def with_pod_cidrs(plain: dict[str, Any], cidrs: PodCIDRs) -> dict[str, Any]:
    """The configuration (changed in place) with the real subnets in it. Raises ConfigError."""
    for item in _subnets(plain):
        for index, keyword, word in ((0, _V4, "IPv4"), (1, _V6, "IPv6")):
            if _subnet(item) == keyword:
                if not cidrs[index]:
                    reason = f"{item['subnet']} found but there is no {word} CIDR configured"
                    raise ConfigError("ipam.subnet", item["subnet"], reason)
                item["subnet"] = cidrs[index]
    return plain


def by_family(cidrs: Sequence[str], node: str) -> PodCIDRs:
    """A node's pod CIDRs, at most one of each family. Raises ConfigError."""
    found = {4: "", 6: ""}
    for cidr in cidrs:
        try:
            found[ipaddress.ip_network(cidr, strict=False).version] = cidr
        except ValueError:
            raise ConfigError(f"podCIDRs of node {node}", cidr, "not a CIDR") from None
    if not cidrs:
        raise ConfigError("ipam.subnet", "usePodCidr", f"no podCidr for node {node}")
    if len(cidrs) > 1 and not all(found.values()):
        raise ConfigError(
            f"podCIDRs of node {node}", cidrs, "ClusterCIDR contains two ranges of the same type"
        )
    return found[4], found[6]


def container_routes(op: Operation) -> tuple[str, ...]:
    """The routes that the container gets: host-local's, with the defaults if so configured; else these."""
    if op.conf.ipam.type != netconf.HOST_LOCAL:
        return DEFAULT_ROUTES
    ipam = netconf.plain(op.stdin).get("ipam")
    given = _routes(ipam.get("routes") if isinstance(ipam, dict) else None)
    if not given:
        return DEFAULT_ROUTES
    return tuple(dict.fromkeys((*DEFAULT_ROUTES, *given) if op.conf.include_default_routes else given))


def _routes(value: Any) -> list[str]:
    found = []
    for route in _list(value, "ipam.routes"):
        dst = route.get("dst") if isinstance(route, dict) else None
        if dst is None:
            _log.debug("ignoring a host-local route without dst")
            continue
        try:
            if not isinstance(dst, str) or "/" not in dst:
                raise ValueError
            found.append(str(ipaddress.ip_network(dst, strict=False)))
        except ValueError:
            raise ConfigError("ipam.routes.dst", dst, "not a CIDR") from None
    return found
