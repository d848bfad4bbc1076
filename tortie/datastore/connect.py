"""A client for the configured datastore; backends are imported only when they are used."""

import socket
import zlib

from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig


def connect(config: DatastoreConfig) -> Client:
    """Does not touch the network yet. Raises ConfigError for what cannot be connected with."""
    if config.type == "kubernetes":
        from tortie.datastore.kubernetes.backend import KubernetesBackend

        return Client(KubernetesBackend(config))
    from tortie.datastore.etcd import EtcdBackend

    # Nodes begin with different endpoints, so that they do not all lean on the first one listed.
    return Client(EtcdBackend(config, first=zlib.crc32(socket.gethostname().encode())))
