"""The pool is edited as its user does it: get -o yaml, an editor, apply -f."""

import re
import socket
from collections.abc import Callable

import pytest

from tests.support.etcd import Gateway, b64
from tortie.core.errors import CniError
from tortie.lab.cluster import Lab, wait_until
from tortie.lab.pods import Pod
from tortie.linux import netns

pytestmark = pytest.mark.cluster

POOL = "default-ipv4-ippool"
_PROBE_PORT = 9999


def fetch(lab: Lab) -> str:
    shown = lab.calicoctl("get", "ippool", POOL, "-o", "yaml")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def edited(text: str, field: str, value: str) -> str:
    """The YAML with one field of the spec changed or added."""
    if re.search(rf"^  {field}: ", text, re.M):
        return re.sub(rf"^  {field}: .*$", f"  {field}: {value}", text, flags=re.M)
    return text.replace("spec:\n", f"spec:\n  {field}: {value}\n")


def edit(lab: Lab, field: str, value: str) -> None:
    applied = lab.calicoctl("apply", "-f", "-", stdin=edited(fetch(lab), field, value))
    assert applied.returncode == 0, applied.stderr
    assert applied.stdout == "Successfully applied 1 'IPPool' resource(s)\n"
    shown = re.search(rf"^  {field}: (.*)$", fetch(lab), re.M)
    assert (shown[1] if shown else "false") == value  # what is false is left out, as Go does


def source_seen_outside(lab: Lab, pod: Pod) -> str:
    """The source address of a pod's packet, as a machine outside the cluster sees it; '' if none came."""
    node = lab.nodes[pod.box.name]
    outside = f"{node.ip.rpartition('.')[0]}.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((outside, _PROBE_PORT))
        server.settimeout(10)
        with netns.call_in(pod.netns_fd, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"?", (outside, _PROBE_PORT))
        try:
            return str(server.recvfrom(16)[1][0])
        except TimeoutError:
            return ""


def test_nat_outgoing_is_switched_off_and_on(pods: Lab) -> None:
    pod, node = pods.pods["a"], pods.nodes["node-1"]

    def masqueraded() -> bool:
        return "192.168.0.0/16" in node.box.output("ipset", "list", "cali40masq-ipam-pools")

    def becomes(wanted: str) -> Callable[[], bool]:
        return lambda: source_seen_outside(pods, pod) == wanted

    wait_until(becomes(node.ip), "packets to leave with the node's address", 240)
    assert masqueraded()
    edit(pods, "natOutgoing", "false")
    wait_until(becomes(pod.address()), "packets to leave with the pod's own address", 240)
    wait_until(lambda: not masqueraded(), "the pool to be in the set no more", 240)
    edit(pods, "natOutgoing", "true")
    wait_until(becomes(node.ip), "packets to leave with the node's address", 240)
    assert masqueraded()
    assert all(answer.ok for answer in pods.matrix(refused=()).values())


def test_a_disabled_pool_gives_no_more_addresses_and_takes_none_away(pods: Lab) -> None:
    edit(pods, "disabled", "true")

    def refused() -> str:
        try:
            pods.add_pod("refused", "node-1")
        except CniError as err:
            return err.msg
        pods.delete_pod("refused")
        return ""

    wait_until(lambda: "cannot find a qualified ippool" in refused(), "new pods to be refused", 240)
    wait_until(lambda: all(a.ok for a in pods.matrix().values()), "the pods to reach each other", 240)
    edit(pods, "disabled", "false")
    wait_until(lambda: refused() == "", "new pods to get addresses again", 240)
    pods.add_pod("again", "node-1")
    wait_until(lambda: all(a.ok for a in pods.matrix().values()), "the pods to reach each other", 240)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("cidr", "192.168.0.0/33", "CIDR"),
        ("cidr", "192.168.0.1/16", "CIDR"),
        ("cidr", "10.99.0.0/16", "CIDR"),
        ("cidr", "'evil\"\\n{'", "CIDR"),
        ("blockSize", "33", "blockSize"),
        ("blockSize", "25", "blockSize"),
        ("blockSize", "many", "blockSize"),
        ("blockSize", "99999999999999999999999", "blockSize"),
        ("ipipMode", "Sometimes", "ipipMode"),
        ("vxlanMode", "7", "vxlanMode"),
        ("nodeSelector", "has(", "nodeSelector"),
        ("natOutgoing", "perhaps", "natOutgoing"),
        ("disabled", "[]", "disabled"),
        ("allowedUses", "[Everything]", "allowedUses"),
        ("assignmentMode", "Random", "assignmentMode"),
        ("natOutgiong", "true", "natOutgiong"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field_and_nothing_changes(
    lab: Lab, field: str, value: str, named: str
) -> None:
    etcd, key = Gateway(lab.etcd.endpoint), f"/calico/resources/v3/projectcalico.org/ippools/{POOL}"
    before = etcd.entries(key)
    text = edited(fetch(lab), field, value)
    assert text != fetch(lab)
    refused = lab.calicoctl("apply", "-f", "-", stdin=text)
    assert refused.returncode != 0
    assert re.search(named, refused.stderr + refused.stdout, re.I), refused
    assert "Traceback" not in refused.stderr
    assert etcd.entries(key) == before
    (found,) = etcd.ask("kv/range", key=b64(key))["kvs"]
    assert edited(fetch(lab), field, value) == text and int(found["mod_revision"]) == revision_of(text)


def revision_of(text: str) -> int:
    found = re.search(r'^  resourceVersion: "(\d+)"$', text, re.M)
    assert found is not None, text
    return int(found[1])
