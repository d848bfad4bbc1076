"""How fast calicoctl answers with 10,000 endpoints in etcd: `python bench/calicoctl.py [ENDPOINTS]`.

Wall time until the first byte and until the end, and the CPU time the process used, which a busy machine
does not change; the least of several runs each. Beside it: Python doing nothing, and etcdctl reading the
same keys, where it is installed.
"""

import asyncio
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests.support.etcd import Etcd
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node

ROOT = sys.path[0]
_RUNS = 5
_PER_NODE = 100  # endpoints
_AT_ONCE = 64  # writes in flight while the datastore is filled
_AIM = {"get wep": 1500.0, "get nodes": 150.0}  # ms: to the end with 10,000 endpoints; to the first byte


@dataclass(frozen=True)
class Cost:
    """Milliseconds; `size` is what was printed, in bytes."""

    first: float
    whole: float
    cpu: float
    size: int


def measured(command: list[str], env: dict[str, str]) -> Cost:
    """One process. Raises CalledProcessError if it fails."""
    used = _children_cpu()
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    head = process.stdout.read1()
    first = time.perf_counter() - begun
    size = len(head) + len(process.stdout.read())
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)
    whole = time.perf_counter() - begun
    return Cost(first * 1e3, whole * 1e3, (_children_cpu() - used) * 1e3, size)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(what: str, command: list[str], env: dict[str, str]) -> Cost:
    runs = [measured(command, env) for _ in range(_RUNS)]
    best = Cost(*(min(getattr(run, name) for run in runs) for name in ("first", "whole", "cpu", "size")))
    print(
        f"{what:<34} first byte {best.first:7.0f} ms   end {best.whole:7.0f} ms   "
        f"CPU {best.cpu:7.0f} ms   {best.size:9,} bytes"
    )
    return best


async def fill(etcd: Etcd, count: int) -> None:
    backend = EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)))
    client = Client(backend)
    for number in range(-(-count // _PER_NODE)):
        await client.create(Node(metadata=ObjectMeta(name=f"node-{number}")))
    numbers = iter(range(count))

    async def write() -> None:
        for number in numbers:
            value = endpoint(number)
            key = ResourceKey(WorkloadEndpoint.KIND, value.name, value.namespace)
            await backend.create(key, value)

    await asyncio.gather(*(write() for _ in range(_AT_ONCE)))
    await client.close()


def endpoint(number: int) -> WorkloadEndpoint:
    """As the CNI plugin writes them."""
    node, pod = f"node-{number // _PER_NODE}", f"web-7c5b{number:05x}-x2{number % 97:02d}"
    return WorkloadEndpoint(
        metadata=ObjectMeta(
            name=f"{node.replace('-', '--')}-k8s-{pod.replace('-', '--')}-eth0",
            namespace=f"team-{number % 50}",
            labels={
                "app": "web", "projectcalico.org/namespace": f"team-{number % 50}",
                "projectcalico.org/orchestrator": "k8s", "projectcalico.org/serviceaccount": "default",
            },
        ),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s", node=node, pod=pod, endpoint="eth0", containerID=f"{number:064x}",
            ipNetworks=(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32",),
            profiles=(f"kns.team-{number % 50}", f"ksa.team-{number % 50}.default"),
            interfaceName=f"cali{number:011x}", serviceAccountName="default",
        ),
    )  # fmt: skip


def main(count: int) -> int:
    etcd = Etcd().start()
    try:
        asyncio.run(fill(etcd, count))
        env = {"PATH": os.environ["PATH"], "DATASTORE_TYPE": "etcdv3", "ETCD_ENDPOINTS": etcd.endpoint}
        program = shutil.which("calicoctl", path=os.path.dirname(sys.executable))
        ctl = [program] if program else [sys.executable, "-m", "tortie.calicoctl.main"]
        env |= {} if program else {"PYTHONPATH": ROOT}
        show("python -c print(1)", [sys.executable, "-c", "print(1)"], env)
        show("calicoctl version --client", [*ctl, "version", "--client"], env)
        nodes = show("calicoctl get nodes", [*ctl, "get", "nodes"], env)
        show("calicoctl ipam show", [*ctl, "ipam", "show"], env)
        listed = show(f"calicoctl get wep -A, {count:,}", [*ctl, "get", "wep", "-A"], env)
        show(f"calicoctl get wep -A -o wide, {count:,}", [*ctl, "get", "wep", "-A", "-o", "wide"], env)
        show(f"calicoctl get wep -A -o json, {count:,}", [*ctl, "get", "wep", "-A", "-o", "json"], env)
        show(f"calicoctl get wep -A -o yaml, {count:,}", [*ctl, "get", "wep", "-A", "-o", "yaml"], env)
        if etcdctl := shutil.which("etcdctl"):
            keys = "/calico/resources/v3/projectcalico.org/workloadendpoints/"
            read = [etcdctl, "--endpoints", etcd.endpoint, "get", "--prefix", keys]
            show("etcdctl get of the same keys", read, env | {"ETCDCTL_API": "3"})
    finally:
        etcd.close()
    print(f"get wep, aim {_AIM['get wep']:.0f} ms: {listed.whole:.0f} ms")
    print(f"first byte of get, aim {_AIM['get nodes']:.0f} ms: {nodes.first:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
