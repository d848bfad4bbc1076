"""The IP pools that tests of the datastore store, list and watch."""

import json
from typing import Any

from tests.support.etcd import Etcd
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.etcdchannel import TIMING, Timing
from tortie.datastore.keys import ResourceKey, ResourceList
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta

POOLS = ResourceList("IPPool")
PREFIX = "/calico/resources/v3/projectcalico.org/"
POOL_PATH = PREFIX + "ippools/"
BROKEN = '{"kind":"IPPool","spec":{"cidr":7}}'


def pool_key(name: str) -> ResourceKey:
    return ResourceKey("IPPool", name)


def pool(name: str, cidr: str = "10.0.0.0/24", **metadata: Any) -> IPPool:
    return IPPool(metadata=ObjectMeta(name=name, **metadata), spec=IPPoolSpec(cidr=cidr))


def pool_json(name: str, cidr: str = "10.0.0.0/24") -> str:
    return json.dumps({"kind": "IPPool", "metadata": {"name": name}, "spec": {"cidr": cidr}})


def backend_on(etcd: Etcd, timing: Timing = TIMING) -> EtcdBackend:
    return EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)), timing)
