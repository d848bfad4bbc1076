"""Workloads of this node that are BGP peers, as felix names them in its endpoint status files.

A file is there while its endpoint is up, and after the address to peer with is on its interface
(confd/pkg/backends/calico/local_bgp_peer_watcher.go). Thin edge; the sessions are bgppeer.py's.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

_LARGEST = 65536  # bytes; felix writes some hundred


class _File(msgspec.Struct):
    bgpPeerName: str = ""
    ipv4Nets: tuple[str, ...] = ()
    ipv6Nets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class LocalPeer:
    """One workload: the BGPPeer that it is one of, and its first address of each family, with length."""

    resource: str
    nets: tuple[str, ...]


def read(folder: str) -> tuple[LocalPeer, ...]:
    """All of them, in a fixed order; a file that is none of felix's is passed over."""
    return tuple(sorted(_read(folder)))


def _read(folder: str) -> Iterator[LocalPeer]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue  # being written
        try:
            with open(entry.path, "rb") as source:
                found = msgspec.json.decode(source.read(_LARGEST), type=_File)
        except (OSError, msgspec.DecodeError):
            continue  # gone meanwhile, or not felix's
        if found.bgpPeerName:
            yield LocalPeer(found.bgpPeerName, (*found.ipv4Nets[:1], *found.ipv6Nets[:1]))
