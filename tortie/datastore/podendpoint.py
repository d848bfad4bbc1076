"""What policies and NAT need to know of a pod's endpoint: CNI stores it in etcd, else the pod has it. Pure.

(Reference: Calico data model, 3.4; conversion/workload_endpoint_default.go, cni-plugin/pkg/k8s/k8s.go.)
"""

from collections.abc import Iterable, Mapping

from tortie.datastore.types.endpoint import IPNAT, WorkloadEndpointPort
from tortie.datastore.types.pod import ContainerPort

_PROTOCOLS = {"": "TCP", "TCP": "TCP", "UDP": "UDP", "SCTP": "SCTP"}  # of a port that can be matched
_LONGEST_LABEL = 63  # a label's value; the service account is put into one only if it is shorter


def labels(own: Mapping[str, str], namespace: str, account: str) -> dict[str, str]:
    """The pod's own, and what else of it policies select."""
    found = {**own, "projectcalico.org/namespace": namespace, "projectcalico.org/orchestrator": "k8s"}
    if 0 < len(account) < _LONGEST_LABEL:
        found["projectcalico.org/serviceaccount"] = account
    return found


def profiles(namespace: str, account: str) -> tuple[str, ...]:
    """Those that stand for the pod's namespace and service account."""
    return (f"kns.{namespace}", *([f"ksa.{namespace}.{account}"] if account else []))


def ports(of: Iterable[ContainerPort]) -> tuple[WorkloadEndpointPort, ...]:
    """The container ports that policy or a host port can refer to; unknown protocols have none."""
    return tuple(
        WorkloadEndpointPort(
            name=port.name,
            protocol=_PROTOCOLS[port.protocol],
            port=port.containerPort,
            hostPort=port.hostPort,
            hostIP=port.hostIP,
        )
        for port in of
        if port.containerPort and (port.hostPort or port.name) and port.protocol in _PROTOCOLS
    )


def floating_nats(floating: Iterable[str], own: Iterable[str]) -> tuple[IPNAT, ...]:
    """Each floating address leads to the pod's last one of its version, as in Calico; without one nowhere."""
    last = {":" in address: address.partition("/")[0] for address in own}  # whether it is IPv6 -> address
    return tuple(IPNAT(internalIP=last[":" in ip], externalIP=ip) for ip in floating if (":" in ip) in last)
