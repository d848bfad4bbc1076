"""Network interfaces: reading them, and the messages that create, change and delete them.

Every change is a Message, so that a caller can put a whole interface set-up (links, addresses,
routes, neighbours) into one NetlinkSocket.request(). An interface is named by its index, or by its
name where it was created in the same batch and its index is not known yet.
"""

import errno
import os
from dataclasses import dataclass
from socket import AF_UNSPEC
from struct import Struct

from tortie.core.errors import KernelError
from tortie.linux import codec
from tortie.linux.codec import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
    RTM_SETLINK,
    Message,
    attribute,
    attribute_text,
    attribute_u8,
    attribute_u32,
    attributes,
    nested,
    pack_address,
    pack_mac,
    read_int,
    read_text,
    read_u8,
    read_u32,
    unpack_address,
    unpack_mac,
)
from tortie.linux.netlink import NetlinkSocket

IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
NAME_MAX = 15  # bytes; IFNAMSIZ with its NUL is 16
_FORBIDDEN = frozenset(b"/:%\0\t\n\v\f\r \xa0")  # bytes; the kernel's isspace() counts 0xa0

_IFINFOMSG = Struct("=BxHiII")  # family, hardware type, index, flags, change mask
_PORT = Struct(">H")  # VXLAN's port is in network byte order

_ADDRESS, _IFNAME, _MTU, _LINK, _MASTER, _LINKINFO, _IFALIAS = 1, 3, 4, 5, 10, 18, 20
_NET_NS_FD, _EXT_MASK, _NUM_TX_QUEUES, _NUM_RX_QUEUES, _LINK_NETNSID = 28, 29, 31, 32, 37
_SKIP_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS: half the size of a dump
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_PEER = 1
_VXLAN_ID, _VXLAN_GROUP, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT = 1, 2, 3, 4, 7, 15
_VXLAN_L2MISS, _VXLAN_GROUP6, _VXLAN_LOCAL6, _VXLAN_GBP, _VXLAN_METADATA = 13, 16, 17, 23, 25
VXLAN_PORT = 4789  # IANA's; the kernel's own default is 8472


@dataclass(frozen=True, slots=True)
class Vxlan:
    """What makes a VXLAN device; a device that differs has to be made anew.

    `parent`: ifindex or 0. `local` and `group`: an address or None. `metadata`: flow-based (external).
    """

    id: int
    local: str | None = None
    parent: int = 0
    port: int = VXLAN_PORT
    learning: bool = False
    group: str | None = None
    l2miss: bool = False
    gbp: bool = False
    metadata: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """One interface as the kernel reports it.

    `peer`: ifindex of a veth's other end, or of the device below, in the namespace `link_netnsid`
    (None: this one); 0 if there is none. `mac`: "" where there is none.
    """

    name: str
    ifindex: int
    flags: int
    mtu: int
    mac: str = ""
    kind: str = ""  # veth, bridge, vxlan …; "" for hardware and loopback
    master: int = 0
    peer: int = 0
    link_netnsid: int | None = None
    alias: str = ""
    vxlan: Vxlan | None = None

    @property
    def up(self) -> bool:
        """Set up by somebody; says nothing about whether it works."""
        return bool(self.flags & IFF_UP)

    @property
    def running(self) -> bool:
        """Operational: up, and the other end as well. This is Felix's idea of "up"."""
        return bool(self.flags & IFF_RUNNING)


def valid_name(name: str) -> bool:
    """The kernel's rule for interface names (dev_valid_name in net/core/dev.c).

    Also no `%`: the kernel takes a name like `eth%d` for a pattern and makes up another.
    """
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return 0 < len(raw) <= NAME_MAX and raw not in (b".", b"..") and not _FORBIDDEN.intersection(raw)


# --- changes ------------------------------------------------------------------------------------


@codec.encoder("link")
def create(
    name: str,
    kind: str,
    *,
    mac: str | None = None,
    mtu: int = 0,
    master: int = 0,
    up: bool = False,
    data: bytes = b"",
) -> Message:
    """A new interface of any kind; EEXIST if the name is taken. `data`: the kind's own attributes."""
    info = [attribute_text(_INFO_KIND, kind)]
    if data:
        info.append(nested(_INFO_DATA, data))
    body = _head(flags=IFF_UP if up else 0, change=IFF_UP if up else 0)
    body += _properties(name=name, mac=mac, mtu=mtu, master=master) + nested(_LINKINFO, *info)
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, "create", f"{kind} {name}")


