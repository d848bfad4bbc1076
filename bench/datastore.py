"""What the datastore costs: import, one call, a list of 10,000 endpoints, watching, following in idleness.

    python bench/datastore.py [ENDPOINTS [IDLE_SECONDS]]

Starts its own etcd in memory. Calls stand beside the same bytes over bare gRPC, which is what the
network and etcd cost, and beside etcd3's blocking client, which one would use instead.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from msgspec import structs

from tests.support.etcd import Etcd
from tortie.datastore import codec
from tortie.datastore import etcdproto as proto
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import BlockList, Listing, ResourceKey, ResourceList
from tortie.datastore.syncer import Syncer, SyncStatus
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta

CALLS = 1000
EVENTS = 10_000
ENDPOINTS = ResourceList("WorkloadEndpoint")
FELIX: list[Listing] = [  # what felix follows, see the reference, 4.2
    *(
        ResourceList(kind)
        for kind in (
            "ClusterInformation", "FelixConfiguration", "GlobalNetworkPolicy", "GlobalNetworkSet", "IPPool",
            "Node", "Profile", "WorkloadEndpoint", "NetworkPolicy", "NetworkSet", "Tier", "HostEndpoint",
            "BGPConfiguration", "BGPPeer",
        )
    ),
    BlockList(),
]  # fmt: skip


def main(endpoints: int = 10_000, idle: float = 60) -> None:
    server = Etcd().start()
    try:
        version = server.ask("maintenance/status")["version"]
        print(f"etcd {version}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
        imports()
        asyncio.run(calls(server))
        etcd3_calls(server)
        asyncio.run(lists(server, endpoints))
        asyncio.run(watching(server))
        asyncio.run(idling(server, idle))
    finally:
        server.close()


def endpoint(number: int) -> WorkloadEndpoint:
    name = f"node--{number % 100}-k8s-web--{number}-eth0"
    labels = {
        "app": f"app-{number % 200}",
        "pod-template-hash": f"{number:x}",
        "projectcalico.org/namespace": f"ns-{number % 50}",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "default",
    }
    return WorkloadEndpoint(
        metadata=ObjectMeta(
            name=name,
            generateName="web-",
            namespace=f"ns-{number % 50}",
            uid=f"7a0c5f0e-2f61-4c1e-9d55-{number:012x}",
            creationTimestamp="2026-03-01T08:06:01Z",
            labels=labels,
        ),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s",
            node=f"node-{number % 100}",
            containerID=f"{number:064x}",
            pod=f"web-{number}",
            endpoint="eth0",
            serviceAccountName="default",
            ipNetworks=(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32",),
            profiles=(f"kns.ns-{number % 50}", f"ksa.ns-{number % 50}.default"),
            interfaceName=f"cali{number:011x}",
            mac="aa:61:33:0d:5e:01",
        ),
    )


def key_of(value: WorkloadEndpoint) -> ResourceKey:
    return ResourceKey("WorkloadEndpoint", value.name, value.namespace)


def backend_on(server: Etcd) -> EtcdBackend:
    return EtcdBackend(DatastoreConfig(etcdEndpoints=(server.endpoint,)))


# --- import -------------------------------------------------------------------------------------


def imports() -> None:
    print("import (fresh process, best of 5)                       ms        MB")
    for name, code in {
        "asyncio, msgspec and the resource types": "import tortie.datastore.codec, tortie.datastore.keys",
        "... and grpc": "import tortie.datastore.codec, tortie.datastore.keys, grpc",
        "tortie.datastore.etcd": "import tortie.datastore.etcd",
        "... with the syncer": "import tortie.datastore.etcd, tortie.datastore.syncer",
        "asyncio and etcd3": "import etcd3",
    }.items():
        measured = [fresh(code) for _ in range(5)]
        if None in measured:
            print(f"  {name:<48}(not installed)")
            continue
        best = [min(values) for values in zip(*(m for m in measured if m), strict=True)]
        print(f"  {name:<48}{best[0] * 1e3:8.0f}{best[1]:10.1f}")
    print()


def fresh(code: str) -> tuple[float, float] | None:
    """Seconds and resident megabytes that an import adds to a Python which has asyncio."""
    script = f"""
