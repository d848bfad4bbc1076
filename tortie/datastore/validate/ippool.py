"""IPPool, IPReservation, IPAMConfiguration and the BlockAffinity resource."""

import ipaddress
from typing import Any

from msgspec import structs

from tortie.datastore.types.ippool import IPPool, IPPoolSpec, IPReservation
from tortie.datastore.validate.addresses import Network, canonical_cidr, cidr, net, parse_cidr, real_cidr
from tortie.datastore.validate.fields import (
    Check,
    Problems,
    all_of,
    integer,
    listing,
    matching,
    one_of,
    struct,
)
from tortie.datastore.validate.formats import name, no_global, timestamp

CIDR = "IPPool.Spec.CIDR"  # the name Calico's client gives the field
BLOCK_SIZES = {4: (20, 32), 6: (116, 128)}  # IP version -> smallest and largest prefix length of a block
DEFAULT_BLOCK_SIZE = {4: 26, 6: 122}
LOAD_BALANCER = "LoadBalancer"

_MODE = one_of("Never", "Always", "CrossSubnet")
_USE = one_of("Workload", "Tunnel", LOAD_BALANCER)
_LINK_LOCAL = {  # IP version -> range no pool may touch
    4: ipaddress.ip_network("169.254.0.0/16"),
    6: ipaddress.ip_network("fe80::/10"),
}

# --- IPPool -------------------------------------------------------------------------------------


def pool_defaults(pool: IPPool) -> IPPool:
    """Defaults on write: those on read, and the CIDR in canonical form."""
    parsed = parse_cidr(pool.spec.cidr)
    # Host bits stay for the check to name: masking them away would store what nobody asked for.
    if parsed is not None and parsed[0] == parsed[1].network_address:
        pool = structs.replace(pool, spec=structs.replace(pool.spec, cidr=str(parsed[1])))
    return pool_read_defaults(pool)


def pool_read_defaults(pool: IPPool) -> IPPool:
    """What readers see in a pool that lacks fields, as pools of older Calicos do."""
    spec = pool.spec
    parsed = parse_cidr(spec.cidr)
    size = DEFAULT_BLOCK_SIZE[parsed[0].version] if parsed else 0
    spec = structs.replace(
        spec,
        blockSize=spec.blockSize or size,
        ipipMode=spec.ipipMode or "Never",
        vxlanMode=spec.vxlanMode or "Never",
        nodeSelector=spec.nodeSelector or "all()",
        allowedUses=spec.allowedUses or ("Workload", "Tunnel"),
        assignmentMode=spec.assignmentMode or "Automatic",
    )
    return structs.replace(pool, spec=spec)


def _pool_cidr(problems: Problems, _path: str, spec: IPPoolSpec) -> None:
    """Everything about the CIDR and the block size, which only means something beside it."""
    if not spec.cidr:
        problems.add(CIDR, None, "IPPool CIDR must be specified")
        return
    parsed = parse_cidr(spec.cidr)
    if parsed is None:
        problems.add(CIDR, spec.cidr, "IPPool CIDR must be a valid subnet")
        return
    address, network = parsed
    if address != network.network_address:
        problems.add(CIDR, spec.cidr, "IPPool CIDR is not strictly masked")
    local = _LINK_LOCAL[network.version]
    if network.overlaps(local):
        problems.add(
            CIDR, spec.cidr, f"IPPool CIDR overlaps with IPv{network.version} link local range {local}"
        )
    _block_size(problems, spec, network)
    if network.version == 6 and _enabled(spec.ipipMode):
        problems.add("spec.ipipMode", spec.ipipMode, "IPIP is not supported on IPv6 pools")


def _block_size(problems: Problems, spec: IPPoolSpec, network: Network) -> None:
    size = spec.blockSize or DEFAULT_BLOCK_SIZE[network.version]
    least, most = BLOCK_SIZES[network.version]
    if not least <= size <= most:
        problems.add(
            "spec.blockSize", spec.blockSize,
            "blockSize must be between 20 and 32 for IPv4 pools, and between 116 and 128 for IPv6 pools",
        )  # fmt: skip
    elif network.prefixlen > size and not spec.disabled:
        problems.add(
            CIDR, spec.cidr,
            "IP pool size is too small for use with Calico IPAM. It must be equal to or greater than the "
            "block size.",
        )  # fmt: skip


