"""Anything at all is written straight into etcd: the cluster goes on, says so once, and uses none of it."""

import json

import pytest

from tests.support.etcd import Gateway
from tortie.datastore.kinds import KINDS
from tortie.lab.cluster import Lab

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

_RESOURCES = "/calico/resources/v3/projectcalico.org/"
_IPAM = "/calico/ipam/v2/"
_BLOCK = "assignment/ipv4/block/192.168.{}.0-26"
MARK = "evil0666"  # in every bad value, and nowhere else
EVIL = f"{MARK}\";'}}\n}}\nprocess {MARK} {{ run /bin/{MARK}; }}\n{{{{ 1 }}}} $({MARK}) `{MARK}` %s \\"
LONG = MARK * 1250  # 10 kB


def resource(kind: str, name: str, spec: object, namespace: str = "") -> tuple[str, str]:
    """Where a resource is stored, and its JSON."""
    path = "/".join(filter(None, [KINDS[kind].plural, namespace, name]))
    metadata = {"name": name, "uid": "00000000-0000-4000-8000-000000000000"}
    body = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec}
    return _RESOURCES + path, json.dumps(body)


# kind -> specs of which each is bad in its own way
SPECS: dict[str, list[object]] = {
    "Node": [
        {"bgp": {"ipv4Address": f"172.18.0.66/24{EVIL}"}},
        {"bgp": {"ipv4Address": "172.18.0.66/24", "asNumber": 2**70}},
        {"bgp": {"ipv4Address": LONG}},
    ],
    "IPPool": [
        {"cidr": EVIL},
        {"cidr": "10.66.0.0/16", "blockSize": 10**30},
        {"cidr": "10.66.0.0/16", "nodeSelector": EVIL},
        {"cidr": "10.66.0.0/16", "ipipMode": EVIL},
    ],
    "BGPConfiguration": [
        {"asNumber": -5, "logSeverityScreen": EVIL},
        {"nodeMeshPassword": {"secretKeyRef": {"name": EVIL, "key": 7}}},
        {"serviceClusterIPs": [{"cidr": EVIL}]},
    ],
    "BGPPeer": [
        {"peerIP": EVIL, "asNumber": 64512},
        {"peerIP": "172.18.0.66", "asNumber": 2**33},
        {"peerIP": "172.18.0.66", "asNumber": f"64512 {EVIL}"},
        {"peerIP": "172.18.0.66", "asNumber": 64512, "node": LONG},
        {"peerIP": "172.18.0.66", "asNumber": 64512, "password": EVIL},
        {"peerIP": "172.18.0.66", "asNumber": 64512, "nodeSelector": EVIL},
    ],
    "FelixConfiguration": [
        {"interfacePrefix": EVIL},
        {"iptablesMarkMask": 2**90},
        {"chainInsertMode": EVIL},
        {"ipipMTU": MARK},
    ],
    "WorkloadEndpoint": [
        {"node": "node-1", "orchestrator": "k8s", "pod": EVIL, "endpoint": "eth0", "interfaceName": EVIL},
        {"node": "node-1", "workload": EVIL, "ipNetworks": [EVIL], "interfaceName": f"cali{MARK}"},
        {"node": "node-2", "interfaceName": LONG, "ipNetworks": ["192.168.0.1/32"], "mac": EVIL},
    ],
    "Profile": [
        {"ingress": [{"action": EVIL}]},
        {"ingress": [{"action": "Allow", "source": {"nets": [EVIL], "selector": EVIL}}]},
        {"labelsToApply": {EVIL: EVIL}},
    ],
    "GlobalNetworkPolicy": [
        {"selector": EVIL, "types": ["Ingress"]},
        {"selector": "all()", "types": [EVIL], "ingress": [{"action": "Deny"}]},
        {"selector": "all()", "ingress": [{"action": "Deny", "destination": {"ports": [EVIL, 99999999]}}]},
    ],
    "NetworkPolicy": [
        {"selector": EVIL},
        {"order": EVIL},
        {"egress": [{"action": "Deny", "protocol": EVIL}]},
    ],
    "GlobalNetworkSet": [{"nets": [EVIL]}, {"nets": EVIL}],
    "NetworkSet": [{"nets": [EVIL, 5]}],
    "HostEndpoint": [{"node": "node-1", "interfaceName": EVIL}, {"node": "node-1", "expectedIPs": [EVIL]}],
    "Tier": [{"order": MARK}],
    "IPReservation": [{"reservedCIDRs": EVIL}],
}


