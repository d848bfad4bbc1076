"""What nftables must hold back of the host's ARP answers, as the content of the table `arp calico-arp`.

With proxy ARP the host answers every question on a workload's interface. A workload that probes whether its
own address is taken (RFC 5227, as some DHCP clients do) would be told that it is. So answers that name the
workload's own address do not leave by its interface. (Reference: policy sheet 5.11.)
"""

from collections.abc import Iterable

from tortie.felix.rules import names
from tortie.felix.rules.nftables import hashed
from tortie.linux.nft_table import Base, Chain, Content, Key, Map

TABLE = "calico-arp"
_DISPATCH = "filter-cali-arp-dispatch"
DISPATCH_MAP: Key = ("map", _DISPATCH)


def static() -> dict[Key, Content]:
    root = hashed("filter-OUTPUT", [(f"counter jump {_DISPATCH}", ())])
    return {
        ("chain", "filter-OUTPUT"): Chain(root, Base("filter", "output", 0)),
        ("chain", _DISPATCH): Chain(hashed(_DISPATCH, [(f"oifname vmap @{_DISPATCH}", ())])),
    }


def chain_key(interface: str) -> Key:
    return "chain", f"filter-{names.long_chain(names.chain(names.ARP, interface))}"


def chain(interface: str, addresses: Iterable[str]) -> Chain:
    """`addresses`: IPv4, of the workload behind it."""
    match = f'oifname "{interface}" arp operation reply arp saddr ip'
    bodies = [(f"{match} {address} counter drop", ()) for address in addresses]
    return Chain(hashed(chain_key(interface)[1], bodies))


def dispatch(interfaces: Iterable[str]) -> Map:
    return Map(frozenset((name, chain_key(name)[1]) for name in interfaces))
