"""The datastore as the CNI server uses it: a client, and in memory what every call asks for.

ClusterInformation, pools, reservations, our Node and the IPAM configuration are followed by one Syncer;
until it is in sync, and for anything else, the datastore is read. A configuration may name another
datastore than the server's environment does; each gets a Store of its own.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tortie.cni import advice
from tortie.cni.netconf import NetConf
from tortie.cni.protocol import Code
from tortie.core import tasks
from tortie.core.errors import CniError, DatastoreError, ResourceDoesNotExist
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig, check
from tortie.datastore.connect import connect
from tortie.datastore.keys import ResourceKey, ResourceList
from tortie.datastore.syncer import Batch, Syncer, SyncStatus
from tortie.datastore.types.cluster import ClusterInformation
from tortie.ipam.view import SyncedView

_log = logging.getLogger(__name__)

_CLUSTER = ResourceKey("ClusterInformation", "default")
_IDLE = 600.0  # seconds; the longest call is given up by its runtime after two minutes
_FIELDS = {  # field of a datastore's configuration -> field of the network configuration
    "datastoreType": "datastore_type",
    "etcdEndpoints": "etcd_endpoints",
    "etcdDiscoverySrv": "etcd_discovery_srv",
    "etcdKeyFile": "etcd_key_file",
    "etcdCertFile": "etcd_cert_file",
    "etcdCACertFile": "etcd_ca_cert_file",
}
_NOT_READY = "Calico is currently not ready to process requests"


def effective_config(base: DatastoreConfig, conf: NetConf) -> DatastoreConfig:
    """`base` (the server's environment) with what the network configuration overrides. Pure.

    Of the Kubernetes API only where that is the datastore: with etcd it would change nothing but cost a
    connection more.
    """
    etcd = {name: getattr(conf, field) for name, field in _FIELDS.items()}
    config = _changed(base, etcd | {"etcdEndpoints": _endpoints(conf)})
    if config.type == "etcdv3":
        return config
    kubernetes = {
        "kubeconfig": conf.kubernetes.kubeconfig,
        "k8sAPIEndpoint": conf.kubernetes.k8s_api_root,
        "k8sAPIToken": conf.policy.k8s_auth_token,
        "k8sClientQPS": conf.qps,
        "k8sClientBurst": conf.burst,
        "calicoAPIGroup": conf.calico_api_group,
    }
    return _changed(config, kubernetes)


def _changed(config: DatastoreConfig, given: Mapping[str, Any]) -> DatastoreConfig:
    changes = {name: value for name, value in given.items() if value}
    return replace(config, **changes) if changes else config


def _endpoints(conf: NetConf) -> tuple[str, ...]:
    """`etcd_authority` (host:port, with `etcd_scheme`) is the old way to name one endpoint."""
    if conf.etcd_endpoints:
        return tuple(part.strip() for part in conf.etcd_endpoints.split(",") if part.strip())
    return (f"{conf.etcd_scheme or 'http'}://{conf.etcd_authority}",) if conf.etcd_authority else ()


def open_client(config: DatastoreConfig) -> Client:
    """Does not touch the network yet. Raises ConfigError for what cannot be used."""
    return connect(check(config, _FIELDS))


class Store:
    """One datastore. `node` is the name of this node, whose Node object is kept at hand.

    `keeps_endpoints`: it stores endpoints as such, any number for a pod; else a pod itself is one.
    """

    def __init__(self, client: Client, node: str, *, keeps_endpoints: bool = True) -> None:
        self.client = client
        self.keeps_endpoints = keeps_endpoints
        self.view = SyncedView(client, node)
        self._cluster: ClusterInformation | None = None
        self.in_sync = asyncio.Event()  # set while the memory is complete

    async def follow(self) -> None:
        """Keep the memory up to date until cancelled."""
        listings = (ResourceList("ClusterInformation"), *self.view.listings)
        async with contextlib.aclosing(Syncer(self.client.backend, listings).batches()) as batches:
            async for batch in batches:
                self._apply(batch)

    def _apply(self, batch: Batch) -> None:
        for update in batch.updates:
            if update.key == _CLUSTER:
                self._cluster = update.value
        self.view.apply(batch)
        if batch.status is SyncStatus.IN_SYNC:
            self.in_sync.set()
        else:
            self.in_sync.clear()

    @property
    def guid(self) -> str:
        """Of the cluster, by which one datastore is known over several ways to it; '' if not known."""
        known = self._cluster if self.in_sync.is_set() else None
        return known.spec.clusterGUID if known is not None else ""

    @property
    def locked(self) -> bool:
        """Whether it is known that the datastore is not to be used now."""
        return self._cluster is not None and self._cluster.spec.datastoreReady is False

    async def ensure_ready(self, *, fresh: bool = False) -> None:
        """Raises CniError unless there is a cluster and its datastore may be used.

        `fresh` asks the datastore, whatever is remembered. Raises DatastoreUnreachable.
        """
        try:
            info = await self._cluster_information(fresh)
        except ResourceDoesNotExist as err:
            text = f"error getting ClusterInformation: {err}"
            raise CniError(Code.INTERNAL, text, advice.NO_CLUSTER) from err
        if info.spec.datastoreReady is False:
            raise CniError(Code.TRY_AGAIN_LATER, _NOT_READY, advice.LOCKED)

    async def _cluster_information(self, fresh: bool) -> ClusterInformation:
        # That there is none is no reason to refuse a pod before the datastore itself has said so: the
        # cluster may have been made a moment ago.
        if fresh or not self.in_sync.is_set() or self._cluster is None:
            return await self.client.get(ClusterInformation, "default")
        return self._cluster


class Stores:
    """The datastores that configurations name: the environment's for good, by whatever way to it, any other
    while it is in use.

    `idle` is how many seconds after its last use another one is given up: a name that was wrong once must
    not be dialled for as long as the server lives.
    """

    def __init__(self, base: DatastoreConfig, node: str, idle: float = _IDLE) -> None:
        self._base = _explicit(base)
        self._node = node
        self._idle = idle
        self._stores: dict[DatastoreConfig, Store] = {}
        self._used: dict[DatastoreConfig, float] = {}  # config -> the loop's time when it was last asked for
        self._keepers: set[asyncio.Task[None]] = set()

    def start(self) -> Store:
        """Begin to follow the environment's datastore. Raises ConfigError."""
        return self._open(self._base)

    def of(self, conf: NetConf) -> Store:
        """Raises ConfigError if the configuration names none that can be used."""
        return self._open(_explicit(effective_config(self._base, conf)))

    def is_home(self, store: Store) -> bool:
        """Whether a store is known to be the environment's datastore, perhaps by another way to it.

        As a rule it is another way: the plugin has credentials of its own. A cluster that moves to another
        kind of datastore takes its GUID along, and home is locked then.
        """
        home = self._stores[self._base]
        if store is home:
            return True
        same = store.guid != "" and store.guid == home.guid
        return same and store.keeps_endpoints == home.keeps_endpoints and not home.locked

    def _open(self, config: DatastoreConfig) -> Store:
        if config not in self._stores:
            self._stores[config] = Store(
                open_client(config), self._node, keeps_endpoints=config.type == "etcdv3"
            )
            keeper = tasks.spawn(self._keep(config, self._stores[config]), f"keeping {_where(config)}")
            self._keepers.add(keeper)
            keeper.add_done_callback(self._keepers.discard)
        self._used[config] = asyncio.get_running_loop().time()
        return self._stores[config]

    async def _keep(self, config: DatastoreConfig, store: Store) -> None:
        """Follow a datastore until it is of no use any more, then let go of it."""
        follower = tasks.supervise(f"following the datastore at {_where(config)}", store.follow)
        following = asyncio.create_task(follower)
        try:
            await self._out_of_use(config, store)
            _log.info("no call has named the datastore at %s lately: closing it", _where(config))
        finally:
            del self._stores[config], self._used[config]  # first: from now on a call gets a new one
            await tasks.cancel([following])
            try:
                await store.client.close()
            except DatastoreError as err:
                _log.warning("closing %s: %s", _where(config), err)

    async def _out_of_use(self, config: DatastoreConfig, store: Store) -> None:
        clock = asyncio.get_running_loop().time
        if config == self._base:
            await asyncio.Event().wait()
        while (left := self._used[config] + self._idle - clock()) > 0 or self.is_home(store):  # noqa: ASYNC110 - not a poll: when it is over is known
            await asyncio.sleep(left if left > 0 else self._idle)

    async def close(self) -> None:
        await tasks.cancel(self._keepers)


def _explicit(config: DatastoreConfig) -> DatastoreConfig:
    """Its type spelled out: whether that was given or understood, it is the same datastore."""
    return replace(config, datastoreType=config.type)


def _where(config: DatastoreConfig) -> str:
    """For the log."""
    if config.type == "etcdv3":
        return ",".join(config.etcdEndpoints)
    return config.k8sAPIEndpoint or config.kubeconfig or "the Kubernetes API of this pod"
