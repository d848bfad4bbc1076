"""The CNI tests' machine with the Kubernetes API as its datastore: the same questions, other answers.

The API server is the run's only one and stands outside the machine, so a relay listens inside for it.
There a pod is its own endpoint, which counts as there while the pod has an address.
"""

import asyncio
import contextlib
import ipaddress
import json
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from msgspec import structs

from tests.netns_lab import Namespace
from tests.support.cni import NODE, Machine, Servers
from tests.support.kubernetes import ApiServer
from tortie.core.errors import ResourceAlreadyExists
from tortie.datastore.client import Client
from tortie.datastore.codec import encode
from tortie.datastore.connect import connect
from tortie.datastore.keys import BlockList, HandleList
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.meta import Resource
from tortie.datastore.types.node import Node
from tortie.lab.runtime import Attachment

T = TypeVar("T")


class Relay:
    """Passes connections on from inside a namespace to a port of this process's own."""

    def __init__(self, inside: Namespace, port: int) -> None:
        self._listener: socket.socket = inside.call(socket.create_server, ("127.0.0.1", 0))
        self._target = port
        self._open: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.refuse = False  # hang up on every new connection
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End all connections."""
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = self._dial()
                if far is None:
                    near.close()
                    continue
                self._open += [near, far]
                if self.refuse:  # since it dialled
                    self.cut()
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _dial(self) -> socket.socket | None:
        if not self.refuse:
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", self._target))
        return None

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


class KubernetesMachine(Machine):
    def __init__(self, host: Namespace, api: ApiServer, servers: Servers, folder: Path, shim: Path) -> None:
        super().__init__(host, api.etcd, servers, folder, shim)
        self.api = api
        self.relay = Relay(host, int(api.url.rpartition(":")[2]))

    def close(self) -> None:
        super().close()
        self.relay.close()

    @property
    def environment(self) -> dict[str, str]:
        config = self.api.config()
        given = {name: value for name, value in super().environment.items() if name != "ETCD_ENDPOINTS"}
        return given | {
            "DATASTORE_TYPE": "kubernetes",
            "K8S_API_ENDPOINT": f"https://127.0.0.1:{self.relay.port}",
            "K8S_CA_FILE": config.k8sCAFile,
            "CALICO_K8SAPITOKEN": config.k8sAPIToken,
            "K8S_CLIENT_QPS": "10000",
            "K8S_CLIENT_BURST": "10000",
        }

    def pod(
        self, name: str = "nginx", container: str = "", *, inside: Namespace | None = None, **args: Any
    ) -> Attachment:
        """The API knows the pod; the runtime says only its name."""
        found = super().pod(name, container, inside=inside, **args)
        metadata = {
            "name": name,
            "labels": args.get("labels", {}),
            "annotations": args.get("annotations", {}),
        }
        spec = {"nodeName": NODE, "containers": [{"name": "c", "image": "x"}]}
        with contextlib.suppress(RuntimeError):  # a pod's second sandbox
            self.api.ask("POST", "/api/v1/namespaces/default/pods", {"metadata": metadata, "spec": spec})
        return replace(found, config_args={})

    # --- the datastore --------------------------------------------------------------------------

    def write(self, resource: Resource) -> None:
        if isinstance(resource, Node):
            self.api.ask("POST", "/api/v1/nodes", {"metadata": {"name": resource.name}})
            return

        async def write(client: Client) -> None:
            try:
                await client.create(resource)
            except ResourceAlreadyExists:
                old = await client.get(type(resource), resource.name)
                await client.update(structs.replace(resource, metadata=old.metadata))

        self._with_client(write)

    def endpoints(self) -> dict[str, Any]:
        async def read(client: Client) -> list[WorkloadEndpoint]:
            return (await client.list(WorkloadEndpoint)).items

        found = [one for one in self._with_client(read) if one.spec.ipNetworks]
        return {f"{one.namespace}/{one.name}": json.loads(encode(one)) for one in found}

    def held(self) -> dict[str, str]:
        async def read(client: Client) -> list[Any]:
            return [kv.value for kv in (await client.backend.list(BlockList())).items]

        found = {}
        for block in self._with_client(read):
            base = ipaddress.ip_network(block.cidr).network_address
            for ordinal, index in enumerate(block.allocations):
                if index is not None:
                    found[str(base + ordinal)] = block.attributes[index].handle_id or ""
        return found

    def entries(self, prefix: str) -> dict[str, Any]:
        """Of handles alone: nothing else is asked for by its path."""
        assert prefix == HandleList().prefix(), prefix

        async def read(client: Client) -> list[str]:
            return [str(kv.key) for kv in (await client.backend.list(HandleList())).items]

        return dict.fromkeys(self._with_client(read))

    def _with_client(self, use: Callable[[Client], Awaitable[T]]) -> T:
        async def run() -> T:
            client = connect(self.api.config())
            try:
                return await use(client)
            finally:
                await client.close()

        return asyncio.run(run())