@codec.encoder("link")
def create_bridge(name: str, *, mac: str | None = None, mtu: int = 0, up: bool = False) -> Message:
    return create(name, "bridge", mac=mac, mtu=mtu, up=up)


@codec.encoder("link")
def create_vxlan(
    name: str, vxlan: Vxlan, *, mac: str | None = None, mtu: int = 0, up: bool = False
) -> Message:
    data = attribute_u32(_VXLAN_ID, vxlan.id) + attribute(_VXLAN_PORT, _PORT.pack(vxlan.port))
    data += attribute_u8(_VXLAN_LEARNING, vxlan.learning)
    if vxlan.local is not None:
        data += _attribute_address(_VXLAN_LOCAL, _VXLAN_LOCAL6, vxlan.local)
    if vxlan.group is not None:
        data += _attribute_address(_VXLAN_GROUP, _VXLAN_GROUP6, vxlan.group)
    if vxlan.parent:
        data += attribute_u32(_VXLAN_LINK, vxlan.parent)
    if vxlan.l2miss:
        data += attribute_u8(_VXLAN_L2MISS, 1)
    if vxlan.gbp:
        data += attribute(_VXLAN_GBP, b"")
    if vxlan.metadata:
        data += attribute_u8(_VXLAN_METADATA, 1)
    return create(name, "vxlan", mac=mac, mtu=mtu, up=up, data=data)


@dataclass(frozen=True, slots=True)
class VethEnd:
    """One end of a new pair; `namespace`: open fd of where it is to live, None for the request's own."""

    name: str
    namespace: int | None = None
    mac: str | None = None  # None: the kernel picks a random one


@codec.encoder("link")
def create_veth(here: VethEnd, there: VethEnd, *, mtu: int = 0, queues: int = 1) -> Message:
    """A pair whose ends are born where they live: moving one later costs 20 times as much.

    `mtu` 0 leaves the kernel's 1500; `queues` is the number of transmit and of receive queues. Both
    ends are down: the kernel cannot set up an end whose other end is still being made.
    """
    info = nested(
        _LINKINFO,
        attribute_text(_INFO_KIND, "veth"),
        nested(_INFO_DATA, nested(_VETH_PEER, _veth_end(there, mtu, queues))),
    )
    what = f"veth {here.name} with {there.name}"
    return Message(
        RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _veth_end(here, mtu, queues) + info, "create", what
    )


def _veth_end(end: VethEnd, mtu: int, queues: int) -> bytes:
    body = _head() + _properties(name=end.name, mac=end.mac, mtu=mtu)
    body += attribute_u32(_NUM_TX_QUEUES, queues) + attribute_u32(_NUM_RX_QUEUES, queues)
    return body + (attribute_u32(_NET_NS_FD, end.namespace) if end.namespace is not None else b"")


@codec.encoder("link")
def delete(link: int | str) -> Message:
    """ENODEV means that it was gone; a veth's other end goes with it."""
    return Message(RTM_DELLINK, 0, _target(link), "delete", f"link {link}")


@codec.encoder("link")
def change(
    link: int | str,
    *,
    up: bool | None = None,
    mac: str | None = None,
    mtu: int = 0,
    master: int | None = None,
    alias: str | None = None,
) -> Message:
    """Set what is given, in one step; `master` 0 releases, `alias` "" removes."""
    body = _target(link, up) + _properties(mac=mac, mtu=mtu, alias=alias)
    if master is not None:
        body += attribute_u32(_MASTER, master)
    return Message(RTM_SETLINK, 0, body, "change", f"link {link}")


@codec.encoder("link")
def rename(ifindex: int, name: str) -> Message:
    """EBUSY on kernels that cannot rename an interface that is up; EEXIST if the name is taken."""
    return Message(
        RTM_SETLINK, 0, _target(ifindex) + _properties(name=name), "rename", f"link {ifindex} to {name}"
    )