def hostile_resources() -> dict[str, str]:
    found = {}
    for kind, specs in SPECS.items():
        namespace = "default" if KINDS[kind].namespaced else ""
        for number, spec in enumerate([*specs, [MARK], MARK, 10**40]):
            found |= dict([resource(kind, f"bad-{number}", spec, namespace)])
        folder = resource(kind, "", {}, namespace)[0].rstrip("/")
        found |= {
            f"{folder}/bad-json": f'{{"kind": "{kind}", "spec": {{"{MARK}',
            f"{folder}/bad-list": f'["{MARK}"]',
            f"{folder}/bad-depth": "[" * 5000 + f'"{MARK}"' + "]" * 5000,
            f"{folder}/bad-text": f'"\\ud800 {MARK} \\u0000"',
        }
    return found


def hostile_ipam() -> dict[str, str]:
    block = {
        "cidr": "192.168.201.0/26",
        "affinity": f"host:{EVIL}",
        "allocations": [0],
        "unallocated": [1, 1],
    }
    return {
        _IPAM + _BLOCK.format(200): f'{{"{MARK}',
        _IPAM + _BLOCK.format(201): json.dumps(block),
        _IPAM + _BLOCK.format(202): json.dumps({"cidr": EVIL, "allocations": MARK}),
        f"{_IPAM}host/node-1/ipv4/block/192.168.203.0-26": f'["{MARK}"]',
        f"{_IPAM}host/node-2/ipv4/block/192.168.204.0-26": f'{{"state": "{MARK}"}}',
        f"{_IPAM}handle/{MARK}": MARK,
    }


def odd_keys() -> dict[str | bytes, str]:
    """Keys that name nothing: nobody is to read their values."""
    value = resource("Node", MARK, {"bgp": {"ipv4Address": "172.18.0.66/24"}})[1]
    names = ["nodes//x", "nodes/", "nodes/a/b/c", f"nodes/{MARK}/x", f"{MARK}s/x", "workloadendpoints/x"]
    return {
        **{f"{_RESOURCES}{name}": value for name in names},
        f"{_RESOURCES}nodes/".encode() + b"\xff\xfe": value,
        f"{_IPAM}assignment/ipv4/block/{MARK}": value,
        f"{_IPAM}assignment/ipv9/block/192.168.205.0-26": value,
        f"{_IPAM}host//ipv4/block/192.168.206.0-26": value,
        f"{_IPAM}host/node-1/ipv4/block/192.168.206.7-26": value,
        "/calico/v1/config/InterfacePrefix": EVIL,
        "/calico/v1/host/node-1/config/LogSeverityScreen": EVIL,
    }


def test_probe(pods: Lab) -> None:
    etcd = Gateway(pods.etcd.endpoint)
    marks = {name: node.log.stat().st_size for name, node in pods.nodes.items()}
    bad = hostile_resources() | hostile_ipam()
    for path, value in bad.items():
        etcd.put(path, value)
    for key, value in odd_keys().items():
        etcd.put(key, value)
    import time

    time.sleep(8)
    for node in pods.nodes:
        pods.add_pod(f"late-{node}", node)
    time.sleep(5)
    for name, node in pods.nodes.items():
        with node.log.open("rb") as log:
            log.seek(marks[name])
            open(f"/tmp/churn/{name}.log", "wb").write(log.read())
        for f in ("/etc/calico/confd/config", "/var/run/calico", "/var/lib/calico"):
            print(node.box.run("grep", "-rl", MARK, f, check=False).stdout)
        for c in (("iptables-save",), ("ip6tables-save",), ("ipset", "save"), ("ip", "route")):
            print([l for l in node.box.output(*c).splitlines() if MARK in l])
        print(node.ready())
    open("/tmp/churn/bad.json", "w").write(json.dumps(list(bad)))
    m = pods.matrix()
    print(all(a.ok for a in m.values()))
    print(pods.calicoctl("get", "nodes").stdout, pods.calicoctl("get", "nodes").stderr)
    for k in SPECS:
        a = pods.calicoctl("get", k, "-A") if KINDS[k].namespaced else pods.calicoctl("get", k)
        print(k, a.returncode, a.stdout[:500], a.stderr[:500])
