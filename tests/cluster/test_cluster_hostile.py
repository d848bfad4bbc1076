"""Anything at all is written straight into etcd: the cluster goes on, says so once, and uses none of it."""

import json
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.cluster.cluster_pools import add_pod_of
from tests.support.etcd import Gateway
from tests.support.rest import at_rest
from tortie.datastore.kinds import KINDS
from tortie.lab.cluster import Lab, LabNode, wait_until
from tortie.lab.traffic import Flow

pytestmark = pytest.mark.cluster

_RESOURCES = "/calico/resources/v3/projectcalico.org/"
_IPAM = "/calico/ipam/v2/"
_BLOCK = "assignment/ipv4/block/192.168.{}.0-26"
MARK = "evil0666"  # in every bad value, and nowhere else
EVIL = f"{MARK}\";'}}\n}}\nprocess {MARK} {{ run /bin/{MARK}; }}\n{{{{ 1 }}}} $({MARK}) `{MARK}` %s \\"
LONG = MARK * 1250  # 10 kB
# A policy whose rules nobody can understand denies everything to those whom it selects, and that is right.
NOBODY = "nobody == 'here'"


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
        {"node": "node-1", "pod": EVIL, "interfaceName": EVIL, "ipNetworks": ["192.168.0.1/32"]},
        {"node": "node-1", "workload": EVIL, "ipNetworks": [EVIL], "interfaceName": f"cali{MARK}"},
        {"node": "node-1", "interfaceName": LONG, "ipNetworks": ["192.168.0.1/32"], "mac": EVIL},
    ],
    "Profile": [
        {"ingress": [{"action": EVIL}]},
        {"ingress": [{"action": "Allow", "source": {"nets": [EVIL], "selector": EVIL}}]},
        {"labelsToApply": {EVIL: EVIL}},
    ],
    "GlobalNetworkPolicy": [
        {"selector": EVIL, "types": ["Ingress"]},
        {"selector": "all()", "types": [EVIL], "ingress": [{"action": "Deny"}]},
        {"selector": NOBODY, "ingress": [{"action": "Deny", "destination": {"ports": [EVIL, 99999999]}}]},
    ],
    "NetworkPolicy": [
        {"selector": EVIL},
        {"order": EVIL},
        {"selector": NOBODY, "egress": [{"action": "Deny", "protocol": EVIL}]},
    ],
    "GlobalNetworkSet": [{"nets": [EVIL]}, {"nets": EVIL}],
    "NetworkSet": [{"nets": [EVIL, 5]}],
    "HostEndpoint": [{"node": "node-1", "interfaceName": EVIL}, {"node": "node-1", "expectedIPs": [EVIL]}],
    "Tier": [{"order": MARK}],
    "IPReservation": [{"reservedCIDRs": EVIL}],
}


GOOD = resource("GlobalNetworkSet", "good", {"nets": ["10.0.0.0/8"]})


def hostile_resources() -> dict[str, str]:
    found: dict[str, str] = {}
    for kind, specs in SPECS.items():
        namespace = "default" if KINDS[kind].namespaced else ""
        for number, spec in enumerate([*specs, [MARK], MARK, 10**40]):
            # Only an endpoint with a proper name is looked at any further.
            name = f"node--1-k8s-bad--{number}-eth0" if kind == "WorkloadEndpoint" else f"bad-{number}"
            found |= dict([resource(kind, name, spec, namespace)])
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


# Faults in the meaning only show where an object is used: there is no such interface, no endpoint of these
# profiles, nobody whom these policies select, no node with these settings; and blocks and handles are read
# when they are needed.
_UNUSED = re.compile(
    r"hostendpoints/bad-0|felixconfigurations/bad-[0-3]$|profiles/bad-[012]$"
    r"|policies/(default/)?bad-[12]$|/handle/|/block/"
)


@pytest.fixture
def etcd(lab: Lab) -> Iterator[Gateway]:
    """The datastore, which afterwards is as it was before the test but for what pods changed."""
    gateway = Gateway(lab.etcd.endpoint)
    before = gateway.entries()
    yield gateway
    for key in [*hostile_resources(), *hostile_ipam(), *odd_keys(), GOOD[0]]:
        gateway.delete(key)
    for key, value in before.items():
        if key.endswith(("/default", "/config", "node.node-1")):
            gateway.put(key, value)


def sizes(lab: Lab) -> dict[str, int]:
    """Node -> how much it has logged, in bytes."""
    return {name: node.log.stat().st_size for name, node in lab.nodes.items()}


def since(lab: Lab, marks: dict[str, int]) -> dict[str, list[str]]:
    """Node -> the lines it has logged since the marks."""
    return {
        name: node.log.read_bytes()[marks[name] :].decode(errors="replace").splitlines()
        for name, node in lab.nodes.items()
    }


