"""A client for the configured datastore; backends are imported only when they are used."""

import os
import socket
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig

if TYPE_CHECKING:
    from tortie.datastore.kubernetes.backend import KubernetesBackend


def kubernetes_beside(
    config: DatastoreConfig, env: Mapping[str, str] = os.environ
) -> "KubernetesBackend | None":
    """A connection for Kubernetes' own objects: to the API that is the datastore, or stands beside an etcd.

    None where nothing leads to an API server. Raises ConfigError for a kubeconfig that is wrong.
    """
    if config.type == "etcdv3" and not (
        config.kubeconfig or config.k8sAPIEndpoint or env.get("KUBERNETES_SERVICE_HOST")
    ):
        return None
    from tortie.datastore.kubernetes.backend import KubernetesBackend

    return KubernetesBackend(config)


def connect(config: DatastoreConfig) -> Client:
    """Does not touch the network yet. Raises ConfigError for what cannot be connected with."""
    if config.type == "kubernetes":
        from tortie.datastore.kubernetes.backend import KubernetesBackend

        return Client(KubernetesBackend(config))
    from tortie.datastore.etcd import EtcdBackend

    # Nodes begin with different endpoints, so that they do not all lean on the first one listed.
    return Client(EtcdBackend(config, first=zlib.crc32(socket.gethostname().encode())))
