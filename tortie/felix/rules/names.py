"""Names of chains and sets: Calico's, of bounded length, and safe whatever they are made from.

A name may hold a profile's or a policy's name, which came from the datastore. Anything that is not
made of harmless characters goes in as a digest, so no input reaches a ruleset by way of a name.
(Reference: policy sheet 0 and 5.4; libcalico-go/lib/hash/unique_id.go.)
"""

import hashlib
import re
from base64 import urlsafe_b64encode

from tortie.datastore.names import length_limited

MAX_CHAIN = 28  # iptables: XT_EXTENSION_MAXNAMELEN is 29 with its NUL
MAX_SET = 31  # ipset: IPSET_MAXNAMELEN is 32 with its NUL

_SAFE = re.compile(r"[A-Za-z0-9_.:/-]+", re.ASCII)

# Prefixes of chains made for one object.
POLICY_IN, POLICY_OUT = "cali-pi-", "cali-po-"
GROUP_IN, GROUP_OUT = "cali-gi-", "cali-go-"
PROFILE_IN, PROFILE_OUT = "cali-pri-", "cali-pro-"
TO_WORKLOAD, FROM_WORKLOAD = "cali-tw-", "cali-fw-"
TO_HOST, FROM_HOST = "cali-th-", "cali-fh-"
TO_HOST_FORWARD, FROM_HOST_FORWARD = "cali-thfw-", "cali-fhfw-"

# Chains that always exist.
INPUT, FORWARD, OUTPUT = "cali-INPUT", "cali-FORWARD", "cali-OUTPUT"
PREROUTING, POSTROUTING = "cali-PREROUTING", "cali-POSTROUTING"
WORKLOAD_TO_HOST = "cali-wl-to-host"
FROM_WORKLOAD_DISPATCH, TO_WORKLOAD_DISPATCH = "cali-from-wl-dispatch", "cali-to-wl-dispatch"
FROM_HOST_DISPATCH, TO_HOST_DISPATCH = "cali-from-host-endpoint", "cali-to-host-endpoint"
FROM_FORWARD_DISPATCH, TO_FORWARD_DISPATCH = "cali-from-hep-forward", "cali-to-hep-forward"
FAILSAFE_IN, FAILSAFE_OUT = "cali-failsafe-in", "cali-failsafe-out"
CIDR_BLOCK = "cali-cidr-block"
RPF_SKIP = "cali-rpf-skip"
WIREGUARD_MARK = "cali-wireguard-incoming-mark"
NAT_OUTGOING = "cali-nat-outgoing"
FLOATING_DNAT, FLOATING_SNAT = "cali-fip-dnat", "cali-fip-snat"
EGRESS_DSCP = "cali-egress-dscp"

# Static IP sets.
MASQUERADED_POOLS, ALL_POOLS = "masq-ipam-pools", "network-ip-pools"
ALL_HOSTS, ALL_VXLAN, THIS_HOST = "all-hosts-net", "all-vxlan-net", "this-host"
DSCP_SOURCES = "dscp-src-net"


def chain(prefix: str, ident: str, maximum: int = MAX_CHAIN) -> str:
    """The chain of one kind for one object: `cali-pri-kns.default`."""
    if _SAFE.fullmatch(ident):
        return length_limited(prefix, ident, maximum)
    digest = urlsafe_b64encode(hashlib.sha256(ident.encode("utf-8", "surrogatepass")).digest())
    return f"{prefix}_{digest.decode()[: maximum - 1 - len(prefix)]}"


def ip_set(version: int, ident: str) -> str:
    """The kernel's name of a logical set for one family: `cali40s:5y5I3VdRZfDU01O--xXAPx2`."""
    return f"cali{version}0{ident}"[:MAX_SET]
