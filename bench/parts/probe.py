"""Questions to the kernel about single set members and chains, cheap enough to ask a thousand times a second.

Each is one netlink message, where a tool would have to be started, and would read more than is asked.
(Formats: linux/netfilter/ipset/ip_set.h, linux/netfilter/nf_tables.h.)
"""

import errno
import socket
from struct import Struct

from tortie.linux.codec import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLMSG_DONE,
    NLMSG_ERROR,
    Frame,
    Message,
    acknowledgement,
    attribute,
    attribute_text,
    attribute_u8,
    frame,
    frames,
    nested,
)

_NETFILTER = 12  # NETLINK_NETFILTER
_IPSET, _NFTABLES = 6, 10  # NFNL_SUBSYS_…
_TEST = _IPSET << 8 | 11  # IPSET_CMD_TEST
_GET_RULE, _GET_ELEMENT = _NFTABLES << 8 | 7, _NFTABLES << 8 | 13  # NFT_MSG_GETRULE, NFT_MSG_GETSETELEM
_HEADER = Struct(">BBH")  # struct nfgenmsg
_NOT_IN_SET = 4103  # IPSET_ERR_EXIST
_BIG_ENDIAN = 0x4000  # NLA_F_NET_BYTEORDER


class Probe:
    """An open door to one network namespace: that of the thread that made it."""

    def __init__(self) -> None:
        self._door = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        self._door.bind((0, 0))
        self._sequence = 0

    def in_ipset(self, name: str, address: str) -> bool:
        """Whether a set of networks (hash:net, IPv4) holds an address."""
        ip = nested(1, attribute(1 | _BIG_ENDIAN, socket.inet_aton(address)))
        body = attribute_u8(1, 6) + attribute_text(2, name) + nested(7, ip + attribute_u8(3, 32))
        number = self._refusal(Message(_TEST, 0, _head(socket.AF_INET) + body, "test", name))
        return number == 0

    def in_nft_set(self, table: str, name: str, address: str) -> bool:
        """The same for an nftables set."""
        element = nested(1, nested(1, attribute(1, socket.inet_aton(address))))
        body = attribute_text(1, table) + attribute_text(2, name) + nested(3, element)
        return self._refusal(Message(_GET_ELEMENT, 0, _head(socket.AF_INET) + body, "get", name)) == 0

    def rules(self, version: int, table: str, chain: str) -> tuple[bytes, ...]:
        """The rules of a chain of nftables or iptables-nft, as the kernel has them; () if there is none."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        body = _head(family) + attribute_text(1, table) + attribute_text(2, chain)
        found = self._ask(Message(_GET_RULE, 0, body, "list", chain), NLM_F_DUMP)
        return tuple(one.body for one in found if one.kind not in (NLMSG_DONE, NLMSG_ERROR))

    def _refusal(self, message: Message) -> int:
        for answer in self._ask(message, NLM_F_ACK):
            if answer.kind == NLMSG_ERROR and (number := acknowledgement(answer)[0]):
                if number not in (errno.ENOENT, _NOT_IN_SET):
                    raise OSError(number, f"{message.operation} {message.what}")
                return number
        return 0

    def _ask(self, message: Message, flags: int) -> list[Frame]:
        self._sequence += 1
        self._door.send(frame(message, self._sequence, flags))
        found: list[Frame] = []
        while not found or found[-1].kind not in (NLMSG_DONE, NLMSG_ERROR):
            found += frames(self._door.recv(1 << 17))
        return found


def _head(family: int) -> bytes:
    return _HEADER.pack(family, 0, 0)
