"""The pod subnets of a cluster that kubeadm made: the first pools have them unless somebody says otherwise.

kubeadm keeps its configuration in a ConfigMap. Whatever cannot be read there is as if kubeadm had made
nothing, as in Calico (node/pkg/lifecycle/startup).
"""

import ipaddress
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tortie.core.errors import DatastoreError, ResourceDoesNotExist

if TYPE_CHECKING:
    from tortie.datastore.kubernetes.backend import KubernetesBackend

_log = logging.getLogger(__name__)

_WHERE = ("kube-system", "kubeadm-config")


async def pod_subnets(backend: "KubernetesBackend") -> list[str]:
    """As CIDRs, of each family at most one."""
    try:
        texts = (await backend.config_map(*_WHERE)).values()
    except ResourceDoesNotExist:
        return []
    except DatastoreError as err:
        _log.info("kubeadm's configuration cannot be read, so its pod subnet is not used: %s", err)
        return []
    found = subnets_in(texts)
    _log.info("kubeadm's pod subnets: %s", ", ".join(found) or "none")
    return found


def subnets_in(texts: Iterable[str]) -> list[str]:
    """The first `podSubnet` of each family in these documents. Pure."""
    found: dict[int, str] = {}  # version -> CIDR
    for line in "\n".join(texts).splitlines():
        name, _, value = line.strip().partition(":")
        for part in value.strip().strip("\"'").split(",") if name == "podSubnet" else ():
            try:
                network = ipaddress.ip_network(part.strip(), strict=False)
            except ValueError:
                _log.warning("podSubnet of kubeadm: %r is no CIDR", part)
            else:
                found.setdefault(network.version, str(network))
    return list(found.values())
