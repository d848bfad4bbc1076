"""What Kubernetes says about a pod, and what its annotations ask of the plugin.

Where it is said is behind PodSource: the network configuration's `args`, else the Kubernetes API
(podsource.py). What an annotation means is decided here and is pure.
(Reference: CNI plugin, section 3 and 4.7; libcalico-go's default workload endpoint converter.)

A runtime without a Kubernetes API passes

    "args": {"org.projectcalico": {
        "pod": {"labels": {…}, "annotations": {…}, "serviceAccountName": "…", "generateName": "…",
                "ports": [{"name": "…", "containerPort": 80, "protocol": "TCP", "hostPort": 0}]},
        "namespace": {"labels": {…}, "annotations": {…}}}}
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from tortie.cni.identity import Identity
from tortie.cni.netconf import KubernetesArgs, NetConf
from tortie.core.errors import ConfigError
from tortie.datastore import podendpoint
from tortie.datastore.podqos import CALICO, qos_controls
from tortie.datastore.types.endpoint import QoSControls, WorkloadEndpointPort

if TYPE_CHECKING:
    from tortie.cni.kubevirt import Launched

_PREFIX = "cni.projectcalico.org/"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod and its namespace as the datastore is to know them."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    namespace_annotations: Mapping[str, str] = field(default_factory=dict)
    service_account: str = ""
    generate_name: str = ""
    ports: tuple[WorkloadEndpointPort, ...] = ()

    def annotation(self, name: str) -> str:
        """The pod's own annotation of ours; '' if there is none."""
        return self.annotations.get(_PREFIX + name, "")

    def inherited(self, name: str) -> str:
        """The pod's annotation, else its namespace's."""
        return self.annotation(name) or self.namespace_annotations.get(_PREFIX + name, "")


class PodSource(Protocol):
    async def pod(self, conf: NetConf, identity: Identity) -> Pod:
        """What is known of the pod. Raises ConfigError if the source is not configured, DatastoreError."""

    async def launched(self, conf: NetConf, identity: Identity) -> "Launched | None":
        """The KubeVirt VM that the pod runs; None if none, if the pod is gone, or if nobody says.

        Asks nothing about pods that are not named as a VM's. Raises DatastoreError.
        """

    async def pod_cidrs(self, conf: NetConf, node: str) -> tuple[str, ...]:
        """The node's share of the cluster's pod addresses; () if nobody says. Raises DatastoreError."""


def told_by_runtime(given: KubernetesArgs) -> Pod:
    """What the network configuration's `args` say."""
    return Pod(
        labels=given.pod.labels,
        annotations=given.pod.annotations,
        namespace_labels=given.namespace.labels,
        namespace_annotations=given.namespace.annotations,
        service_account=given.pod.serviceAccountName,
        generate_name=given.pod.generateName,
        ports=podendpoint.ports(given.pod.ports),
    )


# --- what annotations ask for -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wishes:
    """The annotations that change how a pod is attached, parsed; None is "not asked for"."""

    ipv4_pools: tuple[str, ...] | None = None
    ipv6_pools: tuple[str, ...] | None = None
    assign: tuple[bool, bool] | None = None  # IPv4, IPv6
    addresses: tuple[str, ...] = ()  # to be requested from IPAM
    addresses_without_ipam: tuple[str, ...] = ()
    floating: tuple[str, ...] = ()
    mac: str = ""
    spoofable: tuple[str, ...] = ()  # CIDRs that the pod may send from
    qos: QoSControls | None = None
    unfit: tuple[str, ...] = ()  # why limits that were asked for are others or none


NO_POD, NO_WISHES = Pod(), Wishes()  # of a container that Kubernetes does not know


def wishes(pod: Pod, conf: NetConf) -> Wishes:
    """Raises ConfigError naming the annotation if one cannot be read or is not allowed."""
    pooled = not conf.delegates_ipam
    v4, v6 = pod.inherited("ipv4pools"), pod.inherited("ipv6pools")
    families = pod.inherited("ipFamilies")
    addresses, without = pod.annotation("ipAddrs"), pod.annotation("ipAddrsNoIpam")
    _check_allowed(conf, addresses, without, floating := pod.annotation("floatingIPs"))
    qos, unfit = qos_controls(_limits(pod.annotations))
    return Wishes(
        ipv4_pools=_texts("ipv4pools", v4) if v4 and pooled else None,
        ipv6_pools=_texts("ipv6pools", v6) if v6 and pooled else None,
        assign=_families(families) if families and pooled else None,
        addresses=_one_per_family("ipAddrs", addresses) if addresses else (),
        addresses_without_ipam=_one_per_family("ipAddrsNoIpam", without) if without else (),
        floating=_addresses("floatingIPs", floating) if floating else (),
        mac=_mac(mac) if (mac := pod.annotation("hwAddr")) else "",
        spoofable=_networks("allowedSourcePrefixes", pod.annotation("allowedSourcePrefixes")),
        qos=qos,
        unfit=tuple(unfit),
    )


