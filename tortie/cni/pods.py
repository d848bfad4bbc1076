"""What Kubernetes says about a pod, and what its annotations ask of the plugin.

Where it is said is behind PodSource: the network configuration's `args` here; the Kubernetes API is
another implementation. What an annotation means is decided here and is pure.
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
from typing import Protocol

import msgspec

from tortie.cni.identity import Identity
from tortie.cni.netconf import NetConf, PodPort
from tortie.core.errors import ConfigError
from tortie.datastore.types.endpoint import IPNAT, WorkloadEndpointPort

_PREFIX = "cni.projectcalico.org/"
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_LABEL_MAX = 63  # a longer service account name fits no label


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


class ArgsSource:
    """PodSource that believes the runtime."""

    async def pod(self, conf: NetConf, identity: Identity) -> Pod:
        given = conf.args.projectcalico
        if given is None:
            raise ConfigError(
                "policy.type",
                conf.policy.type,
                f"labels and annotations of pod {identity} are not known: there is no Kubernetes API "
                'with an etcd datastore, and the runtime passes no args."org.projectcalico"',
            )
        return Pod(
            labels=given.pod.labels,
            annotations=given.pod.annotations,
            namespace_labels=given.namespace.labels,
            namespace_annotations=given.namespace.annotations,
            service_account=given.pod.serviceAccountName,
            generate_name=given.pod.generateName,
            ports=endpoint_ports(given.pod.ports),
        )


def endpoint_ports(ports: tuple[PodPort, ...]) -> tuple[WorkloadEndpointPort, ...]:
    """The container ports that policy or a host port can refer to; unknown protocols have none."""
    return tuple(
        WorkloadEndpointPort(
            name=port.name,
            protocol=port.protocol or "TCP",
            port=port.containerPort,
            hostPort=port.hostPort,
            hostIP=port.hostIP,
        )
        for port in ports
        if port.containerPort and (port.hostPort or port.name) and (port.protocol or "TCP") in _PROTOCOLS
    )


def endpoint_labels(pod: Pod, namespace: str) -> dict[str, str]:
    """The pod's labels and the ones that policies of Kubernetes' own terms select by."""
    labels = dict(pod.labels)
    labels["projectcalico.org/namespace"] = namespace
    labels["projectcalico.org/orchestrator"] = "k8s"
    if pod.service_account and len(pod.service_account) < _LABEL_MAX:
        labels["projectcalico.org/serviceaccount"] = pod.service_account
    return labels


def endpoint_profiles(pod: Pod, namespace: str) -> tuple[str, ...]:
    """The profiles that stand for the pod's namespace and service account."""
    if pod.service_account:
        return (f"kns.{namespace}", f"ksa.{namespace}.{pod.service_account}")
    return (f"kns.{namespace}",)


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


NO_POD, NO_WISHES = Pod(), Wishes()  # of a container that Kubernetes does not know


def wishes(pod: Pod, conf: NetConf) -> Wishes:
    """Raises ConfigError naming the annotation if one cannot be read or is not allowed."""
    pooled = not conf.delegates_ipam
    v4, v6 = pod.inherited("ipv4pools"), pod.inherited("ipv6pools")
    families = pod.inherited("ipFamilies")
    addresses, without = pod.annotation("ipAddrs"), pod.annotation("ipAddrsNoIpam")
    _check_allowed(conf, addresses, without, floating := pod.annotation("floatingIPs"))
    return Wishes(
        ipv4_pools=_texts("ipv4pools", v4) if v4 and pooled else None,
        ipv6_pools=_texts("ipv6pools", v6) if v6 and pooled else None,
        assign=_families(families) if families and pooled else None,
        addresses=_one_per_family("ipAddrs", addresses) if addresses else (),
        addresses_without_ipam=_one_per_family("ipAddrsNoIpam", without) if without else (),
        floating=_addresses("floatingIPs", floating) if floating else (),
        mac=_mac(mac) if (mac := pod.annotation("hwAddr")) else "",
        spoofable=_networks("allowedSourcePrefixes", pod.annotation("allowedSourcePrefixes")),
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


def floating_nats(floating: tuple[str, ...], addresses: tuple[str, ...]) -> tuple[IPNAT, ...]:
    """Each external address with the pod's own of the same family; without one it has no target."""
    own = {(":" in address): address for address in reversed(addresses)}
    return tuple(
        IPNAT(internalIP=own[":" in external], externalIP=external)
        for external in floating
        if (":" in external) in own
    )


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
