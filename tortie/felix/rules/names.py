"""Names of chains and sets: Calico's, of bounded length, and safe whatever they are made from.

A name may hold a profile's or a policy's name, which came from the datastore. Anything that is not
made of harmless characters goes in as a digest, so no input reaches a ruleset by way of a name.
(Reference: policy sheet 0 and 5.4; libcalico-go/lib/hash/unique_id.go.)
"""

import hashlib
import re
from base64 import urlsafe_b64encode
from functools import lru_cache

from tortie.datastore.names import length_limited

MAX_CHAIN = 28  # iptables: XT_EXTENSION_MAXNAMELEN is 29 with its NUL
MAX_LONG_CHAIN = 247  # nftables: NFT_NAME_MAXLEN is 256 with its NUL, and `mangle-` comes before
MAX_SET = 31  # ipset: IPSET_MAXNAMELEN is 32 with its NUL

_SAFE = re.compile(r"[A-Za-z0-9_.:/-]+", re.ASCII)
_SAFE_LONG = re.compile(r"[A-Za-z0-9_./-]+", re.ASCII)  # what the nft language allows in a name

# Prefixes of chains made for one object.
POLICY_IN, POLICY_OUT = "cali-pi-", "cali-po-"
GROUP_IN, GROUP_OUT = "cali-gi-", "cali-go-"
PROFILE_IN, PROFILE_OUT = "cali-pri-", "cali-pro-"
TO_WORKLOAD, FROM_WORKLOAD = "cali-tw-", "cali-fw-"
WORKLOAD_RATE = "cali-tr-"
TO_HOST, FROM_HOST = "cali-th-", "cali-fh-"
ARP = "cali-arp-"
TO_HOST_FORWARD, FROM_HOST_FORWARD = "cali-thfw-", "cali-fhfw-"

# Chains that always exist.
INPUT, FORWARD, OUTPUT = "cali-INPUT", "cali-FORWARD", "cali-OUTPUT"
PREROUTING, POSTROUTING = "cali-PREROUTING", "cali-POSTROUTING"
WORKLOAD_TO_HOST = "cali-wl-to-host"
FROM_WORKLOAD_DISPATCH, TO_WORKLOAD_DISPATCH = "cali-from-wl-dispatch", "cali-to-wl-dispatch"
WORKLOAD_RATE_DISPATCH = "cali-to-wl-rate"
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


class ChainName(str):
    """A chain's name as every renderer can use it, with the one for those that need not cut it so short."""

    long: str


@lru_cache(maxsize=16384)  # a policy's chain is named once by each of its endpoints
def chain(prefix: str, ident: str) -> str:
    """The chain of one kind for one object: `cali-pri-kns.default`."""
    short = _bounded(prefix, ident, MAX_CHAIN, _SAFE)
    long = _bounded(prefix, ident, MAX_LONG_CHAIN, _SAFE_LONG)
    if short == long:
        return short
    name = ChainName(short)
    name.long = long
    return name


def long_chain(name: str) -> str:
    """The name nftables uses for a chain: what it is made from in full, if that is harmless."""
    return name.long if isinstance(name, ChainName) else name


def _bounded(prefix: str, ident: str, maximum: int, safe: re.Pattern[str]) -> str:
    if safe.fullmatch(ident):
        return length_limited(prefix, ident, maximum)
    digest = urlsafe_b64encode(hashlib.sha256(ident.encode("utf-8", "surrogatepass")).digest())
    return f"{prefix}_{digest.decode().rstrip('=')[: maximum - 1 - len(prefix)]}"


def ip_set(version: int, ident: str) -> str:
    """The kernel's name of a logical set for one family: `cali40s:5y5I3VdRZfDU01O--xXAPx2`."""
    return f"cali{version}0{ident}"[:MAX_SET]


def nft_set(version: int, ident: str) -> str:
    """The same in nftables, where names hold no colon: `cali40s-5y5I3VdRZfDU01O--xXAPx2`."""
    return ip_set(version, ident).replace(":", "-")
