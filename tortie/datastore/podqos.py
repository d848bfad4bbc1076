"""Limits of bandwidth, packets and connections that a pod's annotations ask for. Pure.

What is too small or too large becomes the nearest that is possible; what makes no sense without
another limit is left out. Neither keeps a pod from the network: the reasons are returned.
(Reference: Calico data model, 3.4; conversion/workload_endpoint_default.go.)
"""

from collections.abc import Mapping

from tortie.datastore.quantities import parse_quantity
from tortie.datastore.types.endpoint import QoSControls
from tortie.datastore.validate.formats import dscp_value

CALICO, _KUBERNETES = "qos.projectcalico.org/", "kubernetes.io/"
# limit -> least and most: bit/s, bits (of 2^32 bytes), bit/s, bytes, packets/s, packets, connections
_RANGES = {
    "Bandwidth": (1_000, 10**15),
    "Burst": (1_000, 0xFFFFFFFF * 8),
    "Peakrate": (1_010, 1_010_000_000_000_000),
    "Minburst": (1_000, 100_000_000),
    "PacketRate": (1, 10_000),
    "PacketBurst": (1, 10_000),
    "MaxConnections": (1, 0xFFFFFFFF),
}
_DEFAULT_BURST = 4 * 2**30
_DEFAULT_PACKET_BURST = 5


def qos_controls(annotations: Mapping[str, str]) -> tuple[QoSControls | None, list[str]]:
    """The limits, None if there are none, and what was wrong with the annotations."""
    wrong: list[str] = []
    found: dict[str, int] = {}  # field -> value
    for way in ("ingress", "egress"):
        limits = {name: _limit(annotations, way, name, wrong) for name in _RANGES}
        _make_sense(limits, way, wrong)
        found |= {f"{way}{name}": value for name, value in limits.items() if value}
    mark = annotations.get(f"{CALICO}dscp")
    dscp = None
    if mark is not None:
        dscp = int(mark) if mark.isascii() and mark.isdecimal() and len(mark) < 3 else mark
        if dscp_value(dscp) is None:
            wrong.append(f"error parsing DSCP annotation: invalid value {mark!r}")
            dscp = None
    if not found and dscp is None:
        return None, wrong
    return QoSControls(**found, dscp=dscp), wrong


def _limit(annotations: Mapping[str, str], way: str, name: str, wrong: list[str]) -> int:
    """One limit, 0 if it is not asked for; Calico's annotation counts over Kubernetes' own."""
    text = annotations.get(f"{CALICO}{way}{name}")
    if text is None and name == "Bandwidth":
        text = annotations.get(f"{_KUBERNETES}{way}-bandwidth")
    if text is None:
        return 0
    value, (least, most) = parse_quantity(text), _RANGES[name]
    if value is None:
        wrong.append(f"error parsing {way} {name} annotation: {text!r} is no quantity")
        return 0
    if not least <= value <= most:
        wrong.append(f"{way} {name} {text!r} is not within {least} and {most}")
    return max(least, min(value, most))


def _make_sense(limits: dict[str, int], way: str, wrong: list[str]) -> None:
    """Take away what needs another limit, then fill in what follows from one."""
    for name, needs in (("Burst", "Bandwidth"), ("PacketBurst", "PacketRate")):
        if limits[name] and not limits[needs]:
            wrong.append(f"{way} {needs} must be specified when {way} {name} is specified")
            limits[name] = 0
    if limits["Peakrate"] and not 0 < limits["Bandwidth"] < limits["Peakrate"]:
        wrong.append(f"{way} Peakrate must be greater than {way} Bandwidth when specified")
        limits["Peakrate"] = 0
    if limits["Minburst"] and not limits["Peakrate"]:
        wrong.append(f"{way} Peakrate must be specified when {way} Minburst is specified")
        limits["Minburst"] = 0
    if limits["Bandwidth"]:
        limits["Burst"] = limits["Burst"] or _DEFAULT_BURST
    if limits["PacketRate"]:
        limits["PacketBurst"] = limits["PacketBurst"] or _DEFAULT_PACKET_BURST
