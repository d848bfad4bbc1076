"""The WorkloadEndpoint that an ADD writes: what felix, BGP and calicoctl know of a workload. Pure.

(Reference: CNI plugin, 4.4 and 4.7.) A re-created pod keeps its endpoint object; what this plugin
does not set (unknown fields, annotations) survives.
"""

from dataclasses import dataclass

from msgspec import structs

from tortie.cni.identity import K8S, Identity, container_labels
from tortie.cni.netconf import NetConf
from tortie.cni.pods import Pod, Wishes
from tortie.datastore import podendpoint
from tortie.datastore.names import build_endpoint_name
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.policy import EntityRule, Profile, ProfileSpec, Rule


@dataclass(frozen=True, slots=True)
class Attached:
    """What has been made for a workload: bare addresses, and the two ends of its interface."""

    addresses: tuple[str, ...]
    host_interface: str
    mac: str


def single(address: str) -> str:
    """An address as the network of itself."""
    return f"{address}/{128 if ':' in address else 32}"


def build(
    identity: Identity,
    conf: NetConf,
    attached: Attached,
    pod: Pod,
    wishes: Wishes,
) -> WorkloadEndpoint:
    """The endpoint to create where there is none yet. Raises ValidationError for bad names."""
    spec = WorkloadEndpointSpec(
        orchestrator=identity.orchestrator,
        node=identity.node,
        containerID=identity.container_id,
        pod=identity.pod,
        endpoint=identity.ifname,
        ipNetworks=tuple(single(address) for address in attached.addresses),
        interfaceName=attached.host_interface,
        mac=attached.mac,
        profiles=_profiles(identity, conf, pod),
        serviceAccountName=pod.service_account,
        ports=pod.ports,
        ipNATs=podendpoint.floating_nats(wishes.floating, attached.addresses),
        allowSpoofedSourcePrefixes=wishes.spoofable,
        qosControls=wishes.qos,
    )
    meta = ObjectMeta(
        name=build_endpoint_name(identity.ids(identity.ifname)),
        namespace=identity.namespace,
        labels=_labels(identity, conf, pod),
        generateName=pod.generate_name,
    )
    return WorkloadEndpoint(metadata=meta, spec=spec)


def onto(existing: WorkloadEndpoint, made: WorkloadEndpoint) -> WorkloadEndpoint:
    """The existing endpoint brought up to date; it keeps its name, and what this plugin does not set."""
    spec = structs.replace(
        made.spec,
        endpoint=existing.spec.endpoint,
        qosControls=made.spec.qosControls or existing.spec.qosControls,
        ipv4Gateway=existing.spec.ipv4Gateway,
        ipv6Gateway=existing.spec.ipv6Gateway,
    )
    meta = made.metadata
    return structs.replace(existing, spec=spec).with_metadata(
        labels=meta.labels, generateName=meta.generateName
    )


def _profiles(identity: Identity, conf: NetConf, pod: Pod) -> tuple[str, ...]:
    if identity.orchestrator == K8S and conf.pod_policy:
        return podendpoint.profiles(identity.namespace, pod.service_account)
    return (conf.name,)


def _labels(identity: Identity, conf: NetConf, pod: Pod) -> dict[str, str]:
    if identity.orchestrator == K8S:
        return (
            podendpoint.labels(pod.labels, identity.namespace, pod.service_account) if conf.pod_policy else {}
        )
    return container_labels(conf.args.labels)


def joined(existing: WorkloadEndpoint, network: str) -> WorkloadEndpoint:
    """A container's endpoint that also belongs to `network`; the same value if it already does."""
    if network in existing.spec.profiles:
        return existing
    return structs.replace(
        existing, spec=structs.replace(existing.spec, profiles=(*existing.spec.profiles, network))
    )


def network_profile(network: str, orchestrator: str) -> Profile:
    """The profile of a network without policy of its own: everything out, in from the same network.

    Kubernetes without policy allows everything, hence so does its profile.
    """
    inbound = Rule(action="Allow")
    if orchestrator != K8S:
        inbound = Rule(action="Allow", source=EntityRule(selector=f"has({network})"))
    return Profile(
        metadata=ObjectMeta(name=network),
        spec=ProfileSpec(egress=(Rule(action="Allow"),), ingress=(inbound,), labelsToApply={network: ""}),
    )
