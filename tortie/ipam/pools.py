"""Which pools an address may come from: pure choices over pools, node labels and namespace labels.

(Reference: Calico IPAM, 1.9, 2.2 and section 3.) Pools keep the order of the datastore, by name, except
that requested pools are used in the order of the request.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network

from msgspec import UnsetType

from tortie.core.errors import FieldError, ValidationError
from tortie.datastore import validate
from tortie.datastore.selector import Selector, parse
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.validate.ippool import BLOCK_SIZES, DEFAULT_BLOCK_SIZE
from tortie.ipam import addresses
from tortie.ipam.errors import IPAMError

WORKLOAD, TUNNEL, LOAD_BALANCER = "Workload", "Tunnel", "LoadBalancer"
_DEFAULT_USES = (WORKLOAD, TUNNEL)


@dataclass(frozen=True, slots=True)
class Pool:
    """What allocation needs to know of an IPPool, defaults filled in and the CIDR parsed."""

    name: str
    net: addresses.Network
    block_size: int  # prefix length
    enabled: bool  # not disabled, not being deleted, not refused by the pool controller
    node_selector: str = "all()"
    namespace_selector: str = ""
    uses: tuple[str, ...] = _DEFAULT_USES
    automatic: bool = True  # false: only on request
    fault: str = ""  # why it must not be used: what its resource says that no writer may

    @property
    def cidr(self) -> str:
        return str(self.net)

    @property
    def version(self) -> int:
        return self.net.version

    @property
    def selects_all_nodes(self) -> bool:
        return self.node_selector in ("", "all()")

    def selects_node(self, labels: Mapping[str, str]) -> bool:
        """Of a pool without fault, whose selectors are valid."""
        return self.selects_all_nodes or _selector(self.node_selector).evaluate(labels)

    def selects_namespace(self, labels: Mapping[str, str]) -> bool:
        """Of a pool without fault, whose selectors are valid."""
        return not self.namespace_selector or _selector(self.namespace_selector).evaluate(labels)


@lru_cache(maxsize=1024)  # a cluster has a handful of selectors, and each assignment asks all of them
def _selector(text: str) -> Selector:
    return parse(text)


def pool_of(resource: IPPool) -> Pool:
    """Raises ValidationError if the stored pool has no usable CIDR or block size.

    With any other fault it is as good as disabled: BGP ignores it, so its pods would reach nobody.
    """
    spec, fault = resource.spec, ""
    try:
        net = ip_network(spec.cidr)
    except ValueError as err:
        raise _invalid(resource, "CIDR", spec.cidr, str(err)) from None
    block_size = spec.blockSize or DEFAULT_BLOCK_SIZE[net.version]
    smallest, largest = BLOCK_SIZES[net.version]
    if not smallest <= block_size <= largest:
        raise _invalid(resource, "BlockSize", block_size, "not a block size of this IP version")
    try:
        validate.check(resource)
    except ValidationError as err:
        fault = str(err)
    return Pool(
        name=resource.name,
        net=net,
        block_size=block_size,
        # A pool smaller than a block has none.
        enabled=not fault and _is_enabled(resource) and net.prefixlen <= block_size,
        node_selector=spec.nodeSelector,
        namespace_selector=spec.namespaceSelector,
        uses=spec.allowedUses or _DEFAULT_USES,
        automatic=spec.assignmentMode in (None, "", "Automatic"),
        fault=fault,
    )


def _invalid(resource: IPPool, field: str, value: object, reason: str) -> ValidationError:
    return ValidationError([FieldError(f"IPPool({resource.name}).Spec.{field}", value, reason)])


def _is_enabled(resource: IPPool) -> bool:
    conditions = () if isinstance(resource.status, UnsetType) else resource.status.conditions
    refused = any(c.type == "Allocatable" and c.status == "False" for c in conditions)
    return not (resource.spec.disabled or resource.metadata.deletionTimestamp or refused)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request says about pools; `requested` are CIDRs."""

    version: int
    use: str
    host: str
    requested: tuple[str, ...] = ()
    namespace_labels: Mapping[str, str] | None = None  # None: no namespace known, same as no labels


def choose(pools: Iterable[Pool], wish: Wish, node_labels: Mapping[str, str]) -> tuple[Pool, ...]:
    """The pools an automatic assignment may use. Raises IPAMError.

    Requested pools need not select the node or the namespace, nor be automatic; they must allow the use.
    A faulty pool keeps nobody from the others; without any other the error names its fault.
    """
    pools = tuple(pools)
    fault = next((f"; {p.fault}" for p in pools if p.fault and p.version == wish.version), "")
    fit = enabled(pools, wish.version)
    if not fit:
        raise IPAMError(f"cannot find a qualified ippool{fault}")
    if wish.requested:
        chosen = _requested(fit, wish.requested)
    else:
        namespace = wish.namespace_labels or {}
        chosen = [
            p for p in fit if p.automatic and p.selects_node(node_labels) and p.selects_namespace(namespace)
        ]
    if not chosen:
        raise IPAMError(f"no configured Calico pools for node {wish.host}{fault}")
    allowed = tuple(p for p in chosen if wish.use in p.uses)
    if not allowed:
        raise IPAMError(f"cannot find a qualified ippool, no pools match the required use ({wish.use})")
    return allowed


def _requested(pools: Iterable[Pool], requested: Iterable[str]) -> list[Pool]:
    by_cidr = {pool.cidr: pool for pool in pools}
    for cidr in requested:
        if cidr not in by_cidr:
            raise IPAMError(f"the given pool ({cidr}) does not exist, or is not enabled")
    return [by_cidr[cidr] for cidr in requested]


def enabled(pools: Iterable[Pool], version: int) -> list[Pool]:
    return [pool for pool in pools if pool.enabled and pool.version == version]


def containing(pools: Iterable[Pool], where: addresses.Address | addresses.Network) -> Pool | None:
    """The first pool that holds an address or a whole CIDR; pools do not overlap."""
    net = where if isinstance(where, addresses.Network) else ip_network(where)
    return next((pool for pool in pools if addresses.contains(pool.net, net)), None)


def block_of(pools: Iterable[Pool], address: addresses.Address) -> str | None:
    """The CIDR of the block that an address is in, unless its pool has changed the size of blocks since."""
    pool = containing(pools, address)
    return None if pool is None else addresses.block_around(address, pool.block_size)


def resolve(names: Sequence[str], pools: Iterable[Pool], version: int) -> tuple[str, ...]:
    """Pool names or CIDRs, as network configurations and annotations give them, as CIDRs.

    That a CIDR is a pool is checked by choose(). Raises IPAMError.
    """
    cidrs = {pool.name: pool.net for pool in pools}
    return tuple(_resolved(name, cidrs, version) for name in names)


def _resolved(name: str, by_name: Mapping[str, addresses.Network], version: int) -> str:
    if "/" in name:
        try:
            net = ip_network(name, strict=False)
        except ValueError:
            raise IPAMError(f'error parsing pool "{name}": invalid CIDR address: {name}') from None
    elif name in by_name:
        net = by_name[name]
    else:
        raise IPAMError(f'error parsing pool "{name}": invalid CIDR address: {name}')
    if net.version != version:
        raise IPAMError(f'"{net.network_address}" isn\'t a IPv{version} address')
    return str(net)
