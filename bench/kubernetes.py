"""felix and confd on a Kubernetes API server with a big cluster: start, memory, bytes read, and changes.

    sudo python bench/kubernetes.py [PODS SERVICES POLICIES]      (default: 10000 2000 1000)

Runs itself again inside its own network namespace; nothing outside is touched. A real kube-apiserver and its
etcd have one core, what is measured has the other. The cluster has 100 nodes and 50 namespaces, this node
100 pods with 20 policies each, every policy is enforced here, and every service has five endpoints; pods
are as large as they are with a kubelet's status. Bytes are those of the TCP connections, so with TLS.
A change counts from the request to the API server until a question to the kernel finds what it leads to:
after one pod elsewhere got another label, its address in the set it belongs to then; after one rule of a
NetworkPolicy has another port, the policy's new chain for IPv4 and for IPv6.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.changes import Felix, tell, timed, wait
from bench.parts import isolated
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.kubernetes import convert_network_policy
from tortie.datastore.kubernetes.api import Api
from tortie.datastore.kubernetes.kubeconfig import locate
from tortie.datastore.names import host_interface
from tortie.felix.calc.model import PolicyId
from tortie.felix.calc.rules import selectors
from tortie.lab.apiserver import ADMIN_TOKEN, ApiServer
from tortie.lab.controlplane import find_program
from tortie.lab.etcd import Etcd
from tortie.linux import links
from tortie.linux.links import VethEnd
from tortie.linux.netlink import NetlinkSocket

_ROOT = str(Path(__file__).resolve().parent.parent)
_SIZES = (10_000, 2_000, 1_000)
_NODE = "bench"
_NODES, _NAMESPACES, _LOCAL, _APPS, _BEHIND = 100, 50, 100, 500, 5
_ROUNDS = 100
_SERVERS, _MEASURED = "0", "1"  # cores
_WRITERS = 16  # requests under way at a time while the cluster is made
_MERGE = "application/merge-patch+json"
_CRD = "/apis/crd.projectcalico.org/v1"
_SLICES = "/apis/discovery.k8s.io/v1beta1"


def main() -> None:
    isolated.ensure_network()
    print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}\n")
    sizes = [int(text) for text in sys.argv[1:4]] or _SIZES
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        measure(Path(folder), *sizes)


def measure(folder: Path, pods: int, services: int, policies: int) -> None:
    os.sched_setaffinity(0, {int(_SERVERS)})  # inherited by the servers
    etcd = Etcd(folder / "etcd")
    etcd.start()
    server = ApiServer(folder / "api", etcd.endpoint, find_program)
    try:
        server.start()
        began = time.monotonic()
        asyncio.run(fill(server, pods, services, policies))
        made = time.monotonic() - began
        print(f"{pods:,} pods, {services:,} services, {policies:,} policies (made in {made:.0f} s)")
        make_interfaces()
        config = folder / "kubeconfig"
        config.write_text(server.kubeconfig(ADMIN_TOKEN))
        datastore = {"DATASTORE_TYPE": "kubernetes", "KUBECONFIG": str(config)}
        for nftables in (True, False):
            report_felix(folder, server, datastore, policies, nftables)
        report_confd(folder, datastore)
    finally:
        server.stop_server()
        etcd.stop()


# --- the cluster ----------------------------------------------------------------------------------


async def fill(server: ApiServer, pods: int, services: int, policies: int) -> None:
    config = DatastoreConfig(k8sAPIEndpoint=server.url, k8sCAFile=server.ca, k8sAPIToken=ADMIN_TOKEN)
    api = Api(locate(config), 1e6, 1_000_000)
    waiting = iter([*objects(pods, services, policies)])

    async def work() -> None:
        for path, body, status in waiting:
            await api.create(path, body)
            if status:
                await api.patch(f"{path}/{body['metadata']['name']}/status", {"status": status})

    await asyncio.gather(*(work() for _ in range(_WRITERS)))
    await api.close()


def objects(pods: int, services: int, policies: int) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Where to, what, and its status."""
    yield f"{_CRD}/clusterinformations", ours("ClusterInformation", "default", {"datastoreReady": True}), None
    yield f"{_CRD}/ippools", ours("IPPool", "pool", {"cidr": "10.64.0.0/15", "ipipMode": "Never"}), None
    ranges = {
        "serviceClusterIPs": [{"cidr": "10.96.0.0/16"}],
        "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}],
    }
    yield f"{_CRD}/bgpconfigurations", ours("BGPConfiguration", "default", ranges), None
    for number in range(_NODES):
        name = node(number)
        annotations = {"projectcalico.org/IPv4Address": f"172.18.{number >> 8}.{number & 255}/16"}
        yield "/api/v1/nodes", {"metadata": {"name": name, "annotations": annotations}}, None
    for number in range(_NAMESPACES):
        name = f"n{number}"
        yield "/api/v1/namespaces", {"metadata": {"name": name, "labels": {"team": f"t{number % 5}"}}}, None
        yield f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}}, None
    for number in range(pods):
        yield f"/api/v1/namespaces/{namespace(number)}/pods", pod(number), pod_status(number)
    for number in range(services):
        yield from service(number, pods)
    for number in range(policies):
        yield (
            f"/apis/networking.k8s.io/v1/namespaces/{namespace(number)}/networkpolicies",
            policy(number),
            None,
        )