def mentions(line: str, path: str) -> bool:
    """Whether a line is about an object: by its path, or by kind and name."""
    if re.search(rf"{re.escape(path)}(?![-0-9a-z])", line):
        return True
    plural, _, name = path.removeprefix(_RESOURCES).partition("/")
    kind = next((one.name for one in KINDS.values() if one.plural == plural), "")
    return f"{kind}({name})" in line


def unreported(lines: list[str], bad: list[str]) -> list[str]:
    return [path for path in bad if not any(mentions(line, path) for line in lines)]


def repeated(lines: list[str]) -> dict[tuple[str, str], int]:
    """(process, message) -> how often, of the warnings that one process has given more than once."""
    parsed = [re.match(r"\S+ \S+ \[(WARNING|ERROR|FATAL)\]\[(\d+)\] (.*)", line) for line in lines]
    counted = Counter((found[2], found[3]) for found in parsed if found)
    return {what: times for what, times in counted.items() if times > 1}


def traces(lab: Lab) -> list[str]:
    """Where the mark of the bad values shows up on the nodes."""
    found = []
    for node in lab.nodes.values():
        for folder in ("/etc/calico", "/etc/exabgp", "/var/run/calico", "/var/lib/calico"):
            found += node.box.run("grep", "-rlas", MARK, folder, check=False).stdout.splitlines()
        for command in (
            "iptables-save",
            "ip6tables-save",
            "ipset save",
            "ip route show table all",
            "ip link",
        ):
            found += [line for line in node.box.output(*command.split()).splitlines() if MARK in line]
        found += [f"command line of {pid}" for pid in node.box.pids(MARK)]
    return found


def speakers_file(node: LabNode) -> str:
    """What confd has rendered for the BGP speaker."""
    name = {"exabgp": "exabgp.conf", "bird": "bird.cfg"}[node.speaker]
    return node.box.path(f"/etc/calico/confd/config/{name}").read_text()


def everybody_works(lab: Lab, suffix: str) -> None:
    """Nodes are ready, new pods come up on each, and every pod reaches every other."""
    for name, node in lab.nodes.items():
        node.wait_ready()
        lab.add_pod(f"{name}-{suffix}", name)
    wait_until(lambda: all(a.ok for a in lab.matrix().values()), "the pods to reach each other", 240)


def test_hostile_data_stops_nothing_is_reported_once_and_gets_nowhere(pods: Lab, etcd: Gateway) -> None:
    files = {name: speakers_file(node) for name, node in pods.nodes.items()}
    marks = sizes(pods)
    bad = hostile_resources() | hostile_ipam()
    with Flow(pods.pods["a"], pods.pods["b"]) as flow, Flow(pods.pods["c"], pods.pods["d"]) as across:
        for key, value in [*bad.items(), *odd_keys().items()]:
            etcd.put(key, value)
        expected = [path for path in bad if not _UNUSED.search(path)]
        for name in pods.nodes:
            # Endpoints and blocks are their own node's business, unless nobody can read them.
            own = [path for path in expected if name == "node-1" or not re.search(r"--[012]-eth0", path)]
            wait_until(
                lambda name=name, own=own: not unreported(since(pods, marks)[name], own),  # type: ignore[misc]
                f"everything bad to be reported by {name}",
                240,
                lambda name=name, own=own: "\n".join(unreported(since(pods, marks)[name], own)),  # type: ignore[misc]
            )
        everybody_works(pods, "late")
    assert (flow.lost, across.lost) == ([], []), f"of {flow.sent}"
    assert traces(pods) == []
    assert {name: speakers_file(node) for name, node in pods.nodes.items()} == files
    assert [repeated(lines) for lines in since(pods, marks).values()] == [{}, {}, {}]


def test_the_search_for_traces_finds_them(lab: Lab) -> None:
    """The control."""
    box = lab.nodes["node-2"].box
    box.path(f"/var/lib/calico/{MARK}").write_text(MARK)
    box.run("ip", "link", "add", f"{MARK}", "type", "veth", "peer", "name", "other")
    assert f"/var/lib/calico/{MARK}" in traces(lab)
    assert len(traces(lab)) == 3, "the file, and each end of the pair"
    box.run("ip", "link", "del", MARK)
    box.path(f"/var/lib/calico/{MARK}").unlink()
    assert traces(lab) == []


