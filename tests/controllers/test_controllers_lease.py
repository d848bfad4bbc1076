"""Two whole processes and a real API server: one works, the other when it dies, nobody while that is away."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns_lab import eventually
from tests.support.kubernetes import ApiServer
from tortie.datastore.client import Client
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.lab.apiserver import ADMIN_TOKEN

pytestmark = pytest.mark.kernel

SERVICES = "/api/v1/namespaces/default/services"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/calico-kube-controllers"


class Controllers:
    """`kube-controllers` as its container starts it, its log in a file."""

    def __init__(self, name: str, folder: Path, kubeconfig: Path) -> None:
        self.log = folder / f"{name}.log"
        datastore = {"DATASTORE_TYPE": "kubernetes", "KUBECONFIG": str(kubeconfig)}
        program = str(Path(sys.executable).with_name("kube-controllers"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [program, "--status-file", str(folder / f"{name}.json")],
                env=os.environ | datastore, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def times(self, word: str) -> int:
        return self.log.read_text().count(word)

    def end(self) -> None:
        """Without a word to anybody."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def pair(apiserver: ApiServer, tmp_path: Path) -> Iterator[tuple[Controllers, Controllers]]:
    """Of which the first leads."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(apiserver.kubeconfig(ADMIN_TOKEN))
    asyncio.run(_pool(apiserver))
    first = Controllers("first", tmp_path, kubeconfig)
    second = None
    try:
        eventually(lambda: first.times(" leads"), 180)
        second = Controllers("second", tmp_path, kubeconfig)
        yield first, second
    finally:
        for one in (first, second):
            if one is not None:
                one.end()


async def _pool(apiserver: ApiServer) -> None:
    client = Client(KubernetesBackend(apiserver.config()))
    spec = IPPoolSpec(cidr="10.8.0.0/24", allowedUses=("LoadBalancer",), nodeSelector="all()")
    await client.create(IPPool(metadata=ObjectMeta(name="lb"), spec=spec))
    await client.close()


def served(apiserver: ApiServer, name: str) -> str:
    """Make a service of type LoadBalancer, and wait for its address."""
    body = {"metadata": {"name": name}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}
    apiserver.ask("POST", SERVICES, body)

    def address() -> str:
        given = apiserver.ask("GET", f"{SERVICES}/{name}")["status"]["loadBalancer"]
        return given["ingress"][0]["ip"] if given else ""

    return eventually(address, 180)  # a Lease may have to run out before


def held(apiserver: ApiServer) -> dict[str, Any]:
    spec: dict[str, Any] = apiserver.ask("GET", LEASE)["spec"]
    return spec


def test_the_second_works_when_the_first_dies_and_not_before(
    apiserver: ApiServer, pair: tuple[Controllers, Controllers]
) -> None:
    first, second = pair
    before = held(apiserver)
    one = served(apiserver, "one")
    eventually(lambda: first.times("default/one) has"))  # said once the API server has it
    assert (first.times("default/one) has"), second.times(" leads"), second.times(" has ")) == (1, 0, 0)
    first.end()  # its Lease has to run out
    another = served(apiserver, "two")
    eventually(lambda: second.times("default/two) has"))
    assert another != one and second.times("default/two) has") == 1
    after = held(apiserver)
    assert after["holderIdentity"] != before["holderIdentity"]
    assert after["leaseTransitions"] == before["leaseTransitions"] + 1
    assert first.times("default/two)") == 0


def test_an_api_server_that_is_away_stops_the_work_and_one_goes_on_when_it_is_back(
    apiserver: ApiServer, pair: tuple[Controllers, Controllers]
) -> None:
    first, second = pair
    one = served(apiserver, "one")
    apiserver.stop_server()
    eventually(lambda: first.times("has lost the Lease"), 180)
    assert first.process.poll() is None and second.process.poll() is None
    apiserver.start_server()
    another = served(apiserver, "two")
    assert another != one
    assert apiserver.ask("GET", f"{SERVICES}/one")["status"]["loadBalancer"]["ingress"] == [{"ip": one}]

    def said() -> int:
        return first.times("default/two) has") + second.times("default/two) has")

    eventually(said)
    assert said() == 1
    blocks = apiserver.ask("GET", "/apis/crd.projectcalico.org/v1/ipamblocks")["items"]
    used = [index for block in blocks for index in block["spec"]["allocations"] if index is not None]
    assert len(used) == 2, json.dumps(blocks)