def _enabled(mode: str) -> bool:
    return mode not in ("", "Never")


def _pool_rules(problems: Problems, path: str, spec: IPPoolSpec) -> None:
    if _enabled(spec.ipipMode) and _enabled(spec.vxlanMode):
        problems.add(f"{path}.ipipMode", spec.ipipMode, "ipipMode and vxlanMode cannot both be enabled")
    if "Tunnel" in spec.allowedUses and spec.namespaceSelector:
        problems.add(
            f"{path}.namespaceSelector", spec.namespaceSelector,
            "IP Pool with AllowedUse Tunnel cannot have namespaceSelector",
        )  # fmt: skip
    if LOAD_BALANCER in spec.allowedUses:
        _load_balancer_rules(problems, path, spec)


def _load_balancer_rules(problems: Problems, path: str, spec: IPPoolSpec) -> None:
    for field in ("ipipMode", "vxlanMode"):
        if _enabled(mode := getattr(spec, field)):
            problems.add(f"{path}.{field}", mode, "LoadBalancer IP pool cannot have IPIP or VXLAN enabled")
    if {"Workload", "Tunnel"} & set(spec.allowedUses):
        problems.add(
            f"{path}.allowedUses", " ".join(spec.allowedUses),
            "LoadBalancer cannot be combined with Workload or Tunnel allowed uses",
        )  # fmt: skip
    if spec.disableBGPExport:
        problems.add(f"{path}.disableBGPExport", True, "LoadBalancer IP pools cannot disable BGP export")
    if spec.nodeSelector not in ("", "all()"):
        problems.add(
            f"{path}.nodeSelector", spec.nodeSelector,
            "IP Pool with AllowedUse LoadBalancer must have nodeSelector set to all()",
        )  # fmt: skip


_condition = struct(
    {
        "type": matching(r"[a-zA-Z0-9./_-]+", most=316),
        "status": one_of("True", "False", "Unknown"),
        "observedGeneration": integer(0),
        "lastTransitionTime": timestamp,
        "reason": matching(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
    }
)
status = struct({"conditions": listing(_condition)})

pool: Check = struct(
    {
        "spec": struct(
            {
                "vxlanMode": _MODE,
                "ipipMode": _MODE,
                "nodeSelector": no_global("global() selector is not valid for IPPool nodeSelector"),
                "namespaceSelector": no_global("global() selector is not valid for IPPool namespaceSelector"),
                "allowedUses": listing(_USE, most=10, unique=True),
                "assignmentMode": one_of("Automatic", "Manual"),
            },
            _pool_cidr,
            _pool_rules,
        ),
        "status": status,
    }
)

# --- the others ---------------------------------------------------------------------------------


def reservation_defaults(reservation: IPReservation) -> IPReservation:
    cidrs = tuple(map(canonical_cidr, reservation.spec.reservedCIDRs))
    return structs.replace(reservation, spec=structs.replace(reservation.spec, reservedCIDRs=cidrs))


reservation: Check = struct({"spec": struct({"reservedCIDRs": listing(cidr, unique=True)})})


ipam: Check = struct(
    {
        "spec": struct(
            {
                "maxBlocksPerHost": integer(0, 1_000_000),
                "kubeVirtVMAddressPersistence": one_of("Enabled", "Disabled"),
                "ipCooldownSeconds": integer(0, 1200),
            }
        )
    }
)


def _not_deleted(problems: Problems, _path: str, value: Any) -> None:
    if value in (True, "true"):
        problems.add("Spec.Deleted", "true", 'spec.Deleted cannot be set to "true"')


affinity: Check = struct(
    {
        "spec": struct(
            {
                "state": one_of("confirmed", "pending", "pendingDeletion"),
                "node": name,
                "type": one_of("host", "virtual"),
                "cidr": all_of(real_cidr, net),
                "deleted": _not_deleted,
            },
            required=("cidr", "node"),
        )
    }
)