import asyncio, time
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
before, start = resident(), time.perf_counter()
{code}
print(time.perf_counter() - start, resident() - before)
"""
    root = str(Path(__file__).resolve().parent.parent)
    env = os.environ | {"PYTHONPATH": root, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        return None
    seconds, size = ended.stdout.split()
    return float(seconds), float(size)


# --- one call -----------------------------------------------------------------------------------


async def calls(server: Etcd) -> None:
    print(f"one call at a time, {CALLS} of each                  p50 µs   p99 µs   CPU µs")
    import grpc  # after the import of etcdchannel, which sets it up

    value = endpoint(1)
    key, data = key_of(value), codec.encode(value)
    path = key.path().encode()
    backend = backend_on(server)
    channel = grpc.aio.insecure_channel(server.endpoint.removeprefix("http://"))
    bare_range = channel.unary_unary(proto.RANGE.path)
    bare_txn = channel.unary_unary(proto.TXN.path)
    read = proto.range_(path)
    unconditional = proto.txn([], proto.op_put(path, data), proto.op_range(path))
    stored = await backend.create(key, value)

    async def update() -> None:
        nonlocal stored
        stored = await backend.update(stored)

    numbers = iter(range(2, 10 * CALLS))

    async def create() -> None:
        made = structs.replace(value, metadata=structs.replace(value.metadata, name=f"n-{next(numbers)}"))
        await backend.create(key_of(made), made)

    await timed("bare gRPC, range", lambda: bare_range(read, timeout=10))
    await timed("get", lambda: backend.get(key))
    await timed("bare gRPC, transaction", lambda: bare_txn(unconditional, timeout=10))
    stored = await backend.get(key)
    await timed("update", update)
    await timed("create", create)
    await channel.close()
    await backend.close()
    server.wipe()


async def timed(name: str, call: Callable[[], Awaitable[object]]) -> None:
    for _ in range(CALLS // 10):
        await call()
    seconds, cpu = [], time.process_time()
    for _ in range(CALLS):
        start = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start)
    show(name, seconds, time.process_time() - cpu)


def show(name: str, seconds: list[float], cpu: float) -> None:
    worst = sorted(seconds)[int(len(seconds) * 0.99)]
    print(f"  {name:<44}{median(seconds) * 1e6:10.0f}{worst * 1e6:9.0f}{cpu / len(seconds) * 1e6:9.0f}")


def etcd3_calls(server: Etcd) -> None:
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"  # it runs on nothing faster
    try:
        import etcd3
    except ImportError:
        print("  (etcd3 is not installed)\n")
        return
    client = etcd3.client("127.0.0.1", int(server.endpoint.rpartition(":")[2]))
    value = codec.encode(endpoint(1)).decode()

    def transaction() -> None:
        client.transaction(
            compare=[client.transactions.version("/k") > 0],
            success=[client.transactions.put("/k", value)],
            failure=[client.transactions.get("/k")],
        )

    client.put("/k", value)
    for name, call in {"etcd3, get": lambda: client.get("/k"), "etcd3, transaction": transaction}.items():
        seconds, cpu = [], time.process_time()
        for _ in range(CALLS):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        show(name, seconds, time.process_time() - cpu)
    client.close()
    server.wipe()
    print()


# --- a list -------------------------------------------------------------------------------------


async def lists(server: Etcd, count: int) -> None:
    print(f"a list of {count} endpoints                                 ms")
    for at in range(0, count, 100):
        values = [endpoint(number) for number in range(at, min(count, at + 100))]
        server.put_all({key_of(value).path(): codec.encode(value) for value in values})
    backend = backend_on(server)
    start, end = ENDPOINTS.prefix().encode(), ENDPOINTS.prefix().encode()[:-1] + b"0"
    raw = await best(lambda: backend._link.call(proto.RANGE, proto.range_(start, end)))
    print(f"  etcd, gRPC and our reading of the message{raw * 1e3:16.0f}")
    pages = await best(lambda: backend.list(ENDPOINTS))
    print(f"  the whole list, typed, in pages{pages * 1e3:26.0f}")
    entries = (await backend._link.call(proto.RANGE, proto.range_(start, end))).entries
    begun = time.perf_counter()
    for entry in entries:
        codec.decode(WorkloadEndpoint, entry.value)
    print(f"  of which from JSON to typed values{(time.perf_counter() - begun) * 1e3:23.0f}")
    delays: list[float] = []
    task = asyncio.ensure_future(backend.list(ENDPOINTS))
    while not task.done():
        begun = time.perf_counter()
        await asyncio.sleep(0)
        delays.append(time.perf_counter() - begun)
    print(f"  longest time that nothing else ran{max(delays) * 1e3:23.0f}\n")
    await backend.close()


async def best(work: Callable[[], Awaitable[object]], rounds: int = 3) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        await work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# --- a watch ------------------------------------------------------------------------------------


async def watching(server: Etcd) -> None:
    print(f"{EVENTS} changes of endpoints, in one go              events/s")
    backend = backend_on(server)
    revision = str(server.revision)
    for at in range(0, EVENTS, 100):
        values = [endpoint(number) for number in range(at, at + 100)]
        server.put_all({key_of(value).path(): codec.encode(value) for value in values})

    async def watch() -> None:
        seen = 0
        async with aclosing(backend.watch(ENDPOINTS, revision)) as events:  # type: ignore[type-var]
            async for event in events:
                seen += event.kv is not None
                if seen == EVENTS:
                    return

    print(f"  backend.watch{EVENTS / await best(watch):44,.0f}")
    print(f"  through a Syncer{await through_syncer(server, backend):41,.0f}")
    await backend.close()
    server.wipe()
    print()


async def through_syncer(server: Etcd, backend: EtcdBackend) -> float:
    """Events a second of a consumer that stood still while they happened."""
    async with aclosing(Syncer(backend, [ENDPOINTS]).batches()) as batches:
        async for batch in batches:
            if batch.status is SyncStatus.IN_SYNC:
                break
        for at in range(0, EVENTS, 100):
            values = [endpoint(number) for number in range(at, at + 100)]
            server.put_all({key_of(value).path(): codec.encode(value) for value in values})
        seen, start = 0, time.perf_counter()
        async for batch in batches:
            seen += len(batch.updates)
            if seen == EVENTS:
                break
        return EVENTS / (time.perf_counter() - start)


# --- idleness -----------------------------------------------------------------------------------


async def idling(server: Etcd, seconds: float) -> None:
    backend = backend_on(server)
    await backend.create(key_of(endpoint(1)), endpoint(1))
    before = resident(server)
    async with aclosing(Syncer(backend, FELIX).batches()) as batches:
        async for batch in batches:
            if batch.status is SyncStatus.IN_SYNC:
                break
        cpu = time.process_time()
        await asyncio.sleep(seconds)
        used = time.process_time() - cpu
        print(f"following {len(FELIX)} listings in idleness for {seconds:.0f} s")
        print(f"  CPU {used * 1e3:.0f} ms, {used / seconds:.3%} of a core")
        print(f"  etcd grew by {resident(server) - before:.1f} MB for its {len(FELIX)} streams")
    await backend.close()


def resident(server: Etcd) -> float:
    with open(f"/proc/{server.pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
