"""What pods leave on the nodes of a lab and in its datastore, to be compared before and after."""

import json
import re
from collections.abc import Iterator

from tests.support.etcd import Gateway
from tortie.lab.cluster import Lab, LabNode

_FOLDERS = ("/var/run/calico", "/var/lib/calico", "/var/lib/cni", "/run/netns")
_IPAM = "/calico/ipam/v2/"


def of_pods(lab: Lab) -> set[str]:
    """Everything that exists because of pods, a line each; not the blocks, which stay with their nodes."""
    found = {f"etcd: {key}" for key in Gateway(lab.etcd.endpoint).entries("/calico/") if not _of_blocks(key)}
    for node in lab.nodes.values():
        found |= {f"{node.name}: {line}" for line in _on_node(node)}
    return found


def _of_blocks(key: str) -> bool:
    return "/block/" in key or key.endswith("/status") or "/last_reported_status" in key


def _on_node(node: LabNode) -> Iterator[str]:
    box = node.box
    for link in json.loads(box.output("ip", "-j", "link")):
        yield f"link {link['ifname']}"
    for route in node.routes("table", "all"):
        if not str(route["dst"]).endswith("/26"):
            yield f"route {route['dst']} dev {route.get('dev')}"
    for neighbour in json.loads(box.output("ip", "-j", "neigh")):
        if neighbour["dev"] != "eth0":
            yield f"neighbour {neighbour['dst']} dev {neighbour['dev']}"
    for folder in _FOLDERS:
        yield from (f"file {path}" for path in box.run("find", folder, check=False).stdout.split("\n"))
    for line in box.output("iptables-save").splitlines() + box.output("ip6tables-save").splitlines():
        if line.startswith(("-A", ":")):
            yield f"iptables {line.partition(' [')[0]}"  # without its counters
    for line in box.output("ipset", "save").splitlines():
        if not line.endswith("/26"):
            yield f"ipset {line}"


def ipam_faults(lab: Lab) -> list[str]:
    """What is wrong with the blocks of a lab without pods: addresses in use, and owners at odds."""
    entries = Gateway(lab.etcd.endpoint).entries(_IPAM)
    faults = [f"{key} is left" for key in entries if key.startswith(f"{_IPAM}handle/")]
    owners = {}  # block -> its owner, by itself
    for key, value in entries.items():
        if key.startswith(f"{_IPAM}assignment/"):
            block = json.loads(value)
            owners[key.rpartition("/")[2]] = block["affinity"]
            used = [number for number, slot in enumerate(block["allocations"]) if slot is not None]
            if used or block["attributes"]:
                faults.append(f"{key} has {used} in use by {block['attributes']}")
            if sorted(block["unallocated"]) != list(range(len(block["allocations"]))):
                faults.append(f"{key} lost some of its free addresses: {block['unallocated']}")
    claims = {}  # block -> its owner, by the affinity
    for key, value in entries.items():
        if match := re.fullmatch(rf"{_IPAM}(host/[^/]+)/ipv[46]/block/(.+)", key):
            if (state := json.loads(value)["state"]) != "confirmed":
                faults.append(f"{key} is {state}")
            claims[match[2]] = match[1].replace("/", ":")
    if owners != claims:
        faults.append(f"blocks say {owners}, affinities {claims}")
    return faults
