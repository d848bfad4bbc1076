"""IPReservations as one set of addresses that automatic assignment passes over.

They bind auto-assign, ensure-block and utilisation, not a request for a specific address; an address
that is already held stays held. (Reference: Calico IPAM, 1.8.)
"""

from collections.abc import Iterable
from ipaddress import ip_network

from tortie.datastore.types.ippool import IPReservation
from tortie.ipam.addresses import Network
from tortie.ipam.ranges import Ranges


def reserved_ranges(reservations: Iterable[IPReservation]) -> tuple[Ranges, list[str]]:
    """The union of all reservations, and a complaint per entry that is no CIDR or address (it is ignored)."""
    networks: list[Network] = []
    complaints = []
    for reservation in reservations:
        for entry in filter(None, map(str.strip, reservation.spec.reservedCIDRs)):
            try:
                networks.append(ip_network(entry, strict=False))
            except ValueError as err:
                complaints.append(
                    f"IPReservation {reservation.name}: ignoring malformed CIDR {entry!r}: {err}"
                )
    return Ranges(networks), complaints
