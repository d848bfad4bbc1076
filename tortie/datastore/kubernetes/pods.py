"""Pods as workload endpoints, and an endpoint's addresses as annotations of its pod. Pure.

A pod has one endpoint, from the moment it is given a node. Its addresses are known before kubelet
reports them, because CNI writes them as annotations; of a pod that has finished they belong to others.
(Reference: Calico data model, 3.4; libcalico-go/lib/backend/k8s/conversion.)
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tortie.core.errors import FieldError, ValidationError, printable
from tortie.datastore import codec, podendpoint
from tortie.datastore.backend import KV
from tortie.datastore.keys import Key, ResourceKey
from tortie.datastore.names import EndpointIds, build_endpoint_name, host_interface, interface_prefixes
from tortie.datastore.nativekeys import NamespaceKey, PodKey
from tortie.datastore.podqos import qos_controls
from tortie.datastore.types.endpoint import (
    WorkloadEndpoint,
    WorkloadEndpointSpec,
)
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.pod import Metadata, Pod
from tortie.datastore.validate.addresses import parse_cidr, parse_cidr_or_ip

_log = logging.getLogger(__name__)

ENDPOINT = "eth0"
POD_IP, POD_IPS = "cni.projectcalico.org/podIP", "cni.projectcalico.org/podIPs"
CONTAINER_ID = "cni.projectcalico.org/containerID"
_AWS_IPS = "vpc.amazonaws.com/pod-ips"
_FLOATING = "cni.projectcalico.org/floatingIPs"
_SPOOFABLE = "cni.projectcalico.org/allowedSourcePrefixes"
_NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"
_FINISHED = ("Failed", "Succeeded", "Completed")


def endpoint_key(pod: Pod) -> ResourceKey | None:
    """None for a pod that has no endpoint (yet)."""
    if not pod.spec.nodeName or pod.spec.hostNetwork:
        return None
    ids = EndpointIds(node=pod.spec.nodeName, orchestrator="k8s", pod=pod.metadata.name, endpoint=ENDPOINT)
    return ResourceKey("WorkloadEndpoint", build_endpoint_name(ids), pod.metadata.namespace)


def pod_endpoint(key: ResourceKey, pod: Pod, environ: Mapping[str, str] = os.environ) -> WorkloadEndpoint:
    """The endpoint `key` that a pod is. Raises ValidationError naming the annotation that is wrong."""
    meta, spec = pod.metadata, pod.spec
    nets = () if _finished(pod) else _addresses(pod)
    qos, wrong = qos_controls(meta.annotations)
    for reason in wrong:
        _log.warning("pod %s/%s: %s", meta.namespace, meta.name, printable(reason, 400))
    status = meta.annotations.get(_NETWORK_STATUS)
    return WorkloadEndpoint(
        metadata=ObjectMeta(
            name=key.name,
            generateName=meta.generateName,
            namespace=meta.namespace,
            uid=meta.uid,
            resourceVersion=meta.resourceVersion,
            creationTimestamp=meta.creationTimestamp,
            labels=podendpoint.labels(meta.labels, meta.namespace, spec.serviceAccountName),
            annotations={} if status is None else {_NETWORK_STATUS: status},
        ),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s",
            node=spec.nodeName,
            containerID=meta.annotations.get(CONTAINER_ID, ""),
            pod=meta.name,
            endpoint=ENDPOINT,
            serviceAccountName=spec.serviceAccountName,
            ipNetworks=nets,
            ipNATs=podendpoint.floating_nats(_strings(meta.annotations, _FLOATING) if nets else (), nets),
            profiles=podendpoint.profiles(meta.namespace, spec.serviceAccountName),
            interfaceName=host_interface(meta.namespace, meta.name, prefix=interface_prefixes(environ)[0]),
            ports=podendpoint.ports(p for one in (*spec.containers, *spec.initContainers) for p in one.ports),
            allowSpoofedSourcePrefixes=tuple(_spoofable(meta.annotations)),
            qosControls=qos,
        ),
    )


def _finished(pod: Pod) -> bool:
    """Its addresses are given back, or are about to be."""
    annotations = pod.metadata.annotations
    emptied = annotations.get(POD_IP, annotations.get(_AWS_IPS)) == ""
    return pod.status.phase in _FINISHED or bool(pod.metadata.deletionTimestamp and emptied)


def _addresses(pod: Pod) -> tuple[str, ...]:
    """Each as /32 or /128, from the first place that has any."""
    annotations, status = pod.metadata.annotations, pod.status
    for field, given in [
        ("status.podIPs", [one.ip for one in status.podIPs]),
        ("status.podIP", [status.podIP]),
        (POD_IPS, annotations.get(POD_IPS, "").split(",")),
        (POD_IP, [annotations.get(POD_IP, "")]),
        (_AWS_IPS, annotations.get(_AWS_IPS, "").split(",")),
    ]:
        if texts := [text.strip() for text in given if text.strip()]:
            return tuple(_net(field, text) for text in texts)
    return ()


def _net(field: str, text: str) -> str:
    parsed = parse_cidr_or_ip(text)
    if parsed is None:
        raise ValidationError([FieldError(f"Pod.{field}", text, "invalid address")])
    address, network = parsed
    return f"{address}/{network.prefixlen}"


def _spoofable(annotations: Mapping[str, str]) -> list[str]:
    found = []
    for text in _strings(annotations, _SPOOFABLE):
        parsed = parse_cidr(text)
        if parsed is None:
            raise ValidationError(
                [FieldError(f"Pod.metadata.annotations[{_SPOOFABLE}]", text, "invalid CIDR")]
            )
        found.append(str(parsed[1]))
    return found


def _strings(annotations: Mapping[str, str], name: str) -> list[str]:
    text = annotations.get(name)
    if not text:
        return []
    try:
        return msgspec.json.decode(text, type=list[str])
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        reason = f"must be a list of strings in JSON: {err}"
        raise ValidationError([FieldError(f"Pod.metadata.annotations[{name}]", text, reason)]) from err


def read_pod(raw: bytes) -> KV:
    """The pod itself. Raises ValidationError."""
    pod = decode_pod(raw)
    return KV(PodKey(pod.metadata.namespace, pod.metadata.name), pod, pod.metadata.resourceVersion)


def read_namespace(raw: bytes) -> KV:
    """Raises ValidationError."""
    return read_metadata(lambda _namespace, name: NamespaceKey(name), raw)


def read_metadata(key: Callable[[str, str], Key], raw: bytes) -> KV:
    """Of which no more is read; `key` makes its key, of namespace and name. Raises ValidationError."""
    found = codec.decode(Metadata, raw)
    meta = found.metadata
    return KV(key(meta.namespace, meta.name), found, meta.resourceVersion)


# --- to the API ---------------------------------------------------------------------------------


def addresses_patch(endpoint: WorkloadEndpoint, revision: str, uid: str) -> dict[str, Any]:
    """A merge patch for the pod's status: only annotations, but whoever may write those may write this."""
    nets = endpoint.spec.ipNetworks
    annotations = {POD_IP: nets[0] if nets else "", POD_IPS: ",".join(nets)}
    if endpoint.spec.containerID:
        annotations[CONTAINER_ID] = endpoint.spec.containerID
    return annotations_patch(annotations, revision, uid)


def emptied_patch(revision: str, uid: str = "") -> dict[str, Any]:
    """What says that the pod has no address any more; which container it was, stays to be read."""
    return annotations_patch({POD_IP: "", POD_IPS: ""}, revision, uid)


def annotations_patch(
    annotations: Mapping[str, str | None], revision: str = "", uid: str = ""
) -> dict[str, Any]:
    """None takes an annotation away; a revision or UID that is given must still be the object's."""
    conditions = {"resourceVersion": revision, "uid": uid}
    return {"metadata": {"annotations": annotations, **{k: v for k, v in conditions.items() if v}}}


def decode_pod(raw: bytes) -> Pod:
    return codec.decode(Pod, raw)
