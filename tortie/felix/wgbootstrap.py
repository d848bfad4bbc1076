"""WireGuard before the first pass: what an earlier run left must not stand between this node and the others.

Where hosts' own packets are encrypted too, nodes that know a key of this node's drop what does not come
encrypted with it, and nodes that know none drop what does. A device whose key is not the one in the
datastore is of no use to anybody then: nothing is led to it any more and it goes, and the key that others
were told is taken back, so that both sides talk plainly until the first pass has made a new beginning.
(Reference: felix/wireguard/bootstrap.go.)
"""

import logging
from collections.abc import Collection, Mapping

from tortie.core.errors import DatastoreError
from tortie.datastore.client import Client
from tortie.datastore.types.node import Node
from tortie.felix import wgkeys
from tortie.felix.dataplane.kernel import Kernel
from tortie.felix.dataplane.wgdevice import read_device, was_ours
from tortie.felix.dataplane.wgrules import is_ours
from tortie.felix.dataplane.wireguard import WireguardOptions
from tortie.linux import iprules, links
from tortie.linux import wireguard as wg
from tortie.linux.netlink import NetlinkSocket

_log = logging.getLogger(__name__)


def is_current(held: Collection[wg.Device], published: str) -> bool:
    """Whether what is in the kernel can go on: with peers to talk to, who know the key. Pure."""
    if not held:
        return not published
    return any(device.peers and device.public_key == published for device in held)


async def clear_stale(options: WireguardOptions, kernel: Kernel, client: Client, node: Node | None) -> None:
    """`node`: this one's entry as it is in the datastore. Raises KernelError."""
    if not options.encrypt_host:
        return
    stale: dict[int, str] = {}
    for version in sorted(options.versions & options.host):
        published = "" if node is None else wgkeys.published(node.status, version)
        held = held_by(kernel, options, version, published)
        if not is_current(held.values(), published):
            _log.info("the IPv%d WireGuard key in the datastore is not this kernel's: starting over", version)
            _remove(kernel.netlink, options, version, held)
            stale[version] = ""
    if stale and node is not None:
        try:
            await wgkeys.publish(client, node.name, stale)
        except DatastoreError as err:
            _log.warning("cannot take back the WireGuard keys of this node, going on: %s", err)


def held_by(kernel: Kernel, options: WireguardOptions, version: int, published: str) -> dict[str, wg.Device]:
    """Name -> device: the one of this name, and those that were ours under another.

    The other IP version's is none of them.
    """
    name, port, found = options.devices[version == 6], options.ports[version == 6], {}
    for link in links.dump(kernel.netlink):
        if link.kind == wg.KIND and link.name != options.devices[version == 4]:
            device = read_device(kernel.wireguard, link.name)
            if device is not None and (link.name == name or was_ours(device, options.mark, port, published)):
                found[link.name] = device
    return found


def _remove(
    netlink: NetlinkSocket, options: WireguardOptions, version: int, held: Mapping[str, wg.Device]
) -> None:
    """First what leads to it. A device with another name is led to no more, and left to the first pass;
    one of the name without our mark may be somebody's, who keeps its key."""
    if options.routes:
        wanted = options.rule(version)
        rules = [rule for rule in iprules.dump(netlink, version) if is_ours(rule, wanted)]
        netlink.request([iprules.delete(rule) for rule in rules])
    name = options.devices[version == 6]
    if name in held and held[name].mark == options.mark:
        netlink.request([links.delete(name)])