def _head(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _IFINFOMSG.pack(AF_UNSPEC, 0, index, flags, change)


def _target(link: int | str, up: bool | None = None) -> bytes:
    flags, change = (IFF_UP if up else 0), (0 if up is None else IFF_UP)
    if isinstance(link, int):
        return _head(link, flags, change)
    return _head(0, flags, change) + _properties(name=link)


def _properties(
    *,
    name: str | None = None,
    mac: str | None = None,
    mtu: int = 0,
    master: int = 0,
    alias: str | None = None,
) -> bytes:
    parts: list[bytes] = []
    if name is not None:
        if not valid_name(name):
            raise KernelError("encode", "interface name", errno.EINVAL, f"{name!r} is not an interface name")
        parts.append(attribute_text(_IFNAME, name))
    if mac is not None:
        parts.append(attribute(_ADDRESS, pack_mac(mac)))
    if mtu:
        parts.append(attribute_u32(_MTU, mtu))
    if master:
        parts.append(attribute_u32(_MASTER, master))
    if alias is not None:
        parts.append(attribute(_IFALIAS, os.fsencode(alias)))
    return b"".join(parts)


def _attribute_address(kind4: int, kind6: int, address: str) -> bytes:
    packed = pack_address(address)
    return attribute(kind4 if len(packed) == 4 else kind6, packed)


# --- reading ------------------------------------------------------------------------------------


def dump(netlink: NetlinkSocket) -> list[Link]:
    """All interfaces of the namespace."""
    body = _head() + attribute_u32(_EXT_MASK, _SKIP_STATISTICS)
    answers = netlink.dump(Message(RTM_GETLINK, 0, body, "dump", "links"))
    return [link for answer in answers if (link := decode(answer.body)) is not None]


def get(netlink: NetlinkSocket, link: int | str) -> Link | None:
    """One interface by index or name, without a dump; None if there is none (or the name is no name)."""
    if isinstance(link, str) and not valid_name(link):
        return None
    body = _target(link) + attribute_u32(_EXT_MASK, _SKIP_STATISTICS)
    try:
        answer = netlink.get(Message(RTM_GETLINK, 0, body, "get", f"link {link}"))
    except KernelError as err:
        if err.errno == errno.ENODEV:
            return None
        raise
    return decode(answer.body)


@codec.decoder("link")
def decode(body: bytes) -> Link | None:
    """A link from an RTM_NEWLINK or RTM_DELLINK body.

    None for another family's view of it: a bridge reports its ports so, and a port that leaves a
    bridge is "deleted" so without being gone.
    """
    family, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
    if family != AF_UNSPEC:
        return None
    found = attributes(body, _IFINFOMSG.size)
    info = attributes(found.get(_LINKINFO, b""))
    kind = read_text(info.get(_INFO_KIND, b""))
    return Link(
        name=read_text(found.get(_IFNAME, b"")),
        ifindex=index,
        flags=flags,
        mtu=read_u32(found[_MTU]) if _MTU in found else 0,
        mac=unpack_mac(found.get(_ADDRESS, b"")),
        kind=kind,
        master=read_u32(found[_MASTER]) if _MASTER in found else 0,
        peer=read_u32(found[_LINK]) if _LINK in found else 0,
        link_netnsid=read_int(found[_LINK_NETNSID]) if _LINK_NETNSID in found else None,
        alias=read_text(found.get(_IFALIAS, b"")),
        vxlan=_decode_vxlan(info[_INFO_DATA]) if kind == "vxlan" and _INFO_DATA in info else None,
    )


def _decode_vxlan(data: bytes) -> Vxlan:
    found = attributes(data)

    def flag(kind: int) -> bool:
        return kind in found and bool(read_u8(found[kind]))

    def address(kind4: int, kind6: int) -> str | None:
        packed = found.get(kind4) or found.get(kind6)
        return unpack_address(packed) if packed and any(packed) else None

    return Vxlan(
        id=read_u32(found[_VXLAN_ID]) if _VXLAN_ID in found else 0,
        local=address(_VXLAN_LOCAL, _VXLAN_LOCAL6),
        parent=read_u32(found[_VXLAN_LINK]) if _VXLAN_LINK in found else 0,
        port=_PORT.unpack_from(found[_VXLAN_PORT])[0] if _VXLAN_PORT in found else 0,
        learning=flag(_VXLAN_LEARNING),
        group=address(_VXLAN_GROUP, _VXLAN_GROUP6),
        l2miss=flag(_VXLAN_L2MISS),
        gbp=_VXLAN_GBP in found,
        metadata=flag(_VXLAN_METADATA),
    )
