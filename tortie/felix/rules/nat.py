"""Address translation: masquerading for pools, floating IPs, tunnel traffic of the host itself."""

from collections.abc import Iterable, Iterator
from typing import Literal

from tortie.felix.calc.model import FloatingIP, version_of
from tortie.felix.rules import ir, names
from tortie.felix.rules.ir import Chain, InSet, Interface, Jump, LocalAddress, Net, Protocol, Rule
from tortie.felix.rules.settings import Settings

_UDP = 17
_LOWEST_PORT = 1024  # below it ports are not for translation


def static_chains(version: int, settings: Settings) -> list[Chain]:
    """The chains of the nat table that lead to the others."""
    dnat = (Rule(action=Jump(names.FLOATING_DNAT)),)
    postrouting = (
        Rule(action=Jump(names.FLOATING_SNAT)),
        Rule(action=Jump(names.NAT_OUTGOING)),
        *_tunnel_rules(version, settings),
    )
    return [
        Chain(names.PREROUTING, dnat),
        Chain(names.OUTPUT, dnat),
        Chain(names.POSTROUTING, postrouting),
    ]


def _tunnel_rules(version: int, settings: Settings) -> Iterator[Rule]:
    """The host's packets into a tunnel must carry the tunnel's address, or answers go around it."""
    ports = _ports_beside(settings.vxlan_port) if version in settings.vxlan else ""
    for family, device in settings.tunnel_devices:
        if family != version:
            continue
        matches = (
            Interface("out", device),
            LocalAddress("src", negate=True, of_interface=True),
            LocalAddress("src"),
        )
        if ports:  # never take VXLAN's own port for a translated flow
            yield Rule((Protocol(_UDP), *matches), ir.Masquerade(ports))
        yield Rule(matches, ir.Masquerade())


def _ports_beside(port: int) -> str:
    """The wider range of ports below or above `port`."""
    if port - _LOWEST_PORT >= 65535 - port:
        return f"{_LOWEST_PORT}-{port - 1}"
    return f"{port + 1}-65535"


def outgoing_chain(version: int, active: bool, settings: Settings) -> Chain:
    """Masquerade what leaves the pools that ask for it; `active`: whether any pool of `version` does."""
    if not active:
        return Chain(names.NAT_OUTGOING)
    default = _translate(version, "", settings)
    rules = []
    if settings.nat_ports:
        ranged = _translate(version, settings.nat_ports, settings)
        for protocol in ("tcp", "udp"):
            matches = _leaving(settings, protocol)
            rules += [Rule(matches, ranged), Rule(matches, ir.RETURN)]
    rules.append(Rule(_leaving(settings), default))
    return Chain(names.NAT_OUTGOING, tuple(rules))


def _translate(version: int, ports: str, settings: Settings) -> ir.Snat | ir.Masquerade:
    if settings.nat_address and version_of(settings.nat_address) == version:
        return ir.Snat(settings.nat_address, ports)
    return ir.Masquerade(ports)


def _leaving(settings: Settings, protocol: str = "") -> tuple[ir.Match, ...]:
    matches: list[ir.Match] = [
        InSet("src", names.MASQUERADED_POOLS),
        InSet("dst", names.ALL_POOLS, negate=True),
    ]
    if settings.nat_spares_hosts:
        matches.append(InSet("dst", names.ALL_HOSTS, negate=True))
    if protocol:
        matches.append(Protocol(protocol))
    if name := settings.nat_interface.removesuffix("+"):  # iptables' word for "begins so"; alone: any
        matches.append(Interface("out", name, prefix=name != settings.nat_interface))
    return tuple(matches)


def floating_chains(floating: Iterable[FloatingIP], version: int) -> list[Chain]:
    """`cali-fip-dnat` and `cali-fip-snat`; of several mappings the alphabetically first wins."""
    mine = sorted({(one.external, one.internal) for one in floating if version_of(one.external) == version})
    inward: dict[str, str] = {}
    outward: dict[str, str] = {}
    for external, internal in mine:
        inward.setdefault(external, internal)
        outward.setdefault(internal, external)
    dnat = [Rule((_one("dst", external),), ir.Dnat(internal)) for external, internal in inward.items()]
    snat = [
        Rule((_one("dst", internal), _one("src", internal)), ir.Snat(outward[internal]))
        for internal in sorted(outward)
    ]
    return [Chain(names.FLOATING_DNAT, tuple(dnat)), Chain(names.FLOATING_SNAT, tuple(snat))]


def _one(side: Literal["src", "dst"], address: str) -> Net:
    return Net(side, f"{address}/{32 if version_of(address) == 4 else 128}")