def ours(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def node(number: int) -> str:
    return f"node-{number}" if number else _NODE


def namespace(number: int) -> str:
    return f"n{number % _NAMESPACES}"


def address(number: int) -> str:
    return f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def pod(number: int) -> dict[str, Any]:
    """The first are on this node."""
    prefix = "cni.projectcalico.org/"
    annotations = {f"{prefix}podIP": f"{address(number)}/32", f"{prefix}podIPs": f"{address(number)}/32"}
    container = {
        "name": "server",
        "image": "registry.example/team/server:1.2.3",
        "ports": [{"name": "http", "containerPort": 8080}],
        "env": [{"name": f"VARIABLE_{one}", "value": "a value of some length"} for one in range(8)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/server"}],
    }
    on = 0 if number < _LOCAL else 1 + number % (_NODES - 1)
    return {
        "metadata": {"name": f"pod-{number}", "labels": labels(number), "annotations": annotations},
        "spec": {
            "nodeName": node(on),
            "serviceAccountName": "default",
            "containers": [container],
            "volumes": [{"name": "config", "configMap": {"name": "server"}}],
        },
    }


def labels(number: int) -> dict[str, str]:
    here = {"tier": "server"} if number < _LOCAL else {}
    return {"app": f"a{number % _APPS}", "pod-template-hash": f"{number:010x}", **here}


def pod_status(number: int) -> dict[str, Any]:
    conditions = ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    now = "2027-01-15T08:00:00Z"
    return {
        "phase": "Running",
        "podIP": address(number),
        "podIPs": [{"ip": address(number)}],
        "startTime": now,
        "conditions": [{"type": one, "status": "True", "lastTransitionTime": now} for one in conditions],
        "containerStatuses": [
            {
                "name": "server", "ready": True, "started": True, "restartCount": 0,
                "image": "registry.example/team/server:1.2.3", "imageID": f"sha256:{number:064x}",
                "containerID": f"containerd://{number:064x}", "state": {"running": {"startedAt": now}},
            }
        ],
    }  # fmt: skip


def service(number: int, pods: int) -> Iterator[tuple[str, dict[str, Any], Any]]:
    name, where = f"service-{number}", namespace(number)
    spec = {"selector": {"app": f"a{number % _APPS}"}, "ports": [{"port": 80, "targetPort": 8080}]}
    yield f"/api/v1/namespaces/{where}/services", {"metadata": {"name": name}, "spec": spec}, None
    behind = [(number * _BEHIND + one) % pods for one in range(_BEHIND)]
    yield (
        f"{_SLICES}/namespaces/{where}/endpointslices",
        {
            "metadata": {"name": f"{name}-x", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": [address(one)],
                    "conditions": {"ready": True},
                    "topology": {"kubernetes.io/hostname": node(1 + one % (_NODES - 1))},
                    "targetRef": {"kind": "Pod", "name": f"pod-{one}", "namespace": namespace(one)},
                }
                for one in behind
            ],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        },
        None,
    )


def policy(number: int, port: int = 80) -> dict[str, Any]:
    """Of the pods of this node in its namespace; no two look into the same sets."""
    some = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": f"a{number % _APPS}"}}}
    team = {"namespaceSelector": {"matchLabels": {"team": f"t{number % 5}"}}}
    ports = [{"protocol": "TCP", "port": port}, {"protocol": "TCP", "port": 8000, "endPort": 8010}]
    spec = {
        "podSelector": {"matchLabels": {"tier": "server"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [some, team], "ports": ports[:1]}],
        "egress": [
            {"to": [some], "ports": ports[:1]},
            {"to": [{"ipBlock": {"cidr": f"10.{number % 200}.0.0/16"}}]},
        ],
    }
    return {"metadata": {"name": f"policy-{number}"}, "spec": spec}


def make_interfaces() -> None:
    with NetlinkSocket() as netlink:
        for number in range(_LOCAL):
            name = host_interface(namespace(number), f"pod-{number}")
            netlink.execute(
                links.create_veth(VethEnd(name), VethEnd(f"far{number}")),
                links.change(name, up=True),
                links.change(f"far{number}", up=True),
            )


# --- felix ----------------------------------------------------------------------------------------


def report_felix(
    folder: Path, server: ApiServer, datastore: dict[str, str], policies: int, nftables: bool
) -> None:
    felix = Felix(datastore, folder, nftables, "taskset", "-c", _MEASURED, node=_NODE)
    try:
        last = policies - 1
        ident = PolicyId(f"knp.default.policy-{last}", namespace(last), "NetworkPolicy")
        wait(lambda: felix.has_said("the datastore is in sync"), felix)
        synced, read = time.monotonic() - felix.began, received(felix.pid)
        wait(lambda: felix.chain(4, ident) and felix.chain(6, ident), felix)
        print(f"felix, {'nftables' if nftables else 'iptables'}")
        print(f"  start to in sync       {synced:8.2f} s    to all rules in the kernel "
              f"{time.monotonic() - felix.began:.2f} s    CPU {felix.cpu():.2f} s")  # fmt: skip
        print(f"  read until in sync     {read / 2**20:8.1f} MiB")
        wait(lambda: felix.has_said("first apply done") or time.monotonic() > felix.began + 20, felix)
        time.sleep(1.0)
        tell("one pod's label", [label_change(felix, server, number) for number in range(_ROUNDS)])
        tell("one rule", [rule_edit(felix, server, number, nftables) for number in range(_ROUNDS)])
        print(f"  resident memory        {felix.resident():8.0f} MiB, at most {highest(felix.pid):.0f}\n")
        for number in range(_ROUNDS):
            relabel(server, number, number + _LOCAL)
    finally:
        felix.kill()
        for command in (["nft", "flush", "ruleset"], ["ipset", "destroy"]):
            subprocess.run(command, check=True)


def label_change(felix: Felix, server: ApiServer, number: int) -> tuple[float, float]:
    other, mine = number + _LOCAL, (number + 7) % _APPS
    spec = convert_network_policy(
        {"metadata": {"name": "p", "namespace": "n0"}} | {"spec": policy(mine)["spec"]}
    )
    assert spec.policy is not None
    selector = selectors(spec.policy.spec.ingress[0].source, namespace(mine))[0]
    assert selector is not None
    ident = selector.id
    return timed(felix, lambda: relabel(server, number, mine), lambda: felix.member(ident, address(other)))


def relabel(server: ApiServer, number: int, app: int) -> None:
    other = number + _LOCAL
    path = f"/api/v1/namespaces/{namespace(other)}/pods/pod-{other}"
    server.ask("PATCH", path, {"metadata": {"labels": {"app": f"a{app % _APPS}"}}}, _MERGE)


def rule_edit(felix: Felix, server: ApiServer, number: int, nftables: bool) -> tuple[float, float]:
    ident = PolicyId(f"knp.default.policy-{number}", namespace(number), "NetworkPolicy")
    before = [felix.chain(version, ident) for version in (4, 6)]
    path = f"/apis/networking.k8s.io/v1/namespaces/{namespace(number)}/networkpolicies/policy-{number}"
    body = policy(number, 10_000 + number + nftables * _ROUNDS)

    def there() -> bool:
        now = [felix.chain(version, ident) for version in (4, 6)]
        return all(new and new != old for new, old in zip(now, before, strict=True))

    return timed(felix, lambda: server.ask("PUT", path, body), there)


def received(pid: int) -> int:
    """Bytes that came in on the TCP connections that a process has."""
    shown = subprocess.run(["ss", "-tinpOH"], capture_output=True, text=True, check=True).stdout
    own = [line for line in shown.splitlines() if f"pid={pid}," in line]
    return sum(int(found[1]) for line in own if (found := re.search(r"bytes_received:(\d+)", line)))


def highest(pid: int) -> float:
    """MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


# --- confd ----------------------------------------------------------------------------------------


def report_confd(folder: Path, datastore: dict[str, str]) -> None:
    environment = {
        **os.environ, **datastore, "PYTHONPATH": _ROOT, "NODENAME": _NODE, "CALICO_RUN_DIR": str(folder),
        "CALICO_CONFD_CONFIG_DIR": str(folder), "FELIX_CONFIGFILE": "/nonexistent",
    }  # fmt: skip
    began = time.monotonic()
    with (folder / "confd.log").open("wb") as log:
        command = ["taskset", "-c", _MEASURED, sys.executable, "-m", "tortie.confd.daemon"]
        confd = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _until((folder / "bgp.json").exists, began)
        took = time.monotonic() - began
        print("confd, which announces a range of cluster IPs")
        print(f"  start to files         {took:8.2f} s    read {received(confd.pid) / 2**20:.1f} MiB")
        print(f"  resident memory        {highest(confd.pid):8.0f} MiB at most")
    finally:
        confd.kill()
        confd.wait()


def _until(condition: Callable[[], object], began: float) -> None:
    while not condition():
        if time.monotonic() > began + 60:
            sys.exit("confd wrote nothing within a minute")
        time.sleep(0.005)


if __name__ == "__main__":
    main()
