"""The IP pools that a first start creates, from CALICO_IPV4POOL_* and CALICO_IPV6POOL_*. Pure.

(Reference: host networking facts, 8.4; node/pkg/lifecycle/startup.)
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from tortie.core.errors import ConfigError, TortieError
from tortie.datastore import selector
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.validate.ippool import BLOCK_SIZES, DEFAULT_BLOCK_SIZE

_MODES = {  # environment spelling in lower case -> mode
    "": "Never", "off": "Never", "never": "Never", "always": "Always",
    "crosssubnet": "CrossSubnet", "cross-subnet": "CrossSubnet",
}  # fmt: skip
_PREFERRED = ipaddress.IPv4Network("192.168.0.0/16")
_ALTERNATIVES = [ipaddress.IPv4Network(f"172.{second}.0.0/16") for second in range(16, 32)]


def default_pools(
    env: Mapping[str, str],
    existing: Iterable[str],
    host_addresses: Iterable[str],
    *,
    ipv6_usable: bool,
    random_bytes: bytes,
    kubeadm: Sequence[str] = (),
) -> list[IPPool]:
    """Pools to create; none of a family that has one already.

    `existing` are CIDRs of stored pools, `host_addresses` addresses of this host (an IPv4 default must
    not contain one), `random_bytes` five bytes for an IPv6 ULA prefix (RFC 4193), `kubeadm` the
    cluster's podSubnet list. Raises ConfigError naming the variable.
    """
    given = {version: env.get(f"CALICO_IPV{version}POOL_CIDR", "") for version in (4, 6)}
    if env.get("NO_DEFAULT_POOLS", "").lower() == "true":
        for version, cidr in given.items():
            if cidr:
                name = f"CALICO_IPV{version}POOL_CIDR"
                raise ConfigError(name, cidr, "Invalid configuration with NO_DEFAULT_POOLS defined")
        return []
    present = {ipaddress.ip_network(cidr, strict=False).version for cidr in existing}
    pools = []
    for version in (4, 6):
        if given[version] == "none":
            continue
        cidr = (
            given[version] or _first_of(version, kubeadm) or _fallback(version, host_addresses, random_bytes)
        )
        pool = _pool(env, version, cidr)  # checked even if not needed: a typo should show at once
        if version not in present and (version == 4 or ipv6_usable):
            pools.append(pool)
    return pools


def _pool(env: Mapping[str, str], version: int, cidr: str) -> IPPool:
    prefix = f"CALICO_IPV{version}POOL_"
    try:
        network = ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        network = None
    if network is None or network.version != version:
        raise ConfigError(f"{prefix}CIDR", cidr, f"Invalid CIDR specified in {prefix}CIDR '{cidr}'")
    ipip = _mode(f"{prefix}IPIP", env.get(f"{prefix}IPIP", "")) if version == 4 else "Never"
    vxlan = _mode(f"{prefix}VXLAN", env.get(f"{prefix}VXLAN", ""))
    if ipip != "Never" and vxlan != "Never":
        raise ConfigError(f"{prefix}VXLAN", vxlan, f"cannot be enabled together with {prefix}IPIP")
    spec = IPPoolSpec(
        cidr=str(network),
        ipipMode=ipip,
        vxlanMode=vxlan,
        natOutgoing=_boolean(env, f"{prefix}NAT_OUTGOING", version == 4),
        disableBGPExport=_boolean(env, f"{prefix}DISABLE_BGP_EXPORT", False),
        blockSize=_block_size(env, version),
        nodeSelector=_selector(f"{prefix}NODE_SELECTOR", env.get(f"{prefix}NODE_SELECTOR", "")),
    )
    return IPPool(metadata=ObjectMeta(name=f"default-ipv{version}-ippool"), spec=spec)


def _first_of(version: int, subnets: Sequence[str]) -> str:
    return next((s for s in subnets if ipaddress.ip_network(s, strict=False).version == version), "")


def _fallback(version: int, host_addresses: Iterable[str], random_bytes: bytes) -> str:
    if version == 6:
        return str(ipaddress.IPv6Network((b"\xfd" + random_bytes[:5] + bytes(10), 48)))
    hosts = [ipaddress.ip_interface(a).ip for a in host_addresses]
    for network in [_PREFERRED, *_ALTERNATIVES]:
        if not any(host in network for host in hosts):
            return str(network)
    return str(_PREFERRED)


def _mode(variable: str, value: str) -> str:
    if (mode := _MODES.get(value.lower())) is None:
        raise ConfigError(variable, value, "must be Always, CrossSubnet or Never")
    return mode


def _block_size(env: Mapping[str, str], version: int) -> int:
    (smallest, largest), default = BLOCK_SIZES[version], DEFAULT_BLOCK_SIZE[version]
    variable = f"CALICO_IPV{version}POOL_BLOCK_SIZE"
    text = env.get(variable, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal()) or not smallest <= int(text) <= largest:
        raise ConfigError(variable, text, f"Invalid blocksize: must be {smallest}-{largest}")
    return int(text)


def _selector(variable: str, text: str) -> str:
    try:
        selector.parse(text)
    except TortieError as err:
        raise ConfigError(variable, text, f"Invalid node selector: {err}") from err
    return text or "all()"


def _boolean(env: Mapping[str, str], variable: str, default: bool) -> bool:
    if variable not in env:
        return default
    return env[variable].lower() not in ("false", "0", "no", "n", "f")