def test_calicoctl_lists_what_is_readable_and_names_the_rest(lab: Lab, etcd: Gateway) -> None:
    bad = hostile_resources()
    for key, value in [*bad.items(), *hostile_ipam().items(), *odd_keys().items()]:
        etcd.put(key, value)
    etcd.put(*GOOD)
    for kind in SPECS:
        scope = ["-n", "default"] if KINDS[kind].namespaced else []
        assert lab.calicoctl("get", kind, *scope).returncode == 0
        shown = lab.calicoctl("get", kind, *scope, "-o", "yaml")
        assert shown.returncode == 0, shown.stderr
        for path in bad:
            if f"/{KINDS[kind].plural}/" in path:
                name = path.rpartition("/")[2]
                listed = re.search(rf"^    name: {name}$", shown.stdout, re.M) is not None
                warned = f"{path} cannot be read" in shown.stderr
                assert listed != warned, (path, shown.stdout, shown.stderr)
    assert "good" in lab.calicoctl("get", "globalnetworksets").stdout
    assert "192.168.0.0/16" in lab.calicoctl("ipam", "show", "--show-blocks").stdout


def test_what_is_put_right_takes_effect(pods: Lab, etcd: Gateway) -> None:
    for key, value in (hostile_resources() | hostile_ipam()).items():
        etcd.put(key, value)
    marks = sizes(pods)
    etcd.put(*resource("BGPPeer", "bad-0", {"peerIP": "172.18.0.66", "asNumber": 64999}))
    etcd.put(*resource("Node", "bad-0", {"bgp": {"ipv4Address": "172.18.0.67/24", "asNumber": 64998}}))
    etcd.put(*resource("IPPool", "bad-0", {"cidr": "10.66.0.0/16", "natOutgoing": True}))
    for node in pods.nodes.values():
        node.wait_until(
            lambda node=node: (  # type: ignore[misc]
                {"172.18.0.66", "172.18.0.67"} <= set(re.findall(r"[\d.]+", speakers_file(node)))
            ),
            "the peer and the node to become neighbours",
        )
        node.wait_until(lambda node=node: "10.66.0.0/16" in node.box.output("ipset", "save"), "the pool")  # type: ignore[misc]
    annotations = {"cni.projectcalico.org/ipv4pools": '["bad-0"]'}
    for name in pods.nodes:
        added = add_pod_of("bad-0", pods, f"{name}-right", name, annotations=annotations)
        assert added.address().startswith("10.66.")
    wait_until(lambda: all(a.ok for a in pods.matrix().values()), "the pods to reach each other", 240)
    blocks = [path for path in hostile_ipam() if "assignment" in path]

    def unsaid(name: str) -> list[str]:
        """By a node: each has looked for a free block, and past those."""
        lines, good = since(pods, marks)[name], "ippools/bad-0 is valid again"
        return [*unreported(lines, blocks), *([] if good in "".join(lines) else [good])]

    for name, node in pods.nodes.items():
        node.wait_until(lambda name=name: unsaid(name) == [], "everything to be said")  # type: ignore[misc]
        lines = since(pods, marks)[name]
        assert all(sum(mentions(line, path) for line in lines) == 1 for path in blocks)


def test_a_node_whose_own_data_is_spoilt_goes_on(pods: Lab, etcd: Gateway) -> None:
    """What is read for a pod in particular, and the configuration of everything."""
    ((own, block),) = [
        entry
        for entry in etcd.entries(_IPAM + "assignment/ipv4/block/192.168.").items()
        if b"host:node-2" in entry[1]
    ]
    handle = f"{_IPAM}handle/k8s-pod-network.{pods.pods['a'].container_id}"
    spoilt = [own, handle, f"{_IPAM}config"]
    spoilt += [_RESOURCES + name for name in ("bgpconfigurations/default", "felixconfigurations/default")]
    spoilt += [_RESOURCES + "felixconfigurations/node.node-1"]
    for key in spoilt:
        etcd.put(key, f'{{"{MARK}')
    # Speakers may still be about to end what they began with the peers of the test before.
    marks = at_rest(lambda: sizes(pods), "the logs", 180, seconds=5)
    pods.delete_pod("a")
    assert handle not in etcd.entries(_IPAM)
    everybody_works(pods, "late")
    everybody_works(pods, "later")
    assert [repeated(lines) for lines in since(pods, marks).values()] == [{}, {}, {}]
    etcd.put(own, block)
    pods.delete_pod("b")
    assert "pod" not in etcd.entries(own)[own].decode()


def test_settings_of_felix_that_are_nonsense_are_said_and_change_nothing(pods: Lab, etcd: Gateway) -> None:
    marks = sizes(pods)
    nonsense = {"chainInsertMode": EVIL, "interfacePrefix": EVIL, "ipipMTU": 2**40, "iptablesMarkMask": 2**70}
    etcd.put(*resource("FelixConfiguration", "default", nonsense | {"logSeverityScreen": LONG}))
    for name in pods.nodes:
        wait_until(
            lambda name=name: MARK in "".join(since(pods, marks)[name]),  # type: ignore[misc]
            f"{name} to report the nonsense",
            240,
        )
    everybody_works(pods, "late")
    assert traces(pods) == []
    for name, lines in since(pods, marks).items():
        assert repeated(lines) == {}
        assert not [line for line in lines if "Traceback" in line], name
