"""Everything about rules that configuration decides, as the words the rules are written with."""

from dataclasses import dataclass, field
from typing import NamedTuple

from tortie.felix.rules import ir
from tortie.felix.rules.marks import Marks, allocate


class Failsafe(NamedTuple):
    """A port that host endpoints keep open: `protocol` tcp or udp; `net` '' for everywhere."""

    protocol: str
    port: int
    net: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """The defaults are Calico's (dataplane sheet 6)."""

    marks: Marks = field(default_factory=lambda: allocate(0xFFFF0000))
    workload_prefixes: tuple[str, ...] = ("cali",)
    filter_allow: ir.Accept | ir.Return = ir.ACCEPT
    mangle_allow: ir.Accept | ir.Return = ir.ACCEPT
    filter_deny: ir.Drop | ir.Reject = ir.DROP
    endpoint_to_host: ir.Accept | ir.Return | ir.Drop | ir.Reject = ir.DROP
    drop_invalid: bool = True
    failsafe_in: tuple[Failsafe, ...] = ()
    failsafe_out: tuple[Failsafe, ...] = ()
    # Encapsulation: what is on, for which the tunnel device has an address, and its ports.
    ipip: bool = False
    vxlan: frozenset[int] = frozenset()  # IP versions
    wireguard: frozenset[int] = frozenset()
    tunnel_devices: tuple[tuple[int, str], ...] = ()  # (IP version, device with an address)
    vxlan_port: int = 4789
    wireguard_ports: tuple[tuple[int, int], ...] = ((4, 51820), (6, 51821))
    wireguard_devices: tuple[str, ...] = ("wireguard.cali", "wg-v6.cali")
    wireguard_host_encryption: bool = False
    allow_vxlan_from_workloads: bool = False
    allow_ipip_from_workloads: bool = False
    # Masquerading.
    nat_ports: str = ""  # low-high
    nat_address: str = ""  # SNAT to it instead of masquerading (IPv4)
    nat_spares_hosts: bool = False
    nat_interface: str = ""
    service_loop: ir.Drop | ir.Reject | None = ir.DROP
    # Logging.
    log_prefix: str = "calico-packet"
    log_rate: str = ""
    log_burst: int = 5

    def deny(self, table: str) -> ir.Drop | ir.Reject:
        """The kernel has REJECT in the filter table only; elsewhere a denied packet is dropped."""
        return self.filter_deny if table == ir.FILTER else ir.DROP

    def wireguard_port(self, version: int) -> int:
        return dict(self.wireguard_ports)[version]


def verb(action: ir.Drop | ir.Reject) -> str:
    """How comments name a denial."""
    return "Reject" if isinstance(action, ir.Reject) else "Drop"
