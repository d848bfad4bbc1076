"""Generic netlink: the numbers that the kernel gave its families, and the header of their messages.

A family that is a module is loaded by asking for it. (linux/genetlink.h.)
"""

import errno
from struct import Struct

from tortie.core.errors import KernelError
from tortie.linux.codec import Frame, Message, attribute_text, attributes, decoder, read_u16
from tortie.linux.netlink import NetlinkSocket

NETLINK_GENERIC = 16
HEADER = Struct("=BBxx")  # command, version of the family
_CONTROL = 16  # GENL_ID_CTRL
_GET_FAMILY = 3  # CTRL_CMD_GETFAMILY
_FAMILY_ID, _FAMILY_NAME = 1, 2  # CTRL_ATTR_…


def open_socket() -> NetlinkSocket:
    """Raises KernelError."""
    return NetlinkSocket(protocol=NETLINK_GENERIC)


def family_id(door: NetlinkSocket, name: str) -> int:
    """The kind of the family's messages. Raises KernelError, ENOENT where the kernel has no such family."""
    body = HEADER.pack(_GET_FAMILY, 1) + attribute_text(_FAMILY_NAME, name)
    return decode_family(door.get(Message(_CONTROL, 0, body, "find", f"netlink family {name}")))


@decoder("netlink family")
def decode_family(answer: Frame) -> int:
    found = attributes(answer.body, HEADER.size)
    if _FAMILY_ID not in found:
        raise KernelError("decode", "netlink family", errno.EINVAL, "the answer has no number")
    return read_u16(found[_FAMILY_ID])
