"""Workloads of this node that are BGP peers: which, of which BGPPeer, and the address that they peer with.

The first BGPPeer by name whose localWorkloadSelector holds for the endpoint and which is for this node is the
one (felix/calc/active_bpgpeer_calculator.go). confd makes the session, from the endpoint's status file; felix
puts BGPConfiguration's localWorkloadPeeringIPV4 and -IPV6 on the endpoint's interface, with link scope.
"""

import errno
import logging
from collections.abc import Collection, Iterable, Mapping

from tortie.core.errors import KernelError
from tortie.datastore import selector
from tortie.datastore.keys import ResourceKey
from tortie.datastore.syncer import Update
from tortie.datastore.types.bgp import BGPConfiguration, BGPPeer
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.node import Node
from tortie.felix.calc.model import Workload
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.linux import addresses
from tortie.linux.netlink import NetlinkSocket

_log = logging.getLogger(__name__)

_LINK_LOCAL = "fe80:"  # the kernel's own in IPv6, which are nobody's to delete


class LocalBGP:
    """What the datastore says about it, fed by the agent, and what follows for the kernel.

    `peers`, workload interface -> BGPPeer, is shared with whoever must not delete what BGP learned there.
    `prefixes` are those of workload interfaces: an endpoint that names another concerns nothing here.
    """

    def __init__(self, node: str, peers: dict[str, str], prefixes: tuple[str, ...]) -> None:
        self._node, self._prefixes = node, prefixes
        self._resources: dict[str, BGPPeer] = {}  # name -> one with a localWorkloadSelector
        self._labels: dict[str, dict[ResourceKey, Mapping[str, str]]] = {}  # interface -> endpoint -> labels
        self._interfaces: dict[ResourceKey, str] = {}  # endpoint of this node -> its interface
        self._peering: tuple[str, ...] = ()  # addresses with their length that workloads peer with
        self._may_be_set = True  # addresses to peer with, of this run or an earlier one
        self.peers = peers

    def take(self, update: Update) -> None:
        """Take one change; kinds that do not matter are passed over."""
        key, value = update.key, update.value
        if not isinstance(key, ResourceKey):
            return
        if key.kind == "BGPPeer":
            self._resources.pop(key.name, None)
            if isinstance(value, BGPPeer) and value.spec.localWorkloadSelector:
                self._resources[key.name] = value
        elif key.kind == "WorkloadEndpoint":
            self._forget(key)
            if isinstance(value, WorkloadEndpoint) and value.spec.node == self._node:
                name = value.spec.interfaceName
                if name.startswith(self._prefixes):
                    self._interfaces[key] = name
                    self._labels.setdefault(name, {})[key] = value.metadata.labels
        elif key.kind == "BGPConfiguration" and key.name == "default":
            spec = value.spec if isinstance(value, BGPConfiguration) else None
            v4, v6 = (spec.localWorkloadPeeringIPV4, spec.localWorkloadPeeringIPV6) if spec else ("", "")
            self._peering = tuple(f"{one}/{length}" for one, length in ((v4, 32), (v6, 128)) if one)

    def _forget(self, key: ResourceKey) -> None:
        if (interface := self._interfaces.pop(key, None)) is not None:
            del self._labels[interface][key]
            if not self._labels[interface]:
                del self._labels[interface]

    def note(self, workloads: Iterable[Workload], node: Node | None) -> None:
        """Bring `peers` up to date, before routes are looked at: what BGP learned there is not felix's."""
        labels = node.metadata.labels if node else {}
        resources = [one for _, one in sorted(self._resources.items()) if self._is_for_us(one, labels)]
        self.peers.clear()
        if resources:
            found = {one.interface: self._peer_on(one.interface, resources) for one in workloads}
            self.peers.update({interface: peer for interface, peer in found.items() if peer})

    def _peer_on(self, interface: str, resources: Iterable[BGPPeer]) -> str:
        for labels in self._labels.get(interface, {}).values():
            for peer in resources:
                if _selects(peer.spec.localWorkloadSelector, labels):
                    return peer.name
        return ""

    def _is_for_us(self, peer: BGPPeer, node_labels: Mapping[str, str]) -> bool:
        if peer.spec.node:
            return peer.spec.node == self._node
        return not peer.spec.nodeSelector or _selects(peer.spec.nodeSelector, node_labels)

    def set_addresses(self, netlink: NetlinkSocket, seen: Interfaces, up: Iterable[Workload]) -> None:
        """Before the status files: who reads that a workload is a peer can listen at the address."""
        found = [one for w in up if w.interface in self.peers and (one := seen.get(w.interface))]
        wanted = {one.ifindex: self._peering for one in found if self._peering}
        if not wanted and not self._may_be_set:
            return
        workloads = {one for name in self._labels if (one := seen.get(name))}
        try:
            _addresses(netlink, wanted, {one.ifindex for one in workloads})
            self._may_be_set = bool(wanted)
        except KernelError as err:
            _log.warning("the address that workloads peer with could not be set: %s", err)


def _selects(text: str, labels: Mapping[str, str]) -> bool:
    try:
        return selector.parse(text).evaluate(labels)
    except selector.SelectorError:  # old data: confd says so, with the resource's name
        return False


def _addresses(
    netlink: NetlinkSocket, wanted: Mapping[int, Collection[str]], workloads: Collection[int]
) -> None:
    """Have these addresses (of interface indices), and no others of ours on workload interfaces.

    Raises KernelError; an interface that is gone meanwhile is none.
    """
    ours = [one for one in addresses.dump(netlink) if one.ifindex in workloads and _is_ours(one)]
    there = {(one.ifindex, one.cidr) for one in ours}
    right = {(ifindex, cidr) for ifindex, cidrs in wanted.items() for cidr in cidrs}
    messages = [addresses.delete(*one) for one in sorted(there - right)]
    messages += [
        addresses.add(ifindex, cidr, scope=addresses.SCOPE_LINK, nodad=True)
        for ifindex, cidr in sorted(right - there)
    ]
    for error in netlink.request(messages) if messages else ():
        if error is not None and error.errno not in (errno.ENODEV, errno.EADDRNOTAVAIL):
            raise error


def _is_ours(one: addresses.Address) -> bool:
    """IPv6 knows no scope but that of the address."""
    if ":" in one.address:
        return not one.address.startswith(_LINK_LOCAL)
    return one.scope == addresses.SCOPE_LINK