def _check_allowed(conf: NetConf, addresses: str, without_ipam: str, floating: str) -> None:
    if addresses and without_ipam:
        raise _refused(
            "ipAddrs",
            addresses,
            "can't have both annotations: 'ipAddrs' and 'ipAddrsNoIpam' in use at the same time",
        )
    for name, value in (("ipAddrs", addresses), ("ipAddrsNoIpam", without_ipam)):
        if value and conf.delegates_ipam:
            raise _refused(name, value, f"{name} is not compatible with configured IPAM: {conf.ipam.type}")
    if without_ipam and not conf.feature_control.ip_addrs_no_ipam:
        raise _refused("ipAddrsNoIpam", without_ipam, "requested feature is not enabled: ip_addrs_no_ipam")
    if floating and not conf.feature_control.floating_ips:
        raise _refused("floatingIPs", floating, "requested feature is not enabled: floating_ips")


def _limits(annotations: Mapping[str, str]) -> dict[str, str]:
    """Kubernetes' own annotations are the plugin `bandwidth`'s, which fails where a limit stands already."""
    return {name: value for name, value in annotations.items() if name.startswith(CALICO)}


def _texts(name: str, value: str) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(value, type=tuple[str, ...])
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as err:
        raise _refused(name, value, f"failed to parse '{value[:200]}' as JSON: {err}") from err


def _families(value: str) -> tuple[bool, bool]:
    given = _texts("ipFamilies", value)
    if not set(given) <= {"IPv4", "IPv6"}:
        raise _refused("ipFamilies", value, f"error parsing ipFamilies: {value[:200]}")
    return "IPv4" in given, "IPv6" in given


def _addresses(name: str, value: str) -> tuple[str, ...]:
    found = []
    for text in _texts(name, value):
        try:
            if "%" in text:
                raise ValueError("has a zone")
            found.append(str(ipaddress.ip_address(text)))
        except ValueError:
            raise _refused(name, value, f"invalid IP format: {text[:60]}") from None
    return tuple(found)


def _one_per_family(name: str, value: str) -> tuple[str, ...]:
    found = _addresses(name, value)
    if not found:
        raise _refused(name, value, f'annotation "{_PREFIX}{name}" specified but empty')
    for version, colon in (("IPv4", False), ("IPv6", True)):
        if sum((":" in address) == colon for address in found) > 1:
            raise _refused(
                name, value, f'cannot have more than one {version} address for "{_PREFIX}{name}" annotation'
            )
    return found


def _networks(name: str, value: str) -> tuple[str, ...]:
    found = []
    for text in _texts(name, value) if value else ():
        try:
            if "/" not in text:
                raise ValueError
            found.append(str(ipaddress.ip_network(text, strict=False)))
        except ValueError:
            raise _refused(name, value, f"failed to parse '{text[:60]}' as a CIDR") from None
    return tuple(found)


_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}|[0-9a-f]{2}(-[0-9a-f]{2}){5}|[0-9a-f]{4}(\.[0-9a-f]{4}){2}")


def _mac(value: str) -> str:
    """Any of the three notations, as colon-separated pairs; a group address cannot be an interface's."""
    digits = re.sub(r"[:.-]", "", value.lower())
    if not _MAC.fullmatch(value.lower()) or int(digits[:2], 16) & 1 or not int(digits, 16):
        reason = f"failed to parse MAC address {value[:60]} provided via {_PREFIX}hwAddr"
        raise _refused("hwAddr", value, f"{reason}: not the address of one interface")
    return bytes.fromhex(digits).hex(":")


def _refused(name: str, value: str, reason: str) -> ConfigError:
    return ConfigError(f"annotation {_PREFIX}{name}", value[:200], reason)
