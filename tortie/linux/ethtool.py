"""Checksum offload of an interface: whether the kernel leaves checksums of sent packets to the device."""

import array
import fcntl
import os
import socket
import struct

from tortie.core.errors import KernelError

_SIOCETHTOOL = 0x8946  # linux/sockios.h
_GET_TX_CHECKSUM, _SET_TX_CHECKSUM = 0x16, 0x17  # ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM


def tx_checksum(name: str) -> bool:
    """Whether it is on. Raises KernelError, as below."""
    return bool(_ioctl("read", name, _GET_TX_CHECKSUM, 0))


def set_tx_checksum(name: str, on: bool) -> None:
    """In the caller's current network namespace."""
    _ioctl("set", name, _SET_TX_CHECKSUM, int(on))


def _ioctl(operation: str, name: str, command: int, value: int) -> int:
    data = array.array("I", [command, value])  # struct ethtool_value
    request = struct.pack("16sP", os.fsencode(name)[:15], data.buffer_info()[0])  # struct ifreq
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
            fcntl.ioctl(door, _SIOCETHTOOL, request)
    except OSError as err:
        what = f"checksum offload of {name}"
        raise KernelError(operation, what, err.errno or 0, os.strerror(err.errno or 0)) from err
    return data[1]
