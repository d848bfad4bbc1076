"""Node and CalicoNodeStatus."""

import base64
import binascii
import re
from typing import Any

from tortie.datastore.types.node import NodeBGPSpec
from tortie.datastore.validate.addresses import (
    cidr,
    cidrv4,
    cidrv6,
    ip,
    ipv4,
    ipv6,
    mac,
)
from tortie.datastore.validate.fields import (
    Check,
    Problems,
    integer,
    listing,
    one_of,
    struct,
    tested,
    text,
)
from tortie.datastore.validate.formats import MAX_NAME, name

_KEY_BYTES = 32  # a Curve25519 public key


def _is_wireguard_key(value: str) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


_wireguard_key = tested(_is_wireguard_key, "invalid WireGuard public key: must be 32 bytes in base64")


def _not_empty(problems: Problems, path: str, bgp: Any) -> None:
    if bgp == NodeBGPSpec():
        problems.add(path, None, "Spec.BGP should not be empty")


_bgp = struct(
    {
        "ipv4Address": cidrv4,
        "ipv6Address": cidrv6,
        "ipv4IPIPTunnelAddr": ipv4,
        "routeReflectorClusterID": ipv4,
    },
    _not_empty,
)
_wireguard = struct({"interfaceIPv4Address": ipv4, "interfaceIPv6Address": ipv6})
# Calico checks no address of the list; one that is taken from spec.bgp has host bits beside its length.
_address = struct(
    {"address": cidr, "type": one_of("CalicoNodeIP", "InternalIP", "ExternalIP")}, required=("address",)
)
# Calico does not look at interfaces and orchestrators; what is made of them must not carry hostile text.
# Host interfaces may have any name the kernel takes, also those Calico's own pattern refuses.
_interface = struct(
    {
        "name": tested(
            lambda value: re.fullmatch(r"[^\s/]{1,15}", value) is not None, "invalid interface name"
        ),
        "addresses": listing(cidr),
    }
)
_orch_ref = struct({"nodeName": text(MAX_NAME), "orchestrator": text(MAX_NAME)})

node: Check = struct(
    {
        "spec": struct(
            {
                "bgp": _bgp,
                "ipv4VXLANTunnelAddr": ipv4,
                "vxlanTunnelMACAddr": mac,
                "ipv6VXLANTunnelAddr": ipv6,
                "vxlanTunnelMACAddrV6": mac,
                "orchRefs": listing(_orch_ref),
                "wireguard": _wireguard,
                "addresses": listing(_address),
                "interfaces": listing(_interface),
            }
        ),
        "status": struct(
            {
                "wireguardPublicKey": _wireguard_key,
                "wireguardPublicKeyV6": _wireguard_key,
                "podCIDRs": listing(cidr),
            }
        ),
    }
)

# --- CalicoNodeStatus ---------------------------------------------------------------------------

_bird = struct({"state": one_of("Ready", "NotReady")})
_peer = struct(
    {
        "peerIP": ip,
        "type": one_of("NodeMesh", "NodePeer", "GlobalPeer"),
        "state": one_of("Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established", "Close"),
        "since": text(),
    }
)
_route = struct(
    {
        "type": one_of("FIB", "RIB"),
        "learnedFrom": struct(
            {
                "sourceType": one_of("Kernel", "Static", "Direct", "NodeMesh", "BGPPeer"),
                "peerIP": ip,
            }
        ),
    }
)

node_status: Check = struct(
    {
        "spec": struct(
            {
                "node": name,
                "classes": listing(one_of("Agent", "BGP", "Routes"), unique=True),
                "updatePeriodSeconds": integer(0, 86400),
            },
            required=("node", "classes", "updatePeriodSeconds"),
        ),
        "status": struct(
            {
                "agent": struct({"birdV4": _bird, "birdV6": _bird}),
                "bgp": struct({"peersV4": listing(_peer), "peersV6": listing(_peer)}),
                "routes": struct({"routesV4": listing(_route), "routesV6": listing(_route)}),
            }
        ),
    }
)
