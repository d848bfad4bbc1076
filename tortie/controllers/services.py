"""Which addresses a Service of type LoadBalancer is to have, beside those it has. Pure.

A service asks by annotations: particular addresses, or pools. Who asks for nothing gets one address of
each of its IP families from pools that serve by themselves. What it holds and is not to have, is given
back before anything is assigned.
(Reference: Calico command line and Kubernetes, 5.1; kube-controllers/pkg/controllers/loadbalancer.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import structs

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore.types.service import Ingress, Service
from tortie.ipam import addresses, pools
from tortie.ipam.errors import IPAMError
from tortie.ipam.pools import LOAD_BALANCER, Pool

POOLS4, POOLS6 = "projectcalico.org/ipv4pools", "projectcalico.org/ipv6pools"
ADDRESSES = "projectcalico.org/loadBalancerIPs"
_CLASS = "calico"  # the loadBalancerClass that is ours
_VERSIONS = {"IPv4": 4, "IPv6": 6}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a service asks for; None: nothing is said. Pools are CIDRs in order of preference."""

    addresses: tuple[str, ...] | None = None
    pools4: tuple[str, ...] | None = None
    pools6: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """In this order: give back, take these, take any."""

    release: tuple[str, ...] = ()
    take: tuple[str, ...] = ()
    any4: bool = False
    any6: bool = False
    pools4: tuple[str, ...] = ()
    pools6: tuple[str, ...] = ()


def is_ours(service: Service, assign: str) -> bool:
    """`assign` is AllServices or RequestedServicesOnly; a class of somebody else's always wins."""
    spec = service.spec
    if spec.type != "LoadBalancer" or spec.loadBalancerClass not in ("", _CLASS):
        return False
    asked = any(service.metadata.annotations.get(name) for name in (POOLS4, POOLS6, ADDRESSES))
    return assign == "AllServices" or bool(spec.loadBalancerClass or spec.loadBalancerIP or asked)


def wish_of(service: Service, known: Sequence[Pool]) -> Wish:
    """Raises ValidationError naming the annotation that is wrong."""
    annotations = service.metadata.annotations
    found = _addresses(ADDRESSES, _strings(annotations, ADDRESSES))
    if found is None and service.spec.loadBalancerIP:
        found = _addresses("spec.loadBalancerIP", [service.spec.loadBalancerIP])
    return Wish(found, _pools(annotations, POOLS4, known, 4), _pools(annotations, POOLS6, known, 6))


def plan(service: Service, held: Sequence[str], known: Sequence[Pool]) -> Plan:
    """For a service that is ours. `known` are pools that load balancers may use; without any, all is given
    back. Raises ValidationError; nothing is to be done then."""
    if not known:
        return Plan(release=tuple(held))
    wish = wish_of(service, known)
    if wish.addresses is not None:
        return Plan(
            release=tuple(one for one in held if one not in wish.addresses),
            take=tuple(one for one in wish.addresses if one not in held),
        )
    versions = [_VERSIONS[family] for family in service.spec.families if family in _VERSIONS]
    kept = [one for one in held if _version(one) in versions and _may_keep(one, wish, known)]
    missing = set(versions) - {_version(one) for one in kept}
    return Plan(
        release=tuple(one for one in held if one not in kept),
        any4=4 in missing,
        any6=6 in missing,
        pools4=wish.pools4 or (),
        pools6=wish.pools6 or (),
    )


def _may_keep(address: str, wish: Wish, known: Sequence[Pool]) -> bool:
    """Whether it is from where the service wants it to be; of a pool that is going, it stays to its end.

    Pools of one version say nothing of the other: Calico would give that one back, and assign it anew.
    """
    where = addresses.address(address)
    named = wish.pools4 if where.version == 4 else wish.pools6
    if named is not None:
        return any(where in addresses.network(cidr) for cidr in named)
    pool = pools.containing(known, where)
    return pool is None or pool.automatic


def usable(known: Sequence[Pool]) -> list[Pool]:
    """Those that may serve load balancers."""
    return [pool for pool in known if LOAD_BALANCER in pool.uses and not pool.fault]


# --- what is told of it -------------------------------------------------------------------------


def ingress_of(held: Sequence[str]) -> tuple[Ingress, ...]:
    """All that the status of a service of ours is to say, IPv4 first."""
    order = sorted(set(held), key=lambda text: (_version(text), int(addresses.address(text))))
    return tuple(Ingress(ip=one) for one in order)


def without(service: Service, given_back: Sequence[str]) -> tuple[Ingress, ...]:
    """The status of a service that is ours no more: what somebody else has given it."""
    return tuple(one for one in service.status.loadBalancer.ingress if one.ip not in given_back)


def says(service: Service, ingress: Sequence[Ingress]) -> bool:
    """Whether the status is so already: kube-proxy's own fields of an address are not ours to compare."""
    now = [structs.replace(one, ipMode="", ports=()) for one in service.status.loadBalancer.ingress]
    wanted = [structs.replace(one, ipMode="", ports=()) for one in ingress]
    return sorted(now, key=_text) == sorted(wanted, key=_text)


def _text(one: Ingress) -> tuple[str, str]:
    return one.ip, one.hostname


# --- reading annotations ------------------------------------------------------------------------


def _strings(annotations: Mapping[str, str], name: str) -> list[str] | None:
    text = annotations.get(name)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=list[str])
    except (msgspec.DecodeError, UnicodeError) as err:
        raise _wrong(name, text, f"must be a list of strings in JSON: {err}") from err


def _addresses(where: str, given: list[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    found = []
    for text in given:
        try:
            found.append(addresses.address(text))
        except ValueError:
            raise _wrong(where, text, f"could not parse {text} as a valid IP address") from None
    four, six = (sum(one.version == version for one in found) for version in (4, 6))
    if four > 1 or six > 1:
        reason = "at max only one ipv4 and one ipv6 address can be specified. "
        reason += f"Received {four} ipv4 and {six} ipv6 addresses"
        raise _wrong(where, ",".join(given), reason)
    return tuple(map(str, found))


def _pools(
    annotations: Mapping[str, str], name: str, known: Sequence[Pool], version: int
) -> tuple[str, ...] | None:
    given = _strings(annotations, name)
    if given is None:
        return None
    try:
        found = pools.resolve(given, known, version)
    except IPAMError as err:
        raise _wrong(name, annotations[name], str(err)) from err
    if not found:
        reason = f"failed to resolve pools for IPv{version} addresses from annotation"
        raise _wrong(name, annotations[name], reason)
    return found


def _wrong(name: str, value: str, reason: str) -> ValidationError:
    where = name if name.startswith("spec.") else f"metadata.annotations[{name}]"
    return ValidationError([FieldError(f"Service.{where}", value, reason)])


def _version(text: str) -> int:
    return addresses.address(text).version
